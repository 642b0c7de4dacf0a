//! Every law, on its seeds, on random bytes, and on inputs that are nearly valid: mutations of the seeds.
#![allow(clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestError, TestRunner};
use throughline_fuzz::{TARGETS, Target, target};

/// Cases of each kind for each target: some seconds in all, unoptimized.
const CASES: u32 = 1000;

/// A change of one place.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Once more, elsewhere.
    Copy(Index, Index, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    // Bytes that mean something to one of the grammars.
    let telling = prop::sample::select(b"@:/?&=%#'\"{}[],.-\\\n\r\t\0 0aZ\xff\x7f\x80".to_vec());
    let byte = prop_oneof![telling, any::<u8>()];
    prop_oneof![
        (any::<Index>(), byte.clone()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<Index>(), prop::collection::vec(byte, 1..6)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<Index>(), 1..20_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<Index>(), any::<Index>(), 1..40_usize)
            .prop_map(|(from, to, length)| Edit::Copy(from, to, length)),
    ]
}

fn apply(input: &mut Vec<u8>, edit: Edit) {
    let end = input.len();
    match edit {
        Edit::Set(at, byte) if end > 0 => input[at.index(end)] = byte,
        Edit::Insert(at, bytes) => {
            let at = at.index(end + 1);
            input.splice(at..at, bytes);
        }
        Edit::Remove(at, length) if end > 0 => {
            let at = at.index(end);
            input.drain(at..end.min(at + length));
        }
        Edit::Copy(from, to, length) if end > 0 => {
            let from = from.index(end);
            let part = input[from..end.min(from + length)].to_vec();
            let to = to.index(end + 1);
            input.splice(to..to, part);
        }
        Edit::Set(..) | Edit::Remove(..) | Edit::Copy(..) => {}
    }
}

fn nearly_valid(target: &Target) -> impl Strategy<Value = Vec<u8>> + use<> {
    (prop::sample::select((target.seeds)()), prop::collection::vec(edit(), 1..8)).prop_map(
        |(mut input, edits)| {
            edits.into_iter().for_each(|edit| apply(&mut input, edit));
            input
        },
    )
}

/// Runs one target; the name is in the failure.
fn holds(name: &str) {
    let target = target(name).unwrap_or_else(|| panic!("there is no target {name}"));
    (target.seeds)().iter().for_each(|seed| (target.run)(seed));
    let config = || ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) };
    let run = |input: Vec<u8>| {
        (target.run)(&input);
        Ok(())
    };
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    for outcome in [
        TestRunner::new(config()).run(&bytes, run),
        TestRunner::new(config()).run(&nearly_valid(target), run),
    ] {
        if let Err(TestError::Fail(reason, input)) = outcome {
            panic!("{name}, on {:?}: {reason}", String::from_utf8_lossy(&input));
        }
        assert!(outcome.is_ok(), "{name}: {outcome:?}");
    }
}

macro_rules! laws {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn no_target_is_forgotten() {
            let listed = [$(stringify!($name)),*];
            let all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(listed.as_slice(), all.as_slice());
            for name in all {
                let file = format!("../../fuzz/fuzz_targets/{name}.rs");
                assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(&file).is_file(), "{file} is missing");
            }
        }
    };
}

laws!(
    address,
    address_secret,
    packed,
    history,
    timestamp,
    trace_headers,
    aws_message,
    aws_body,
    aws_payload,
    aws_headers,
    aws_trace_header,
    kafka_message,
    kafka_metadata,
    rabbitmq_message,
    rabbitmq_value,
    rabbitmq_reply,
    rabbitmq_greeting,
    cli_lines,
    cli_headers,
    cli_rendering,
);
