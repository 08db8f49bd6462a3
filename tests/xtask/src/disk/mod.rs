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

use crate::check::BUILD_HOST;
use crate::guests;

pub use self::image::{Image, Policy};
pub use self::model::{Disk, Sync};
pub use self::recording::{Event, Position, Recording};
use crate::steps::{Steps, cargo, root, target};

/// The entry of a home that is recorded, with all below it.
pub const DATA: &str = "data";

/// What a command needs that puts a disk of its own below hosts.
pub struct Setting {
    /// The interposer.
    pub library: PathBuf,
    /// What decides everything that is by lot.
    pub seed: u64,
    /// An empty folder.
    pub dir: PathBuf,
}

/// Builds guests, host and interposer, unless they are, and makes a folder for the command `name`. Prints
/// the seed, which is drawn if none is given.
///
/// # Errors
/// When something cannot be built.
pub fn set_up(name: &str, seed: Option<u64>) -> Result<Setting> {
    let mut steps = Steps::default();
    guests::build_in(&mut steps)?;
    steps.run("host", &mut cargo(&BUILD_HOST))?;
    let library = build(&mut steps)?;
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let dir = target().join(name).join(format!("seed-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    Ok(Setting { library, seed, dir })
}

/// Builds the interposer; its path. There must be a C compiler.
fn build(steps: &mut Steps) -> Result<PathBuf> {
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
