//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use throughline::Timestamp;

use crate::migrate::args::MigrateArgs;
use crate::output::Color;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Addresses:
  sqlite:PATH?queue=NAME                           a file, for the processes of this machine: no broker needed
  amqp://user:pass@host:5672/vhost?queue=NAME      RabbitMQ (amqps:// for TLS)
  sqs://NAME[?region=…][&endpoint=URL]             Amazon SQS; also sqs:ARN and sqs:https://queue-url
  sns://TOPIC[?queue=NAME]                         Amazon SNS, consumed through a subscribed queue
  eventbridge://BUS?source=NAME[&queue=NAME]       Amazon EventBridge, consumed through a rule's queue
  kafka://host:9092,host:9092/TOPIC?group=NAME     Kafka
  memory:NAME?queue=NAME                           within one process: only for `demo` and `conform`

Exit codes:
  0    done; also when a consumer or a bridge was stopped by Ctrl-C or SIGTERM, or the reader of stdout went away
  1    failed: the broker, the network, some of the lines of `publish --lines`, a case of `conform`; an error that
       `doctor` found; a bridge that ended otherwise than asked for: by a message that the sink refuses, or a source
       that gives none although it has some; a phase of `migrate` whose turn it is not, or that another process runs
  2    usage: a wrong argument, address, file or message; nothing was sent
  3    the queue, exchange or virtual host does not exist, or the message that `dlq show` was asked for
  4    the credentials were refused, or do not allow this
  5    the bridge did all that was asked for, and the sink refused some messages, which are at the reject address;
       `explain` or `bridge --dry-run` found that it would refuse some
  6    `migrate compare` found something missing, changed or out of order
  130  interrupted before the work was done (`publish`, `demo`, `conform`, and the phases of `migrate` but `mirror`), or
       asked twice to stop

Environment:
  TRACEPARENT, TRACESTATE, BAGGAGE   `publish` continues this W3C trace context
  OTEL_EXPORTER_OTLP_ENDPOINT        spans are exported there, by OTLP over HTTP (http:// only);
                                     the other OTEL_* variables of the SDK work too
  RUST_LOG                           what is logged to stderr, such as info or throughline_core=debug
  NO_COLOR                           no colour";

/// One trace, through every queue: publish and consume on any message broker.
#[derive(Debug, Parser)]
#[command(name = "throughline", version, styles = STYLES, after_help = AFTER_HELP, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Args {
    /// More log on stderr: -v info, -vv debug, -vvv trace
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 100)]
    pub(crate) verbose: u8,
    /// When to colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, value_name = "auto|always|never", default_value_t = ColorArg::Auto)]
    #[arg(hide_possible_values = true, hide_default_value = true, display_order = 101)]
    pub(crate) color: ColorArg,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Follow one request through HTTP, a queue, a failed attempt and a retry, and draw its trace
    Demo(DemoArgs),
    /// Send a message, or one a line
    Publish(Box<PublishArgs>),
    /// Print messages, and acknowledge them once they are written
    Consume(ConsumeArgs),
    /// Create the queue, exchange or topic that an address names
    Create(AdminArgs),
    /// Delete the queue, exchange or topic that an address names, with its messages
    Delete(AdminArgs),
    /// Hold a broker, or an adapter, to the conformance suite
    ///
    /// The cases make queues and topics of their own on the broker of the address, all named tlc-…, and delete them
    /// again; what the address itself names is left alone. Each case passes, fails, is refused (the transport declares
    /// that it cannot, and was seen to refuse), does not apply, or deviates as the suite's ledger of known deviations
    /// says, with the reason. Ctrl-C breaks off the cases under way, and deletes what they made.
    Conform(ConformArgs),
    /// Look at the broker and at what an address names, and tell what is wrong, each with its remedy
    ///
    /// Nothing is created, changed, consumed or published. Exit code 1 when something is wrong that loses messages or
    /// cannot work (severity error); warnings and notes are told, and exit with 0.
    Doctor(DoctorArgs),
    /// Look into a dead-letter queue, tell what failed, and put messages back to work
    Dlq(DlqArgs),
    /// Move messages from one address to another, of any two transports
    ///
    /// Ids, keys, times, types, payloads and all headers arrive as they left, the trace's creation context verbatim, in
    /// order per key. A message is acknowledged at FROM only once TO has durably accepted it and the ledger says so. What
    /// TO refuses goes to --reject with the reason, or stops the bridge with the message named; it is never lost. The same
    /// command again goes on after a kill. Ctrl-C finishes what is on its way; a second one ends at once.
    Bridge(Box<BridgeArgs>),
    /// Move a live workload from one broker to another, in phases that can be seen, resumed and undone
    ///
    /// start, then mirror, compare, cut-over, drain; roll-back at any time, and status. One readable file (--state) says where
    /// it stands. Each phase tells what to do next; run again, it goes on, or says that it is done.
    Migrate(Box<MigrateArgs>),
    /// Tell what a bridge between two addresses would do, before anything is sent
    ///
    /// Each field of a message, each kind of payload and class of headers: kept, renamed, encoded, spilled, emulated, without
    /// effect or refused; the limits, and what becomes of order, expiry and duplicates. Exit code 5 when TO refuses
    /// something that FROM can hold.
    Explain(ExplainArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// Where from
    pub(crate) from: String,
    /// Where to
    pub(crate) to: String,
    /// Send messages with awkward headers through the real pair, between queues that are made beside both and deleted
    /// again, and show what came out
    #[arg(long)]
    pub(crate) probe: bool,
    /// One JSON object: from, to, source, sink, parts, limits and behaviour (what, fate, detail), unchecked; and probe
    /// (messages: what, outcome, parts or reason; left_behind)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BridgeArgs {
    /// Where from, such as amqp://guest:guest@localhost/%2f?queue=jobs
    pub(crate) from: String,
    /// Where to, such as kafka://localhost:9092/jobs
    pub(crate) to: String,
    /// Where messages go that TO does not take, with the reason; without it, the first one stops the bridge
    #[arg(long, value_name = "URL")]
    pub(crate) reject: Option<String>,
    /// End when FROM is empty, and a Kafka topic where it ended at the start; without it, go on until Ctrl-C
    #[arg(long)]
    pub(crate) until_empty: bool,
    /// So many at most, those rejected included
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<std::num::NonZeroU64>,
    /// So many a second at most
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<std::num::NonZeroU32>,
    /// Only these: type=NAME or header:NAME=VALUE; one of the types, and all of the headers
    #[arg(long, value_name = "CONDITION", value_parser = parsed::<throughline_bridge::Filter>)]
    pub(crate) filter: Vec<throughline_bridge::Filter>,
    /// What becomes of the others: leave holds them and gives them back; skip acknowledges them, so that they are gone
    /// from a queue
    #[arg(long, value_enum, value_name = "leave|skip", default_value_t = RestArg::Leave, requires = "filter")]
    #[arg(hide_possible_values = true)]
    pub(crate) rest: RestArg,
    /// Hold so many of the others at most; then the bridge ends
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) hold: NonZeroUsize,
    /// Rename: type:OLD=NEW, header:OLD=NEW; or take the ordering key from key=header:NAME, key=id, key=type, key=none
    #[arg(long, value_name = "RULE", value_parser = parsed::<throughline_bridge::Map>)]
    pub(crate) map: Vec<throughline_bridge::Map>,
    /// What was moved; by default a file in $XDG_STATE_HOME/throughline (~/.local/state/throughline), one for each pair
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: Option<PathBuf>,
    /// So many on their way at once; a kill can make so many duplicates at most
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) in_flight: NonZeroUsize,
    /// Keep many messages of a key on their way also where TO could let a later one overtake one that it nacks (RabbitMQ,
    /// SQS FIFO): much faster where few keys have many messages
    #[arg(long)]
    pub(crate) pipelined: bool,
    /// Give up when TO takes nothing for that long; by default the bridge waits for it
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) patience: Option<Duration>,
    /// Read FROM before and TO at the end, and compare with what was sent: missing, twice, changed, out of order in its key
    ///
    /// The report names the level of the evidence: read back, read back with delivery counts rising (RabbitMQ, SQS), the
    /// broker's count, or receipts only, where TO shows nothing. FROM is only read where that leaves no trace (Kafka, SQLite):
    /// what it held and was neither sent, rejected nor left is not accounted for. A consumer at TO meanwhile makes messages
    /// look missing, one at FROM unaccounted for.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Read so many of each at most
    #[arg(long, value_name = "N", default_value = "1000000", requires = "verify")]
    pub(crate) verify_max: NonZeroUsize,
    /// Also write the report as a page; it needs nothing but itself
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub(crate) html: Option<PathBuf>,
    /// Only tell what would become of the messages that are there; nothing is moved
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Look at so many at most, with --dry-run
    #[arg(long, value_name = "N", default_value = "1000", requires = "dry_run")]
    pub(crate) look_at: NonZeroUsize,
    /// The report as one JSON object
    ///
    /// With --dry-run: looked_at, may_be_more, would_move, would_reject (as rejected below), would_leave, would_skip and
    /// disturbed. Else: from, to, reject, began, seconds, end (reason: empty, max, stopped, refused, full, starved or failed; with
    /// approximate, id, message_type, ready or error), totals and earlier (moved, bytes, rejected, skipped, already_moved,
    /// copies, sent_again, deduplicated), earlier_runs, killed_runs, killed_in_flight, left, expired, unacked, depth,
    /// rejected (at, id, message_type, class, reason), verification (null without --verify; level: read_back, broker_count,
    /// receipts_only or failed, with disturbed, cut, before, after or why; expected; found: read, same, missing, missing_ids,
    /// duplicates, duplicate_ids, changed (count, parts, examples), reordered, reordered_ids, others; source: level: read,
    /// broker_count or nothing, with cut or why; held, unaccounted, unaccounted_ids) and warnings.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RestArg {
    Leave,
    Skip,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    pub(crate) command: DlqCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// One line a dead letter
    List(DlqReadArgs),
    /// One dead letter: its attempts, headers and payload
    Show(DlqShowArgs),
    /// Dead letters by failing dependency and error: how many, since when, and the story of one each
    Explain(DlqReadArgs),
    /// Publish dead letters to where they are worked on, as they were made, and remove them once that is durable
    ///
    /// Body, headers and creation context stay, so that the new attempts are in the trace of the first; attempts are
    /// counted anew. Interrupted between publish and removal, a message is redriven twice rather than lost.
    Redrive(DlqRedriveArgs),
    /// Delete all dead letters for good
    Purge(DlqPurgeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DlqReadArgs {
    /// The dead-letter queue, such as amqp://guest:guest@localhost/%2f?queue=jobs.dead
    pub(crate) url: String,
    /// Read so many at most
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) max: NonZeroUsize,
    /// One JSON object a line
    ///
    /// list: id, type, source (where it was rejected), attempts, error, dependency, failed_at, trace_id, history (attempt,
    /// at, error, message, dependency, worker), history_partial. explain: dependency, error, count, types (how many of
    /// each), first, last, example (as list).
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DlqShowArgs {
    /// The dead-letter queue
    pub(crate) url: String,
    /// The message's id
    pub(crate) id: String,
    /// Look among so many at most
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) max: NonZeroUsize,
    /// A JSON object: as `list`, with headers and payload
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DlqRedriveArgs {
    /// The dead-letter queue
    pub(crate) url: String,
    /// Where to, of any transport: the queue, not a topic whose other subscribers have had the message
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// Only messages of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) message_type: Option<String>,
    /// Only those whose last failure was of this dependency
    #[arg(long, value_name = "NAME")]
    pub(crate) dependency: Option<String>,
    /// Only those whose last failure was of this class
    #[arg(long, value_name = "CLASS")]
    pub(crate) error: Option<String>,
    /// So many at most
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<NonZeroUsize>,
    /// So many a second at most
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<std::num::NonZeroU32>,
    /// Hold so many that are not meant at most; they go back at the end
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) scan: NonZeroUsize,
    /// Only tell which
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// A JSON object: redriven and left, or would_redrive and would_leave
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DlqPurgeArgs {
    /// The dead-letter queue
    pub(crate) url: String,
    /// Yes, for good
    #[arg(long)]
    pub(crate) yes: bool,
    /// A JSON object: purged, a number
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ColorArg {
    Auto,
    Always,
    Never,
}

impl From<ColorArg> for Color {
    fn from(color: ColorArg) -> Self {
        match color {
            ColorArg::Auto => Self::Auto,
            ColorArg::Always => Self::Always,
            ColorArg::Never => Self::Never,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// The queue to go through; where there is none, or the address names none, one is created and deleted afterwards
    #[arg(long, visible_alias = "jobs", value_name = "URL", default_value = crate::demo::DEFAULT_ADDRESS)]
    pub(crate) via: String,
    /// A topic or event bus before it, such as eventbridge://demo?source=shop: the API publishes an event there, and a
    /// planner that takes it publishes the job
    #[arg(long, value_name = "URL")]
    pub(crate) events: Option<String>,
    /// One JSON object a span, instead of the waterfall
    ///
    /// trace_id, span_id, parent_span_id (null for the root), name, kind (internal, server, client, producer, consumer),
    /// start and end (RFC 3339 with nanoseconds, UTC), status ({"code": "unset", "ok" or "error", "message": …}),
    /// attributes (an object) and links (trace_id, span_id, attributes). Spans come in the order of the waterfall.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also write the waterfall as a page, with every span's attributes; it needs nothing but itself
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<std::path::PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PublishArgs {
    /// Where to, such as amqp://guest:guest@localhost/%2f?queue=jobs
    pub(crate) url: String,
    /// The message type: the business operation, such as campaign.sync_report
    #[arg(short, long = "type", value_name = "TYPE")]
    pub(crate) message_type: Option<String>,
    /// The ordering key: messages of one key are kept in order
    #[arg(short, long)]
    pub(crate) key: Option<String>,
    /// A header; may be repeated, and a repeated name keeps all its values
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<String>,
    /// The payload's media type; for JSON ones, a body that is not JSON is sent with a warning
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    /// The payload's content encoding, such as gzip
    #[arg(long, value_name = "ENCODING")]
    pub(crate) content_encoding: Option<String>,
    /// The body; without --data and --file it is read from stdin
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["file", "lines"])]
    pub(crate) data: Option<String>,
    /// A file with the body; - is stdin
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// One message a line (\n or \r\n) of the file or stdin; empty lines are skipped and counted
    ///
    /// Many are in flight at once, and memory stays bounded. A line that the destination refuses is told on stderr by
    /// its number, and the others go on; when the destination itself fails, reading stops, and stderr says after which
    /// line. Receipts come on stdout, in the order of the lines.
    #[arg(short, long, conflicts_with_all = ["id", "idempotency_key"])]
    pub(crate) lines: bool,
    /// The message's id, in place of a new UUIDv7
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Who made it
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// When it was made (RFC 3339), in place of the present
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) time: Option<Timestamp>,
    /// Ties a reply to its request
    #[arg(long, value_name = "ID")]
    pub(crate) correlation_id: Option<String>,
    /// Where replies should go
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) reply_to: Option<String>,
    /// What consumers deduplicate their effects by
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// 0 to 255; higher is sooner, where the broker has priorities
    #[arg(long)]
    pub(crate) priority: Option<u8>,
    /// After that it need not be delivered any more, such as 30s or 5m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) expires_in: Option<Duration>,
    /// Not delivered before that long from now
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) delay: Option<Duration>,
    /// Receipts as one JSON object a message: id, type, trace_id, native_id, deduplicated (and line, with --lines)
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
    /// No receipts
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ConsumeArgs {
    /// Where from, such as amqp://guest:guest@localhost/%2f?queue=jobs
    pub(crate) url: String,
    /// Stop after so many; messages beyond are not touched
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) max: Option<NonZeroUsize>,
    /// Stop when no message came for that long (fewer than --max is no failure); without it, wait for ever
    #[arg(short, long, value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// One JSON object a message
    ///
    /// Always: id, type, key, time (RFC 3339), content_type, headers, payload (text) or payload_base64, attempt,
    /// receive_count, queue_delay_ms and native (what the broker says, by its own names); null where unknown. Where the
    /// message has them: id_origin, source, content_encoding, correlation_id, reply_to, expires_at, priority,
    /// idempotency_key, trace_id, failures.
    ///
    /// A header's value is text; null; {"base64": …} for bytes; {"type": …, "value": …} for a broker's own type; and an
    /// array of these for a repeated name. A key that is not UTF-8 is {"base64": …} too.
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave the messages in the queue: they are held until the end, then released
    ///
    /// Brokers may count this as a delivery. Stops after 100 messages, or 2 s without one, unless --max or --wait say
    /// otherwise.
    #[arg(long)]
    pub(crate) peek: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// What, such as amqp://guest:guest@localhost/%2f?queue=jobs
    pub(crate) url: String,
    /// How long a handler may take with a message, such as 10m: compared with how long a delivery is ours
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) handler: Option<Duration>,
    /// One JSON object
    ///
    /// address, server (product, version), publisher and consumer (the capabilities and limits; null where the address
    /// has no such side; durations in seconds), facts (subject, name, value), findings (severity: error, warning or
    /// note; code, subject, what, why, remedy: text, commands), unchecked (what, why, remedy).
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AdminArgs {
    /// What, such as amqp://guest:guest@localhost/%2f?queue=jobs
    pub(crate) url: String,
    /// A JSON object: address, created or deleted (a list), and kept, where something was left (a list)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ConformArgs {
    /// The broker, such as amqp://guest:guest@localhost/%2f; options that say how to create (queue_type) count
    #[arg(required_unless_present = "list")]
    pub(crate) url: Option<String>,
    /// Only this case; may be repeated
    #[arg(long = "case", value_name = "NAME")]
    pub(crate) cases: Vec<String>,
    /// How many cases run at once
    #[arg(long, value_name = "N", default_value = "8")]
    pub(crate) concurrency: NonZeroUsize,
    /// Do not run anything; list the cases and what each proves
    #[arg(long, conflicts_with = "cases")]
    pub(crate) list: bool,
    /// One JSON object: transport, version, cases (case, area, proves, outcome, why, notes, ms) and ledger; with --list,
    /// one a case
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "not a duration such as 500ms, 30s or 5m".to_owned())
}

/// An argument that the library reads; it says what is wrong.
fn parsed<T: std::str::FromStr<Err = throughline::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: throughline::Error| error.message().to_owned())
}

fn time(text: &str) -> Result<Timestamp, String> {
    humantime::parse_rfc3339_weak(text)
        .map(Timestamp::from)
        .map_err(|_| "not an RFC 3339 time in UTC such as 2026-11-22T10:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn help_fits_a_terminal_and_documents_every_exit_code() {
        let help = Args::command().render_long_help().to_string();
        for code in crate::failure::Exit::ALL {
            assert!(help.lines().any(|line| line.starts_with(&format!("  {} ", code as u8))), "{code:?}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 110), "{help}");
    }
}
