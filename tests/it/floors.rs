//! The floors of the host and the habits of its code, read from the source itself.
//!
//! Imports go down only; what is named in one place only (sled, wasmtime, the wall clock, the file
//! system) is; nothing is left unfinished.
//!
//! **Invariant:** comments, text and tests do not count; each exception is listed here with its
//! reason. Every rule is tried on a violation first, so that none can pass by being blind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Floors from the lowest up. A module may use those on floors below its own; those that share a floor
/// do not know each other.
const FLOORS: [&[&str]; 8] = [
    &["types", "clock", "config", "threads"],
    &["storage"],
    &["log", "state", "plugin"],
    &["task"],
    &["deployment"],
    &["server", "cli"],
    &["lib"],
    &["main"],
];

/// Words that are said only below certain paths, and why elsewhere if so.
const ONLY_IN: [(&[&str], &[&str]); 5] = [
    (&["sled"], &["storage/"]),
    (&["wasmtime"], &["plugin/"]),
    (
        &["parking_lot", "crossbeam_channel"],
        // Beside what is simulated: nothing there waits for the data plane while it holds a lock.
        &["threads/", "plugin/", "server/", "cli/"],
    ),
    (&["SystemTime", "Instant", "fastrand", "getrandom"], &["clock.rs"]),
    (
        &["std::fs", "tokio::fs", "rustix::fs", "fs::File"],
        &[
            "storage/",
            "config.rs",       // the configuration file
            "cli/",            // what a user names on the command line
            "plugin/cache.rs", // compiled plugins: may vanish at any time, hold no truth
        ],
    ),
];

/// What finished code does not say.
const NEVER: [&str; 6] =
    ["todo!(", "unimplemented!(", ".unwrap()", ".unwrap_err()", "allow(dead_code", "dbg!("];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Rust files below `dir` as (path relative to it, text).
fn sources(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no Rust in {}", dir.display());
    found
}

/// Code without comments and without what quotes hold.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(length) = literal(rest, out.chars().last()) {
            out.push_str("\"\"");
            length
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        rest = &rest[skipped..];
    }
    out
}

/// The length of the text or character that `rest` begins with, if it does.
fn literal(rest: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let hashes = rest.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len());
    if let (Some(hashes), false) = (hashes, in_word && before != Some('b')) {
        let open = 1 + hashes;
        if rest[open..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let end = rest[open + 1..].find(&close)?;
            return Some(open + 1 + end + close.len());
        }
    }
    if let Some(text) = rest.strip_prefix('"') {
        let mut escaped = false;
        let end = text.find(|c| match (escaped, c) {
            (true, _) => {
                escaped = false;
                false
            }
            (false, '\\') => {
                escaped = true;
                false
            }
            (false, c) => c == '"',
        });
        return end.map(|end| end + 2);
    }
    // A character, not a lifetime: 'x' or '\…'.
    let mut chars = rest.strip_prefix('\'')?.chars();
    match (chars.next()?, chars.next()?) {
        ('\\', escaped) => {
            let from = 2 + escaped.len_utf8();
            rest[from..].find('\'').map(|end| from + end + 1)
        }
        (c, '\'') => Some(2 + c.len_utf8()),
        _ => None,
    }
}

/// Code without the items under `#[cfg(test)]`, and the names of test modules kept in other files.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut out = String::new();
    let mut files = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let end = item.find(['{', ';']).unwrap_or(item.len() - 1);
        if let Some((_, name)) = item[..end].rsplit_once("mod ")
            && item.as_bytes()[end] == b';'
        {
            files.push(name.trim().to_owned());
        }
        let mut depth = 0;
        let length = item[end..].find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        rest = &item[end + length.unwrap_or(item.len() - end - 1) + 1..];
    }
    out.push_str(rest);
    (out, files)
}

/// The host's modules as (path, code), tests left out.
fn host() -> Vec<(String, String)> {
    let mut kept = Vec::new();
    let mut tests = BTreeSet::new();
    for (path, text) in sources(&root().join("host/src")) {
        let (code, files) = without_tests(&code(&text));
        let folder = path.strip_suffix("mod.rs").map_or_else(
            || format!("{}/", path.strip_suffix(".rs").unwrap_or(&path)),
            str::to_owned,
        );
        tests.extend(files.into_iter().map(|name| format!("{folder}{name}")));
        kept.push((path, code));
    }
    let of_tests = |path: &str| {
        tests.iter().any(|test| {
            path.strip_prefix(test.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    };
    kept.retain(|(path, _)| !of_tests(path));
    kept
}

/// The module right below the crate that a path belongs to.
fn module(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or(path);
    first.strip_suffix(".rs").unwrap_or(first)
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Positions after each whole word `word` of the code.
fn after<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).filter_map(move |(at, _)| {
        let rest = &code[at + word.len()..];
        let whole = !code[..at].ends_with(part) && !rest.starts_with(part);
        whole.then_some(rest)
    })
}

/// Modules of the crate that the code names: `crate::x`, `anabranch::x`, `crate::{x, y::z}`, and
/// `super::` often enough to reach the crate.
fn uses(path: &str, code: &str) -> BTreeSet<String> {
    let depth = path.matches('/').count() + usize::from(!path.ends_with("mod.rs"));
    let mut found = BTreeSet::new();
    let up = vec!["super"; depth].join("::");
    let roots = ["crate", "anabranch"].into_iter().chain((depth > 0).then_some(up.as_str()));
    for root in roots {
        for rest in after(code, root) {
            let Some(rest) = rest.strip_prefix("::") else { continue };
            let Some(list) = rest.strip_prefix('{') else {
                found.insert(name(rest));
                continue;
            };
            let mut open = 0;
            let mut start = true;
            for (at, c) in list.char_indices() {
                match c {
                    '{' => open += 1,
                    '}' if open == 0 => break,
                    '}' => open -= 1,
                    ',' if open == 0 => start = true,
                    c if start && !c.is_whitespace() => {
                        found.insert(name(&list[at..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        }
    }
    found
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Imports that do not go down.
fn climbs(path: &str, code: &str) -> Vec<String> {
    let own = module(path);
    let Some(floor_of_own) = floor(own) else {
        return vec![format!("{path}: {own} is on no floor: give it one in tests/it/floors.rs")];
    };
    let up = |used: &String| {
        used != own && floor(used).is_some_and(|floor_of_used| floor_of_used >= floor_of_own)
    };
    let used = uses(path, code).into_iter().filter(up);
    used.map(|used| format!("{path}: {own} uses {used}, which is not below it")).collect()
}

/// Words said where they do not belong.
fn strays(path: &str, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (words, places) in ONLY_IN {
        if !places.iter().any(|place| path.starts_with(place)) {
            let said = words.iter().filter(|word| after(code, word).next().is_some());
            found.extend(
                said.map(|word| format!("{path}: {word} belongs in {}", places.join(", "))),
            );
        }
    }
    found
}

fn unfinished(path: &str, code: &str) -> Vec<String> {
    let said = NEVER.iter().filter(|never| code.contains(*never));
    said.map(|never| format!("{path}: says {never}")).collect()
}

fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn imports_go_down_only() {
    assert_eq!(climbs("log/x.rs", "use crate::{types::A, state::{B, plugin}, task};").len(), 2);
    assert_eq!(climbs("log/x.rs", "use super::super::state;").len(), 1);
    assert_eq!(climbs("plugin/mod.rs", "use super::{log, x};").len(), 1);
    assert_eq!(climbs("unheard/of.rs", "").len(), 1);
    assert_eq!(climbs("log/x.rs", "use crate::log::y; use crate::storage::z;").len(), 0);
    none(host().iter().flat_map(|(path, code)| climbs(path, code)).collect());
}

#[test]
fn each_thing_is_named_in_its_place_only() {
    assert_eq!(strays("log/x.rs", "sled::open(); Instant::now(); std::fs::read()").len(), 3);
    assert_eq!(strays("storage/x.rs", "sled::open(); let instantly = unsled;").len(), 0);
    none(host().iter().flat_map(|(path, code)| strays(path, code)).collect());
}

#[test]
fn nothing_is_left_unfinished() {
    let text = r##"
        //! todo!()
        fn a<'a>(c: char) -> &'a str { if c == '"' { "x.unwrap()" } else { r#"dbg!("")"# } }
        #[cfg(test)] mod t { fn b() { c.unwrap() } }
        #[cfg(test)] mod u;
        fn d() { todo!() }
    "##;
    let (kept, files) = without_tests(&code(text));
    assert_eq!(unfinished("x.rs", &kept), ["x.rs: says todo!("]);
    assert_eq!(files, ["u"]);
    none(host().iter().flat_map(|(path, code)| unfinished(path, code)).collect());
}

#[test]
fn every_file_opens_with_what_it_owns_and_no_test_is_ignored() {
    let mut faults = Vec::new();
    for folder in ["host", "plugin-sdk", "plugins", "tests"] {
        for (path, text) in sources(&root().join(folder)) {
            if !text.trim_start_matches("#![no_std]").trim_start().starts_with("//!") {
                faults.push(format!("{folder}/{path}: does not open with //!"));
            }
            if code(&text).contains("#[ignore") {
                faults.push(format!("{folder}/{path}: ignores a test"));
            }
        }
    }
    none(faults);
}
