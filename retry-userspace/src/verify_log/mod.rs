//! `retry-endpoint verify-log`: the frame log of a daemon that runs, read through its pins and checked. It changes nothing.

mod check;
mod report;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::Write;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use retry_common::abi::{LAYOUT, Lane, Settings};
use retry_common::index;

use crate::command_line::{self, UNREADABLE};
use crate::datapath::pinned::{self, PinnedError, PinnedLog, Words};
pub(crate) use check::LogView;
#[cfg(test)]
use report::Kind;
pub use report::Report;

/// How long a daemon that starts may take from its pins to its lanes.
const START: Duration = Duration::from_secs(2);

/// Why a frame log cannot be checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// Its pins.
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    /// There are none.
    #[error(
        "no pins of this network namespace below {0}: run this where the daemon runs (nsenter --net=… keeps the file \
         systems), with its -bpffs, or name the directory of its pins; a daemon with -xdp off has none, and its log cannot \
         be checked from outside"
    )]
    NoPins(String),
    /// Another program's.
    #[error(
        "{directory} has layout {theirs}, this program reads layout {LAYOUT}: run verify-log of the program that runs"
    )]
    Layout {
        /// The directory.
        directory: String,
        /// Its layout.
        theirs: u32,
    },
    /// A daemon that has not come far.
    #[error(
        "the daemon of {0} has not filled in its {1}: it starts, or it died at its start; try again, or restart it"
    )]
    Starting(String, &'static str),
}

/// Checks the frame log pinned in `directory`.
///
/// # Errors
/// It cannot be read.
pub(crate) fn verify(directory: &Path, sums: bool) -> Result<Report, VerifyError> {
    let log = PinnedLog::open(directory)?;
    let shown = || directory.display().to_string();
    let settings = await_settings(&log).ok_or_else(|| VerifyError::Starting(shown(), "settings"))?;
    if settings.layout != LAYOUT {
        return Err(VerifyError::Layout { directory: shown(), theirs: settings.layout });
    }
    let buckets = settings.bucket_mask.wrapping_add(1);
    if !buckets.is_power_of_two() || buckets.checked_add(index::OVERFLOW_BUCKETS) != Some(log.index.entries()) {
        return Err(VerifyError::Starting(shown(), "index size"));
    }
    if !await_lanes(&log) {
        return Err(VerifyError::Starting(shown(), "lanes"));
    }
    let view =
        LogView { ring: &log.ring, index: &log.index, lanes: &log.lanes, hash_seed: settings.hash_seed, buckets };
    Ok(view.check(sums))
}

/// The settings that the check needs.
struct Known {
    hash_seed: u64,
    layout: u32,
    bucket_mask: u32,
}

/// The settings, once the daemon has filled them in.
fn await_settings(log: &PinnedLog) -> Option<Known> {
    soon(|| log.settings.word(offset_of!(Settings, generation)) != 0).then(|| {
        let half = |at: usize| {
            let mut bytes = [0; 4];
            log.settings.copy(at, &mut bytes);
            u32::from_ne_bytes(bytes)
        };
        Known {
            hash_seed: log.settings.word(offset_of!(Settings, hash_seed)),
            layout: half(offset_of!(Settings, layout)),
            bucket_mask: half(offset_of!(Settings, bucket_mask)),
        }
    })
}

/// Whether the daemon has filled in its lanes: their heads are drawn at random, and the slots stand in one of the last words.
fn await_lanes(log: &PinnedLog) -> bool {
    let filled = |lane: usize| log.lanes.word(lane * size_of::<Lane>() + (offset_of!(Lane, slots) & !7)) != 0;
    soon(|| filled(0) && filled(1))
}

fn soon(is_so: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if start.elapsed() > START {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the subcommand; `args` begins behind the word `verify-log`. Exit code 0 when nothing is wrong, 1 when something is, 2
/// when a log or the command line cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = match command_line::matches(command(), args) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    let (json, sums) = (matches.get_flag("json"), matches.get_flag("sums"));
    let directories = match directories(&matches) {
        Ok(directories) => directories,
        Err(error) => return complain(&error),
    };
    let (mut is_clean, mut is_read) = (true, true);
    for directory in directories {
        match verify(&directory, sums) {
            Ok(report) => {
                is_clean &= report.is_clean();
                show(&directory, &report, json);
            }
            Err(error) => {
                is_read = false;
                complain(&error);
            }
        }
    }
    match (is_read, is_clean) {
        (false, _) => ExitCode::from(UNREADABLE),
        (true, false) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    }
}

/// The command line.
pub(crate) fn command() -> Command {
    Command::new("retry-endpoint verify-log")
        .about(
            "Checks every index entry and every record in the frame log of a daemon that runs with XDP, through its pins. \
             Changes nothing.",
        )
        .after_help("Exit code 0: nothing is wrong; 1: something is; 2: a log cannot be read.")
        .arg(Arg::new("LOG").value_parser(value_parser!(OsString)).help(
            "The daemon's -mc-iface, or the directory of its pins. Without it: every daemon of this network namespace.",
        ))
        .arg(command_line::bpffs())
        .arg(
            Arg::new("sums")
                .long("sums")
                .action(ArgAction::SetTrue)
                .help("Sum the bytes of every record too: reads the whole ring."),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object per log, one line each."))
}

/// The directories that the command line means.
fn directories(matches: &ArgMatches) -> Result<Vec<PathBuf>, VerifyError> {
    let root = matches.get_one::<PathBuf>("bpffs").cloned().unwrap_or_default();
    match matches.get_one::<OsString>("LOG") {
        Some(path) if path.to_string_lossy().contains('/') => Ok(vec![PathBuf::from(path)]),
        Some(interface) => Ok(vec![pinned::pin_directory(&root, &interface.to_string_lossy())?]),
        None => {
            let found = pinned::pin_directories(&root)?;
            if found.is_empty() { Err(VerifyError::NoPins(root.display().to_string())) } else { Ok(found) }
        }
    }
}

fn show(directory: &Path, report: &Report, json: bool) {
    // When no process reads any more, the exit code still tells.
    let _ = if json {
        let line =
            serde_json::json!({ "log": directory.display().to_string(), "ok": report.is_clean(), "report": report });
        writeln!(std::io::stdout(), "{line}")
    } else {
        writeln!(std::io::stdout(), "{}: {report}", directory.display())
    };
}

fn complain(error: &VerifyError) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "retry-endpoint verify-log: {error}");
    ExitCode::from(UNREADABLE)
}
