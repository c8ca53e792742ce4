//! What outlives a daemon, seen and ended from another process: `retry-endpoint status` and `retry-endpoint detach`.

pub(crate) mod detach;
pub(crate) mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use crate::command_line::{self, UNREADABLE};

pub use detach::main as detach;
pub use status::main as status;

/// The options of a subcommand and the directory of all pins; else the exit code, once the reader has been told why.
fn read(command: Command, args: impl Iterator<Item = OsString>) -> Result<(ArgMatches, PathBuf), ExitCode> {
    let matches = command_line::matches(command, args)?;
    let root = matches.get_one::<PathBuf>("bpffs").cloned().unwrap_or_default();
    Ok((matches, root))
}

/// A subcommand with the options of both.
fn command(name: &'static str) -> Command {
    Command::new(name)
        .arg(Arg::new("INTERFACE").help("The daemon's -mc-iface, in this network namespace. Without it: all."))
        .arg(command_line::bpffs())
}
