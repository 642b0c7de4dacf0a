use super::*;
use crate::comparison::{Expiry, Row};
use crate::verify::Became;
use throughline::{Delivery, Envelope};

/// Identities as a consumer would give them.
async fn identities(count: usize) -> Vec<Identity> {
    let driver = throughline_testkit::scripted::ScriptedConsumer::new();
    for n in 0..count {
        driver.feed(Envelope::builder("x").id(format!("id-{n}")).build());
    }
    let address = "memory:x?queue=q".parse().unwrap();
    let mut consumer = throughline::Consumer::new(driver, &address, throughline::ConsumeOptions::default());
    let mut all = Vec::new();
    while all.len() < count {
        let delivery: Delivery = consumer.next().await.unwrap().unwrap();
        all.extend(Identity::of(&delivery));
    }
    all
}

fn entries(identities: &[Identity]) -> Vec<Entry> {
    identities
        .iter()
        .map(|identity| Entry { identity: Some(identity.clone()), rejected: None, sent: None })
        .collect()
}

async fn open(path: &Path) -> Result<Ledger> {
    Ledger::open(Some(path), "from".into(), "to".into(), 10).await
}

#[tokio::test]
async fn what_was_noted_is_known_after_the_process_died() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let ids = identities(3).await;
    let ledger = open(&path).await.unwrap();
    let moved = Totals { moved: 2, ..Totals::default() };
    assert_eq!(ledger.writer().note(entries(&ids[..2]), moved).await.unwrap(), 0);
    assert_eq!(ledger.writer().note(entries(&ids[1..2]), Totals::default()).await.unwrap(), 1, "a copy");
    // As if it were killed: its run never ends.
    let Ledger { commands, thread, .. } = ledger;
    drop(commands);
    thread.join().unwrap();

    let ledger = open(&path).await.unwrap();
    let before = ledger.before();
    assert_eq!((before.runs, before.killed, before.killed_in_flight), (1, 1, 10));
    assert_eq!((before.totals.moved, before.totals.copies), (2, 1));
    assert_eq!(ledger.writer().known(ids.clone()).await.unwrap(), [true, true, false]);
    ledger.end(true).await.unwrap();

    let ledger = open(&path).await.unwrap();
    assert_eq!((ledger.before().runs, ledger.before().killed), (2, 1));
    assert_eq!(ledger.writer().known(ids).await.unwrap(), [false; 3], "all had left the source");
    ledger.end(false).await.unwrap();
}

#[tokio::test]
async fn a_shared_one_keeps_what_was_sent_and_can_be_read_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    // As another process may just have made it.
    std::fs::write(&path, "").unwrap();
    assert_eq!((peek(&path, true).unwrap().runs, remembered(&path).unwrap().count), (0, 0));
    let open = || Ledger::open_shared(Some(&path), "from".into(), "to".into(), 10);
    let message = Envelope::builder("x").id("a").build();
    let ledger = open().await.unwrap();
    let sent = Entry { identity: None, rejected: None, sent: Some(Sent::new(Became::Sent, 1, &message)) };
    ledger.writer().note(vec![sent], Totals { moved: 1, ..Totals::default() }).await.unwrap();
    let row = Row::of(&message, Expiry::Exact);
    assert_eq!(all_sent(&path).unwrap().unwrap(), HashSet::from([(row.id, row.content)]));
    let running = peek(&path, true).unwrap();
    assert_eq!((running.totals.moved, running.killed, running.killed_in_flight), (1, 0, 0));
    assert_eq!(peek(&path, false).unwrap().killed, 1);
    ledger.end(true).await.unwrap();
    let ledger = open().await.unwrap();
    assert_eq!(ledger.writer().expected().await.unwrap(), 1, "kept when all was settled");
    // One more than it remembers.
    ledger.writer().note(Vec::new(), Totals { moved: 1, ..Totals::default() }).await.unwrap();
    assert!(all_sent(&path).unwrap().is_none(), "that something is forgotten is known");
    ledger.end(true).await.unwrap();
}

#[tokio::test]
async fn one_bridge_at_a_time_and_only_the_one_it_is_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let ledger = open(&path).await.unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("in use"), "{error}");
    ledger.end(false).await.unwrap();
    let other = Ledger::open(Some(&path), "from".into(), "elsewhere".into(), 1).await.unwrap_err();
    assert!(other.to_string().contains("from from to to"), "{other}");

    let foreign = folder.path().join("foreign");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "no database, but long enough to be looked at as one would be").unwrap();
    for path in [foreign, text] {
        let error = open(&path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    let nowhere = open(Path::new("/nowhere/ledger")).await.unwrap_err();
    assert!(nowhere.to_string().contains("/nowhere/ledger"), "{nowhere}");
}

#[tokio::test]
async fn the_file_stays_small_and_the_latest_are_remembered() {
    let ids = identities(35).await;
    let (mut file, run, _) = File::open(None, "a", "b", 1, false).unwrap();
    file.set_generation(10);
    for id in &ids {
        let mut begun = file.begin().unwrap();
        begun.note(run, &entries(std::slice::from_ref(id)), &Totals::default(), Timestamp::now()).unwrap();
        begun.commit().unwrap();
    }
    let mut begun = file.begin().unwrap();
    let known = begun.known(&ids).unwrap();
    assert_eq!(known.iter().filter(|known| **known).count(), 15);
    assert!(known[20..].iter().all(|known| *known), "{known:?}");
}

#[test]
fn what_was_sent_is_remembered_up_to_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let (mut file, run, _) = File::open(Some(&path), "a", "b", 1, true).unwrap();
    file.set_memory(10, 4);
    let one = Totals { moved: 1, ..Totals::default() };
    for place in 0..35 {
        let sent = Sent::new(Became::Sent, place, &Envelope::builder("x").id(place.to_string()).build());
        let entry = Entry { identity: None, rejected: None, sent: Some(sent) };
        let mut begun = file.begin().unwrap();
        begun.note(run, &[entry], &one, Timestamp::now()).unwrap();
        begun.commit().unwrap();
        let known = remembered(&path).unwrap();
        assert!((place.min(9) + 1..=14).contains(&known.count) && known.moved == place + 1, "{known:?}");
    }
    let known = remembered(&path).unwrap();
    let mut ids = Vec::new();
    let mut after = 0;
    while let Some((last, _)) = page(&path, after).unwrap().last() {
        ids.extend(page(&path, after).unwrap().into_iter().map(|(_, sent)| sent.row.id));
        after = *last;
    }
    let latest: Vec<_> = (35 - known.count..35).map(|place| place.to_string()).collect();
    assert_eq!(ids, latest);
}

#[tokio::test]
async fn a_rejected_message_is_listed_with_its_reason() {
    let ledger = Ledger::open(None, "a".into(), "b".into(), 1).await.unwrap();
    let rejected = Rejected {
        at: String::new(),
        id: "7".into(),
        message_type: None,
        class: "limit_exceeded".into(),
        reason: "too large".into(),
    };
    let entry = Entry { identity: None, rejected: Some(rejected), sent: None };
    ledger.writer().note(vec![entry], Totals { rejected: 1, ..Totals::default() }).await.unwrap();
    let listed = ledger.end(true).await.unwrap();
    assert_eq!((listed[0].id.as_str(), listed[0].reason.as_str()), ("7", "too large"));
}

#[tokio::test]
async fn what_became_of_messages_is_given_in_pages_and_forgotten_once_settled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let ledger = open(&path).await.unwrap();
    let noted = |place: u64| {
        let became = if place < 1100 { Became::Sent } else { Became::Rejected };
        let envelope = Envelope::foreign(place.to_string(), None);
        Entry { identity: None, rejected: None, sent: Some(Sent::new(became, place, &envelope)) }
    };
    ledger.writer().note((0..1200).map(noted).collect(), Totals::default()).await.unwrap();
    assert_eq!(ledger.writer().expected().await.unwrap(), 1100);
    let (mut last, mut all) = (i64::MIN, Vec::new());
    loop {
        let page = ledger.writer().sent(last).await.unwrap();
        let Some((number, _)) = page.last() else { break };
        assert!(page.len() <= 500);
        last = *number;
        all.extend(page.into_iter().map(|(_, sent)| sent));
    }
    assert!(all.iter().map(|sent| sent.row.id.clone()).eq((0..1200).map(|place| place.to_string())));
    assert!(all.windows(2).all(|two| two[0].place < two[1].place));
    assert_eq!((all[1099].became, all[1100].became), (Became::Sent, Became::Rejected));
    ledger.end(true).await.unwrap();
    let ledger = open(&path).await.unwrap();
    assert!(ledger.writer().sent(i64::MIN).await.unwrap().is_empty());
    ledger.end(true).await.unwrap();
}
