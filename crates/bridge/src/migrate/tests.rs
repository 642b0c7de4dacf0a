use super::*;
use state::VERSION;

use crate::comparison::{Messages, Reading};

fn state() -> MigrationState {
    let options = MigrationOptions::new("amqp://user:hunter2@old/%2f?queue=q", "memory:new?queue=q");
    MigrationState::new(options.reject("memory:reject?queue=q").map("type:a=b").filter("header:x=hunter2"))
}

fn file() -> (tempfile::TempDir, StateFile) {
    let folder = tempfile::tempdir().unwrap();
    let file = StateFile::new(folder.path().join("m.json"));
    (folder, file)
}

#[test]
fn the_state_comes_back_and_shows_no_secret() {
    let (_folder, file) = file();
    let mut written = state();
    written.begin(Phase::Mirror);
    written.end(Phase::Mirror, Totals { moved: 3, ..Totals::default() }, None, false);
    written.compared = Some(Compared::unread("memory:a?queue=q", "memory:b?queue=q"));
    written.note_ledger(LedgerState {
        file: "m.json.d/old-to-new.ledger".into(),
        runs: 1,
        killed_runs: 0,
        killed_in_flight: 0,
        totals: Totals::default(),
    });
    file.write(&written).unwrap();
    assert_eq!(file.read().unwrap(), written);
    assert!(!format!("{written:?}").contains("hunter2"));
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.contains("\"phase\": \"mirror\"") && text.contains("user:hunter2@old"), "{text}");
}

#[test]
fn a_state_that_is_broken_or_newer_is_refused_with_the_place() {
    let (_folder, file) = file();
    let refused = |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        let error = file.read().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        error.to_string()
    };
    assert_eq!(file.read().unwrap_err().kind(), ErrorKind::NotFound);
    file.write(&state()).unwrap();
    let whole = std::fs::read_to_string(file.path()).unwrap();
    let newer = whole.replace("\"version\": 1", "\"version\": 2, \"more\": []");
    assert!(refused(&newer).contains("is of version 2; this program knows version 1"));
    assert!(refused(whole.split_at(whole.len() / 2).0).contains("line "));
    let odd = refused(&whole.replace("\"done\"", "\"dune\""));
    assert!(odd.contains("is no state of a migration: see line ") && !odd.contains("dune"), "{odd}");
    assert!(refused("{}").contains("is no state of a migration"));
    assert_eq!(VERSION, 1, "an older version is to be read, too");
}

#[cfg(unix)]
#[test]
fn only_its_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, file) = file();
    file.write(&state()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(file.path()), 0o600);
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = file.read().unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
    assert!(file.update(|_| ()).is_err());
}

/// A reader at any moment sees a whole state, and no update is lost.
#[test]
fn many_write_and_read_at_once() {
    let (folder, file) = file();
    file.write(&state()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    file.update(|state| state.begin(Phase::Mirror)).unwrap();
                }
            });
        }
        for _ in 0..200 {
            file.read().unwrap();
        }
    });
    assert_eq!(file.read().unwrap().step(Phase::Mirror).unwrap().runs, 100);
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");
}

#[test]
fn one_process_runs_a_phase_at_a_time() {
    let (_folder, file) = file();
    assert!(!file.is_running().unwrap());
    let lock = file.lock_run().unwrap();
    assert!(file.is_running().unwrap());
    let error = file.lock_run().unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("another process"), "{error}");
    drop(lock);
    file.lock_run().unwrap();
}

/// Whether each phase may run (`None`: refused; `true`: done) in each state.
#[test]
fn phases_come_in_their_order() {
    let may = |phase: Phase, done: bool| {
        let mut state = state();
        (state.phase, state.done) = (phase, done);
        let all = [Phase::Mirror, Phase::CutOver, Phase::Drain, Phase::RollBack];
        (all.map(|phase| state.is_done(phase).ok()), state.next())
    };
    let (due, done) = (Some(false), Some(true));
    assert_eq!(may(Phase::Start, true), ([due, None, None, due], Some(Phase::Mirror)));
    assert_eq!(may(Phase::Mirror, false), ([due, due, None, due], Some(Phase::CutOver)));
    assert_eq!(may(Phase::CutOver, false), ([None, due, None, due], Some(Phase::CutOver)));
    assert_eq!(may(Phase::CutOver, true), ([None, done, due, due], Some(Phase::Drain)));
    assert_eq!(may(Phase::Drain, false), ([None, done, due, due], Some(Phase::Drain)));
    assert_eq!(may(Phase::Drain, true), ([None, done, due, due], None));
    assert_eq!(may(Phase::RollBack, false), ([None, None, None, due], Some(Phase::RollBack)));
    assert_eq!(may(Phase::RollBack, true), ([None, None, None, done], None));

    let mut state = state();
    let why = |state: &MigrationState, phase| state.is_done(phase).unwrap_err().to_string();
    assert!(why(&state, Phase::CutOver).contains("mirror comes first"));
    assert!(why(&state, Phase::Drain).contains("cut-over comes first"));
    (state.phase, state.done) = (Phase::RollBack, true);
    assert!(why(&state, Phase::Mirror).contains("start it anew"));
}

/// A kill between the decision and the deletion leaves copies that nobody took for messages.
#[test]
fn copies_are_there_until_their_deletion_has_ended() {
    let mut state = MigrationState::new(
        MigrationOptions::new("memory:a?queue=q", "memory:b?queue=q").tap("memory:a?topic=t&queue=q"),
    );
    assert_eq!((state.is_purged(), state.leg()), (false, Leg::TapToNew));
    state.begin(Phase::CutOver);
    state.copies = Some(Copies::Purge);
    assert_eq!((state.is_purged(), state.leg()), (false, Leg::TapToNew));
    state.end(Phase::CutOver, Totals::default(), Some(3), true);
    assert_eq!((state.is_purged(), state.leg()), (true, Leg::OldToNew));
    state.begin(Phase::RollBack);
    assert_eq!((state.is_purged(), state.leg()), (true, Leg::NewToOld));
}

#[test]
fn a_comparison_counts_what_is_missing_where_nobody_consumes() {
    let unread = Compared::unread("memory:a?queue=q", "memory:b?queue=q");
    let some = |count| Some(Messages { count, ids: Vec::new() });
    let compared = |missing, may_be_consumed, out_of_order| {
        let mut compared = unread.clone();
        compared.new.evidence = Reading::ReadBack { disturbed: false, cut: false };
        (compared.missing, compared.out_of_order) = (some(missing), some(out_of_order));
        Compared { may_be_consumed, ..compared }
    };
    assert_eq!(compared(0, false, 0).agreement(), Agreement::Equal);
    assert_eq!(compared(1, false, 0).agreement(), Agreement::Different);
    assert_eq!(compared(1, true, 0).agreement(), Agreement::Equal);
    assert_eq!(compared(0, true, 1).agreement(), Agreement::Different);
    assert_eq!(unread.agreement(), Agreement::Unknown);
}
