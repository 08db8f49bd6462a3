//! The guests: example plugins and fixtures, built for WebAssembly once, in one call of cargo.
//!
//! **Invariant:** a package of the workspace that makes a `cdylib` is a guest; none is listed by hand,
//! so none can be forgotten.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::steps::{Steps, cargo, guest_dir, output, root};

const TARGET: &str = "wasm32-unknown-unknown";

/// Builds all guests.
///
/// # Errors
/// When the compiler's WebAssembly target is missing and cannot be brought, or a guest does not
/// compile, or left no file behind.
pub fn build() -> Result<()> {
    let mut steps = Steps::default();
    build_in(&mut steps)
}

/// Builds all guests as a step among others.
///
/// # Errors
/// As [`build`].
pub fn build_in(steps: &mut Steps) -> Result<()> {
    bring_target(steps)?;
    let guests = find()?;
    let mut command = cargo(&["build", "--profile", "guest", "--target", TARGET]);
    command.args(guests.iter().flat_map(|guest| ["--package", guest.package.as_str()]));
    steps.run("guests", &mut command)?;
    for guest in &guests {
        let file = guest_dir().join(format!("{}.wasm", guest.library));
        if !file.is_file() {
            bail!("{} was built, but there is no {}", guest.package, file.display());
        }
    }
    Ok(())
}

struct Guest {
    package: String,
    library: String,
}

fn find() -> Result<Vec<Guest>> {
    let metadata = output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_slice(&metadata).context("cargo metadata")?;
    let mut guests = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let kinds = target["crate_types"].as_array().into_iter().flatten();
            if kinds.filter_map(Value::as_str).any(|kind| kind == "cdylib") {
                let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                guests.push(Guest {
                    package: name(&package["name"]),
                    library: name(&target["name"]).replace('-', "_"),
                });
            }
        }
    }
    Ok(guests)
}

/// Sees that the compiler can build for WebAssembly. rustup brings the target by itself at the first
/// call of cargo, but not where it was told to install nothing unasked.
fn bring_target(steps: &mut Steps) -> Result<()> {
    let ask = || -> Result<bool> {
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let sysroot = output(rustc.args(["--print", "sysroot"]).current_dir(root()))?;
        let sysroot = String::from_utf8_lossy(&sysroot).trim().to_owned();
        Ok(Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib").is_dir())
    };
    if ask()? {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.args(["target", "add", TARGET]).current_dir(root());
    steps.run("target", &mut add).with_context(|| {
        format!(
            "the compiler cannot build for {TARGET}: run `rustup target add {TARGET}` in {}, or get rustup from https://rustup.rs",
            root().display()
        )
    })?;
    if !ask()? {
        bail!(
            "`rustup target add {TARGET}` went well, but the compiler in use has no {TARGET}: is it rustup's?"
        );
    }
    Ok(())
}
