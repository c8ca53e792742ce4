//! The bench: a table of cases, each beside the references of its own: the limit of the machine, a careful server
//! without eBPF, and the daemon's own socket. Rates on shared machines swing: rounds take turns, and only ratios count.

mod cases;
mod contenders;
mod machine;
mod options;
mod plain;
mod probe;
mod profile;
mod report;
mod rig;
mod row;
mod stats;
mod subject;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use retry_testbed::daemon::Daemon;

pub(crate) use self::options::Options;
use self::{cases::Case, contenders::Contenders, report::Report};

/// Environment variable with the directory of the reports.
const DIRECTORY_VARIABLE: &str = "RETRY_BENCH_DIRECTORY";
/// A target was missed, with `--strict`.
const MISSED: u8 = 1;
/// An answer, a byte, a checksum or a count was wrong, or the run could not be made.
const WRONG: u8 = 3;

/// How long and how often things are measured.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Rounds of everything that is compared.
    pub(crate) rounds: usize,
    /// Length of one measurement at full rate.
    pub(crate) stretch: Duration,
    /// Fewer points and shorter waits.
    pub(crate) quick: bool,
    /// The daemon's binary.
    pub(crate) binary: PathBuf,
    /// Where the reports go.
    pub(crate) directory: PathBuf,
    /// Whether each case is profiled too.
    pub(crate) profile: bool,
}

impl Settings {
    fn new(options: &Options) -> Result<Self> {
        let quick = options.quick;
        let directory = options.directory.clone().or_else(|| std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from));
        Ok(Self {
            rounds: if quick { 3 } else { 5 },
            stretch: Duration::from_millis(if quick { 200 } else { 400 }),
            quick,
            binary: options.daemon.clone().map_or_else(Daemon::binary, Ok)?,
            directory: directory.with_context(|| format!("{DIRECTORY_VARIABLE} does not name a directory"))?,
            profile: options.profile,
        })
    }
}

/// Runs it. Exit code 0 when the run was right; 1 with `--strict` when a target is missed; 3 when it was not right.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let chosen = cases::choose(&options.cases)?;
    if options.list {
        say(&cases::list(&chosen));
        return Ok(ExitCode::SUCCESS);
    }
    let (report, right) = match measure(options, &chosen) {
        Ok(measured) => measured,
        Err(error) => {
            eprintln!("bench: {error:#}");
            return Ok(ExitCode::from(WRONG));
        }
    };
    Ok(match (right, options.strict && !report.met()) {
        (false, _) => ExitCode::from(WRONG),
        (true, true) => ExitCode::from(MISSED),
        (true, false) => ExitCode::SUCCESS,
    })
}

/// Runs the cases and reports. False when one of them was not right: the others are reported all the same.
fn measure(options: &Options, chosen: &[&'static Case]) -> Result<(Report, bool)> {
    let settings = Settings::new(options)?;
    std::fs::create_dir_all(&settings.directory).with_context(|| settings.directory.display().to_string())?;
    if settings.profile {
        profile::available()?;
    }
    let mut report = Report::new(machine::describe());
    let mut rigs = Contenders::new()?;
    let mut right = true;
    for case in chosen {
        let start = std::time::Instant::now();
        match cases::measure(case, &settings, &mut rigs) {
            Ok(found) => {
                report.add(case, found);
                eprintln!("bench: {} in {:.1} s", case.name, start.elapsed().as_secs_f64());
            }
            Err(error) => {
                eprintln!("bench: {} FAILED: {error:#}", case.name);
                right = false;
            }
        }
    }
    report.write(&settings.directory)?;
    say(&if options.json { report.json()? } else { report.table() });
    Ok((report, right))
}

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn say(text: &str) {
    println!("{}", text.trim_end());
}
