//! What the sandbox costs: `cargo bench -p anabranch --features native --bench sandbox [-- --json]`.
//!
//! The same pipeline twice, through a real host and HTTP: once with the plugins of plugins/bench as
//! WebAssembly, once with the same code natively (`native`); and the calls alone, without a pipeline.
//! Called with `serve`, this program is the host of either pipeline; with `compile-plugin`, its compiler.

mod calls;
mod native;

use std::process::ExitCode;

use anabranch::cli::{self, Cli, Command};
use anabranch::clock::SystemClock;
use anabranch::config::Config;
use anabranch::plugin;
use anabranch::server;
use clap::Parser as _;

/// Set for the host that runs the plugins natively.
const NATIVE: &str = "ANABRANCH_BENCH_NATIVE";

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        Some(plugin::SUBCOMMAND) => return compile(),
        _ => measure(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let Some(Command::Serve(args)) = Cli::try_parse()?.command else { anyhow::bail!("not serve") };
    if std::env::var_os(NATIVE).is_some() {
        native::register();
    }
    let mut config = Config::load(None, std::env::vars())?;
    config.data.dir = args.data.unwrap_or(config.data.dir);
    config.http.listen = args.listen.unwrap_or(config.http.listen);
    Ok(server::serve(config, SystemClock::shared(), false, true)?)
}

/// A host compiles plugins in a child of its own program.
fn compile() -> ExitCode {
    let Some(Command::CompilePlugin(args)) = Cli::parse().command else { return ExitCode::FAILURE };
    ExitCode::from(args.run())
}

fn measure() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (words, flags): (Vec<_>, Vec<_>) =
        words.into_iter().partition(|word| word.starts_with("--json"));
    let line = ["sandbox".to_owned()].into_iter().chain(words).chain(["bench".to_owned()]);
    let cli = Cli::parse_from(line.chain(flags));
    let Some(Command::Bench(args)) = &cli.command else { anyhow::bail!("not bench") };
    let calls = calls::measure(args)?;
    Ok(cli::sandbox(&cli, args, calls, SystemClock::shared())?)
}
