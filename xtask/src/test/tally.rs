//! The count over all suites, and what is printed of it.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use crate::{
    context::{say, step},
    test::libtest::Outcome,
};

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            passed: self.passed - before.passed,
            failed: self.failed - before.failed,
            skipped: self.skipped - before.skipped,
        }
    }
}

/// Everything counted so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<(String, String)>,
}

impl Tally {
    /// The numbers.
    pub(crate) fn counts(&self) -> Counts {
        Counts { passed: self.passed, failed: self.failed.len(), skipped: self.skipped.len() }
    }

    /// Counts tests that passed.
    pub(crate) fn pass(&mut self, number: usize) {
        self.passed += number;
    }

    /// Counts a failure and shows why.
    pub(crate) fn fail(&mut self, what: &str, why: &str) {
        step(format_args!("FAILED {what}: {why}"));
        self.failed.push(what.to_owned());
    }

    /// Counts a skip.
    pub(crate) fn skip(&mut self, what: &str, reason: &str) {
        self.skipped.push((what.to_owned(), reason.to_owned()));
    }

    /// Counts a test binary's run. What failed tests printed is shown at once. A run that broke off is a failure of its own.
    pub(crate) fn take(&mut self, place: &str, outcome: Outcome) {
        self.pass(outcome.passed.len());
        self.skipped.extend(outcome.skipped.into_iter().map(|(name, reason)| (format!("{place} {name}"), reason)));
        if !outcome.failed.is_empty() || !outcome.complete {
            say(format_args!("{place}:\n{}", outcome.failures));
        }
        self.failed.extend(outcome.failed.into_iter().map(|name| format!("{place} {name}")));
        if !outcome.complete {
            self.fail(place, "the run broke off before its end");
        }
    }

    /// Prints what failed, what was skipped and why, and the numbers.
    pub(crate) fn print(&self) {
        for line in self.lines() {
            say(line);
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.failed.iter().map(|name| format!("failed: {name}")).collect();
        lines.extend(self.skipped.iter().map(|(name, reason)| format!("skipped: {name}: {reason}")));
        let Counts { passed, failed, skipped } = self.counts();
        lines.push(format!("{passed} passed, {failed} failed, {skipped} skipped"));
        lines
    }
}

/// The line of one suite.
pub(crate) fn line(suite: &str, counts: Counts, time: Duration) -> String {
    let Counts { passed, failed, skipped } = counts;
    format!("suite {suite}: {passed} passed, {failed} failed, {skipped} skipped in {:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            passed: vec!["a".into(), "b".into()],
            failed: vec!["c".into()],
            skipped: vec![("d".into(), "no veth".into())],
            complete: true,
            failures: String::new(),
        }
    }

    #[test]
    fn the_last_line_has_the_numbers_and_each_skip_its_reason() {
        let mut tally = Tally::default();
        tally.take("packets", outcome());
        tally.pass(1);
        assert_eq!(
            tally.lines(),
            ["failed: packets c", "skipped: packets d: no veth", "3 passed, 1 failed, 1 skipped"]
        );
    }

    #[test]
    fn a_run_that_broke_off_is_a_failure() {
        let mut tally = Tally::default();
        tally.take("packets", Outcome { failed: Vec::new(), complete: false, ..outcome() });
        assert_eq!(tally.counts(), Counts { passed: 2, failed: 1, skipped: 1 });
    }

    #[test]
    fn a_suites_line_has_its_own_numbers() {
        let before = Counts { passed: 10, failed: 1, skipped: 0 };
        let after = Counts { passed: 12, failed: 1, skipped: 3 };
        assert_eq!(before + (after - before), after);
        let text = line("maps", after - before, Duration::from_millis(1_250));
        assert_eq!(text, "suite maps: 2 passed, 0 failed, 3 skipped in 1.2 s");
    }
}
