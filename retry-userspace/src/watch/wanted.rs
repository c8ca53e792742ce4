//! Which events the operator wants to see.

use std::net::Ipv6Addr;

use clap::{Arg, ArgAction, ArgMatches, builder::PossibleValuesParser};

use super::join::Event;
use super::show::reason_word;

/// Verdicts, as `--verdict` takes them.
const VERDICTS: [&str; 8] = ["hit", "miss", "throttled", "silence", "handed_over", "failed", "waits", "fetched"];

/// The filters.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Address and length of a prefix.
    source: Option<(Ipv6Addr, u8)>,
    flow: Option<u64>,
    verdict: Option<String>,
    reason: Option<String>,
    refused: bool,
}

/// The options of the filters.
pub(super) fn arguments() -> [Arg; 5] {
    let word = |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    [
        word("source", "PREFIX").value_parser(prefix).help("Only NACKs from this IPv6 address or prefix (fd10::/64)."),
        word("flow", "HASHKEY").value_parser(flow).help("Only NACKs for frames of this flow: 16 hexadecimal digits."),
        word("verdict", "VERDICT").value_parser(PossibleValuesParser::new(VERDICTS)).help("Only this verdict."),
        word("reason", "REASON").help("Only this reason, as it is shown: ip, sequence, chain, group, holddown …"),
        Arg::new("refused").long("refused").action(ArgAction::SetTrue).help(
            "Instead of NACKs: packets to the NACK port that are no NACK, and those that the kernel program leaves to the \
             stack, with their reason and bytes.",
        ),
    ]
}

impl Wanted {
    /// As the command line says.
    pub(super) fn from(matches: &ArgMatches) -> Self {
        Self {
            source: matches.get_one("source").copied(),
            flow: matches.get_one("flow").copied(),
            verdict: matches.get_one("verdict").cloned(),
            reason: matches.get_one("reason").cloned(),
            refused: matches.get_flag("refused"),
        }
    }

    /// True for an event that is to be shown.
    pub(super) fn has(&self, event: &Event) -> bool {
        let comes_from = |(prefix, length): &(Ipv6Addr, u8)| {
            let mask = u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
            event.source.is_some_and(|source| (source.ip().to_bits() ^ prefix.to_bits()) & mask == 0)
        };
        self.refused == matches!(event.verdict, "refused" | "passed")
            && self.source.as_ref().is_none_or(comes_from)
            && self.flow.is_none_or(|flow| event.key.is_some_and(|key| key.hash_key() == flow))
            && self.verdict.as_ref().is_none_or(|verdict| event.verdict == verdict)
            && self.reason.as_ref().is_none_or(|reason| event.reason.and_then(reason_word) == Some(reason.as_str()))
    }
}

fn prefix(text: &str) -> Result<(Ipv6Addr, u8), String> {
    let (address, length) = text.split_once('/').unwrap_or((text, "128"));
    let address = address.parse().map_err(|_| format!("`{address}` is no IPv6 address"))?;
    match length.parse() {
        Ok(length @ 0..=128) => Ok((address, length)),
        _ => Err(format!("`{length}` is no length of a prefix: 0 to 128 is accepted")),
    }
}

fn flow(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| format!("`{text}` is no HashKey: 1 to 16 hexadecimal digits are accepted"))
}

#[cfg(test)]
mod tests {
    use retry_common::abi::Watched;
    use retry_common::counter::Counter;
    use retry_common::key::FrameKey;

    use super::*;
    use crate::watch::join::{Join, Joined};

    fn event() -> Event {
        let record = Watched {
            kind: Watched::DECIDED,
            cpu: Watched::DAEMON,
            source: Ipv6Addr::new(0xfd10, 0, 0, 1, 0, 0, 0, 9).octets(),
            key: FrameKey::new(0xabcd, 1),
            verdict: retry_common::latency::Measured::Throttled as u8,
            reason: Counter::LimitedChain as u16 + 1,
            ..Watched::NONE
        };
        let Joined::Event(event) = Join::new(0).take(&record, &[]) else { panic!("an event") };
        *event
    }

    #[test]
    fn each_filter_holds_by_itself() {
        let command = || clap::Command::new("x").args(arguments());
        let has = |args: &[&str]| {
            let matches = command().try_get_matches_from([&["x"], args].concat()).expect("legal");
            Wanted::from(&matches).has(&event())
        };
        for (args, expected) in [
            (&[][..], true),
            (&["--source", "fd10:0:0:1::/64"], true),
            (&["--source", "::/0"], true),
            (&["--source", "fd10:0:0:1::9"], true),
            (&["--source", "fd10:0:0:1::8"], false),
            (&["--source", "fd10:0:0:2::/64"], false),
            (&["--flow", "abcd"], true),
            (&["--flow", "0xabce"], false),
            (&["--verdict", "throttled"], true),
            (&["--verdict", "miss"], false),
            (&["--reason", "chain"], true),
            (&["--reason", "ip"], false),
            (&["--refused"], false),
        ] {
            assert_eq!(has(args), expected, "{args:?}");
        }
        for refused in [["--source", "fd10::/129"], ["--source", "eth0"], ["--flow", "flow"], ["--verdict", "x"]] {
            assert!(command().try_get_matches_from([&["x"], &refused[..]].concat()).is_err(), "{refused:?}");
        }
    }
}
