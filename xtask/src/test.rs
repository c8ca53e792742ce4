//! `test`: runs the suites and counts. The last line is `N passed, N failed, N skipped`, after one line for each skip.

mod binaries;
pub(crate) mod libtest;
mod pool;
mod suites;
pub(crate) mod tally;

use std::{
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;

use crate::{
    build, check,
    context::{Context, Privilege, say, step},
    dist, kernels,
    test::{
        binaries::Binary,
        pool::{Ended, Job},
        suites::{Kind, SUITES, Suite},
        tally::{Counts, Tally},
    },
    tools::{self, Use},
};

/// How many tests a suite's line names.
const SLOWEST: usize = 3;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The suites to run; none means all.
    #[arg(value_name = "SUITE", value_parser = PossibleValuesParser::new(suites::names()))]
    pub(crate) suites: Vec<String>,
    /// Run only what needs no root, and count the rest as skipped.
    #[arg(long)]
    pub(crate) unprivileged: bool,
    /// How many tests of the privileged suites run at the same time; twice the number of processors unless given.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) at_a_time: Option<u8>,
    /// For suite `kernels`: boot with this test binary instead of its own.
    #[arg(long, value_name = "FILE")]
    pub(crate) guest: Option<PathBuf>,
    /// Options of the test binaries: a part of a test's name, `--exact` …
    #[arg(last = true, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
}

impl Options {
    fn wants(&self, suite: &Suite) -> bool {
        if self.suites.is_empty() {
            // A filter chooses tests by name: linting has none.
            return self.filter.is_empty() || suite.kind != Kind::Check;
        }
        self.suites.iter().any(|name| name == suite.name)
    }

    fn at_a_time(&self) -> usize {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        self.at_a_time.map_or_else(|| 2 * processors(), usize::from)
    }

    fn by_root(&self, suite: &Suite) -> bool {
        suite.privileged() && !self.unprivileged
    }
}

/// Runs the suites.
///
/// # Errors
/// A tool is missing, a build fails, or suites need root and there is no way to it.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let chosen: Vec<&Suite> = SUITES.iter().filter(|suite| options.wants(suite)).collect();
    let privileged: Vec<&str> = chosen.iter().filter(|suite| options.by_root(suite)).map(|suite| suite.name).collect();
    ensure!(
        privileged.is_empty() || context.privilege != Privilege::None,
        "these suites need root or sudo: {}. With --unprivileged the others run, and these count as skipped",
        privileged.join(", ")
    );
    let running: Vec<&Suite> =
        chosen.iter().copied().filter(|suite| !suite.privileged() || options.by_root(suite)).collect();
    let uses: Vec<Use> = running.iter().flat_map(|suite| suite.uses).copied().collect();
    tools::ensure(context, &uses)?;
    if running.iter().any(|suite| suite.needs_daemon()) {
        build::build_daemon(context)?;
    } else if uses.contains(&Use::Ebpf) {
        crate::build_ebpf::build(context)?;
    }
    if running.iter().any(|suite| suite.needs_dist()) {
        dist::build(context)?;
    }
    let binaries = Binaries::build(context, options, &running)?;
    let mut tally = Tally::default();
    for suite in chosen.iter().filter(|suite| suite.privileged() && !options.by_root(suite)) {
        tally.skip(suite.name, "needs root, and --unprivileged was given");
    }
    for suite in &running {
        if matches!(suite.kind, Kind::Check | Kind::Unit) {
            run_as_user(context, options, suite, &binaries, &mut tally)?;
        }
    }
    run_together(context, options, &running, &binaries, &mut tally)?;
    if tally.counts() == Counts::default() {
        tally.fail("test", "no test of any suite has such a name");
    }
    context.give_back()?;
    tally.print();
    Ok(if tally.counts().failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What cargo built for the suites.
#[derive(Debug)]
struct Binaries(Vec<Binary>);

impl Binaries {
    /// Builds all test targets in one go: cargo then never waits for the last one of a suite with the other processors idle.
    fn build(context: &Context, options: &Options, suites: &[&Suite]) -> Result<Self> {
        let mut targets = Vec::new();
        let mut number = 0;
        for suite in suites {
            match suite.kind {
                Kind::Check => {}
                Kind::Unit => {
                    targets.extend(["--lib".to_owned(), "--bins".to_owned()]);
                    for name in tests_without_root(context)? {
                        targets.extend(["--test".to_owned(), name]);
                        number += 1;
                    }
                }
                Kind::Kernels(_) if options.guest.is_some() => {}
                Kind::Testbed(test) | Kind::Kernels(test) => {
                    let directory = context.root.join("retry-testbed/tests");
                    let files = [directory.join(format!("{test}.rs")), directory.join(test).join("main.rs")];
                    ensure!(
                        files.iter().any(|file| file.is_file()),
                        "the suite's file does not exist: {}",
                        files[0].display()
                    );
                    // Two suites may run the same.
                    if !targets.iter().any(|target| target == test) {
                        targets.extend(["--test".to_owned(), test.to_owned()]);
                        number += 1;
                    }
                }
            }
        }
        if targets.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let built = binaries::build(context, &targets.iter().map(String::as_str).collect::<Vec<_>>())?;
        let tests = built.iter().filter(|binary| binary.name.contains("/test/")).count();
        ensure!(tests == number, "{number} test targets, and {tests} built");
        Ok(Self(built))
    }

    /// An integration test of retry-testbed.
    fn integration(&self, test: &str) -> Result<&Binary> {
        let name = format!("retry-testbed/test/{test}");
        self.0.iter().find(|binary| binary.name == name).with_context(|| format!("cargo built no test {test}"))
    }

    /// Everything else.
    fn unit(&self) -> impl Iterator<Item = &Binary> {
        self.0.iter().filter(|binary| !binary.name.starts_with("retry-testbed/test/"))
    }
}

/// Runs a suite whose tests need no root.
fn run_as_user(
    context: &Context,
    options: &Options,
    suite: &Suite,
    binaries: &Binaries,
    tally: &mut Tally,
) -> Result<()> {
    let (before, start) = (tally.counts(), Instant::now());
    step(format_args!("suite {}", suite.name));
    if suite.kind == Kind::Check {
        for part in check::PARTS {
            match check::run_part(context, part) {
                Ok(()) => tally.pass(1),
                Err(error) => tally.fail(&format!("check {part}"), &format!("{error:#}")),
            }
        }
    } else {
        for binary in binaries.unit() {
            tally.take(&binary.name, binaries::run(context, binary, &options.filter)?);
        }
    }
    let counts = tally.counts() - before;
    end(options, suite, counts, start.elapsed(), "", tally);
    Ok(())
}

/// Says how a suite ended. One that ran no test has failed, unless a filter for all suites chose none of its tests.
fn end(options: &Options, suite: &Suite, mut counts: Counts, took: Duration, more: &str, tally: &mut Tally) {
    if counts == Counts::default() && (options.filter.is_empty() || !options.suites.is_empty()) {
        tally.fail(suite.name, "no test ran");
        counts.failed += 1;
    }
    say(format_args!("{}{more}", tally::line(suite.name, counts, took)));
}

/// A suite of the testbed while it runs.
#[derive(Debug)]
struct Progress<'a> {
    suite: &'a Suite,
    left: usize,
    counts: Counts,
    /// When each of its tests began and ended, and its name.
    times: Vec<(Instant, Instant, String)>,
}

impl Progress<'_> {
    fn take(&mut self, ended: Ended, tally: &mut Tally) {
        let before = tally.counts();
        tally.take(self.suite.name, ended.outcome);
        self.counts = self.counts + (tally.counts() - before);
        self.times.push((ended.time.0, ended.time.1, ended.job.test));
        self.left -= 1;
    }

    /// The slowest tests, and what all took together: more than the suite did, for they run at the same time.
    fn slowest(&self) -> String {
        let mut times: Vec<(Duration, &str)> =
            self.times.iter().map(|(start, end, test)| (*end - *start, test.as_str())).collect();
        times.sort_unstable();
        let sum: Duration = times.iter().map(|(took, _)| *took).sum();
        let slowest: Vec<String> =
            times.iter().rev().take(SLOWEST).map(|(took, test)| format!("{test} {:.1}", took.as_secs_f64())).collect();
        format!(" ({:.1} s of tests; slowest: {})", sum.as_secs_f64(), slowest.join(", "))
    }
}

/// How long at least one of the spans lasted.
fn covered(mut spans: Vec<(Instant, Instant)>) -> Duration {
    spans.sort_unstable();
    let mut covered = Duration::ZERO;
    let mut until: Option<Instant> = None;
    for (start, end) in spans {
        let from = until.map_or(start, |until| until.max(start));
        covered += end.saturating_duration_since(from);
        until = Some(until.map_or(end, |until| until.max(end)));
    }
    covered
}

/// Runs the suites of the testbed, and then the guests of the suite `kernels`.
fn run_together(
    context: &Context,
    options: &Options,
    running: &[&Suite],
    binaries: &Binaries,
    tally: &mut Tally,
) -> Result<()> {
    let (mut jobs, mut suites) = (Vec::new(), Vec::new());
    for suite in running {
        let Kind::Testbed(test) = suite.kind else { continue };
        let binary = binaries.integration(test)?;
        let tests = pool::list(binary, &options.filter)?;
        let progress = Progress { suite, left: tests.len(), counts: Counts::default(), times: Vec::new() };
        if tests.is_empty() {
            end(options, suite, progress.counts, Duration::ZERO, "", tally);
        }
        jobs.extend(tests.into_iter().map(|test| Job {
            suite: suites.len(),
            alone: suite.is_alone(&test),
            test,
            binary: binary.clone(),
        }));
        suites.push(progress);
    }
    let (alone, together): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.alone);
    let mut ended = |ended: Ended| {
        let progress = &mut suites[ended.job.suite];
        progress.take(ended, tally);
        if progress.left == 0 {
            let took = covered(progress.times.iter().map(|(start, end, _)| (*start, *end)).collect());
            end(options, progress.suite, progress.counts, took, &progress.slowest(), tally);
        }
    };
    if !alone.is_empty() {
        step(format_args!("{} tests, one after the other", alone.len()));
        pool::run(context, &options.filter, alone, 1, &mut ended)?;
    }
    let at_a_time = options.at_a_time();
    if !together.is_empty() {
        step(format_args!("{} tests, {at_a_time} at a time", together.len()));
        pool::run(context, &options.filter, together, at_a_time, &mut ended)?;
    }
    // They compute all the time: beside the others each would hold up the other.
    let Some((suite, test)) = running.iter().find_map(|suite| match suite.kind {
        Kind::Kernels(test) => Some((suite, test)),
        _ => None,
    }) else {
        return Ok(());
    };
    step(format_args!("suite {}", suite.name));
    let start = Instant::now();
    let verdicts = guests(context, options, binaries, test);
    let before = tally.counts();
    match verdicts {
        Ok(verdicts) => {
            for (place, verdict) in verdicts {
                match verdict {
                    Ok(outcome) => tally.take(&place, outcome),
                    Err(reason) => tally.skip(&place, &reason),
                }
            }
        }
        Err(error) => tally.fail(suite.name, &format!("{error:#}")),
    }
    let counts = tally.counts() - before;
    end(options, suite, counts, start.elapsed(), "", tally);
    Ok(())
}

fn guests(context: &Context, options: &Options, binaries: &Binaries, test: &str) -> Result<Vec<kernels::Verdict>> {
    let guest = match &options.guest {
        Some(path) => path.canonicalize().with_context(|| format!("no file {}", path.display()))?,
        None => binaries.integration(test)?.path.clone(),
    };
    kernels::run(context, &guest, &options.filter)
}

/// Names of the integration tests that need no root: each by its name, for the selection of packages is always the same and
/// the testbed's would come along otherwise.
fn tests_without_root(context: &Context) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for package in ["retry-common", "retry-userspace"] {
        let directory = context.root.join(package).join("tests");
        let entries = std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file() {
                names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_tests_share_counts_once() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(covered(Vec::new()), Duration::ZERO);
        let spans = vec![(at(20), at(23)), (at(0), at(10)), (at(2), at(4)), (at(8), at(12))];
        assert_eq!(covered(spans), Duration::from_secs(15));
    }
}
