//! What can be wrong with a file: told, and left as it is.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use throughline::{Bus, ConsumeOptions, Envelope, ErrorKind, PublishOptions};

use crate::rig::{Rig, address, next, refused, text};

#[tokio::test]
async fn addresses_are_told_what_is_wrong_with_them() {
    for (address, expected) in [
        ("sqlite:?queue=q", "names no file"),
        ("sqlite::memory:?queue=q", "memory:NAME"),
        ("sqlite://host/x.db?queue=q", "names a host"),
        ("sqlite:/tmp?queue=q", "is a folder"),
        ("sqlite:/no/such/folder/x.db?queue=q", "create it first"),
        ("sqlite:x.db?queue=q&synchronous=maybe", "normal or full or extra"),
        ("sqlite:x.db?queue=q&dedupe=long", "a duration"),
        ("sqlite:x.db?queue=q&sinchronous=full", "did you mean 'synchronous'"),
        ("sqlite:x.db", "add ?queue=NAME"),
    ] {
        let error = refused(address).await;
        assert!(error.to_string().contains(expected), "{address}: {error}");
    }
    assert!(!std::path::Path::new("x.db").exists());
}

#[tokio::test]
async fn what_is_not_ours_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus.db");
    let refused = async |expected: &str| {
        let before = std::fs::read(&path).unwrap();
        let error = refused(address(&folder, "queue=q")).await;
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.native::<rusqlite::Error>().is_some() || !expected.contains("no SQLite"), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    };
    std::fs::write(&path, "a letter to my aunt, which is longer than the header of a database".repeat(20))
        .unwrap();
    refused("no SQLite database").await;
    std::fs::remove_file(&path).unwrap();
    let sql = rusqlite::Connection::open(&path).unwrap();
    sql.execute_batch("PRAGMA application_id = 1196444487; CREATE TABLE layers (id)").unwrap();
    drop(sql);
    refused("another application's database (application_id 0x47504b47").await;
}

#[tokio::test]
async fn a_newer_version_is_refused_and_a_second_durability_too() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    publisher.publish(Envelope::new("kept")).await.unwrap();
    let error = refused(rig.address("queue=q&synchronous=normal")).await;
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("synchronous=full"), "{error}");
    rig.bus.close().await.unwrap();
    rig.sql().execute("UPDATE throughline_meta SET version = 99", []).unwrap();
    let error = refused(rig.address("queue=q")).await;
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("version 99"), "{error}");
    rig.sql().execute("UPDATE throughline_meta SET version = 1", []).unwrap();
    let bus = Bus::connect(rig.address("queue=q")).await.unwrap();
    assert_eq!(text(&next(&mut bus.consumer().await.unwrap()).await), "kept");
}

#[tokio::test]
async fn a_row_by_hand_that_would_stop_the_queue_is_refused_and_any_other_does_not() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    publisher.publish(Envelope::new("first")).await.unwrap();
    let sql = rig.sql();
    let line = |column: &str, value: &str| {
        let mut row = vec![
            ("queue", "(SELECT id FROM throughline_queues)"),
            ("state", "0"),
            ("due", "0"),
            ("rank", "255"),
            ("place", "2"),
            ("enqueued", "0"),
        ];
        row.retain(|(name, _)| *name != column);
        let (names, values): (Vec<_>, Vec<_>) = row.into_iter().chain([(column, value)]).unzip();
        format!("INSERT INTO throughline_line ({}) VALUES ({})", names.join(", "), values.join(", "))
    };
    for (column, value) in [
        ("id", "-1"),
        ("id", "9223372036854775807"),
        ("queue", "'q'"),
        ("state", "5"),
        ("state", "-1"),
        ("due", "'now'"),
        ("due", "NULL"),
        ("rank", "-1"),
        ("place", "'first'"),
        ("place", "1.5"),
        ("enqueued", "'noon'"),
        ("receive_count", "-1"),
        ("receive_count", "4294967296"),
        ("failed_attempts", "-1"),
        ("failed_attempts", "'many'"),
        ("key", "'text'"),
    ] {
        let error = sql.execute(&line(column, value), []).unwrap_err();
        let code = error.sqlite_error_code();
        assert_eq!(code, Some(rusqlite::ErrorCode::ConstraintViolation), "{column} = {value}: {error}");
    }
    for update in [
        "UPDATE throughline_queues SET max_length = -1",
        "UPDATE throughline_queues SET held = 'many'",
        "UPDATE throughline_queues SET deleted = 2",
        "UPDATE throughline_meta SET next = 'one'",
        "INSERT INTO throughline_messages (id) VALUES (9223372036854775807)",
    ] {
        sql.execute(update, []).unwrap_err();
    }
    // One that is right, but without a word to the counter of ids: the ids after it are others'. It has no message.
    sql.execute(&line("receive_count", "4294967295"), []).unwrap();
    publisher.publish(Envelope::new("last")).await.unwrap();
    let mut consumer = rig.bus.consumer().await.unwrap();
    for expected in ["first", "", "last"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), expected);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_file_is_told_as_such() {
    let (rig, publisher) = Rig::with_publisher("queue=q").await;
    for answer in publisher.publish_batch((0..500).map(|_| Envelope::new(vec![b'x'; 1000]))).await {
        answer.unwrap();
    }
    rig.bus.close().await.unwrap();
    let mut bytes = std::fs::read(rig.path()).unwrap();
    // Everything but the first page, where the tables are listed.
    bytes[4096..].fill(0x5a);
    std::fs::write(rig.path(), bytes).unwrap();
    let error = refused(rig.address("queue=q")).await;
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(".recover"), "{error}");
}

/// Runs one of the tests below as a user who may not write.
fn as_nobody(test: &str, file: &std::path::Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env("SQLITE_TEST_FILE", file);
    if rustix::process::getuid().is_root() {
        command.uid(65534);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_file_or_folder_that_cannot_be_written_is_told_as_such() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bus.db");
    mode(folder.path(), 0o755);
    let new = as_nobody("errors::says_what_a_user_is_told", &file);
    if rustix::process::getuid().is_root() {
        assert!(new.contains("PermissionDenied") && new.contains("must be writable by this user"), "{new}");
    }
    let sql = rusqlite::Connection::open(&file).unwrap();
    sql.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE throughline_meta (version); INSERT INTO throughline_meta VALUES (1)")
        .unwrap();
    drop(sql);
    mode(&file, 0o444);
    mode(folder.path(), 0o555);
    let existing = as_nobody("errors::says_what_a_user_is_told", &file);
    assert!(existing.contains("PermissionDenied"), "{existing}");
    mode(folder.path(), 0o755);
}

/// Not a test of its own: started by another test, as another user.
#[tokio::test]
async fn says_what_a_user_is_told() {
    let Some(file) = std::env::var_os("SQLITE_TEST_FILE") else { return };
    let error = refused(format!("sqlite:{}?queue=q", file.display())).await;
    println!("{:?} {error}", error.kind());
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_goes_on_when_there_is_room() {
    // A file system of two megabytes, which only root can make.
    let folder = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        throughline_testkit::endpoint::skip("a_full_disk", "needs root, to mount a small file system");
        return;
    }
    let bus = Bus::connect(address(&folder, "queue=q")).await.unwrap();
    let impatient = PublishOptions { timeout: Duration::from_millis(500), ..PublishOptions::default() };
    let publisher = bus.publisher_to("", impatient).await.unwrap();
    let mut accepted = 0;
    let error = loop {
        match publisher.publish(Envelope::new(vec![b'x'; 20_000])).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 1000, "it is never full");
    };
    assert!(accepted > 10, "{accepted}: {error}");
    assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Timeout), "{error}");
    if error.kind() == ErrorKind::Refused {
        assert!(error.to_string().contains("the disk is full"), "{error}");
    }
    // Somebody makes room.
    let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(folder.path()).output().unwrap();
    assert!(grown.status.success());
    let last = bus.publisher().await.unwrap();
    last.publish(Envelope::new("last")).await.unwrap();
    let mut consumer = bus.consumer_of("", ConsumeOptions::default()).await.unwrap();
    let mut came = 0;
    loop {
        let delivery = next(&mut consumer).await;
        let is_last = text(&delivery) == "last";
        delivery.ack().await.unwrap();
        if is_last {
            break;
        }
        came += 1;
    }
    // The one whose answer was a time-out may have been taken after all.
    assert!(came == accepted || came == accepted + 1, "{accepted} were accepted, {came} came");
    consumer.close().await.unwrap();
    bus.close().await.unwrap();
    let unmounted = Command::new("umount").arg(folder.path()).status().unwrap();
    assert!(unmounted.success());
}
