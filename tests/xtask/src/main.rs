//! `cargo xtask`: builds the guests, runs the two commands of the README, kills hosts, takes their power
//! away, simulates them, and measures other systems.
//!
//! **Invariant:** nothing here is part of the host: it drives cargo and the `anabranch` binary as a
//! user would, and depends on no crate of this workspace.

mod check;
mod crash;
mod demo;
mod disk;
mod faults;
mod guests;
mod peers;
mod powerloss;
mod simulate;
mod steps;

use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  demo          build host and plugins; stream January's flights; swap the plugin while they stream
  test          format, lints, licences, documentation, guests, all tests, and some of crash, powerloss, faults
  crash         kill a host under load, round after round, and check all that it promised; --help says more
  powerloss     record what a host writes, rebuild what a loss of power may leave of it, and open that
  faults        have a host's disk fail at any operation and flip bits of its files; --help says more
  simulate      run a whole host in simulation, history after history, each from one seed; --help says more
  guests        build the plugins and fixtures that the tests and the demo load
  bench-peers   measure Kafka Streams, Flink and others on the same records and machine; --help says more";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["demo"] => demo::run(),
        ["test"] => check::run(),
        ["crash", "help" | "--help" | "-h"] => {
            println!("{}", crash::USAGE);
            return ExitCode::SUCCESS;
        }
        ["crash", ref rest @ ..] => match crash::Options::parse(rest) {
            Some(options) => crash::run(options),
            None => {
                eprintln!("{}", crash::USAGE);
                return ExitCode::from(2);
            }
        },
        ["faults", "help" | "--help" | "-h"] => {
            println!("{}", faults::USAGE);
            return ExitCode::SUCCESS;
        }
        ["faults", ref rest @ ..] => match faults::Options::parse(rest) {
            Some(options) => faults::run(options),
            None => {
                eprintln!("{}", faults::USAGE);
                return ExitCode::from(2);
            }
        },
        ["powerloss", "help" | "--help" | "-h"] => {
            println!("{}", powerloss::USAGE);
            return ExitCode::SUCCESS;
        }
        ["powerloss", ref rest @ ..] => match powerloss::Options::parse(rest) {
            Some(options) => powerloss::run(options),
            None => {
                eprintln!("{}", powerloss::USAGE);
                return ExitCode::from(2);
            }
        },
        ["simulate", "help" | "--help" | "-h"] => {
            println!("{}", simulate::USAGE);
            return ExitCode::SUCCESS;
        }
        ["simulate", ref rest @ ..] => match simulate::Options::parse(rest) {
            Some(options) => simulate::run(options),
            None => {
                eprintln!("{}", simulate::USAGE);
                return ExitCode::from(2);
            }
        },
        ["guests"] => guests::build().map(drop),
        ["bench-peers", ref words @ ..]
            if words.iter().any(|word| matches!(*word, "help" | "--help" | "-h")) =>
        {
            println!("{}", peers::USAGE);
            return ExitCode::SUCCESS;
        }
        ["bench-peers", ref words @ ..] => match peers::Arguments::parse(words) {
            Ok(arguments) => peers::run(&arguments, words),
            Err(error) => {
                eprintln!("xtask: {error:#}");
                return ExitCode::from(2);
            }
        },
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
