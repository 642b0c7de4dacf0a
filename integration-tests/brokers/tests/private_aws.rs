//! Private AWS emulators, started, killed, restarted and paused for real.

use std::time::Duration;

use anyhow::Result;
use throughline_brokers::aws::{Emulator, StartOptions};
use throughline_brokers::{Aws, kind, skip};

fn answers(aws: &Aws) -> bool {
    kind("aws").is_some_and(|kind| kind.probe(&aws.endpoint(), Duration::from_millis(1000)).is_ok())
}

fn lives_through_everything(emulator: Emulator, name: &str) -> Result<()> {
    if !Aws::installed(emulator) {
        skip(name, "the emulator is not installed");
        return Ok(());
    }
    let mut aws = Aws::start(&StartOptions { emulator, ..StartOptions::default() })?;
    assert!(answers(&aws));
    let endpoint = aws.endpoint();
    aws.pause();
    assert!(!answers(&aws));
    aws.resume();
    // Just woken, on a busy machine.
    assert!((0..20).any(|_| answers(&aws)));
    aws.kill();
    assert!(!answers(&aws));
    aws.restart()?;
    assert_eq!(aws.endpoint(), endpoint, "same port");
    assert!(answers(&aws));
    aws.restart()?;
    assert!(answers(&aws));
    Ok(())
}

#[test]
fn ministack_lives_through_everything_that_tests_do_to_it() -> Result<()> {
    lives_through_everything(
        Emulator::Ministack,
        "private_aws::ministack_lives_through_everything_that_tests_do_to_it",
    )
}

#[test]
fn roto_lives_through_everything_that_tests_do_to_it() -> Result<()> {
    lives_through_everything(Emulator::Roto, "private_aws::roto_lives_through_everything_that_tests_do_to_it")
}
