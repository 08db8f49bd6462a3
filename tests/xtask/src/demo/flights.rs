//! January's flights, and the plain computation that the host's figures are compared with. It shares
//! no code with the plugins.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::steps::root;

/// Minutes after which a departure is late.
const LATE_AFTER: i64 = 15;

/// A flight, as far as it matters here.
pub struct Flight {
    /// Who flew it.
    pub carrier: String,
    /// Minutes of delay; none if it never left.
    pub delay_minutes: Option<i64>,
}

/// What is known of a carrier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Flights that were scheduled.
    pub flights: i64,
    /// Flights that were counted as cancelled.
    pub cancelled: i64,
    /// Sum of delays of the flights that were not.
    pub delay_minutes: i64,
    /// Departures more than fifteen minutes late.
    pub late: i64,
}

/// Figures by carrier.
pub type ByCarrier = BTreeMap<String, Figures>;

/// What a version of the plugin makes of a flight that never left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Version 1: it left on time.
    OnTime,
    /// Version 2: it was cancelled, and is no departure.
    Cancelled,
}

impl Figures {
    fn add(&mut self, flight: &Flight, reading: Reading) {
        self.flights += 1;
        match (flight.delay_minutes, reading) {
            (None, Reading::Cancelled) => self.cancelled += 1,
            (None, Reading::OnTime) => {}
            (Some(minutes), _) => {
                self.delay_minutes += minutes;
                if minutes > LATE_AFTER {
                    self.late += 1;
                }
            }
        }
    }

    /// The mean delay in minutes, if anything departed.
    pub fn mean(&self) -> Option<f64> {
        self.share_of(self.delay_minutes)
    }

    /// The share of late departures, if anything departed.
    pub fn late_share(&self) -> Option<f64> {
        self.share_of(self.late)
    }

    fn share_of(&self, sum: i64) -> Option<f64> {
        let departed = self.flights - self.cancelled;
        if departed == 0 { None } else { Some(sum as f64 / departed as f64) }
    }
}

/// The lines of January, unpacked from the repository.
///
/// # Errors
/// When the file is missing or damaged.
pub fn january() -> Result<String> {
    let path = root().join("plugins/flights-delays/data/flights-2013-01.ndjson.zst");
    let packed = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let unpack = || -> Result<String> {
        let mut text = String::new();
        ruzstd::decoding::StreamingDecoder::new(packed.as_slice())?.read_to_string(&mut text)?;
        Ok(text)
    };
    unpack().with_context(|| format!("cannot unpack {}", path.display()))
}

/// The flights that lines tell of.
///
/// # Errors
/// When a line is no flight.
pub fn parse(lines: &str) -> Result<Vec<Flight>> {
    let flight = |(number, line): (usize, &str)| {
        let place = || format!("flights, line {}", number + 1);
        let value: Value = serde_json::from_str(line).with_context(place)?;
        let carrier = value["carrier"].as_str().with_context(place)?.to_owned();
        Ok(Flight { carrier, delay_minutes: value["dep_delay"].as_i64() })
    };
    lines.lines().enumerate().map(flight).collect()
}

/// The figures after all flights.
pub fn totals(flights: &[Flight], reading: Reading) -> ByCarrier {
    let mut by_carrier = ByCarrier::new();
    for flight in flights {
        by_carrier.entry(flight.carrier.clone()).or_default().add(flight, reading);
    }
    by_carrier
}

/// Each carrier's figures after each of its flights.
pub fn running(flights: &[Flight], reading: Reading) -> BTreeMap<String, Vec<Figures>> {
    let mut by_carrier = BTreeMap::<String, Vec<Figures>>::new();
    for flight in flights {
        let told = by_carrier.entry(flight.carrier.clone()).or_default();
        let mut figures = told.last().copied().unwrap_or_default();
        figures.add(flight, reading);
        told.push(figures);
    }
    by_carrier
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_readings_differ_in_flights_that_never_left() {
        let flights = parse(
            "{\"carrier\":\"AA\",\"dep_delay\":16}\n{\"carrier\":\"AA\",\"dep_delay\":null}\n\
             {\"carrier\":\"AA\",\"dep_delay\":15}\n{\"carrier\":\"UA\",\"dep_delay\":null}\n",
        )
        .unwrap();
        let on_time = totals(&flights, Reading::OnTime);
        let cancelled = totals(&flights, Reading::Cancelled);
        assert_eq!((on_time["AA"].mean(), on_time["UA"].mean()), (Some(31.0 / 3.0), Some(0.0)));
        assert_eq!((cancelled["AA"].mean(), cancelled["UA"].mean()), (Some(15.5), None));
        assert_eq!(cancelled["AA"].late_share(), Some(0.5));
        assert_eq!(running(&flights, Reading::Cancelled)["AA"][1].cancelled, 1);
        assert!(parse("{}").is_err());
    }

    #[test]
    fn january_is_whole() {
        let flights = parse(&january().unwrap()).unwrap();
        let never_left = flights.iter().filter(|flight| flight.delay_minutes.is_none()).count();
        assert_eq!((flights.len(), never_left), (27_004, 521));
    }
}
