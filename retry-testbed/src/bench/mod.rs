//! The bench: a table of cases, each beside the references of its own: the limit of the machine, a careful server
//! without eBPF, and the daemon's own socket. Rates on shared machines swing: rounds take turns, and only ratios count.

mod cases;
mod contenders;
mod handover;
mod machine;
mod model;
mod options;
mod plain;
mod probe;
mod profile;
mod report;
mod rig;
mod stats;
mod subject;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

pub(crate) use self::options::Options;
use self::{cases::Entry, contenders::Contenders, options::Settings, report::Report};

/// A target was missed, with `--strict`.
const MISSED: u8 = 1;
/// An answer, a byte, a checksum or a count was wrong, or the run could not be made.
const WRONG: u8 = 3;

/// Runs it. Exit code 0 when the run was right; 1 with `--strict` when a target is missed; 3 when it was not right.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.cases.iter().any(|case| case == handover::NAME) {
        return handover::run(&Settings::new(options)?, options.json);
    }
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
fn measure(options: &Options, chosen: &[&'static Entry]) -> Result<(Report, bool)> {
    let settings = Settings::new(options)?;
    std::fs::create_dir_all(&settings.directory).with_context(|| settings.directory.display().to_string())?;
    if settings.profile {
        profile::available()?;
    }
    let mut report = Report::new(machine::describe(options.mtu));
    let mut rigs = Contenders::new(options.mtu)?;
    let mut right = true;
    for entry in chosen {
        let case = &entry.case;
        let start = std::time::Instant::now();
        match cases::measure(entry, &settings, &mut rigs) {
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
