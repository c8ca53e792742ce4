//! What outlives a daemon, seen and ended from another process: `retry-endpoint status` and `retry-endpoint detach`.

mod detach;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

pub use detach::main as detach;
pub use status::main as status;

/// The exit code of a command line, or of pins, that cannot be read.
const UNREADABLE: u8 = 2;

/// Go's one dash, as everywhere.
fn with_two_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.map(|arg| match arg.to_str() {
        Some(text) if text.starts_with('-') && !text.starts_with("--") && text.len() > 2 => format!("-{text}").into(),
        _ => arg,
    })
}

/// The options of a subcommand and the directory of all pins; else the exit code, once the reader has been told why.
fn read(command: Command, args: impl Iterator<Item = OsString>) -> Result<(ArgMatches, PathBuf), ExitCode> {
    let name = OsString::from(command.get_name());
    match command.try_get_matches_from([name].into_iter().chain(with_two_dashes(args))) {
        Ok(matches) => {
            let root = matches.get_one::<PathBuf>("bpffs").cloned().unwrap_or_default();
            Ok((matches, root))
        }
        Err(error) => {
            let _ = error.print();
            Err(if error.use_stderr() { ExitCode::from(UNREADABLE) } else { ExitCode::SUCCESS })
        }
    }
}

/// A subcommand with the options of both.
fn command(name: &'static str) -> Command {
    Command::new(name)
        .arg(Arg::new("INTERFACE").help("The daemon's -mc-iface, in this network namespace. Without it: all."))
        .arg(
            Arg::new("bpffs")
                .long("bpffs")
                .value_name("DIR")
                .default_value("/sys/fs/bpf/retry-endpoint")
                .value_parser(value_parser!(PathBuf))
                .help("The daemon's -bpffs."),
        )
}
