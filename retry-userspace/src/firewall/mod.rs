//! `retry-endpoint firewall import`: makes rules for `-acl-file` of what the host's nftables rules do to NACKs, for the kernel
//! program answers before they are asked.
//!
//! * `ruleset`: what `nft -j list ruleset` prints
//! * `judge`: what the rules do to NACKs of a source
//! * `import`: the prefixes that this comes to

mod import;
mod judge;
mod ruleset;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use clap::{Arg, ArgMatches, Command, value_parser};

use crate::command_line::{self, UNREADABLE};
use import::Imported;
use judge::Nacks;
use ruleset::Ruleset;

/// The exit code where not all rules could be imported.
const PARTIAL: u8 = 1;

/// Runs the subcommand; `args` begins behind the word `firewall`. Exit code 0 when all that concerns NACKs was imported, 1 when a
/// rule could not be, 2 when the rules or the command line cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = match command_line::matches(command(), args) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    match run(&matches) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(PARTIAL),
        Err(error) => {
            let _ = writeln!(io::stderr(), "retry-endpoint firewall: {error}");
            ExitCode::from(UNREADABLE)
        }
    }
}

/// The command line.
pub(crate) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("retry-endpoint firewall")
        .about(
            "Makes rules for -acl-file of the host's nftables rules. The kernel program answers NACKs before the firewall sees \
             them; what it drops or rejects has to be denied here too.",
        )
        .after_help(
            "A rule that cannot be expressed as prefixes is named on standard error. Exit code 0: all rules that concern NACKs are \
             imported; 1: some are not; 2: the rules cannot be read.",
        )
        .arg(Arg::new("action").value_name("ACTION").value_parser(["import"]).required(true).help("What to do."))
        .arg(
            option("nack-port", "PORT", "The daemon's -nack-port.")
                .default_value("9300")
                .value_parser(value_parser!(u16).range(1..)),
        )
        .arg(option("nack-addr", "ADDR", "The daemon's -nack-addr; without it rules for a destination are not imported.").value_parser(value_parser!(Ipv6Addr)))
        .arg(option("iface", "NAME", "The interface that NACKs come in by; without it rules for an interface are not imported."))
        .arg(
            option("ruleset", "FILE", "What `nft -j list ruleset` has printed; without it nft is run.")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            option("out", "FILE", "The file to write, in one step; without it standard output.")
                .value_parser(value_parser!(PathBuf)),
        )
}

/// True when every rule was imported.
fn run(matches: &ArgMatches) -> Result<bool, String> {
    let text = match matches.get_one::<PathBuf>("ruleset") {
        Some(file) => fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?,
        None => list()?,
    };
    let nacks = Nacks {
        port: matches.get_one("nack-port").copied().unwrap_or_default(),
        address: matches.get_one("nack-addr").copied(),
        interface: matches.get_one::<String>("iface").cloned(),
    };
    let Imported { rules, warnings } = import::import(&Ruleset::parse(&text)?, &nacks);
    for warning in &warnings {
        let _ = writeln!(io::stderr(), "retry-endpoint firewall: {warning}");
    }
    match matches.get_one::<PathBuf>("out") {
        Some(file) => replace(file, &rules).map_err(|error| format!("{}: {error}", file.display()))?,
        None => io::stdout().write_all(rules.as_bytes()).map_err(|error| error.to_string())?,
    }
    Ok(warnings.is_empty())
}

/// What nft prints of this network namespace.
fn list() -> Result<String, String> {
    const NAME: &str = "nft -j list ruleset";
    let output = process::Command::new("nft").args(["-j", "list", "ruleset"]).output();
    let output = output.map_err(|error| format!("{NAME}: {error}; install nftables, or give -ruleset FILE"))?;
    if !output.status.success() {
        return Err(format!("{NAME}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("{NAME}: {error}"))
}

/// Writes a file beside the one that is meant, and puts it in its place: a daemon that reads it sees the old one or the new one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let mut name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}", process::id()));
    let beside = file.with_file_name(name);
    let mut new = fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
    let written = new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).and_then(|()| fs::rename(&beside, file));
    written.inspect_err(|_| drop(fs::remove_file(&beside)))
}
