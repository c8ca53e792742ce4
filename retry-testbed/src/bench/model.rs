//! What the cases find and the report shows. Neither knows the other.

use serde::Serialize;

use super::stats::Spread;

/// What a case is called, on the command line and in the report.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it measures.
    pub(crate) about: &'static str,
}

/// What a case found.
#[derive(Debug, Default)]
pub(crate) struct Measurement {
    /// Its lines.
    pub(crate) rows: Vec<Row>,
    /// Its curves.
    pub(crate) curves: Vec<Curve>,
    /// What a reader has to know besides.
    pub(crate) notes: Vec<String>,
}

/// A line for each series over a common logarithmic axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    /// What is shown.
    pub(crate) title: String,
    /// What the horizontal axis is.
    pub(crate) across: &'static str,
    /// Unit of the vertical axis.
    pub(crate) unit: &'static str,
    /// Name and points of each line.
    pub(crate) series: Vec<(String, Vec<(f64, f64)>)>,
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// The ratio is at least this.
    Ratio(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The median is at least this.
    AtLeast(f64),
    /// The median is at most this.
    AtMost(f64),
    /// The median is at most this much above the reference: of the differences, round by round, as with the ratio.
    Above(f64),
    /// None: told for comparison.
    None,
}

impl Target {
    fn text(self, unit: &str) -> String {
        match self {
            Self::Ratio(least) => format!("ratio >= {least}"),
            Self::RatioAtMost(most) => format!("ratio <= {most}"),
            Self::AtLeast(least) => format!(">= {least} {unit}"),
            Self::AtMost(most) => format!("<= {most} {unit}"),
            Self::Above(by) => format!("<= reference + {by} {unit}"),
            Self::None => "none".to_owned(),
        }
    }

    fn met(self, median: f64, beside: Beside<'_>) -> bool {
        match self {
            Self::Ratio(least) => beside.ratio >= least,
            Self::RatioAtMost(most) => beside.ratio <= most,
            Self::AtLeast(least) => median >= least,
            Self::AtMost(most) => median <= most,
            Self::Above(by) => beside.difference <= by,
            Self::None => true,
        }
    }
}

/// What a series stands beside.
#[derive(Clone, Copy, Debug)]
struct Beside<'a> {
    reference: &'a str,
    ratio: f64,
    difference: f64,
}

impl Beside<'_> {
    /// Alone: nothing is more than itself.
    const NOTHING: Self = Self { reference: "", ratio: 1.0, difference: 0.0 };
}

/// One line: a figure beside a reference and a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) case: String,
    /// Unit of `median`, `min` and `max`.
    pub(crate) unit: String,
    /// The middle of the rounds.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
    /// What it stands beside; empty when it stands alone.
    pub(crate) reference: String,
    /// Median of the rounds' ratios to it; 1 when it stands alone.
    pub(crate) ratio: f64,
    /// What it has to be, in words; `none` when it is told for comparison.
    pub(crate) target: String,
    /// Whether it is; true when there is no target.
    pub(crate) met: bool,
}

impl Row {
    /// A series beside the series of a reference, measured in turns.
    pub(crate) fn beside(
        case: impl Into<String>,
        unit: &str,
        values: &[f64],
        (reference, references): (&str, &[f64]),
        target: Target,
    ) -> Self {
        let ratio = Spread::ratio(values, references);
        let difference = Spread::difference(values, references);
        Self::new(case.into(), unit, values, Beside { reference, ratio, difference }, target)
    }

    /// A series that stands alone.
    pub(crate) fn alone(case: impl Into<String>, unit: &str, values: &[f64], target: Target) -> Self {
        Self::new(case.into(), unit, values, Beside::NOTHING, target)
    }

    fn new(case: String, unit: &str, values: &[f64], beside: Beside<'_>, target: Target) -> Self {
        let Spread { median, min, max } = Spread::of(values.iter().copied());
        Self {
            case,
            unit: unit.to_owned(),
            median,
            min,
            max,
            reference: beside.reference.to_owned(),
            ratio: beside.ratio,
            target: target.text(unit),
            met: target.met(median, beside),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Row, Target};

    #[test]
    fn a_target_is_held_against_the_right_figure() {
        let row = |target| Row::beside("x", "NACK/s", &[10.0, 30.0, 20.0], ("y", &[40.0, 40.0, 40.0]), target);
        assert!(row(Target::Ratio(0.5)).met);
        assert!(!row(Target::Ratio(0.51)).met);
        assert!(!row(Target::RatioAtMost(0.4)).met);
        assert!(row(Target::AtLeast(20.0)).met);
        assert!(!row(Target::AtMost(19.0)).met);
        assert!(row(Target::Above(-20.0)).met);
        assert!(!row(Target::Above(-21.0)).met);
        assert!(row(Target::None).met);
        assert_eq!(row(Target::Ratio(0.5)).target, "ratio >= 0.5");
    }
}
