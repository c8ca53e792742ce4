//! Packet loss with nft on a veth or bridge port: by chance, or exactly the frames that a test names.

use std::{
    fmt::Write as _,
    net::Ipv6Addr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};

use crate::net::{fabric::DATA_PORT, netns::Netns};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Where packets get lost, seen from the host that a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossPoint {
    /// On the far end of its link, before anything of the host (XDP included) can see them.
    Link,
    /// On arrival in its stack: also what it sent to a group and hears itself; after a native XDP program.
    Arrival,
    /// On its way out of its stack; what XDP sends is not touched.
    Departure,
}

/// Which packets get lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    /// This many of a thousand, by chance.
    PerMille(u16),
    /// Frames with these SeqNums (bytes 48..56 of the datagram) of one HashKey (bytes 40..48), or of every HashKey.
    Frames {
        /// The flow, or `None` for all flows.
        hash_key: Option<u64>,
        /// The SeqNums.
        seq_nums: Vec<u64>,
    },
}

/// A rule for [`crate::net::fabric::Fabric::lose`]. IPv6 fragments: losing the first one loses the datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossRule {
    /// Where.
    pub point: LossPoint,
    /// Which.
    pub share: Share,
    /// Only UDP to this port.
    pub port: u16,
    /// Only what is sent to a group.
    pub multicast_only: bool,
    /// Only what this address sends: the publisher's frames and not their repairs, or the other way round.
    pub source: Option<Ipv6Addr>,
}

impl LossRule {
    /// Loses a share of the datagrams to port 9001 on the host's link.
    #[must_use]
    pub const fn random(per_mille: u16) -> Self {
        Self::of(Share::PerMille(per_mille))
    }

    /// Loses exactly these frames on the host's link, each copy of them.
    #[must_use]
    pub const fn frames(hash_key: u64, seq_nums: Vec<u64>) -> Self {
        Self::of(Share::Frames { hash_key: Some(hash_key), seq_nums })
    }

    const fn of(share: Share) -> Self {
        Self { point: LossPoint::Link, share, port: DATA_PORT, multicast_only: false, source: None }
    }

    /// Only what this address sends.
    #[must_use]
    pub const fn from(mut self, source: Ipv6Addr) -> Self {
        self.source = Some(source);
        self
    }

    /// At another place than the link.
    #[must_use]
    pub const fn at(mut self, point: LossPoint) -> Self {
        self.point = point;
        self
    }

    fn to_nft(&self) -> Result<String> {
        let mut text = format!("meta l4proto udp udp dport {}", self.port);
        if self.multicast_only {
            text.push_str(" ip6 daddr ff00::/8");
        }
        if let Some(source) = self.source {
            write!(text, " ip6 saddr {source}")?;
        }
        match &self.share {
            Share::PerMille(share) => {
                ensure!(*share <= 1000, "a share of {share} of a thousand");
                // nft refuses a comparison that is always true.
                if *share < 1000 {
                    write!(text, " numgen random mod 1000 < {share}")?;
                }
            }
            Share::Frames { hash_key, seq_nums } => {
                ensure!(!seq_nums.is_empty(), "no SeqNums to lose");
                // Offsets in bits from the UDP header: 8 bytes of header, then the frame's own offsets 40 and 48.
                if let Some(key) = hash_key {
                    write!(text, " @th,384,64 {key}")?;
                }
                let list: Vec<String> = seq_nums.iter().map(u64::to_string).collect();
                write!(text, " @th,448,64 {{ {} }}", list.join(", "))?;
            }
        }
        Ok(text)
    }
}

/// A loss in force; dropping it ends the loss.
#[derive(Debug)]
pub struct Loss<'a> {
    ns: &'a Netns,
    table: String,
}

impl<'a> Loss<'a> {
    pub(crate) fn install(ns: &'a Netns, hook: &str, device: &str, rule: &LossRule) -> Result<Self> {
        let table = format!("loss{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let matches = rule.to_nft()?;
        let script = format!(
            "table netdev {table} {{\n counter lost {{\n }}\n chain c {{\n  \
             type filter hook {hook} device {device} priority 0;\n  {matches} counter name lost drop\n }}\n}}\n"
        );
        ns.feed(&["nft", "-f", "-"], &script).with_context(|| format!("nft refuses {script}"))?;
        Ok(Self { ns, table })
    }

    /// Packets lost so far.
    ///
    /// # Errors
    /// nft cannot read its counter.
    pub fn dropped(&self) -> Result<u64> {
        let text = self.ns.run(&["nft", "list", "counter", "netdev", &self.table, "lost"])?;
        let mut words = text.split_whitespace();
        words.find(|word| *word == "packets");
        words.next().and_then(|word| word.parse().ok()).with_context(|| format!("no packet count in: {text}"))
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.ns.run(&["nft", "delete", "table", "netdev", &self.table]) {
            eprintln!("the loss goes on: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LossRule, Share};

    #[test]
    fn a_rule_reads_as_nft_says_it() {
        let rule =
            LossRule::frames(0x4D, vec![1, 5]).from("fd10::2".parse().expect("an address")).to_nft().expect("valid");
        assert_eq!(rule, "meta l4proto udp udp dport 9001 ip6 saddr fd10::2 @th,384,64 77 @th,448,64 { 1, 5 }");
    }

    #[test]
    fn impossible_shares_are_refused() {
        assert!(LossRule::random(1001).to_nft().is_err());
        let none = Share::Frames { hash_key: None, seq_nums: vec![] };
        assert!(LossRule::of(none).to_nft().is_err());
    }
}
