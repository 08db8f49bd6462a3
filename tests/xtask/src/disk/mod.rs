//! The disk below a host: recorded or made to fail by `tests/disk/interposer.c`, and rebuilt as a loss
//! of power may leave it.
//!
//! **Invariant:** what the recorder did not see is found: whoever uses a recording first compares all
//! of it with the real files.

mod image;
mod model;
mod recording;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

pub use self::image::{Image, Policy};
pub use self::model::{Disk, Sync};
pub use self::recording::{Event, Position, Recording};
use crate::steps::{Steps, root, target};

/// The entry of a home that is recorded, with all below it.
pub const DATA: &str = "data";

/// Builds the interposer; its path.
///
/// # Errors
/// When there is no C compiler, or it refuses.
pub fn build(steps: &mut Steps) -> Result<PathBuf> {
    let folder = target().join("disk");
    std::fs::create_dir_all(&folder)?;
    let library = folder.join("interposer.so");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(&library);
    cc.arg(root().join("tests/disk/interposer.c")).arg("-ldl");
    steps.run("interposer", &mut cc)?;
    Ok(library)
}

/// The variables that put the interposer below a host whose data lie in `home`.
pub fn below(library: &Path, home: &Path) -> Vec<(&'static str, String)> {
    let text = |path: &Path| path.display().to_string();
    vec![("LD_PRELOAD", text(library)), ("DISK_ROOT", text(home)), ("DISK_NAME", DATA.to_owned())]
}
