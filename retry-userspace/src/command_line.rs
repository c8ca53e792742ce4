//! The command line of a verb, such as `retry-endpoint nack`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

/// The exit code of a command line that cannot be read.
pub(crate) const UNREADABLE: u8 = 2;

/// Go's one dash, as everywhere.
fn with_two_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.map(|arg| match arg.to_str() {
        Some(text) if text.starts_with('-') && !text.starts_with("--") && text.len() > 2 => format!("-{text}").into(),
        _ => arg,
    })
}

/// The options of a verb from the arguments behind its word.
///
/// # Errors
/// The exit code, once the reader has been told why: [`UNREADABLE`], or success for `-help`.
pub(crate) fn matches(command: Command, args: impl Iterator<Item = OsString>) -> Result<ArgMatches, ExitCode> {
    let name = OsString::from(command.get_name());
    command.try_get_matches_from([name].into_iter().chain(with_two_dashes(args))).map_err(|error| {
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(UNREADABLE) } else { ExitCode::SUCCESS }
    })
}

/// The option of a verb that reads pins.
pub(crate) fn bpffs() -> Arg {
    Arg::new("bpffs")
        .long("bpffs")
        .value_name("DIR")
        .default_value("/sys/fs/bpf/retry-endpoint")
        .value_parser(value_parser!(PathBuf))
        .help("The daemon's -bpffs.")
}
