//! What the host says, read so that no digit is lost: numbers are kept as text until they are compared.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use serde_json::value::RawValue;

use super::flights::{ByCarrier, Figures};

type Fields<'a> = BTreeMap<String, &'a RawValue>;

fn fields(text: &str) -> Result<Fields<'_>> {
    serde_json::from_str(text).with_context(|| format!("not understood: {text}"))
}

fn field<'a>(of: &Fields<'a>, name: &str) -> Result<&'a str> {
    of.get(name).map(|raw| raw.get()).with_context(|| format!("it has no {name}"))
}

/// The figures that a store holds, from what `store scan --json` says.
///
/// # Errors
/// When they have another shape.
pub fn of_store(answer: &Value) -> Result<ByCarrier> {
    let mut by_carrier = ByCarrier::new();
    for entry in answer["entries"].as_array().context("it has no entries")? {
        let number = |name: &str| {
            let found = entry["value"][name].as_i64();
            found.with_context(|| format!("{entry} has no whole number {name}"))
        };
        let figures = Figures {
            flights: number("flights")?,
            cancelled: number("cancelled")?,
            delay_minutes: number("delay_minutes")?,
            late: number("late")?,
        };
        let carrier = entry["key"].as_str().context("a key is not text")?.to_owned();
        if by_carrier.insert(carrier, figures).is_some() {
            bail!("{entry} is there twice");
        }
    }
    Ok(by_carrier)
}

/// A row of the output.
pub struct Row {
    /// Its key.
    pub carrier: String,
    /// Flights so far.
    pub flights: i64,
    /// Cancelled ones so far.
    pub cancelled: i64,
    /// Mean delay in minutes.
    pub mean: Option<f64>,
    /// Share of late departures.
    pub late_share: Option<f64>,
}

impl Row {
    /// Whether it says the same, to the last bit.
    pub fn tells(&self, figures: &Figures) -> bool {
        self.flights == figures.flights
            && self.cancelled == figures.cancelled
            && self.mean == figures.mean()
            && self.late_share == figures.late_share()
    }
}

/// The rows that `consume --format records` printed.
///
/// # Errors
/// When they have another shape.
pub fn of_output(lines: &str) -> Result<Vec<Row>> {
    lines.lines().map(row).collect()
}

fn row(line: &str) -> Result<Row> {
    let record = fields(line)?;
    let value = fields(field(&record, "value")?)?;
    let float = |name: &str| -> Result<Option<f64>> {
        let text = field(&value, name)?;
        Ok(if text == "null" { None } else { Some(text.parse()?) })
    };
    Ok(Row {
        carrier: serde_json::from_str(field(&record, "key")?)?,
        flights: field(&value, "flights")?.parse()?,
        cancelled: field(&value, "cancelled")?.parse()?,
        mean: float("mean_delay_minutes")?,
        late_share: float("late_share")?,
    })
}

/// That rows are, for each carrier, exactly these figures in this order; how many numbers that compared.
///
/// # Errors
/// The first difference.
pub fn same_history(rows: &[Row], expected: &BTreeMap<String, Vec<Figures>>) -> Result<usize> {
    let mut told = BTreeMap::<&str, usize>::new();
    for row in rows {
        let nth = told.entry(&row.carrier).or_default();
        let figures = expected.get(&row.carrier).and_then(|of_carrier| of_carrier.get(*nth));
        let figures = figures.with_context(|| format!("{}: a row too many", row.carrier))?;
        *nth += 1;
        ensure!(
            row.tells(figures),
            "{}, row {nth}: the host says {} flights, {} cancelled, mean {:?}, late share {:?}; expected {figures:?}",
            row.carrier,
            row.flights,
            row.cancelled,
            row.mean,
            row.late_share,
        );
    }
    for (carrier, figures) in expected {
        let rows = told.get(carrier.as_str()).copied().unwrap_or_default();
        ensure!(rows == figures.len(), "{carrier}: {rows} rows, expected {}", figures.len());
    }
    Ok(rows.len() * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        let line = |mean: &str| {
            format!(
                r#"{{"key":"AA","value":{{"flights":3,"cancelled":0,"mean_delay_minutes":{mean},"late_share":0.0}},"offset":1}}"#
            )
        };
        let figures = Figures { flights: 3, cancelled: 0, delay_minutes: 1, late: 0 };
        let expected = BTreeMap::from([("AA".to_owned(), vec![figures])]);
        let check = |lines: &str| same_history(&of_output(lines).unwrap(), &expected);
        assert_eq!(check(&line("0.3333333333333333")).unwrap(), 4);
        for wrong in [line("0.33333333333333337"), String::new(), line("null"), line("1")] {
            assert!(check(&wrong).is_err(), "{wrong}");
        }
        let twice = format!("{0}\n{0}", line("0.3333333333333333"));
        assert!(check(&twice).is_err());
    }
}
