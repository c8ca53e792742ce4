//! Reads what a libtest binary prints (run with `--show-output`), from a pipe or from the console of a guest.
//!
//! A test that cannot do its work on this machine prints `SKIP <what>: <reason>` and returns: it counts as skipped, not as
//! passed.

use std::collections::BTreeMap;

/// What one binary's run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Names of the tests that passed.
    pub(crate) passed: Vec<String>,
    /// Names of the tests that failed.
    pub(crate) failed: Vec<String>,
    /// Names and reasons: ignored tests and those that said SKIP.
    pub(crate) skipped: Vec<(String, String)>,
    /// The run came to its end: its last line, with the counts, was there and agrees with what was read before.
    pub(crate) complete: bool,
    /// What the failed tests printed.
    pub(crate) failures: String,
}

impl Outcome {
    /// Tests that had their say.
    pub(crate) fn ran(&self) -> usize {
        self.passed.len() + self.failed.len() + self.skipped.len()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Ignored(String),
}

/// Where in the output a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Tests,
    Successes,
    Failures,
}

/// Reads the whole output.
pub(crate) fn parse(output: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let mut skips: BTreeMap<String, String> = BTreeMap::new();
    let mut section = Section::Tests;
    // The test whose output the lines are, and the one whose verdict is still to come.
    let (mut speaker, mut pending): (Option<String>, Option<String>) = (None, None);
    let mut counts = None;
    for line in output.lines().map(str::trim_end) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            counts = Some(read_counts(rest));
            section = Section::Tests;
            continue;
        }
        match line {
            "successes:" => section = Section::Successes,
            "failures:" => section = Section::Failures,
            _ => {}
        }
        if let Some(name) = header(line) {
            speaker = Some(name.to_owned());
        }
        if let Some((what, reason)) = line.find("SKIP ").and_then(|start| skip(&line[start..])) {
            let name = speaker.as_ref().or(pending.as_ref()).map_or(what, String::as_str).to_owned();
            skips.entry(name).or_insert_with(|| reason.to_owned());
        }
        match section {
            Section::Failures => {
                outcome.failures.push_str(line);
                outcome.failures.push('\n');
            }
            Section::Tests => {
                let (name, verdict) = test_line(line, pending.take());
                match (name, verdict) {
                    (Some(name), Some(verdict)) => record(&mut outcome, name, verdict),
                    (name, _) => pending = name,
                }
            }
            Section::Successes => {}
        }
    }
    outcome.complete = counts.flatten() == Some((outcome.passed.len(), outcome.failed.len()));
    for (name, reason) in skips {
        if outcome.failed.contains(&name) {
            continue;
        }
        // A name that is no test's: its test passed under another name, and is one of those that were counted.
        outcome.passed.retain(|passed| *passed != name);
        outcome.skipped.push((name, reason));
    }
    outcome
}

fn record(outcome: &mut Outcome, name: String, verdict: Verdict) {
    match verdict {
        Verdict::Passed => outcome.passed.push(name),
        Verdict::Failed => outcome.failed.push(name),
        Verdict::Ignored(reason) => outcome.skipped.push((name, reason)),
    }
}

/// `---- module::name stdout ----`
fn header(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// `SKIP <what>: <reason>`
fn skip(line: &str) -> Option<(&str, &str)> {
    // The reason starts after ": ", for a name may hold "::".
    let (what, reason) = line.strip_prefix("SKIP ")?.split_once(": ")?;
    Some((what.trim(), reason.trim()))
}

/// `test name ... verdict`; with one test thread a program's own lines may stand between the name and the verdict.
fn test_line(line: &str, pending: Option<String>) -> (Option<String>, Option<Verdict>) {
    if let Some((name, rest)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ...")) {
        // `test name - should panic ... ok`
        let name = name.strip_suffix(" - should panic").unwrap_or(name);
        return (Some(name.to_owned()), verdict(rest.trim()));
    }
    let verdict = if pending.is_some() { verdict(line.trim()) } else { None };
    (pending, verdict)
}

fn verdict(text: &str) -> Option<Verdict> {
    match text {
        "ok" => Some(Verdict::Passed),
        "FAILED" => Some(Verdict::Failed),
        "ignored" => Some(Verdict::Ignored("ignored".to_owned())),
        _ => text.strip_prefix("ignored, ").map(|reason| Verdict::Ignored(reason.to_owned())),
    }
}

/// Passed and failed in `ok. 3 passed; 0 failed; …`.
fn read_counts(text: &str) -> Option<(usize, usize)> {
    let number = |unit: &str| {
        text.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(unit))
            .and_then(|digits| digits.trim().parse().ok())
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "
running 5 tests
test packet::vlan ... ok
test packet::native ... ok
test packet::slow ... ignored, takes an hour
test packet::wrong ... FAILED
test packet::panics - should panic ... ok

successes:

---- packet::native stdout ----
SKIP native: this driver has no XDP: veth is missing


successes:
    packet::native
    packet::panics
    packet::vlan

failures:

---- packet::wrong stdout ----
thread 'packet::wrong' panicked at tests/packets.rs:7:
assertion failed

failures:
    packet::wrong

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.20s
";

    #[test]
    fn passed_failed_ignored_and_skipped_are_told_apart() {
        let outcome = parse(MIXED);
        assert_eq!(outcome.passed, ["packet::vlan", "packet::panics"]);
        assert_eq!(outcome.failed, ["packet::wrong"]);
        let reason =
            |name: &str| outcome.skipped.iter().find(|(skipped, _)| skipped == name).map(|(_, why)| why.as_str());
        assert_eq!(reason("packet::native"), Some("this driver has no XDP: veth is missing"));
        assert_eq!(reason("packet::slow"), Some("takes an hour"));
        assert_eq!(outcome.ran(), 5);
        assert!(outcome.complete);
        assert!(outcome.failures.contains("assertion failed"));
    }

    #[test]
    fn a_run_without_its_last_line_is_not_complete() {
        let (cut, _) = MIXED.split_once("test result").expect("it is there");
        assert!(!parse(cut).complete);
        assert!(!parse("").complete);
        assert!(!parse(&MIXED.replace("1 failed", "2 failed")).complete, "counts that disagree");
        assert!(!parse(&MIXED.replace("3 passed", "4 passed")).complete, "counts that disagree");
    }

    #[test]
    fn output_between_name_and_verdict_is_no_obstacle() {
        let text = "running 2 tests\r\ntest a ... child says hello\r\nSKIP a: no bpffs\r\nok\r\ntest b ... \r\nok\r\n\
                    \r\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\r\n";
        let outcome = parse(text);
        assert_eq!(outcome.skipped, [("a".to_owned(), "no bpffs".to_owned())]);
        assert_eq!(outcome.passed, ["b"]);
        assert!(outcome.complete);
    }

    #[test]
    fn a_failed_test_stays_failed_whatever_it_says() {
        let outcome = parse(&MIXED.replace("assertion failed", "SKIP wrong: no reason is good enough"));
        assert_eq!(outcome.failed, ["packet::wrong"]);
        assert_eq!(outcome.skipped.len(), 2);
    }

    #[test]
    fn an_empty_run_is_complete_and_ran_nothing() {
        let text = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s";
        let outcome = parse(text);
        assert!(outcome.complete);
        assert_eq!(outcome.ran(), 0);
    }
}
