//! One bit of one file flips.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;

use super::{Base, ends, fresh_home, panicked, said};
use crate::crash::host::{Home, Start};
use crate::crash::inspect::Inspector;
use crate::disk::DATA;

/// Flips bits, by turns in each kind of file.
pub fn run(base: &Base, dir: &Path, seed: u64, flips: u64) -> Result<String> {
    let mut random = Rng::with_seed(seed ^ 0xb17);
    let mut kinds: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
    for (path, bytes) in base.image.files().filter(|(_, bytes)| !bytes.is_empty()) {
        kinds.entry(kind(path)).or_default().push((path.to_owned(), used(bytes)));
    }
    let kinds: Vec<_> = kinds.into_iter().collect();
    let mut found: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for flip in 0..flips {
        let (kind, files) = &kinds[flip as usize % kinds.len()];
        let (path, length) = random.choice(files).context("a kind without files")?;
        let bit = random.usize(0..length * 8);
        let home = dir.join("home");
        let noticed = flipped(base, &home, path, bit).with_context(|| {
            format!("seed {seed}, bit {bit} of {path} flipped; kept in {}", home.display())
        })?;
        let (noticed_before, harmless) = found.entry(kind).or_default();
        *(if noticed { noticed_before } else { harmless }) += 1;
    }
    let found: Vec<_> = found
        .iter()
        .map(|(kind, (noticed, harmless))| format!("{kind} {noticed} noticed, {harmless} harmless"))
        .collect();
    Ok(format!("{flips} flipped bits: {}", found.join("; ")))
}

/// What kind of file it is: folder and extension, or its name.
fn kind(path: &str) -> String {
    let words: Vec<&str> = path.split('/').skip(1).collect();
    match words[..] {
        ["head", name] if name.starts_with("snap.") => "head/snap".to_owned(),
        ["head", name] => format!("head/{name}"),
        [folder, ..] => folder.to_owned(),
        [] => path.to_owned(),
    }
}

/// Bytes up to the zeros at the end of a file.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1)
}

/// Whether a host notices; if it does not, everything must be there.
fn flipped(base: &Base, dir: &Path, path: &str, bit: usize) -> Result<bool> {
    fresh_home(&base.image, dir)?;
    let file = dir.join(path);
    let mut bytes = std::fs::read(&file)?;
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(&file, bytes)?;
    let mut home = Home::new(dir, base.settings.clone());
    let noticed = match home.start()? {
        Start::Ended(end) => Some(end.describe()),
        Start::Ready(host) => {
            let inspected = Inspector::new().inspect(&host.client, &base.journal, &base.told, true);
            let noticed = match inspected {
                Ok(violations) => match violations.first() {
                    None => None,
                    // A generation that says why it cannot run has noticed.
                    Some(violation) if violation.detail.contains("damaged") => {
                        Some(violation.to_string())
                    }
                    Some(violation) => bail!("{violation}"),
                },
                Err(error) => Some(format!("{error:#}")),
            };
            ends(host)?;
            noticed
        }
    };
    if let Some(line) = panicked(dir)? {
        bail!("{line}");
    }
    if let Some(words) = &noticed {
        let place = path.strip_prefix(DATA).unwrap_or(path);
        // Some errors name the data directory, and the file in it by its name alone.
        let name = format!("file {}", place.trim_start_matches('/'));
        let head = place.starts_with("/head/") && words.contains("/head");
        let all = format!("{words}{}", said(dir)?);
        ensure!(
            head || all.contains(place) || all.contains(&name),
            "nothing names {path}: {words}"
        );
    }
    Ok(noticed.is_some())
}
