//! What can be said on the command line.
//!
//! **Invariant:** a flag that is listed works; every command's help ends with examples.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::plugin::{self, ChildLimits, SUBCOMMAND, Work};

const START_HERE: &str = "\
Start here:
  anabranch serve                                   a host, on http://127.0.0.1:7766
  anabranch topic create flights --partitions 2     and, in a second terminal, a topic,
  anabranch produce flights flights.ndjson --key carrier --timestamp time_hour
  anabranch deploy deployment.toml --wait           a plugin that reads it,
  anabranch status                                  how far it is,
  anabranch swap NAME --plugin new.wasm --wait      and a new version of it, with replay

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict, 5 refused by a gate or limit,
6 host unreachable.";

/// Streams, transformed by WebAssembly plugins that can be swapped while they run.
#[derive(Debug, Parser)]
#[command(name = "anabranch", version, after_help = START_HERE)]
pub struct Cli {
    /// Where the host is
    #[arg(long, global = true, env = "ANABRANCH_URL", default_value = "http://127.0.0.1:7766")]
    pub url: String,
    /// With an https URL: the certificates (PEM) of who signed the host's; those of the system by default
    #[arg(long, global = true, value_name = "FILE", env = "ANABRANCH_CA")]
    pub ca: Option<PathBuf>,
    /// The token, if the host asks for one: a file that holds it. Or put it into ANABRANCH_TOKEN; on a
    /// command line everyone on the machine could read it
    #[arg(long, global = true, value_name = "FILE", env = "ANABRANCH_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a host
    #[command(after_help = "Examples:
  anabranch serve
  anabranch serve --data /var/lib/anabranch --listen 127.0.0.1:8000
  anabranch serve --config anabranch.toml --safe")]
    Serve(Serve),
    /// Create, list, describe and delete topics
    #[command(subcommand)]
    Topic(Topic),
    /// Append records to a topic, from files or standard input
    #[command(after_help = "Examples:
  anabranch produce flights flights.ndjson --key carrier --timestamp time_hour
  zstdcat flights.ndjson.zst | anabranch produce flights --key carrier
  tail -f access.log | anabranch produce access --format lines
  anabranch consume a | anabranch produce b --format records")]
    Produce(Produce),
    /// Print the records of a topic
    #[command(after_help = "Examples:
  anabranch consume flights --limit 10
  anabranch consume delays --follow --format table
  anabranch consume flights --partition 0 --from 2013-01-02T00:00:00Z --format values")]
    Consume(Consume),
    /// Push, list and inspect plugins
    #[command(subcommand)]
    Plugin(Plugin),
    /// Deploy what a deployment file says; a plugin given as a path is pushed first
    #[command(after_help = "Examples:
  anabranch deploy flights.toml
  anabranch deploy flights.toml --wait")]
    Deploy(Deploy),
    /// Delete a deployment with its generations and stores; the topics of its outputs stay
    #[command(after_help = "Examples:
  anabranch undeploy flight-delays
  anabranch topic delete delays-by-carrier          and an output that nobody needs any more")]
    Undeploy(Named),
    /// Replay history through a new plugin, then make it the live one
    #[command(after_help = "Examples:
  anabranch swap flight-delays --plugin v2.wasm --wait
  anabranch swap flight-delays --plugin v2.wasm --approve manual --reason 'cancelled flights'
  anabranch swap flight-delays --plugin sha256:… --from 2013-01-01T00:00:00Z")]
    Swap(Swap),
    /// Make the candidate that has caught up the live generation
    #[command(after_help = "Example:
  anabranch promote flight-delays")]
    Promote(Named),
    /// Turn down the candidate that waits for approval
    #[command(after_help = "Example:
  anabranch reject flight-delays")]
    Reject(Named),
    /// Call off the candidate that replays
    #[command(after_help = "Example:
  anabranch cancel flight-delays")]
    Cancel(Named),
    /// Make the warm generation live again, at once
    #[command(after_help = "Example:
  anabranch rollback flight-delays")]
    Rollback(Named),
    /// Stop processing until it is resumed
    #[command(after_help = "Example:
  anabranch pause flight-delays")]
    Pause(Named),
    /// Go on after a pause
    #[command(after_help = "Example:
  anabranch resume flight-delays")]
    Resume(Named),
    /// Show deployments, their generations and how far they are
    #[command(after_help = "Examples:
  anabranch status
  anabranch status flight-delays --watch")]
    Status(Status),
    /// Read state stores
    #[command(subcommand)]
    Store(Store),
    /// Make, list and revoke tokens, for a host that asks for them
    #[command(subcommand)]
    Token(Token),
    /// Check a data directory that no host runs on, and repair it
    #[command(after_help = "Examples:
  anabranch doctor --data /var/lib/anabranch
  anabranch doctor --data /var/lib/anabranch --repair                 if nothing is lost by it
  anabranch doctor --data /var/lib/anabranch --repair --accept-loss   even if something is

Exit codes: 0 nothing is wrong, or all of it was repaired; 1 findings, or it could not be checked;
5 a repair would lose records and was not told to.")]
    Doctor(Doctor),
    /// Back up a host while it runs, or a data directory that no host runs on
    #[command(after_help = "Examples:
  anabranch backup nightly                                    a folder of [backup] dir, on the host's machine
  anabranch backup /mnt/backups/nightly --data /var/lib/anabranch")]
    Backup(Backup),
    /// Make a data directory from a backup
    #[command(after_help = "Example:
  anabranch restore /mnt/backups/nightly --data /var/lib/anabranch")]
    Restore(Restore),
    /// Measure this host on this machine: a real `serve` of its own, asked over HTTP
    #[command(after_help = "Examples:
  anabranch bench --quick
  anabranch bench --job filter count ingest
  anabranch bench --json > bench.json

It starts hosts of its own: --url, --ca and --token-file mean nothing here.")]
    Bench(Bench),
    /// Print completions for a shell
    #[command(after_help = "Example:
  anabranch completions bash > ~/.local/share/bash-completion/completions/anabranch")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Compile what comes on standard input: how a host runs its compiler, and nobody else
    #[command(name = SUBCOMMAND, hide = true, after_help = "Example:
  anabranch compile-plugin compile --memory-bytes 2147483648 --cpu-seconds 60 --output-bytes 536870912 < a.wasm > a.cwasm")]
    CompilePlugin(CompilePlugin),
}

/// `compile-plugin`
#[derive(Debug, Args)]
pub struct CompilePlugin {
    /// What to make of it: `componentize` or `compile`
    pub work: Work,
    /// Address space
    #[arg(long)]
    pub memory_bytes: u64,
    /// Processor time
    #[arg(long)]
    pub cpu_seconds: u64,
    /// Size of the result
    #[arg(long)]
    pub output_bytes: u64,
    /// Process of the host, with which it ends
    #[arg(long)]
    pub host: i32,
}

impl CompilePlugin {
    /// Does the work, under its limits; returns the exit code.
    pub fn run(&self) -> u8 {
        let Self { work, memory_bytes, cpu_seconds, output_bytes, host } = *self;
        plugin::child(work, ChildLimits { memory_bytes, cpu_seconds, output_bytes, host })
    }
}

/// `serve`
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration file; anabranch.toml in this directory if there is one
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Data directory
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Bring up the log without running plugins
    #[arg(long)]
    pub safe: bool,
    /// Allow an address that other machines can reach without TLS or without tokens
    #[arg(long)]
    pub insecure: bool,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Data directory
    #[arg(long, default_value = "anabranch-data")]
    pub data: PathBuf,
    /// Make a new head from what is intact; the old one goes to quarantine
    #[arg(long)]
    pub repair: bool,
    /// Repair although acknowledged records are lost by it; readers are told which
    #[arg(long, requires = "repair")]
    pub accept_loss: bool,
    /// Where the head is copied to be looked at; by default the system's directory for temporary files
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

/// `backup`
#[derive(Debug, Args)]
pub struct Backup {
    /// The name of a folder in the host's backup.dir; with --data, the folder itself
    pub dest: PathBuf,
    /// Back up this data directory, on which no host runs
    #[arg(long)]
    pub data: Option<PathBuf>,
}

/// `restore`
#[derive(Debug, Args)]
pub struct Restore {
    /// The folder of the backup
    pub source: PathBuf,
    /// Data directory to make; it must not exist or be empty
    #[arg(long, default_value = "anabranch-data")]
    pub data: PathBuf,
}

/// `bench`
#[derive(Debug, Args)]
pub struct Bench {
    /// Tiny sizes: shows that everything runs; the figures mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Only these: a job (pass-through, filter, json-map, count, count-per-key, flat-map), or one of
    /// disk, ingest, latency, swaps, scale, idle, workers
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub job: Vec<String>,
    /// Where the plugins of the jobs are; by default where `cargo xtask guests` puts them beside this
    /// program
    #[arg(long, value_name = "DIR")]
    pub plugins: Option<PathBuf>,
    /// Where to make a directory for the data, which is removed in the end; the disk is what is
    /// measured. By default the system's directory for temporary files
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// What the records are made from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Measure only the jobs' replay of this many records of 100 bytes, of 100,000 keys, in one
    /// partition: what other systems are compared with
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub records: Option<u64>,
    /// Workers of the host, with --records; by default one a core
    #[arg(long, value_name = "N", requires = "records", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: Option<u32>,
}

/// `topic …`
#[derive(Debug, Subcommand)]
pub enum Topic {
    /// Create a topic
    #[command(after_help = "Examples:
  anabranch topic create flights --partitions 4
  anabranch topic create images --format bytes")]
    Create {
        /// Its name.
        topic: String,
        /// Its partitions, for ever
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// How keys and values are shown and taken
        #[arg(long, default_value = "json")]
        format: TopicFormat,
    },
    /// List all topics
    #[command(after_help = "Example:
  anabranch topic list")]
    List,
    /// Show a topic's partitions
    #[command(after_help = "Example:
  anabranch topic describe flights")]
    Describe {
        /// Its name.
        topic: String,
    },
    /// Delete a topic and its records
    #[command(after_help = "Example:
  anabranch topic delete flights")]
    Delete {
        /// Its name.
        topic: String,
    },
}

/// The format of a topic.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TopicFormat {
    /// JSON values
    Json,
    /// Text
    Utf8,
    /// Any bytes, shown as base64
    Bytes,
}

/// `produce`
#[derive(Debug, Args)]
pub struct Produce {
    /// The topic.
    pub topic: String,
    /// Files; standard input if none or `-`
    pub files: Vec<PathBuf>,
    /// What a line is
    #[arg(long, default_value = "ndjson")]
    pub format: LineFormat,
    /// With ndjson: the field that is the key
    #[arg(long, value_name = "FIELD")]
    pub key: Option<String>,
    /// With ndjson: the field that is the timestamp (milliseconds or RFC 3339)
    #[arg(long, value_name = "FIELD")]
    pub timestamp: Option<String>,
    /// Records a second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
}

/// What a line of input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LineFormat {
    /// Each line is a value, as text
    Lines,
    /// Each line is a value, in JSON
    Ndjson,
    /// Each line is a record: {"key", "value", "timestamp", "headers", "partition"}
    Records,
}

/// `consume`
#[derive(Debug, Args)]
pub struct Consume {
    /// The topic.
    pub topic: String,
    /// earliest, latest, an offset, or a time (RFC 3339)
    #[arg(long, default_value = "earliest")]
    pub from: String,
    /// Go on with what is appended later, through swaps and reconnects
    #[arg(long)]
    pub follow: bool,
    /// Records at most
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// One partition; all by default
    #[arg(long)]
    pub partition: Option<u32>,
    /// How records are printed
    #[arg(long, default_value = "records")]
    pub format: RecordFormat,
}

/// How records are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RecordFormat {
    /// A JSON object a line
    Records,
    /// The value alone
    Values,
    /// Columns: partition, offset, time, key, value
    Table,
}

/// `plugin …`
#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// Push a plugin: a component, or a core module that the host makes into one
    #[command(after_help = "Example:
  anabranch plugin push target/wasm32-unknown-unknown/guest/flights_delays.wasm")]
    Push {
        /// The file.
        file: PathBuf,
    },
    /// List all plugins that were pushed
    #[command(after_help = "Example:
  anabranch plugin list")]
    List,
    /// Show what a plugin says of itself: stores, outputs, configuration
    #[command(after_help = "Example:
  anabranch plugin inspect sha256:…")]
    Inspect {
        /// Its digest.
        digest: String,
    },
    /// Delete a plugin that no generation runs
    #[command(after_help = "Example:
  anabranch plugin delete sha256:…")]
    Delete {
        /// Its digest.
        digest: String,
    },
}

/// `deploy`
#[derive(Debug, Args)]
pub struct Deploy {
    /// The deployment file (TOML); paths in it are relative to it
    pub file: PathBuf,
    /// Wait until everything that its inputs hold is processed
    #[arg(long)]
    pub wait: bool,
}

/// `swap`
#[derive(Debug, Args)]
pub struct Swap {
    /// The deployment.
    pub name: String,
    /// The new plugin: a file, which is pushed, or the digest of one that was
    #[arg(long, value_name = "FILE|DIGEST")]
    pub plugin: String,
    /// Where to begin: earliest, an offset, or a time (RFC 3339)
    #[arg(long, default_value = "earliest")]
    pub from: String,
    /// Whether it goes live by itself once it has caught up
    #[arg(long, default_value = "auto")]
    pub approve: Approve,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// A TOML file with a new configuration; the live one's by default
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Show the replay's progress, and wait until it is live or waits for approval
    #[arg(long)]
    pub wait: bool,
}

/// Who decides that a candidate goes live.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Approve {
    /// It goes live once it has caught up
    Auto,
    /// It waits for `promote` or `reject`
    Manual,
}

/// A command about one deployment.
#[derive(Debug, Args)]
pub struct Named {
    /// The deployment.
    pub name: String,
}

/// `status`
#[derive(Debug, Args)]
pub struct Status {
    /// A deployment; all by default
    pub name: Option<String>,
    /// Keep it live until interrupted
    #[arg(long)]
    pub watch: bool,
}

/// `store …`
#[derive(Debug, Subcommand)]
pub enum Store {
    /// List the stores of a deployment
    #[command(after_help = "Example:
  anabranch store list flight-delays")]
    List {
        /// The deployment.
        deployment: String,
    },
    /// Show the entry under a key
    #[command(after_help = "Example:
  anabranch store get flight-delays carriers AA")]
    Get {
        /// The deployment.
        deployment: String,
        /// The store.
        store: String,
        /// The key.
        key: String,
        /// Which generation and partition.
        #[command(flatten)]
        at: StoreAt,
    },
    /// Show entries in key order
    #[command(after_help = "Examples:
  anabranch store scan flight-delays carriers
  anabranch store scan flight-delays carriers --prefix U --limit 10")]
    Scan {
        /// The deployment.
        deployment: String,
        /// The store.
        store: String,
        /// Keys that begin with this
        #[arg(long)]
        prefix: Option<String>,
        /// Keys at or after this
        #[arg(long)]
        start: Option<String>,
        /// Keys before this
        #[arg(long)]
        end: Option<String>,
        /// Entries at most; all by default
        #[arg(long)]
        limit: Option<usize>,
        /// Which generation and partition.
        #[command(flatten)]
        at: StoreAt,
    },
}

/// `token …`
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token and print it, this once; the host keeps a hash
    #[command(after_help = "Examples:
  anabranch token create root --role admin --data /var/lib/anabranch      the first one, while the host is stopped
  anabranch token create ci --role deploy --topics 'flights*' --topics 'delays-*' --expires 90d
  anabranch token create sensor-7 --role produce --topics readings > sensor-7.token")]
    Create {
        /// What it is called in lists.
        name: String,
        /// What it is for
        #[arg(long)]
        role: TokenRole,
        /// A topic that it reaches, the beginning of names such as 'flights-*', or '*' for all; may be
        /// repeated. An admin reaches all
        #[arg(long, value_name = "TOPIC")]
        topics: Vec<String>,
        /// How long it is good for, such as 12h or 90d; until it is revoked by default
        #[arg(long, value_name = "SPAN")]
        expires: Option<String>,
        /// Where.
        #[command(flatten)]
        offline: Offline,
    },
    /// List all tokens, without their secrets
    #[command(after_help = "Example:
  anabranch token list")]
    List {
        /// Where.
        #[command(flatten)]
        offline: Offline,
    },
    /// Revoke a token, at once: streams that it opened end, too
    #[command(after_help = "Example:
  anabranch token revoke 5f0c2a9be1d34476")]
    Revoke {
        /// Its id, as the list shows it.
        id: String,
        /// Where.
        #[command(flatten)]
        offline: Offline,
    },
}

/// The data directory of a host that is stopped, instead of a host.
#[derive(Debug, Args)]
pub struct Offline {
    /// The data directory of a host that is stopped: nobody is asked, and no token is needed
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// That host's configuration file
    #[arg(long, value_name = "FILE", requires = "data")]
    pub config: Option<PathBuf>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TokenRole {
    /// See topics, plugins, deployments, events and metrics, but no record and no state
    Observe,
    /// The same, and read records and stores
    Consume,
    /// The same as observe, and append records
    Produce,
    /// All of these, and topics, plugins, deployments and swaps
    Deploy,
    /// Everything, tokens included
    Admin,
}

/// Which generation's store, and which partition of it.
#[derive(Debug, Args)]
pub struct StoreAt {
    /// The generation; the live one by default
    #[arg(long)]
    pub generation: Option<u32>,
    /// The task partition
    #[arg(long)]
    pub partition: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound_and_every_command_has_examples() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands() {
                let leaf = !sub.has_subcommands();
                assert!(!leaf || sub.get_after_help().is_some(), "{} has none", sub.get_name());
                check(sub);
            }
        }
        Cli::command().debug_assert();
        check(&Cli::command());
    }

    #[test]
    fn lines_are_understood() {
        let cli = Cli::try_parse_from([
            "anabranch",
            "swap",
            "d",
            "--plugin",
            "p.wasm",
            "--approve",
            "manual",
            "--json",
        ]);
        let cli = cli.unwrap();
        assert!(cli.json);
        let Some(Command::Swap(swap)) = cli.command else { panic!("not a swap") };
        assert_eq!((swap.plugin.as_str(), swap.from.as_str()), ("p.wasm", "earliest"));
        for wrong in
            [&["anabranch", "produce"][..], &["anabranch", "swap", "d"], &["anabranch", "x"]]
        {
            assert_eq!(Cli::try_parse_from(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
