//! What guests say: their lines lose control characters and are rate-limited, their metrics are counted.

use serde_json::json;

use super::{Good, deploy, send};
use crate::support::Host;

/// A line as it is shown: what steers has become spaces.
const LINE_BYTES: u64 = 5 + 1_000 + 1 + 6 + 1;

fn metric(host: &Host, name: &str, deployment: &str) -> u64 {
    let text = host.get("/metrics").text;
    let begins = format!("{name}{{deployment=\"{deployment}\"");
    let line = text.lines().find(|line| line.starts_with(&begins));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn floods_of_words_are_dropped_and_counted() {
    let settings = [("ANABRANCH_TASKS_BATCH_MAX_RECORDS", "1")];
    let mut host = Host::start_noting(&settings);
    let mut good = Good::deploy(&host);
    let digest = host.push("fixture_hostile");
    let limits = json!({"log_bytes_per_second": 20_000, "metrics_per_generation": 100});
    for name in ["add:log", "add:metric-names"] {
        deploy(&host, &name.replace(':', "-"), &digest, name, &limits);
    }
    for name in ["add-log", "add-metric-names"] {
        send(&host, name, &["x"; 100]);
        host.wait_processed(name, 1, 100);
    }
    good.stays_exact(&host, 200);

    let names = host.get("/metrics").text;
    let names = names.lines().filter(|l| l.starts_with("anabranch_plugin_counter_total{")).count();
    assert_eq!(names, 100);
    let dropped = metric(&host, "anabranch_plugin_metrics_dropped_total", "add-metric-names");
    assert_eq!(dropped, 100 * 60 - 100);

    // A call logs 60 lines of a kilobyte, of which a second has room for 18.
    let dropped = metric(&host, "anabranch_plugin_log_dropped_bytes_total", "add-log");
    let all = 100 * 60 * LINE_BYTES;
    assert!((all / 2..all).contains(&dropped), "{dropped} of {all}");
    host.stop();
    let said = host.said();
    let lines = said.lines().filter(|line| line.contains("xxx"));
    let kept = lines.clone().count() as u64 * LINE_BYTES;
    assert!(lines.clone().all(|line| line.contains("forged")), "no line is broken in two");
    assert_eq!(kept + dropped, all, "what is not dropped is there");
    for c in said.chars().filter(|c| *c != '\n') {
        assert!(!c.is_control() && c != '\u{202e}', "{c:?} reached the log");
    }
}
