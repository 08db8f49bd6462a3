//! Tables and numbers, as people read them.

use std::borrow::Cow;

use serde_json::Value;

use crate::plugin::steers;

/// A table: a line of headings, then the rows, in columns as wide as their widest cell. Columns whose
/// cells are all numbers are set to the right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let width = |text: &str| text.chars().count();
    let numeric =
        |text: &str| text.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '.' | '-' | '%'));
    let columns: Vec<(usize, bool)> = headings
        .iter()
        .enumerate()
        .map(|(c, heading)| {
            let cells = || rows.iter().filter_map(|row| row.get(c));
            let widest = cells().map(|cell| width(cell)).max().unwrap_or(0).max(width(heading));
            (widest, !rows.is_empty() && cells().all(|cell| numeric(cell)))
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (cell, (widest, right)) in cells.zip(&columns) {
            let space = " ".repeat(widest - width(cell));
            match right {
                true => out.extend([space.as_str(), cell, "  "]),
                false => out.extend([cell, space.as_str(), "  "]),
            }
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    };
    let mut out = line(&mut headings.iter().copied());
    for row in &rows {
        out.push_str(&line(&mut row.iter().map(AsRef::as_ref)));
    }
    out
}

/// A text whose letters show themselves and do nothing else to a terminal: others are escaped.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for letter in text.chars() {
        match steers(letter) {
            true => out.extend(letter.escape_default()),
            false => out.push(letter),
        }
    }
    Cow::Owned(out)
}

/// `1234567` as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the largest binary unit that leaves at least one.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (bytes.max(1).ilog2() / 10).min(4);
    match power {
        0 => format!("{bytes} B"),
        _ => format!(
            "{:.1} {}",
            bytes as f64 / f64::from(1u32 << 10).powi(power as i32),
            units[power as usize]
        ),
    }
}

/// Seconds as `0.4 s`, `42 s`, `3 min 5 s` or `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
    }
}

/// Milliseconds since the Unix epoch as RFC 3339.
pub fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}

/// A JSON value for a cell: text without quotes, everything else as JSON.
pub fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".into(), "1,000".into()], vec!["long".into(), "7".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME      N\na     1,000\nlong      7\n");
        assert_eq!(table(&["NAME"], &[]), "NAME\n");
    }

    #[test]
    fn what_steers_a_terminal_is_shown_escaped() {
        let row = ["\u{1b}[31mred\u{202e}", "a\nb"].map(str::to_owned).to_vec();
        let shown = table(&["A", "B"], &[row]);
        assert!(shown.ends_with("\\u{1b}[31mred\\u{202e}  a\\nb\n"), "{shown}");
        assert!(matches!(visible("größer"), Cow::Borrowed(_)));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([count(7), count(1_234_567), count(100_000)], ["7", "1,234,567", "100,000"]);
        assert_eq!(
            [size(0), size(1023), size(1536), size(3 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
        );
        assert_eq!(
            [duration(0.44), duration(61.0), duration(7_800.0)],
            ["0.4 s", "1 min 1 s", "2 h 10 min"]
        );
    }
}
