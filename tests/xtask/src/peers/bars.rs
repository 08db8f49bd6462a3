//! What is judged: Anabranch's rate over each peer's, and whether the peer was itself.

use super::arguments::{Job, System};
use super::report::{Bar, Row};

/// The bar's number in host/docs/performance.md.
const ID: &str = "2";

/// Below this part of its usual ratio to the native loop, a peer was not itself, and its run does not
/// count.
const USUAL_AT_LEAST: f64 = 0.7;

/// A peer at a job: what Anabranch should reach of its rate, and the peer's usual ratio to native Rust in
/// memory. The latter says that a run went as usual, on whatever machine; it judges nothing else.
struct Goal {
    job: Job,
    peer: System,
    times: f64,
    usual: f64,
}

const fn goal(job: Job, peer: System, times: f64, usual: f64) -> Goal {
    Goal { job, peer, times, usual }
}

const GOALS: [Goal; 12] = [
    goal(Job::PassThrough, System::Flink, 4.0, 0.0118),
    goal(Job::PassThrough, System::KafkaStreams, 7.0, 0.0072),
    goal(Job::Filter, System::Flink, 5.0, 0.0095),
    goal(Job::Filter, System::KafkaStreams, 8.0, 0.0061),
    goal(Job::Filter, System::Fluvio, 10.0, 0.0052),
    goal(Job::JsonMap, System::Flink, 4.0, 0.060),
    goal(Job::JsonMap, System::KafkaStreams, 6.0, 0.042),
    goal(Job::Count, System::Flink, 4.0, 0.052),
    goal(Job::Count, System::KafkaStreams, 10.0, 0.0164),
    goal(Job::Count, System::Bytewax, 5.0, 0.034),
    goal(Job::CountRocksdb, System::Flink, 15.0, 0.0105),
    goal(Job::CountRocksdb, System::KafkaStreams, 15.0, 0.0083),
];

/// How a peer did beside the native loop.
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// Its rate over the native loop's.
    pub to_native: f64,
    /// That ratio as it usually is.
    pub usual: f64,
}

impl Health {
    /// Whether the peer was itself.
    pub fn counts(self) -> bool {
        self.to_native >= USUAL_AT_LEAST * self.usual
    }
}

fn rate(rows: &[Row], system: System, job: Job) -> Option<f64> {
    rows.iter().find(|row| row.system == system && row.job == job).map(Row::median)
}

/// A row's ratio to the native loop; none where there is none, or no usual one.
pub fn health(rows: &[Row], row: &Row) -> Option<Health> {
    let goal = GOALS.iter().find(|goal| goal.peer == row.system && goal.job == row.job)?;
    let native = rate(rows, System::Native, row.job.plain())?;
    Some(Health { to_native: row.median() / native, usual: goal.usual })
}

/// All bars whose two sides were measured. Without the native loop nobody knows whether a peer was
/// itself, and no bar holds.
pub fn bars(rows: &[Row]) -> Vec<Bar> {
    let bar = |goal: &Goal| {
        let ours = rate(rows, System::Anabranch, goal.job.plain())?;
        let peer = rows.iter().find(|row| row.system == goal.peer && row.job == goal.job)?;
        let counts = health(rows, peer).is_some_and(Health::counts);
        let value = ours / peer.median();
        Some(Bar {
            id: ID,
            name: format!("{} x {}", goal.job.name(), goal.peer.name()),
            value,
            goal: goal.times,
            counts,
            holds: counts && value >= goal.times,
        })
    };
    GOALS.iter().filter_map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_holds_when_the_ratio_is_reached_and_the_peer_was_itself() {
        let native = Row::new(System::Native, Job::Count, vec![10e6]);
        let ours = Row::new(System::Anabranch, Job::Count, vec![3e6, 2.5e6, 2e6]);
        let usual = Row::new(System::Flink, Job::Count, vec![0.5e6]);
        let slow = Row::new(System::Flink, Job::Count, vec![0.3e6]);
        let rocks = Row::new(System::Flink, Job::CountRocksdb, vec![0.1e6]);
        let of = |rows: &[Row]| -> Vec<_> {
            bars(rows).iter().map(|bar| (bar.value, bar.counts, bar.holds)).collect()
        };
        assert_eq!(of(&[ours.clone(), usual.clone(), native.clone()]), [(5.0, true, true)]);
        assert_eq!(of(&[ours.clone(), rocks, native.clone()]), [(25.0, true, true)]);
        let [(_, counts, holds)] = of(&[ours.clone(), slow, native])[..] else { panic!("one bar") };
        assert!(!counts && !holds);
        assert_eq!(of(&[ours.clone(), usual.clone()]), [(5.0, false, false)]);
        assert_eq!(of(&[usual]), []);
    }
}
