//! `retry-endpoint nack HOST HASHKEY SEQ`: asks an endpoint for one frame as a listener does, and tells what came, when, and
//! whether it is what it should be.

mod exchange;
mod report;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use retry_common::group::{self, BeefBits, Scope, ShardBits, Sharding, SourceMode};
use retry_common::key::FrameKey;
use retry_common::wire::DATA_PORT;
use retry_common::wire::nack::{FLAG_PROXIED, Nack};

use crate::command_line::{self, UNREADABLE};
use crate::recovery::probe::resolve;
use crate::settings::parse_duration;
use exchange::{Listening, Request};

/// Group id of the field's fabrics.
const GROUP_ID: u16 = 0x000B;
/// All bits of a NACK's flags.
const ANY_FLAGS: std::ops::RangeInclusive<i64> = 0..=255;

/// Runs the subcommand; `args` begins behind the word `nack`. The exit code tells what came, as `-help` lists it; it is 2 for a
/// command line that cannot be read, and when no NACK can leave.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = match command_line::matches(command(), args) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    let report = request(&matches).and_then(|request| exchange::ask(&request).map_err(|error| error.to_string()));
    match report {
        Ok(report) => {
            // When no process reads any more, the exit code still tells.
            let _ = if matches.get_flag("json") {
                writeln!(std::io::stdout(), "{}", report.json())
            } else {
                write!(std::io::stdout(), "{report}")
            };
            ExitCode::from(report.outcome().code())
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "retry-endpoint nack: {error}");
            ExitCode::from(UNREADABLE)
        }
    }
}

/// The command line.
pub(crate) fn command() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("retry-endpoint nack")
        .about("Asks an endpoint for one frame as a listener does, and tells what comes back, when, and whether it is right.")
        .after_help(
            "Exit code 0: the frame came, whole and from where it should; 1: MISS; 2: the command line cannot be read or no \
             NACK can leave; 3: THROTTLED; 4: an ACK alone (the frame left by multicast, and no group was joined, or left \
             not at all); 5: no answer; 6: what came is not right, or a repair that the ACK promises did not come.",
        )
        .arg(
            Arg::new("HOST")
                .required(true)
                .help("Address or name, with or without a port: fd10::20, [fd10::20]:9300, retry.example:9300."),
        )
        .arg(
            Arg::new("HASHKEY")
                .required(true)
                .value_parser(hash_key)
                .help("The flow: 16 hexadecimal digits as in logs; fewer are filled up with zeros on the left."),
        )
        .arg(Arg::new("SEQ").required(true).value_parser(value_parser!(u64)).help("The frame's number, decimal."))
        .arg(
            text("from", "ADDRESS", "Own address to ask from. Not set: what the system takes.")
                .value_parser(value_parser!(IpAddr)),
        )
        .arg(
            Arg::new("proxied")
                .long("proxied")
                .action(ArgAction::SetTrue)
                .help("Flag Proxied: from the endpoint's own cache alone, and always with a unicast copy."),
        )
        .arg(text("flags", "BITS", "All flags of the NACK, 0x00 to 0xff.").value_parser(nack_flags))
        .arg(text("subtree", "HEX", "SubtreeID of the NACK, 64 hexadecimal digits.").value_parser(subtree_id))
        .arg(text("iface", "NAME", "Interface to join the groups on that a multicast repair may come to."))
        .arg(
            text("group", "INDEX", "With -iface, joins this group alone: an index such as 0xFFFE, or its address.")
                .value_parser(group_of),
        )
        .arg(
            text("shard-bits", "BITS", "As the daemon's.")
                .default_value("2")
                .value_parser(value_parser!(u8).range(1..=12)),
        )
        .arg(
            text("beef-shard-bits", "BITS", "As the daemon's.")
                .default_value("0")
                .value_parser(value_parser!(u8).range(0..=12)),
        )
        .arg(text("scope", "SCOPE", "As the daemon's.").default_value("site").value_parser([
            "link", "site", "org", "global",
        ]))
        .arg(text("source-mode", "MODE", "As the daemon's.").default_value("asm").value_parser(["asm", "ssm"]))
        .arg(text("mc-group-id", "ID", "As the daemon's.").default_value("0x000B").value_parser(group_id))
        .arg(
            text("source", "ADDRESS", "With -source-mode ssm, the source of repairs: the endpoint's -bind-source.")
                .value_parser(value_parser!(Ipv6Addr)),
        )
        .arg(
            text("listen-port", "PORT", "As the daemon's: the port of multicast repairs.")
                .default_value("9001")
                .value_parser(value_parser!(u16).range(1..)),
        )
        .arg(
            text("wait", "TIME", "How long to wait for all of it; a listener waits 300ms for the first answer.")
                .default_value("1s")
                .value_parser(|text: &str| parse_duration(text).map_err(|why| why.to_string())),
        )
        .arg(
            text("recovery", "TIME", "How long to wait after a MISS for a frame that the endpoint recovers from upstream.")
                .default_value("0s")
                .value_parser(|text: &str| parse_duration(text).map_err(|why| why.to_string())),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object."))
}

/// What the options ask for.
///
/// # Errors
/// A name without an address, options that do not fit together.
fn request(matches: &ArgMatches) -> Result<Request, String> {
    let host = matches.get_one::<String>("HOST").map_or("", String::as_str);
    let to = resolve(host).map_err(|error| format!("{host}: {error}"))?;
    let from = matches.get_one::<IpAddr>("from").copied();
    if from.is_some_and(|from| from.is_ipv6() != to.is_ipv6()) {
        return Err(format!("-from is of another family than {to}"));
    }
    let number = |name: &str| matches.get_one::<u16>(name).copied();
    let hash_key = matches.get_one::<u64>("HASHKEY").copied().unwrap_or_default();
    let seq_num = matches.get_one::<u64>("SEQ").copied().unwrap_or_default();
    let proxied = if matches.get_flag("proxied") { FLAG_PROXIED } else { 0 };
    let flags = matches.get_one::<u8>("flags").copied().unwrap_or_default() | proxied;
    let subtree_id = matches.get_one::<[u8; 32]>("subtree").copied().unwrap_or_default();
    let nack = Nack { flags, key: FrameKey::new(hash_key, seq_num), subtree_id };
    let bits = |name: &str| matches.get_one::<u8>(name).copied().unwrap_or_default();
    let sharding = Sharding {
        shard: ShardBits::new(bits("shard-bits")).ok_or("-shard-bits: 1 to 12 is accepted")?,
        beef: BeefBits::new(bits("beef-shard-bits")).ok_or("-beef-shard-bits: 0 to 12 is accepted")?,
    };
    let time = |name: &str| matches.get_one::<Duration>(name).copied().unwrap_or_default();
    let (wait, recovery) = (time("wait"), time("recovery"));
    let listening = match matches.get_one::<String>("iface") {
        None if matches.contains_id("group") || matches.contains_id("source") => {
            return Err("-group and -source say what to join: name the interface with -iface".to_owned());
        }
        None => None,
        Some(iface) => {
            let is_ssm = matches.get_one::<String>("source-mode").is_some_and(|mode| mode == "ssm");
            let scope = match matches.get_one::<String>("scope").map(String::as_str) {
                Some("link") => Scope::Link,
                Some("org") => Scope::Org,
                Some("global") => Scope::Global,
                _ => Scope::Site,
            };
            let mode = if is_ssm { SourceMode::Ssm } else { SourceMode::Asm };
            let prefix =
                group::prefix(scope, mode).ok_or("with -source-mode ssm, -scope site or global is accepted")?;
            let id = number("mc-group-id").unwrap_or(GROUP_ID);
            let address = |index| Ipv6Addr::from(group::address(prefix, id, index));
            let groups = match matches.get_one::<Group>("group") {
                Some(Group::Address(group)) => vec![*group],
                Some(Group::Index(index)) => vec![address(*index)],
                None => group::joined(sharding.shard, true, Some(sharding.beef)).map(address).collect(),
            };
            let source = match (is_ssm, matches.get_one::<Ipv6Addr>("source"), to.ip()) {
                (false, ..) => None,
                (true, Some(source), _) => Some(*source),
                (true, None, IpAddr::V6(host)) => Some(host),
                (true, None, IpAddr::V4(_)) => return Err("-source-mode ssm needs the -source of repairs".to_owned()),
            };
            let port = number("listen-port").unwrap_or(DATA_PORT);
            Some(Listening { iface: iface.clone(), groups, source, port })
        }
    };
    Ok(Request { to, from, nack, sharding, listening, wait, recovery })
}

/// The group of `-group`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Group {
    Index(u16),
    Address(Ipv6Addr),
}

fn group_of(text: &str) -> Result<Group, String> {
    match text.parse::<Ipv6Addr>() {
        Ok(address) if address.is_multicast() => Ok(Group::Address(address)),
        Ok(address) => Err(format!("{address} is no multicast group")),
        Err(_) => group_id(text).map(Group::Index),
    }
}

fn group_id(text: &str) -> Result<u16, String> {
    whole(text, 0..=0xFFFF).and_then(|value| u16::try_from(value).map_err(|error| error.to_string()))
}

fn nack_flags(text: &str) -> Result<u8, String> {
    whole(text, ANY_FLAGS).and_then(|value| u8::try_from(value).map_err(|error| error.to_string()))
}

/// Hexadecimal behind 0x, else decimal.
fn whole(text: &str, range: std::ops::RangeInclusive<i64>) -> Result<i64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| format!("0 to {:#x}, or the same in decimal, is accepted", range.end()))
}

fn hash_key(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let refused = || "1 to 16 hexadecimal digits are accepted".to_owned();
    if digits.starts_with('+') {
        return Err(refused());
    }
    u64::from_str_radix(digits, 16).map_err(|_| refused())
}

fn subtree_id(text: &str) -> Result<[u8; 32], String> {
    let mut id = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are accepted".to_owned());
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).map_err(|error| error.to_string())?;
    }
    Ok(id)
}
