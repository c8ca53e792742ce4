//! `retry-endpoint detach`: ends what daemons that are gone have left. For `ExecStopPost`, and before a package is removed.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, Command};

use super::{UNREADABLE, command, read};
use crate::datapath::DatapathError;
use crate::datapath::inspect::{self, PinnedState};
use crate::fdstore;

/// Runs the subcommand; `args` begins behind the word `detach`. Exit code 0 when nothing is left of what was meant, 1 when a
/// daemon runs there, 2 when the pins or the command line cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let (matches, root) = match read(arguments(), args) {
        Ok(read) => read,
        Err(code) => return code,
    };
    let interface = matches.get_one::<String>("INTERFACE").map(String::as_str);
    let ended = inspect::states(&root).and_then(|states| {
        let mut all = true;
        for state in meant(states, interface, matches.get_flag("stale"))? {
            all &= end(&root, &state)?;
        }
        Ok(all)
    });
    // A daemon that has pins and runs has been told of. Pins that cannot be read are no reason to keep memberships.
    let is_released = matches!(ended, Ok(false)) || matches.get_flag("stale") || release(interface);
    match ended {
        Ok(true) if is_released => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "retry-endpoint detach: {error}");
            ExitCode::from(UNREADABLE)
        }
    }
}

/// The command line.
pub(crate) fn arguments() -> Command {
    command("retry-endpoint detach")
        .about(
            "Ends what daemons that are gone have left: detaches the kernel program and removes frames, counters and \
             settings from the kernel, and leaves the groups that they had joined. A daemon that runs is left alone.",
        )
        .after_help("Exit code 0: nothing is left; 1: a daemon runs there: stop it first; 2: the pins cannot be read.")
        .arg(
            Arg::new("stale")
                .long("stale")
                .action(ArgAction::SetTrue)
                .help("Only what is attached to no interface any more, of every network namespace."),
        )
}

/// Those that the command line means: of this network namespace, or those that are stale.
fn meant(states: Vec<PinnedState>, interface: Option<&str>, stale: bool) -> Result<Vec<PinnedState>, DatapathError> {
    let here = inspect::namespace()?;
    let is_meant = |state: &PinnedState| {
        if stale {
            !state.is_served && state.links.iter().all(|(_, index)| *index == 0)
        } else {
            state.namespace == here && interface.is_none_or(|interface| state.interface == interface)
        }
    };
    Ok(states.into_iter().filter(is_meant).collect())
}

/// Ends the processes that keep memberships for the next daemon. True when none is left.
fn release(interface: Option<&str>) -> bool {
    let all = match interface {
        Some(interface) => vec![interface.to_owned()],
        // Without /proc there is no list, and what is not found ends with its lease.
        None => fdstore::interfaces().unwrap_or_default(),
    };
    let mut is_gone = true;
    for interface in all {
        match fdstore::release(&interface) {
            Ok(false) => {}
            Ok(true) => {
                let _ = writeln!(std::io::stdout(), "{interface}: memberships are kept no longer");
            }
            Err(error) => {
                is_gone = false;
                let _ = writeln!(std::io::stderr(), "retry-endpoint detach: memberships on {interface}: {error}");
            }
        }
    }
    is_gone
}

/// True when nothing is left of it.
fn end(root: &std::path::Path, state: &PinnedState) -> Result<bool, DatapathError> {
    let name = state.directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_gone = inspect::detach(root, &name)?;
    let PinnedState { interface, directory, .. } = state;
    let _ = if is_gone {
        writeln!(std::io::stdout(), "{interface}: detached, {} removed", directory.display())
    } else {
        writeln!(std::io::stderr(), "retry-endpoint detach: a daemon serves {interface}: stop it first")
    };
    Ok(is_gone)
}
