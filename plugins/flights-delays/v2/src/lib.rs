//! Delays of departure by carrier, over New York's flights.
//!
//! Input: flights as JSON, keyed by carrier; `dep_delay` is in minutes, and null for a flight that never
//! left. Store `delays`: sums by carrier. Output `delays`, a table: the carrier's row after each flight.
//!
//! Version 2 counts a flight that never left as cancelled and keeps it out of mean and share.

use anabranch_plugin::{Json, Output, Plugin, Record, Result, Setup, Store, plugin};
use serde::{Deserialize, Serialize};

/// A delay of more minutes than this is late.
const LATE_MINUTES: i64 = 15;

/// The part of a flight that matters here.
#[derive(Deserialize)]
struct Flight {
    dep_delay: Option<i64>,
}

/// What is kept of a carrier: sums, so that nothing is lost to rounding.
#[derive(Default, Serialize, Deserialize)]
struct Sums {
    flights: i64,
    cancelled: i64,
    delay_minutes: i64,
    late: i64,
}

/// What is told of a carrier. Mean and share are null before the first departure.
#[derive(Serialize, Deserialize)]
struct Row {
    flights: i64,
    cancelled: i64,
    mean_delay_minutes: Option<f64>,
    late_share: Option<f64>,
}

impl Sums {
    fn add(&mut self, flight: &Flight) {
        self.flights += 1;
        match flight.dep_delay {
            Some(delay) => {
                self.delay_minutes += delay;
                self.late += i64::from(delay > LATE_MINUTES);
            }
            None => self.cancelled += 1,
        }
    }

    fn row(&self) -> Row {
        let departed = self.flights - self.cancelled;
        let per_departure = |sum: i64| (departed > 0).then(|| sum as f64 / departed as f64);
        Row {
            flights: self.flights,
            cancelled: self.cancelled,
            mean_delay_minutes: per_departure(self.delay_minutes),
            late_share: per_departure(self.late),
        }
    }
}

/// Delays of departure by carrier.
pub struct FlightDelays {
    delays: Store<String, Json<Sums>>,
    rows: Output<String, Json<Row>>,
}

impl Plugin for FlightDelays {
    fn new(setup: &mut Setup) -> Result<Self> {
        Ok(Self { delays: setup.store("delays"), rows: setup.table("delays") })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        let carrier = record.key_str()?;
        let flight = record.json()?;
        let sums = self.delays.update(carrier, |sums| sums.add(&flight))?;
        self.rows.send(carrier, &sums.row())
    }
}

plugin!(FlightDelays, name = "flights-delays");

#[cfg(test)]
mod tests {
    use anabranch_plugin::testing::{
        SentRecord, TestDriver, TestRecord, assert_cut_independent, record,
    };
    use serde_json::json;

    use super::*;

    fn flight(carrier: &str, dep_delay: Option<i64>) -> TestRecord {
        record(carrier, json!({"carrier": carrier, "dep_delay": dep_delay, "origin": "EWR"}))
    }

    fn row(sent: &SentRecord) -> (i64, i64, Option<f64>, Option<f64>) {
        let row: Row = sent.json().unwrap();
        (row.flights, row.cancelled, row.mean_delay_minutes, row.late_share)
    }

    #[test]
    fn a_flight_that_never_left_is_cancelled() {
        let mut driver = TestDriver::<FlightDelays>::new(json!({})).unwrap();
        driver.send_all([
            flight("AA", Some(25)),
            flight("UA", None),
            flight("AA", None),
            flight("AA", Some(15)),
        ]);
        let rows = driver.outputs("delays");
        let keys: Vec<_> = rows.iter().map(|r| r.key_str().unwrap()).collect();
        assert_eq!(keys, ["AA", "UA", "AA", "AA"]);
        assert_eq!(row(&rows[0]), (1, 0, Some(25.0), Some(1.0)));
        assert_eq!(row(&rows[1]), (1, 1, None, None));
        assert_eq!(row(&rows[3]), (3, 1, Some(20.0), Some(0.5)));
        assert_eq!(driver.store::<String, Json<Sums>>("delays").len(), 2);
    }

    #[test]
    fn cuts_change_nothing_and_nonsense_is_refused() {
        let mut records: Vec<_> = (0..200)
            .map(|i| flight(["AA", "B6", "UA"][i % 3], (i % 7 > 0).then_some(i as i64 % 40 - 10)))
            .collect();
        records.insert(100, record("AA", "nonsense"));
        records.insert(50, record("AA", None));
        let outcome = assert_cut_independent::<FlightDelays>(&json!({}), &records, 1);
        assert_eq!(outcome.outputs["delays"].len(), 200);
        let refused: Vec<_> = outcome.rejections.iter().map(|r| r.offset).collect();
        assert_eq!(refused, [50, 101]);
    }
}
