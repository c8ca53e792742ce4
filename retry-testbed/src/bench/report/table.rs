//! The table for a terminal.

use crate::{
    bench::model::{Case, Measurement, Row},
    table::{Column, figures, lines, words},
};

/// Every column of the report.
pub(super) const COLUMNS: [Column; 8] = [
    words("case", 0),
    figures("median", 0),
    figures("min", 0),
    figures("max", 0),
    words("unit", 0),
    words("reference", 0),
    figures("ratio", 0),
    words("target", 0),
];

/// All lines, with notes below them.
pub(super) fn table(machine: &str, cases: &[(&'static Case, Measurement)]) -> String {
    let rows = cases.iter().flat_map(|(_, found)| found.rows.iter().map(cells));
    let mut text = format!("{machine}\n\n{}\n", lines(&COLUMNS, rows).join("\n"));
    for (case, found) in cases {
        for note in &found.notes {
            text.push_str(&format!("\n{}: {note}", case.name));
        }
    }
    text
}

/// The cells of a line.
pub(super) fn cells(row: &Row) -> [String; 8] {
    let verdict = match (row.target.as_str(), row.met) {
        ("none", _) => String::new(),
        (target, true) => format!("{target}  met"),
        (target, false) => format!("{target}  MISSED"),
    };
    [
        row.case.clone(),
        figure(row.median),
        figure(row.min),
        figure(row.max),
        row.unit.clone(),
        row.reference.clone(),
        if row.reference.is_empty() { String::new() } else { figure(row.ratio) },
        verdict,
    ]
}

/// Three significant digits, more from 1,000, whose thousands stand apart.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) {
                    grouped.push(' ');
                }
                grouped.push(digit);
            }
            format!("{sign}{grouped}")
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        size if size >= 0.01 => format!("{value:.4}"),
        _ => format!("{value:.5}"),
    }
}

#[cfg(test)]
mod tests {
    use super::figure;

    #[test]
    fn figures_are_short() {
        assert_eq!(figure(1_234_567.8), "1 234 568");
        assert_eq!(figure(123.4), "123");
        assert_eq!(figure(12.34), "12.3");
        assert_eq!(figure(7.9), "7.90");
        assert_eq!(figure(0.4564), "0.456");
        assert_eq!(figure(0.01236), "0.0124");
        assert_eq!(figure(0.001), "0.00100");
        assert_eq!(figure(0.0), "0.00");
    }
}
