//! What each command does, but for those that move records.

use std::io::Write as _;
use std::path::Path;

use clap::CommandFactory as _;
use serde_json::{Value, json};

use super::args::{
    Approve, Cli, Command, Deploy, Plugin, Store, StoreAt, Swap, Topic, TopicFormat,
};
use super::client::{Client, Error, segment};
use super::print::{cell, count, size, table};
use super::{bench, consume, produce, progress, recovery};
use crate::clock::SharedClock;
use crate::deployment::{PluginStatus, StoreEntry, StoreStatus, TopicStatus};

/// What commands need: the host, how to print, and the clock.
pub struct Context {
    /// The host.
    pub client: Client,
    /// Whether to print JSON.
    pub json: bool,
    /// For rates and durations.
    pub clock: SharedClock,
}

impl Context {
    /// Prints a result: `value` as a line of JSON, or what `text` makes of it.
    pub fn print(&self, value: &Value, text: impl FnOnce() -> String) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{value}")?,
            false => out.write_all(text().as_bytes())?,
        }
        Ok(out.flush()?)
    }
}

/// Runs a command other than `serve`.
///
/// # Errors
/// Why it did not do what it was asked; the error knows the exit code.
pub fn run(cli: Cli, clock: SharedClock) -> Result<(), Error> {
    let client = Client::with(&cli.url, cli.ca.as_deref(), token(cli.token_file.as_deref())?)?;
    let context = Context { client, json: cli.json, clock };
    let Some(command) = cli.command else {
        return Ok(Cli::command().print_help()?);
    };
    match command {
        Command::Serve(_) | Command::CompilePlugin(_) => {
            Err(Error::Usage("this is no client's command".to_owned()))
        }
        Command::Topic(topic) => run_topic(&context, topic),
        Command::Produce(args) => produce::run(&context, &args),
        Command::Consume(args) => consume::run(&context, &args),
        Command::Plugin(plugin) => run_plugin(&context, plugin),
        Command::Deploy(args) => deploy(&context, &args),
        Command::Undeploy(named) => {
            context.client.delete(&deployment(&named.name, ""))?;
            let gone = json!({"deleted": named.name});
            context.print(&gone, || format!("deployment {} is deleted\n", named.name))
        }
        Command::Swap(args) => swap(&context, &args),
        Command::Promote(named) => act(&context, &named.name, "promote"),
        Command::Reject(named) => act(&context, &named.name, "reject"),
        Command::Cancel(named) => act(&context, &named.name, "cancel"),
        Command::Rollback(named) => act(&context, &named.name, "rollback"),
        Command::Pause(named) => act(&context, &named.name, "pause"),
        Command::Resume(named) => act(&context, &named.name, "resume"),
        Command::Status(args) => progress::status(&context, args.name.as_deref(), args.watch),
        Command::Store(store) => run_store(&context, store),
        Command::Token(args) => super::token::run(&context, args),
        Command::Doctor(args) => recovery::doctor(&context, &args),
        Command::Backup(args) => recovery::backup(&context, &args),
        Command::Restore(args) => recovery::restore_backup(&context, &args),
        Command::Bench(args) => bench::run(&context, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "anabranch", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
    }
}

/// The token to ask with, if there is one: what `file` holds, or ANABRANCH_TOKEN.
fn token(file: Option<&Path>) -> Result<Option<String>, Error> {
    const VARIABLE: &str = "ANABRANCH_TOKEN";
    match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, &error))?;
            Ok(Some(text.trim().to_owned()))
        }
        None => {
            let text = std::env::var(VARIABLE).unwrap_or_default();
            Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
        }
    }
}

/// Measures what the sandbox costs, with plugins that the program has registered to run natively in the
/// hosts that it starts, and prints it beside what `calls` take alone.
///
/// # Errors
/// When a host or a job fails.
#[cfg(feature = "native")]
pub fn sandbox(
    cli: &Cli,
    args: &super::BenchArgs,
    calls: Vec<super::SandboxCall>,
    clock: SharedClock,
) -> Result<(), Error> {
    let context = Context { client: Client::new(&cli.url)?, json: cli.json, clock };
    bench::sandbox::run(&context, args, calls)
}

/// The path of a deployment, or of what lies below it.
pub fn deployment(name: &str, below: &str) -> String {
    format!("/v1/deployments/{}{below}", segment(name))
}

/// The path of a topic, or of what lies below it.
pub fn topic(name: &str, below: &str) -> String {
    format!("/v1/topics/{}{below}", segment(name))
}

/// What the host says, in the shape that it has there.
pub fn shaped<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Error> {
    T::deserialize(value)
        .map_err(|error| Error::Failed(format!("the host's answer is not understood: {error}")))
}

fn run_topic(context: &Context, command: Topic) -> Result<(), Error> {
    let client = &context.client;
    match command {
        Topic::Create { topic: name, partitions, format } => {
            let format = match format {
                TopicFormat::Json => "json",
                TopicFormat::Utf8 => "utf8",
                TopicFormat::Bytes => "bytes",
            };
            let body = json!({"partitions": partitions, "format": format});
            let made = client.put(&topic(&name, ""), &body)?;
            context.print(&made, || {
                format!("topic {name} has {partitions} partitions and format {format}\n")
            })
        }
        Topic::List => {
            let topics: Value = client.get("/v1/topics", &[])?;
            let rows =
                shaped::<Vec<TopicStatus>>(&topics)?.iter().map(topic_row).collect::<Vec<_>>();
            context.print(&topics, || {
                table(&["TOPIC", "PARTITIONS", "FORMAT", "RECORDS", "SIZE", "OWNER"], &rows)
            })
        }
        Topic::Describe { topic: name } => {
            let found: Value = client.get(&topic(&name, ""), &[])?;
            let status: TopicStatus = shaped(&found)?;
            let rows: Vec<Vec<String>> = status
                .partitions
                .iter()
                .map(|p| {
                    vec![
                        p.partition.to_string(),
                        p.log_start_offset.to_string(),
                        p.end_offset.to_string(),
                        count(p.records),
                        size(p.size_bytes),
                    ]
                })
                .collect();
            context.print(&found, || {
                let owner = status.owner.as_ref().map_or(String::new(), |owner| {
                    let generation = status.generation.unwrap_or_default();
                    format!(", output of {owner} (generation {generation})")
                });
                let head = format!("topic {name}: format {}{owner}\n", status.format);
                head + &table(&["PARTITION", "START", "END", "RECORDS", "SIZE"], &rows)
            })
        }
        Topic::Delete { topic: name } => {
            client.delete(&topic(&name, ""))?;
            context.print(&json!({"deleted": name}), || format!("topic {name} is deleted\n"))
        }
    }
}

fn topic_row(topic: &TopicStatus) -> Vec<String> {
    vec![
        topic.name.clone(),
        topic.partitions.len().to_string(),
        topic.format.clone(),
        count(topic.partitions.iter().map(|p| p.records).sum()),
        size(topic.partitions.iter().map(|p| p.size_bytes).sum()),
        topic.owner.clone().unwrap_or_default(),
    ]
}

fn run_plugin(context: &Context, command: Plugin) -> Result<(), Error> {
    match command {
        Plugin::Push { file } => {
            let pushed = push(context, &file)?;
            let status: PluginStatus = shaped(&pushed)?;
            context.print(&pushed, || {
                format!("{} {} is {}\n", status.name, status.version, status.digest)
            })
        }
        Plugin::List => {
            let plugins: Value = context.client.get("/v1/plugins", &[])?;
            let rows: Vec<Vec<String>> = shaped::<Vec<PluginStatus>>(&plugins)?
                .into_iter()
                .map(|p| vec![p.name, p.version, size(p.size_bytes), p.pushed_at, p.digest])
                .collect();
            context.print(&plugins, || {
                table(&["PLUGIN", "VERSION", "SIZE", "PUSHED", "DIGEST"], &rows)
            })
        }
        Plugin::Inspect { digest } => {
            let path = format!("/v1/plugins/{}", segment(&digest));
            let plugin: Value = context.client.get(&path, &[])?;
            context.print(&plugin, || format!("{plugin:#}\n"))
        }
        Plugin::Delete { digest } => {
            context.client.delete(&format!("/v1/plugins/{}", segment(&digest)))?;
            let gone = json!({"deleted": digest});
            context.print(&gone, || format!("plugin {digest} is deleted\n"))
        }
    }
}

/// Pushes the plugin in `file`.
fn push(context: &Context, file: &Path) -> Result<Value, Error> {
    let bytes = std::fs::read(file).map_err(|error| Error::file(file, &error))?;
    context.client.post("/v1/plugins", "application/wasm", &bytes).map_err(|error| match error {
        Error::Refused { status, detail, problem } => {
            Error::Refused { status, detail: format!("{}: {detail}", file.display()), problem }
        }
        other => other,
    })
}

/// The digest of a plugin: as given, or that of the file, which is pushed. A relative path begins at
/// `base`.
fn digest_of(context: &Context, plugin: &str, base: &Path) -> Result<Value, Error> {
    if plugin.starts_with("sha256:") {
        return Ok(plugin.into());
    }
    let pushed = push(context, &base.join(plugin))?;
    Ok(pushed["digest"].clone())
}

/// A TOML file as JSON.
fn read_toml(path: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, &error))?;
    let parsed: toml::Table = toml::from_str(&text)
        .map_err(|error| Error::Usage(format!("{}: {error}", path.display())))?;
    serde_json::to_value(parsed)
        .map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

fn deploy(context: &Context, args: &Deploy) -> Result<(), Error> {
    let file = &args.file;
    let mut spec = read_toml(file)?;
    let missing = |what: &str| Error::Usage(format!("{}: it says no {what}", file.display()));
    let name = spec["name"].as_str().ok_or_else(|| missing("name"))?.to_owned();
    let plugin = spec["plugin"].as_str().ok_or_else(|| missing("plugin"))?.to_owned();
    // What the file says is checked before its plugin is pushed.
    shaped::<crate::deployment::DeploymentSpec>(&spec)
        .map_err(|error| Error::Usage(format!("{}: {}", file.display(), spec_fault(&error))))?;
    let base = file.parent().unwrap_or(Path::new(""));
    spec["plugin"] = digest_of(context, &plugin, base)?;
    let status = context.client.put(&deployment(&name, ""), &spec)?;
    if args.wait {
        return progress::wait_until_current(context, &name);
    }
    context.print(&status, || format!("{name} is deployed, generation {}\n", status["live"]))
}

/// The fault of a deployment file without the words about a host's answer.
fn spec_fault(error: &Error) -> String {
    let text = error.to_string();
    text.strip_prefix("the host's answer is not understood: ").unwrap_or(&text).to_owned()
}

fn swap(context: &Context, args: &Swap) -> Result<(), Error> {
    let mut request = json!({
        "plugin": digest_of(context, &args.plugin, Path::new(""))?,
        "from": args.from,
        "approve": match args.approve { Approve::Auto => "auto", Approve::Manual => "manual" },
        "reason": args.reason,
    });
    if let Some(file) = &args.config {
        request["config"] = read_toml(file)?;
    }
    let path = deployment(&args.name, "/swap");
    let started = context.client.post(&path, "application/json", request.to_string().as_bytes())?;
    let generation = started["generation"].as_u64().unwrap_or_default();
    if args.wait {
        let manual = matches!(args.approve, Approve::Manual);
        return progress::wait_for_swap(context, &args.name, generation, manual);
    }
    context.print(&started, || {
        let records = count(started["preflight"]["records"].as_u64().unwrap_or_default());
        format!(
            "generation {generation} of {name} replays {records} records; anabranch status {name} --watch\n",
            name = args.name
        )
    })
}

fn act(context: &Context, name: &str, action: &str) -> Result<(), Error> {
    let status =
        context.client.post(&deployment(name, &format!("/{action}")), "application/json", b"")?;
    context.print(&status, || {
        let paused = if status["paused"] == true { ", paused" } else { "" };
        let pause = match (action, status["last_pause_ms"].as_f64()) {
            ("promote" | "rollback", Some(ms)) => {
                format!("; the flip held its tasks for {ms:.1} ms")
            }
            _ => String::new(),
        };
        format!("{name}: generation {} is live{paused}{pause}\n", status["live"])
    })
}

fn run_store(context: &Context, command: Store) -> Result<(), Error> {
    match command {
        Store::List { deployment: name } => {
            let stores: Value = context.client.get(&deployment(&name, "/stores"), &[])?;
            let rows: Vec<Vec<String>> = shaped::<Vec<StoreStatus>>(&stores)?
                .into_iter()
                .map(|s| {
                    let (entries, bytes) = (count(s.entries), size(s.size_bytes));
                    vec![s.name, s.version.to_string(), s.key.join(", "), s.value, entries, bytes]
                })
                .collect();
            context.print(&stores, || {
                table(&["STORE", "VERSION", "KEY", "VALUE", "ENTRIES", "SIZE"], &rows)
            })
        }
        Store::Get { deployment: name, store, key, at } => {
            let path = format!("/stores/{}/keys/{}", segment(&store), segment(&key));
            let found: Value = context.client.get(&deployment(&name, &path), &store_query(&at))?;
            let entry: StoreEntry = shaped(&found)?;
            context.print(&found, || entries_table(&[entry]))
        }
        Store::Scan { deployment: name, store, prefix, start, end, limit, at } => {
            let path = deployment(&name, &format!("/stores/{}", segment(&store)));
            let mut query = store_query(&at);
            let bounds = [("prefix", prefix), ("start", start), ("end", end)];
            query.extend(bounds.into_iter().filter_map(|(name, value)| Some((name, value?))));
            scan(context, &path, query, limit.unwrap_or(usize::MAX))
        }
    }
}

fn store_query(at: &StoreAt) -> Vec<(&'static str, String)> {
    let given = [("generation", at.generation), ("partition", at.partition)];
    given.into_iter().filter_map(|(name, value)| Some((name, value?.to_string()))).collect()
}

/// Reads pages until there are no more, or `limit` entries were read.
fn scan(
    context: &Context,
    path: &str,
    query: Vec<(&'static str, String)>,
    limit: usize,
) -> Result<(), Error> {
    let mut entries = Vec::new();
    let mut cursor: Option<String> = None;
    let mut answer: Value = Value::Null;
    while entries.len() < limit {
        let mut query = query.clone();
        query.push(("limit", (limit - entries.len()).min(1_000).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        answer = context.client.get(path, &query)?;
        entries.extend(shaped::<Vec<StoreEntry>>(&answer["entries"])?);
        cursor = answer["cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    answer["entries"] = json!(entries);
    context.print(&answer, || entries_table(&entries))
}

/// Entries in columns: the key, and a column a field where all values are objects of the same fields.
fn entries_table(entries: &[StoreEntry]) -> String {
    let fields: Option<Vec<&String>> =
        entries.first().and_then(|entry| entry.value.as_object()).map(|o| o.keys().collect());
    let alike = |fields: &Vec<&String>| {
        let same = |entry: &StoreEntry| {
            entry.value.as_object().is_some_and(|o| o.keys().eq(fields.iter().copied()))
        };
        entries.iter().all(same)
    };
    let key = |entry: &StoreEntry| match &entry.key {
        Value::Array(parts) => parts.iter().map(cell).collect::<Vec<_>>().join(" / "),
        other => cell(other),
    };
    match fields.filter(alike) {
        Some(fields) => {
            let headings: Vec<String> = fields.iter().map(|field| field.to_uppercase()).collect();
            let headings: Vec<&str> =
                std::iter::once("KEY").chain(headings.iter().map(String::as_str)).collect();
            let row = |entry: &StoreEntry| {
                let cells = fields.iter().map(|field| cell(&entry.value[field.as_str()]));
                std::iter::once(key(entry)).chain(cells).collect()
            };
            table(&headings, &entries.iter().map(row).collect::<Vec<_>>())
        }
        None => {
            let row = |entry: &StoreEntry| vec![key(entry), cell(&entry.value)];
            table(&["KEY", "VALUE"], &entries.iter().map(row).collect::<Vec<_>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_shape_get_a_column_a_field() {
        let entry = |key: Value, value: Value| StoreEntry { key, value, partition: 0 };
        let alike = [
            entry(json!("AA"), json!({"flights": 10, "share": 0.5})),
            entry(json!(["B", 6]), json!({"flights": 7, "share": null})),
        ];
        let text = entries_table(&alike);
        assert_eq!(text.lines().next(), Some("KEY    FLIGHTS  SHARE"));
        assert!(text.contains("B / 6        7  null"), "{text}");
        let mixed = [entry(json!("a"), json!(1)), entry(json!("b"), json!({"x": 1}))];
        assert_eq!(entries_table(&mixed).lines().next(), Some("KEY  VALUE"));
    }
}
