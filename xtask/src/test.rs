//! `test`: runs the suites and counts. The last line is `N passed, N failed, N skipped`, after one line for each skip.

mod binaries;
pub(crate) mod libtest;
mod suites;
pub(crate) mod tally;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;

use crate::{
    build, check,
    context::{Context, Privilege, say, step},
    kernels,
    test::{
        binaries::Binary,
        suites::{Kind, SUITES, Suite},
        tally::Tally,
    },
    tools::{self, Use},
};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The suites to run; none means all.
    #[arg(value_name = "SUITE", value_parser = PossibleValuesParser::new(suites::names()))]
    pub(crate) suites: Vec<String>,
    /// Run only what needs no root, and count the rest as skipped.
    #[arg(long)]
    pub(crate) unprivileged: bool,
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
    let running: Vec<&&Suite> = chosen.iter().filter(|suite| !suite.privileged() || options.by_root(suite)).collect();
    let uses: Vec<Use> = running.iter().flat_map(|suite| suite.uses).copied().collect();
    tools::ensure(context, &uses)?;
    if running.iter().any(|suite| suite.needs_daemon()) {
        build::build(context)?;
    } else if uses.contains(&Use::Ebpf) {
        crate::build_ebpf::build(context)?;
    }
    let mut tally = Tally::default();
    for suite in chosen {
        let before = tally.counts();
        let start = Instant::now();
        step(format_args!("suite {}", suite.name));
        if suite.privileged() && options.unprivileged {
            tally.skip(suite.name, "needs root, and --unprivileged was given");
        } else if let Err(error) = run_suite(context, options, suite, &mut tally) {
            tally.fail(suite.name, &format!("{error:#}"));
        }
        let after = tally.counts();
        let nothing = after == before;
        if nothing && (options.filter.is_empty() || !options.suites.is_empty()) {
            tally.fail(suite.name, "no test ran");
        }
        say(tally::line(suite.name, before, tally.counts(), start.elapsed()));
    }
    if tally.counts() == tally::Counts::default() {
        tally.fail("test", "no test of any suite has such a name");
    }
    context.give_back()?;
    tally.print();
    Ok(if tally.counts().failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_suite(context: &Context, options: &Options, suite: &Suite, tally: &mut Tally) -> Result<()> {
    match suite.kind {
        Kind::Check => {
            for part in check::PARTS {
                match check::run_part(context, part) {
                    Ok(()) => tally.pass(1),
                    Err(error) => tally.fail(&format!("check {part}"), &format!("{error:#}")),
                }
            }
        }
        Kind::Unit => {
            let mut found = binaries::build(context, &["--lib", "--bins"])?;
            found.extend(tests_without_root(context)?);
            for binary in found {
                take(context, options, suite, &binary, tally)?;
            }
        }
        Kind::Testbed(test) => take(context, options, suite, &integration_test(context, test)?, tally)?,
        Kind::Kernels(test) => {
            let guest = match &options.guest {
                Some(path) => path.canonicalize().with_context(|| format!("no file {}", path.display()))?,
                None => integration_test(context, test)?.path,
            };
            kernels::run(context, &guest, &options.filter, tally)?;
        }
    }
    Ok(())
}

fn take(context: &Context, options: &Options, suite: &Suite, binary: &Binary, tally: &mut Tally) -> Result<()> {
    let outcome = binaries::run(context, binary, suite.privileged(), &options.filter)?;
    let place = if suite.kind == Kind::Unit { &binary.name } else { suite.name };
    tally.take(place, outcome);
    Ok(())
}

/// The integration tests that need no root: each by its name, for the selection of packages is always the same and the
/// testbed's would come along otherwise.
fn tests_without_root(context: &Context) -> Result<Vec<Binary>> {
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
    let targets: Vec<&str> = names.iter().flat_map(|name| ["--test", name.as_str()]).collect();
    let built = binaries::build(context, &targets)?;
    ensure!(built.len() == names.len(), "{} test targets, and {} built", names.len(), built.len());
    Ok(built)
}

fn integration_test(context: &Context, test: &str) -> Result<Binary> {
    let directory = context.root.join("retry-testbed/tests");
    let files = [directory.join(format!("{test}.rs")), directory.join(test).join("main.rs")];
    ensure!(files.iter().any(|file| file.is_file()), "the suite's file does not exist: {}", files[0].display());
    let built = binaries::build(context, &["--test", test])?;
    built.into_iter().find(|binary| binary.directory.ends_with("retry-testbed")).context("cargo built no such test")
}
