//! The command line of `migrate`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::args::duration;

#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    #[command(subcommand)]
    pub(crate) command: MigrateCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrateCommand {
    /// Check both addresses and the plan, and write the state file
    ///
    /// With --tap the old consumers go on, and the mirror copies beside them. Without it the mirror forwards what OLD holds:
    /// the consumers move to NEW first.
    Start(StartArgs),
    /// Copy or forward what comes, until Ctrl-C; after a kill, the same command goes on
    Mirror(MirrorArgs),
    /// Read both places, and tell what is missing, changed, twice, out of order or not mirrored yet
    ///
    /// Also while the mirror runs. Exit code 6 when something is missing, changed or out of order; 1 when NEW could not be read.
    /// Where consumers are at NEW already, what is missing may have been consumed, and is only told.
    ///
    /// --json: at, old and new (address, read, evidence), moved, remembered, still_old, not_yet, same, missing,
    /// may_be_consumed, twice, changed (count, parts, examples), out_of_order and others; of messages: count and ids.
    Compare(CompareArgs),
    /// End the mirror: NEW becomes the workload's home
    ///
    /// With a tap, say what becomes of the copies at NEW. --purge-copies deletes them, at once, unless NEW holds anything else;
    /// producers and consumers change after it, and `drain` moves what is left at OLD. Otherwise producers change before or
    /// during it: it ends when nothing has come for --quiet.
    CutOver(CutOverArgs),
    /// Move what is left at OLD, until it is empty and nothing comes for --quiet
    Drain(QuietArgs),
    /// Take it back, from any phase: what is at NEW goes to OLD
    ///
    /// Copies of a tap are not moved: OLD has had those messages. Producers change back before or during it.
    RollBack(RollBackArgs),
    /// Where the migration stands, how much is at each place, and what to do next
    ///
    /// --json: phase, is_done, is_running, next, kind, copies, old, tap and new (address, ready, unsettled, delayed, error),
    /// steps, ledgers (file, runs, killed_runs, killed_in_flight, totals) and compared (as of `compare`).
    Status(StateArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct StateArgs {
    /// The migration's state: one readable file, with a folder of the same name and .d beside it for the ledgers
    #[arg(long, value_name = "FILE")]
    pub(crate) state: PathBuf,
    /// One JSON object. Of a phase: phase, is_done, was_done, purged, and report (as of `bridge`; null where nothing was moved)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StartArgs {
    /// Where the workload is: what its consumers consume from
    pub(crate) old: String,
    /// Where it moves to
    pub(crate) new: String,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// An address of the old broker that gets a copy of everything, for itself alone: another queue bound to the same
    /// exchange, another group or subscription of the same topic
    #[arg(long, value_name = "URL")]
    pub(crate) tap: Option<String>,
    /// Where messages go that the other side does not take, with the reason
    #[arg(long, value_name = "URL")]
    pub(crate) reject: Option<String>,
    /// Rename: type:OLD=NEW, header:OLD=NEW; or take the ordering key from key=header:NAME, key=id, key=type, key=none
    #[arg(long, value_name = "RULE")]
    pub(crate) map: Vec<String>,
    /// Only these: type=NAME or header:NAME=VALUE; one of the types, and all of the headers
    #[arg(long, value_name = "CONDITION")]
    pub(crate) filter: Vec<String>,
}

/// How a bridge works; as of `bridge`.
#[derive(Debug, clap::Args)]
pub(crate) struct PaceArgs {
    /// So many a second at most
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<NonZeroU32>,
    /// So many on their way at once; a kill can make so many duplicates at most
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) in_flight: NonZeroUsize,
    /// With --filter of `start`: hold so many of the others at most; then it ends
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) hold: NonZeroUsize,
    /// Keep many messages of a key on their way also where a later one could overtake one that is nacked
    #[arg(long)]
    pub(crate) pipelined: bool,
    /// Give up when nothing is taken for that long; by default it is waited for
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) patience: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MirrorArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) pace: PaceArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct QuietArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Nothing may come for that long before it ends
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(crate) quiet: Duration,
    #[command(flatten)]
    pub(crate) pace: PaceArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Read so many of each place at most
    #[arg(long, value_name = "N", default_value = "1000000")]
    pub(crate) max: NonZeroUsize,
    /// Leave a place alone that shows messages only by giving them out (RabbitMQ, SQS), where delivery counts rise by it
    #[arg(long)]
    pub(crate) undisturbed: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CutOverArgs {
    #[command(flatten)]
    pub(crate) run: QuietArgs,
    /// The copies at NEW were a rehearsal: delete them, and move what is left at OLD
    #[arg(long)]
    pub(crate) purge_copies: bool,
    /// The copies at NEW are the history of a log: keep them, and do not move what is left at OLD, which is among them
    #[arg(long, conflicts_with = "purge_copies")]
    pub(crate) keep_copies: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RollBackArgs {
    #[command(flatten)]
    pub(crate) run: QuietArgs,
    /// Take from this address in place of NEW, where that names nothing to consume from
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// Put there in place of OLD: the queue behind a topic, whose other subscribers would get everything again
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<String>,
    /// The renames of the way back, in place of the inverse ones
    #[arg(long, value_name = "RULE")]
    pub(crate) map: Vec<String>,
    /// Delete the copies at NEW, before a cut-over; else they stay
    #[arg(long)]
    pub(crate) purge_copies: bool,
}
