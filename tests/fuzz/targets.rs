//! The bodies of the fuzz targets: each takes any bytes, and panics at a finding.
//!
//! `cargo fuzz` runs them with sanitizers and coverage; `tests/it/fuzz.rs` replays the corpora, and
//! mutations of them, on the stable compiler.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch::deployment::{DeploymentSpec, SwapRequest};
use anabranch::state::{Changes, changelog_key, checkpoint};
use anabranch::storage::{FileSystem, OsFileSystem};
use anabranch::{log, plugin, server, storage};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A target's body.
pub type Body = fn(&[u8]);

/// All targets by name.
pub const ALL: [(&str, Body); 9] = [
    ("output_columns", output_columns),
    ("head_value", storage::fuzz::head_value),
    ("head_image", log::fuzz::head_image),
    ("head_append", log::fuzz::head_append),
    ("http_body", server::fuzz::bodies),
    ("segment", segment),
    ("checkpoint", checkpoint),
    ("deployment_file", deployment_file),
    ("key_encoding", key_encoding),
];

/// Runs a target by name.
///
/// # Panics
/// At a finding.
pub fn run(target: &str, data: &[u8]) {
    let found = ALL.iter().find(|(name, _)| *name == target);
    found.expect("a target's name").1(data);
}

/// What a guest returns, column by column and as a whole.
pub fn output_columns(data: &[u8]) {
    plugin::fuzz::output_columns(data);
    plugin::fuzz::results(data);
}

fn with_file<T>(data: &[u8], read: impl FnOnce(&Arc<dyn FileSystem>, &Path) -> T) -> T {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), data).unwrap();
    read(&(Arc::new(OsFileSystem) as Arc<dyn FileSystem>), file.path())
}

/// A segment file, as it is and with its sums made right.
pub fn segment(data: &[u8]) {
    let read = |fs: &Arc<dyn FileSystem>, path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        log::fuzz::segment(fs, path.parent().unwrap(), name);
    };
    with_file(data, read);
    for sources in [false, true] {
        if let Some(file) = storage::fuzz::summed(&log::fuzz::segment_schema(sources), data) {
            with_file(&file, read);
        }
    }
}

/// A checkpoint file, as it is and with its sums made right; and one that is written of `data`, read back
/// whole and with one byte changed.
pub fn checkpoint(data: &[u8]) {
    let load = |fs: &Arc<dyn FileSystem>, path: &Path| {
        let mut entries = Vec::new();
        let source = checkpoint::Source { path, crc32c: None };
        let loaded = checkpoint::load(&**fs, source, |store, key, value| {
            entries.push((store, key.to_vec(), value.to_vec()));
        });
        loaded.is_ok().then_some(entries)
    };
    with_file(data, load);
    if let Some(file) = storage::fuzz::summed(&checkpoint::schema(), data) {
        with_file(&file, load);
    }
    let Some((&[at, by], data)) = data.split_first_chunk::<2>() else { return };
    let (dir, fs) = (tempfile::tempdir().unwrap(), Arc::new(OsFileSystem) as Arc<dyn FileSystem>);
    let path: PathBuf = dir.path().join("checkpoint.arrow");
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut expected = std::collections::BTreeMap::new();
    for row in data.chunks(7) {
        let (store, key) = (usize::from(row[0] % 3), &row[row.len() / 2..]);
        let mut full = Vec::new();
        changelog_key::join(store, key, &mut full);
        keys.push(Some(full));
        values.push(Some(row));
        expected.insert((store, key.to_vec()), row.to_vec());
    }
    let mut changes = Changes::default();
    changes.push(&keys.iter().collect(), values.into_iter().collect());
    checkpoint::write(&fs, &path, None, &changes, serde_json::Value::Null).unwrap();
    let back = load(&fs, &path).expect("what was written can be read");
    assert!(back.into_iter().eq(expected.into_iter().map(|((s, k), v)| (s, k, v))));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = usize::from(at) * bytes.len() / 256;
    bytes[at] ^= by;
    with_file(&bytes, load);
}

/// A deployment file, as TOML and as JSON, a request to swap, and what a plugin says of itself; separated
/// by a zero byte, the config of one against the schema of the other.
pub fn deployment_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (text, words) = text.split_once('\0').unwrap_or((&text, &text));
    let description = plugin::Description::parse(words);
    let specs = [toml::from_str(text).ok(), serde_json::from_str::<DeploymentSpec>(text).ok()];
    for spec in specs.into_iter().flatten() {
        comes_back(&spec);
        if let Some(schema) = description.as_ref().ok().and_then(|said| said.config.as_ref()) {
            let _ = plugin::check_config(schema, &spec.config);
        }
    }
    if let Ok(request) = serde_json::from_str::<SwapRequest>(text) {
        comes_back(&request);
    }
    if let Ok(description) = description {
        comes_back(&description);
    }
}

/// What is kept in the catalogue comes back as it was.
fn comes_back<T: Serialize + DeserializeOwned>(kept: &T) {
    let kept = serde_json::to_string(kept).unwrap();
    let again: T = serde_json::from_str(&kept).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), kept);
}

/// A key of a store.
pub fn key_encoding(data: &[u8]) {
    if let Ok(parts) = anabranch_key::decode(data) {
        assert_eq!(anabranch_key::encode(&parts), data, "a key has one encoding only");
    }
    let (a, b) = data.split_at(data.len() / 2);
    let key = |bytes: &[u8]| {
        let mut key = Vec::new();
        anabranch_key::push_bytes(&mut key, bytes);
        key
    };
    assert_eq!(a.cmp(b), key(a).cmp(&key(b)), "keys sort as what they encode");
}
