//! The host's configuration: every limit with its unit, default and reason, in one place.
//!
//! Read from `anabranch.toml`; every key is also an environment variable
//! `ANABRANCH_<SECTION>_<KEY>`, and `serve`'s flags come last. Unknown keys are refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The most that a task may gather before a commit, and take into a batch: a commit of the log holds
/// 128 MiB, and one call of a plugin may add 96 MiB.
const MAX_GATHERED_BYTES: u64 = 16 << 20;

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; name another file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file or a variable does not say what a configuration can say.
    #[error("{place}: {message}")]
    Invalid {
        /// The file, or the environment variable.
        place: String,
        /// What is wrong and what to do.
        message: String,
    },
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

section!(
    /// `[data]`: where everything lives.
    Data {
        /// The data directory; one host owns it at a time.
        dir: PathBuf = PathBuf::from("anabranch-data"),
    }
);

section!(
    /// `[http]`: the public surface.
    Http {
        /// Address to listen on. Loopback unless said otherwise: another one needs TLS and tokens.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7766)),
        /// Whether an address that other machines can reach is allowed without TLS or tokens.
        insecure: bool = false,
        /// The certificate chain (PEM), the host's own first. With `tls_key`, the host speaks TLS only.
        tls_cert: Option<PathBuf> = None,
        /// The certificate's private key (PEM).
        tls_key: Option<PathBuf> = None,
        /// Milliseconds between two looks at the certificate's files, so that a new one is taken without
        /// a restart; SIGHUP looks at once.
        tls_reload_ms: u64 = 10_000,
        /// Connections that are open at the same time, in all: each costs a file and buffers, some
        /// hundred KiB where its client is slow. At most half of the files that the process may open.
        max_connections: usize = 4_096,
        /// Connections of one address (of IPv6, of one /64), so that one client leaves room for others.
        max_connections_per_address: usize = 1_024,
        /// Requests a second of one token, or, without a token, of one address; a second's worth may
        /// come at once. Beyond what a client that waits for answers reaches.
        max_requests_per_second: u32 = 20_000,
        /// Bytes of a request's line and headers.
        max_header_bytes: usize = 32 << 10,
        /// Headers of a request.
        max_headers: usize = 100,
        /// Milliseconds within which a connection has to be secured, and within which the headers of a
        /// request have to come; an idle connection is closed after them, too.
        header_timeout_ms: u64 = 30_000,
        /// Milliseconds that a client may be behind `min_bytes_per_second`, in sending a body or in
        /// taking an answer, before it is cut off: a pause, or a slow link.
        stall_timeout_ms: u64 = 30_000,
        /// Bytes a second that are expected of a client while the host waits for it.
        min_bytes_per_second: u32 = 4_096,
        /// Largest request body in bytes: a produce request is held in memory while it is parsed.
        max_body_bytes: usize = 64 << 20,
        /// Bytes of all request bodies that are held at the same time; beyond it a body is refused.
        max_bodies_bytes: usize = 1 << 30,
        /// Bytes of a body that is refused which are read and thrown away: most clients listen only once
        /// they have said all, and one that is cut off while it speaks never hears why.
        discard_bytes: usize = 1 << 30,
        /// Milliseconds for reading what is thrown away.
        discard_ms: u64 = 10_000,
        /// Most bytes a second that are read of it, for each connection: it is nothing but work.
        discard_bytes_per_second: usize = 100 << 20,
        /// Most records that one fetch returns: a reply is built in memory.
        max_fetch_records: usize = 100_000,
        /// Most bytes of records that one fetch returns.
        max_fetch_bytes: usize = 32 << 20,
        /// Milliseconds between heartbeats on an idle event stream, so that proxies keep it open.
        heartbeat_ms: u64 = 10_000,
        /// Milliseconds that a stopping host waits for requests under way.
        drain_ms: u64 = 5_000,
    }
);

section!(
    /// `[auth]`: who may ask.
    Auth {
        /// Whether a request needs a token. Without, whoever reaches the port may do everything.
        required: bool = false,
        /// Tokens that exist at the same time: all are in memory, and a list that nobody can read is of
        /// no use.
        max_tokens: usize = 10_000,
    }
);

section!(
    /// `[audit]`: the log of what was refused and of what changed.
    AuditLog {
        /// The file; `audit.log` in the data directory if none is named.
        file: Option<PathBuf> = None,
        /// Bytes after which a file is closed and the next one begun.
        max_bytes: u64 = 16 << 20,
        /// Files that are kept beside the one that is written; the oldest goes.
        keep_files: u32 = 8,
        /// Refused calls a second that are written down, so that a flood of them does not push out what
        /// came before. What is left out is counted in the next line.
        refusals_per_second: u32 = 20,
    }
);

section!(
    /// `[storage]`: the head of the log and the disk below it.
    StorageLimits {
        /// Bytes that the head may hold before the largest partitions are sealed into segments. More
        /// means larger segments and a longer start.
        head_bytes: u64 = 32 << 20,
        /// Free bytes on disk below which appends are refused, so that reading, serving, clean-up, and the
        /// sealing of what the head holds still have room.
        min_free_bytes: u64 = 256 << 20,
        /// Milliseconds that the head may take to be opened, or for one write, sync or read, before the
        /// host ends: nobody is answered meanwhile, and the database below may wait for what never
        /// comes. A disk that lives answers within the kernel's 30 seconds for one request and some
        /// that it tries again.
        sync_timeout_ms: u64 = 180_000,
        /// Milliseconds between copies of the head that are kept beside it, while it changes: what was
        /// acknowledged since and is in no segment is lost with the head. A copy costs the writing of
        /// `head_bytes`, compressed.
        head_copy_ms: u64 = 60_000,
        /// Largest key in bytes.
        max_key_bytes: usize = 64 << 10,
        /// Largest value in bytes.
        max_value_bytes: usize = 8 << 20,
        /// Most bytes of a record's header names and values.
        max_header_bytes: usize = 64 << 10,
        /// Most partitions of a topic: each costs memory and a task for each deployment that reads it.
        max_partitions: u32 = 256,
    }
);

section!(
    /// `[segments]`: the immutable files of the log.
    Segments {
        /// Bytes of records (before compression) after which a segment file is closed.
        target_bytes: u64 = 64 << 20,
    }
);

section!(
    /// `[tasks]`: how plugins are run.
    Tasks {
        /// Worker threads for live work, and as many for replays; 0 is one a core.
        workers: usize = 0,
        /// Most records of a batch handed to a plugin.
        batch_max_records: usize = 4_096,
        /// Most bytes of a batch handed to a plugin; one record larger than this is a batch alone.
        batch_max_bytes: usize = 4 << 20,
        /// Share of a processor, in percent, that a replay's thread gets beside a live one that wants it all;
        /// from 50 on, as much as that.
        replay_share: u32 = 25,
        /// Bytes of outputs and state changes that a live task gathers before it waits for its commit.
        commit_max_bytes: usize = 4 << 20,
        /// The same of a generation that follows the live one. Producers and live tasks wait for what is
        /// committed before them, and the disk takes milliseconds for a megabyte.
        follow_commit_bytes: usize = 256 << 10,
        /// Bytes of outputs and state changes that a replaying task writes to files in one commit: where it
        /// has stores and its generation at most two tasks; else half of that. Each task holds up to twice
        /// as much: one commit being written, one being gathered. One that is alone has a third between them.
        replay_commit_bytes: usize = 16 << 20,
        /// Records left to all its tasks below which a replaying generation leaves files for the head: a
        /// fraction of a second of work, and what the head then holds of it.
        near_end_records: u64 = 50_000,
        /// Bytes of changelog after which a store is checkpointed, so that a restart stays short.
        checkpoint_bytes: u64 = 32 << 20,
        /// Bytes of memory after which a plugin's instance is replaced between two calls.
        recycle_memory_bytes: u64 = 64 << 20,
        /// Milliseconds that a flip may hold the live tasks before it lets go and tries again.
        flip_timeout_ms: u64 = 2_000,
    }
);

section!(
    /// `[plugins]`: what pushing and compiling a plugin may cost. Compilation runs in a process of its
    /// own, which is held to these limits and killed at them.
    Plugins {
        /// Largest plugin in bytes. A Python guest has 18 MB.
        max_bytes: usize = 64 << 20,
        /// Address space of a compilation in bytes: what it may allocate, the program itself included.
        compile_memory_bytes: u64 = 2 << 30,
        /// Processor time of a compilation in seconds. A Python guest takes six.
        compile_cpu_seconds: u64 = 60,
        /// Wall time of a compilation in milliseconds, for a machine that is busy with other things.
        compile_timeout_ms: u64 = 180_000,
        /// Bytes of compiled code. A Python guest has 33 MB.
        compile_output_bytes: u64 = 512 << 20,
        /// Fuel of instantiation and `describe`, each, when a plugin is pushed or loaded: a plugin has no
        /// deployment yet whose limits could hold. Interpreters set themselves up here.
        fuel_per_start: u64 = 5_000_000_000,
        /// Plugins that are compiled and asked what they are at the same time; others wait.
        compile_jobs: usize = 2,
    }
);

section!(
    /// `[backup]`: what clients may ask for.
    Backup {
        /// The directory in which the host makes backups when it is asked to, each in a folder of its
        /// own. Empty: it makes none.
        dir: PathBuf = PathBuf::new(),
    }
);

section!(
    /// `[log]`: what the host says of itself.
    LogOutput {
        /// Which lines: `error`, `warn`, `info`, `debug`, `trace`, or tracing's directives.
        level: String = "info".to_owned(),
        /// `text` or `json`.
        format: LogFormat = LogFormat::Text,
    }
);

/// The form of the host's own log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[data]`
    pub data: Data,
    /// `[http]`
    pub http: Http,
    /// `[auth]`
    pub auth: Auth,
    /// `[audit]`
    pub audit: AuditLog,
    /// `[storage]`
    pub storage: StorageLimits,
    /// `[segments]`
    pub segments: Segments,
    /// `[tasks]`
    pub tasks: Tasks,
    /// `[plugins]`
    pub plugins: Plugins,
    /// `[backup]`
    pub backup: Backup,
    /// `[log]`
    pub log: LogOutput,
}

impl Config {
    /// Reads `file` (if any), then the variables of `environment` that begin with `ANABRANCH_` and
    /// name a section and a key.
    ///
    /// # Errors
    /// When the file cannot be read, or says something that a configuration cannot say.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let (text, place) = match file {
            Some(path) => {
                let read = std::fs::read_to_string(path);
                let text = read.map_err(|source| Error::Read { path: path.into(), source })?;
                (text, path.display().to_string())
            }
            None => (String::new(), "configuration".to_owned()),
        };
        let invalid = |place: &str, error: toml::de::Error| Error::Invalid {
            place: place.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        let mut config: Config = toml::from_str(&text).map_err(|e| invalid(&place, e))?;
        for (name, value) in environment {
            let Some((section, key)) = section_and_key(&name) else { continue };
            config = config.with(section, &key, &value).map_err(|e| invalid(&name, e))?;
        }
        config.check().map_err(|message| Error::Invalid { place, message })?;
        Ok(config)
    }

    /// Checks that the limits make sense: one of 0 may mean that nothing ever goes on, and one beyond all
    /// machines that a sum of them overflows. The error names the key and its range.
    fn check(&self) -> Result<(), String> {
        const MIB: u64 = 1 << 20;
        const TIB: u64 = 1 << 40;
        const YEAR_MS: u64 = 365 * 86_400_000;
        let (http, storage, tasks) = (&self.http, &self.storage, &self.tasks);
        let plugins = &self.plugins;
        let ranges = [
            ("http.tls_reload_ms", http.tls_reload_ms, 1, YEAR_MS),
            ("http.max_connections", http.max_connections as u64, 1, MIB),
            ("http.max_connections_per_address", http.max_connections_per_address as u64, 1, MIB),
            ("http.max_requests_per_second", http.max_requests_per_second.into(), 1, 1 << 30),
            ("http.max_header_bytes", http.max_header_bytes as u64, 1 << 10, MIB),
            ("http.max_headers", http.max_headers as u64, 4, 10_000),
            ("http.header_timeout_ms", http.header_timeout_ms, 1, YEAR_MS),
            ("http.stall_timeout_ms", http.stall_timeout_ms, 1, YEAR_MS),
            ("http.min_bytes_per_second", http.min_bytes_per_second.into(), 1, 1 << 30),
            ("http.max_body_bytes", http.max_body_bytes as u64, 1, 4 << 30),
            ("http.max_bodies_bytes", http.max_bodies_bytes as u64, 1, TIB),
            ("http.discard_bytes", http.discard_bytes as u64, 0, TIB),
            ("http.discard_ms", http.discard_ms, 0, YEAR_MS),
            ("http.discard_bytes_per_second", http.discard_bytes_per_second as u64, 1 << 10, TIB),
            ("http.max_fetch_records", http.max_fetch_records as u64, 1, 10_000_000),
            ("http.max_fetch_bytes", http.max_fetch_bytes as u64, 1, 1 << 30),
            ("http.heartbeat_ms", http.heartbeat_ms, 1, YEAR_MS),
            ("http.drain_ms", http.drain_ms, 0, YEAR_MS),
            ("auth.max_tokens", self.auth.max_tokens as u64, 1, 1_000_000),
            ("audit.max_bytes", self.audit.max_bytes, 1 << 10, TIB),
            ("audit.keep_files", self.audit.keep_files.into(), 0, 10_000),
            ("audit.refusals_per_second", self.audit.refusals_per_second.into(), 0, 1 << 30),
            ("storage.head_bytes", storage.head_bytes, 1, TIB),
            ("storage.min_free_bytes", storage.min_free_bytes, 0, 1 << 60),
            ("storage.sync_timeout_ms", storage.sync_timeout_ms, 1_000, YEAR_MS),
            ("storage.head_copy_ms", storage.head_copy_ms, 1, YEAR_MS),
            ("storage.max_key_bytes", storage.max_key_bytes as u64, 1, MIB),
            ("storage.max_value_bytes", storage.max_value_bytes as u64, 1, 64 * MIB),
            ("storage.max_header_bytes", storage.max_header_bytes as u64, 0, MIB),
            ("storage.max_partitions", storage.max_partitions.into(), 1, 65_536),
            ("segments.target_bytes", self.segments.target_bytes, 1, TIB),
            ("tasks.workers", tasks.workers as u64, 0, 1_024),
            ("tasks.batch_max_records", tasks.batch_max_records as u64, 1, MIB),
            ("tasks.batch_max_bytes", tasks.batch_max_bytes as u64, 1, MAX_GATHERED_BYTES),
            ("tasks.replay_share", tasks.replay_share.into(), 0, 100),
            ("tasks.commit_max_bytes", tasks.commit_max_bytes as u64, 1, MAX_GATHERED_BYTES),
            ("tasks.follow_commit_bytes", tasks.follow_commit_bytes as u64, 1, MAX_GATHERED_BYTES),
            ("tasks.replay_commit_bytes", tasks.replay_commit_bytes as u64, 1, MAX_GATHERED_BYTES),
            ("tasks.near_end_records", tasks.near_end_records, 0, 1 << 40),
            ("tasks.checkpoint_bytes", tasks.checkpoint_bytes, 1, TIB),
            ("tasks.recycle_memory_bytes", tasks.recycle_memory_bytes, 0, TIB),
            ("tasks.flip_timeout_ms", tasks.flip_timeout_ms, 1, YEAR_MS),
            ("plugins.max_bytes", plugins.max_bytes as u64, 1 << 10, 4 << 30),
            ("plugins.compile_memory_bytes", plugins.compile_memory_bytes, MIB, TIB),
            ("plugins.compile_cpu_seconds", plugins.compile_cpu_seconds, 1, YEAR_MS / 1_000),
            ("plugins.compile_timeout_ms", plugins.compile_timeout_ms, 1, YEAR_MS),
            ("plugins.compile_output_bytes", plugins.compile_output_bytes, 1, TIB),
            ("plugins.fuel_per_start", plugins.fuel_per_start, 1_000_000, 1 << 50),
            ("plugins.compile_jobs", plugins.compile_jobs as u64, 1, 1_024),
        ];
        match ranges.iter().find(|(_, value, least, most)| value < least || value > most) {
            None => Ok(()),
            Some((key, value, least, most)) => {
                Err(format!("{key} is {value}, it must be between {least} and {most}"))
            }
        }
    }

    /// This configuration with one key set from text: a number or word as TOML would write it.
    fn with(&self, section: &str, key: &str, value: &str) -> Result<Self, toml::de::Error> {
        use serde::de::Error as _;
        let mut table = toml::Table::try_from(self).map_err(toml::de::Error::custom)?;
        let entries = table.get_mut(section).and_then(toml::Value::as_table_mut);
        let entries = entries.ok_or_else(|| toml::de::Error::custom("no such section"))?;
        let parsed = match entries.get(key) {
            Some(toml::Value::Integer(_)) => value
                .parse()
                .map(toml::Value::Integer)
                .map_err(|_| toml::de::Error::custom(format!("{value:?} is not a whole number")))?,
            Some(toml::Value::Boolean(_)) => value
                .parse()
                .map(toml::Value::Boolean)
                .map_err(|_| toml::de::Error::custom(format!("{value:?} is not true or false")))?,
            _ => toml::Value::String(value.to_owned()),
        };
        entries.insert(key.to_owned(), parsed);
        table.try_into()
    }
}

/// `ANABRANCH_HTTP_MAX_BODY_BYTES` is key `max_body_bytes` of section `http`; other variables, such as
/// the client's `ANABRANCH_URL`, are not about the configuration.
fn section_and_key(name: &str) -> Option<(&'static str, String)> {
    const SECTIONS: [&str; 10] = [
        "data", "http", "auth", "audit", "storage", "segments", "tasks", "plugins", "backup", "log",
    ];
    let rest = name.strip_prefix("ANABRANCH_")?.to_ascii_lowercase();
    SECTIONS.iter().find_map(|section| {
        let key = rest.strip_prefix(section)?.strip_prefix('_')?;
        Some((*section, key.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(file.path()), environment)
    }

    #[test]
    fn variables_win_over_the_file() {
        let config = load(
            "[http]\nlisten = '127.0.0.1:1'\n[tasks]\nworkers = 3",
            &[
                ("ANABRANCH_TASKS_WORKERS", "2"),
                ("ANABRANCH_DATA_DIR", "/x"),
                ("ANABRANCH_HTTP_TLS_CERT", "/cert"),
                ("ANABRANCH_AUTH_REQUIRED", "true"),
                ("ANABRANCH_TOKEN", "t"),
                ("ANABRANCH_URL", "u"),
            ],
        )
        .unwrap();
        assert_eq!((config.tasks.workers, config.http.listen.port()), (2, 1));
        assert_eq!(config.data.dir, PathBuf::from("/x"));
        assert_eq!(config.http.tls_cert, Some(PathBuf::from("/cert")));
        assert!(config.auth.required);
    }

    #[test]
    fn what_is_unknown_is_refused_with_its_place() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case<'_>; 4] = [
            ("[http]\nlisen = 'x'", &[], "lisen"),
            ("[nope]", &[], "nope"),
            ("", &[("ANABRANCH_TASKS_WORKERS", "two")], "ANABRANCH_TASKS_WORKERS"),
            ("", &[("ANABRANCH_TASKS_WORKER", "2")], "ANABRANCH_TASKS_WORKER"),
        ];
        for (text, environment, expected) in cases {
            let error = load(text, environment).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn limits_out_of_range_are_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let cases = [
            (
                "[tasks]\nbatch_max_bytes = 0",
                "tasks.batch_max_bytes is 0, it must be between 1 and",
            ),
            ("[tasks]\ncommit_max_bytes = 200000000", "tasks.commit_max_bytes is 200000000"),
            ("[http]\nheartbeat_ms = 0", "http.heartbeat_ms is 0"),
        ];
        for (text, expected) in cases {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn every_number_has_a_range() {
        let source = include_str!("config.rs");
        let checked = source.split("let ranges = [").nth(1).unwrap();
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        let mut count = 0;
        for (section, keys) in &defaults {
            for (key, value) in keys.as_table().unwrap() {
                if value.is_integer() {
                    assert!(
                        checked.contains(&format!("(\"{section}.{key}\", ")),
                        "{section}.{key}"
                    );
                    count += 1;
                }
            }
        }
        assert!(count > 40, "{count}");
    }
}
