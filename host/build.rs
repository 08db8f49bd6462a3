//! Names the commit that the program is built from (`ANABRANCH_COMMIT` in its code), for
//! `anabranch bench`: what git says of the sources, or the environment in its place.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.toml");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-env-changed=ANABRANCH_COMMIT");
    // Grows with each commit, checkout and merge. A file that is not there would mean a build each time.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    let said = std::env::var("ANABRANCH_COMMIT").ok();
    let commit = said.or_else(|| git(&["describe", "--always", "--dirty"]));
    println!("cargo:rustc-env=ANABRANCH_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(out.stdout).ok().filter(|_| out.status.success())?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
