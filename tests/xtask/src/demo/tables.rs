//! Tables of figures, and their comparison.

use anyhow::{Result, ensure};

use super::flights::{ByCarrier, Figures};

/// Shows figures, and the plain computation's verdict.
pub fn show(by_carrier: &ByCarrier) {
    println!(
        "  {:<8}{:>9}{:>11}{:>12}{:>12}",
        "carrier", "flights", "cancelled", "mean delay", "late share"
    );
    for (carrier, f) in by_carrier {
        println!(
            "  {carrier:<8}{:>9}{:>11}{:>12}{:>12}",
            f.flights,
            f.cancelled,
            minutes(f),
            share(f)
        );
    }
}

/// Shows the figures of two versions beside each other.
pub fn show_both(one: &ByCarrier, two: &ByCarrier) {
    println!(
        "  {:<8}{:>9}{:>14}{:>18}{:>19}",
        "", "flights", "cancelled", "mean delay (min)", "late share"
    );
    println!(
        "  {:<8}{:>9}{:>7}{:>7}{:>9}{:>9}{:>10}{:>9}",
        "carrier", "v1 = v2", "v1", "v2", "v1", "v2", "v1", "v2"
    );
    let none = Figures::default();
    for (carrier, b) in two {
        let a = one.get(carrier).unwrap_or(&none);
        println!(
            "  {carrier:<8}{:>9}{:>7}{:>7}{:>9}{:>9}{:>10}{:>9}",
            b.flights,
            a.cancelled,
            b.cancelled,
            minutes(a),
            minutes(b),
            share(a),
            share(b)
        );
    }
}

fn minutes(figures: &Figures) -> String {
    figures.mean().map_or_else(|| "-".to_owned(), |mean| format!("{mean:.2}"))
}

fn share(figures: &Figures) -> String {
    figures.late_share().map_or_else(|| "-".to_owned(), |share| format!("{:.2} %", share * 100.0))
}

/// That the host's figures are the plain computation's; how many numbers that compared.
///
/// # Errors
/// All carriers that differ.
pub fn same(what: &str, found: &ByCarrier, expected: &ByCarrier) -> Result<usize> {
    let carriers: std::collections::BTreeSet<&String> =
        found.keys().chain(expected.keys()).collect();
    let wrong: Vec<String> = carriers
        .iter()
        .filter(|carrier| found.get(**carrier) != expected.get(**carrier))
        .map(|carrier| {
            format!("{carrier}: {:?}, expected {:?}", found.get(*carrier), expected.get(*carrier))
        })
        .collect();
    ensure!(wrong.is_empty(), "{what} differs:\n{}", wrong.join("\n"));
    Ok(carriers.len() * 4)
}

/// `1234567` as `1,234,567`.
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_too_much_differs() {
        let figures = Figures { flights: 1, ..Figures::default() };
        let one = ByCarrier::from([("AA".to_owned(), figures)]);
        assert_eq!(same("x", &one, &one).unwrap(), 4);
        assert!(same("x", &one, &ByCarrier::new()).is_err());
        assert!(same("x", &ByCarrier::new(), &one).is_err());
        assert_eq!(count(27_004), "27,004");
    }
}
