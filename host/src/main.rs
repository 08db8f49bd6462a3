//! The `anabranch` binary: the command line, the configuration of a host, and its log lines.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;

use anabranch::cli::{self, Cli, Command, Serve};
use anabranch::clock::SystemClock;
use anabranch::config::{Config, LogFormat};
use anyhow::Context as _;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Records are for whoever the host lets read them, and not for everyone on the machine.
    anabranch::storage::keep_files_private();
    let cli = Cli::parse();
    let json = cli.json;
    if let Some(Command::Serve(args)) = &cli.command {
        settle_allocator();
        return match serve(args, json) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&sentence(&error), json, None);
                ExitCode::FAILURE
            }
        };
    }
    if let Some(Command::CompilePlugin(args)) = &cli.command {
        return ExitCode::from(args.run());
    }
    match cli::run(cli, SystemClock::shared()) {
        Ok(()) | Err(cli::Error::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            let problem = match &error {
                cli::Error::Refused { problem, .. } => Some(problem),
                _ => None,
            };
            complain(&error.to_string(), json, problem);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Begins again with a fixed threshold from which glibc takes memory from the kernel and gives it back.
/// Left alone it rises with what is freed, up to 32 MiB, and the blocks of replays then tear holes into
/// heaps that are never given back: a third of the host's memory. With it goes a fixed threshold for the
/// ends of heaps; glibc's own, 128 KiB, has the columns of each batch take fresh pages. And where the kernel
/// gives huge pages to who asks, heaps ask for them. Whoever sets the first variable decides about all.
fn settle_allocator() {
    const MAP: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "1048576");
    const TRIM: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "4194304");
    const HUGE: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    if cfg!(all(target_os = "linux", target_env = "gnu")) && std::env::var_os(MAP.0).is_none() {
        let mut again = std::process::Command::new("/proc/self/exe");
        again.args(std::env::args_os().skip(1)).envs([MAP, TRIM]);
        if std::env::var_os(HUGE.0).is_none() {
            again.env(HUGE.0, HUGE.1);
        }
        again.arg0(std::env::args_os().next().unwrap_or_default());
        // Comes back only if it cannot be: then it goes on as it is.
        let _ = again.exec();
    }
}

/// What went wrong and why, each cause once: most errors say theirs themselves.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| {
        match (said.is_empty(), said.contains(&cause)) {
            (true, _) => cause,
            (false, true) => said,
            (false, false) => format!("{said}: {cause}"),
        }
    })
}

/// Says on standard error what went wrong.
fn complain(sentence: &str, json: bool, problem: Option<&serde_json::Value>) {
    match json {
        true => eprintln!("{}", serde_json::json!({"error": sentence, "problem": problem})),
        false => eprintln!("anabranch: {sentence}"),
    }
}

fn serve(args: &Serve, json: bool) -> anyhow::Result<()> {
    const USUAL: &str = "anabranch.toml";
    let usual = Path::new(USUAL).exists().then(|| Path::new(USUAL));
    let mut config = Config::load(args.config.as_deref().or(usual), std::env::vars())?;
    if let Some(dir) = &args.data {
        config.data.dir.clone_from(dir);
    }
    if let Some(listen) = args.listen {
        config.http.listen = listen;
    }
    config.http.insecure |= args.insecure;
    log_to_stderr(&config).with_context(|| format!("log level {:?}", config.log.level))?;
    anabranch::storage::warn_of_tests();
    Ok(anabranch::server::serve(config, SystemClock::shared(), args.safe, json)?)
}

/// The host's own lines go to standard error: as text for people, or as JSON.
fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log.level)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
