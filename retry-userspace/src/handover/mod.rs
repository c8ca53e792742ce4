//! What outlives a daemon, seen and ended from another process: `retry-endpoint status` and `retry-endpoint detach`.

mod detach;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, Command, value_parser};

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
