//! Opens an image with a host and looks for what was acknowledged.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::lifetime::Lifetime;
use crate::crash::host::{Home, Start};
use crate::crash::inspect::Inspector;
use crate::disk::{Image, Position};

/// What an image is found to be.
#[derive(Debug)]
pub enum Verdict {
    /// All that was acknowledged is there.
    Whole,
    /// What is wrong with it.
    Wrong(String),
}

/// Opens images in one place after the other.
pub struct Checker {
    home: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Checker {
    /// A checker that works in `home`.
    pub fn new(home: &Path, settings: Vec<(&'static str, String)>) -> Self {
        Self { home: home.to_owned(), settings }
    }

    /// Settings of the hosts.
    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// Where the last image lies that was found wrong.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Opens an image and inspects it against what was known at that moment.
    ///
    /// # Errors
    /// When a host cannot be run at all.
    pub fn check(&self, image: &Image, lifetime: &Lifetime, at: Position) -> Result<Verdict> {
        if self.home.exists() {
            std::fs::remove_dir_all(&self.home)?;
        }
        image.write(&self.home)?;
        let mut home = Home::new(&self.home, self.settings.clone());
        let mut host = match home.start()? {
            Start::Ready(host) => host,
            Start::Ended(end) => {
                return Ok(Verdict::Wrong(format!("it is refused: {}", end.describe())));
            }
        };
        let client = host.client.clone();
        let inspected = (|| {
            for (_, path) in lifetime.made.iter().filter(|(made, _)| *made <= at) {
                let reply = client.get(path)?;
                ensure!(reply.status == 200, "{path}: {}", reply.text);
            }
            if at < lifetime.settled {
                return Ok(Vec::new());
            }
            let journal = lifetime.journal.as_of(at);
            Inspector::new().inspect(&client, &journal, &lifetime.told_at(at), true)
        })();
        let wrong = match inspected {
            Ok(violations) => violations.first().map(ToString::to_string),
            // A host that fails an inspection has not kept something.
            Err(error) => Some(format!("{error:#}")),
        };
        let ended = host.ended()?.map(|end| end.describe());
        let wrong = wrong.or(ended).or_else(|| host.faults());
        drop(host.kill());
        Ok(wrong.map_or(Verdict::Whole, Verdict::Wrong))
    }
}
