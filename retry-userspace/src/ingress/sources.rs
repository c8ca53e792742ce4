//! Which sources the data groups are joined from. Pure: names are resolved and time is read elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use retry_common::wire::manifest::{FLAG_AUTHORITATIVE, FLAG_SHUTDOWN, Manifest, Successor};

/// A manifest without a time to live holds for three intervals (BRC-139).
const INTERVALS: u64 = 3;
/// A manifest that tells neither is taken for one a minute.
const INTERVAL_S: u64 = 60;
const NS_PER_S: u64 = 1_000_000_000;
/// Senders kept: they are configured, so that there are few; their instance ids are their own word.
const MOST: usize = 1_024;

/// What became of a manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It holds from now on.
    Taken,
    /// Its sender is about to go: its sources are no longer joined on its word.
    Shutdown,
    /// Its sender is none that is configured.
    Foreign,
    /// It is older than one of the same sender.
    Stale,
    /// There is no room for one more sender.
    Full,
}

#[derive(Clone, Debug)]
struct Live {
    epoch_s: u32,
    authoritative: bool,
    sources: BTreeSet<Ipv6Addr>,
    expires_ns: u64,
}

/// What is known of the sources.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `bind-source`: our own frames are not wanted back.
    own: Option<Ipv6Addr>,
    /// `ssm-publishers-static`, resolved.
    publishers: BTreeSet<Ipv6Addr>,
    /// `ssm-bootstrap-manifest`, resolved: whose manifests count.
    senders: BTreeSet<Ipv6Addr>,
    live: BTreeMap<(Ipv6Addr, u32), Live>,
}

impl Sources {
    /// Nothing is known but who we are.
    #[must_use]
    pub fn new(own: Option<Ipv6Addr>) -> Self {
        Self { own, ..Self::default() }
    }

    /// The publishers named by the operator, from now on.
    pub fn set_publishers(&mut self, publishers: BTreeSet<Ipv6Addr>) {
        self.publishers = publishers;
    }

    /// The senders of manifests, from now on. What one said that is no longer named counts no more.
    pub fn set_senders(&mut self, senders: BTreeSet<Ipv6Addr>) {
        self.live.retain(|(sender, _), _| senders.contains(sender));
        self.senders = senders;
    }

    /// Takes a manifest in that `sender` sent.
    pub fn handle_manifest(&mut self, manifest: &Manifest<'_>, sender: Ipv6Addr, now_ns: u64) -> Outcome {
        if !self.senders.contains(&sender) {
            return Outcome::Foreign;
        }
        let key = (sender, manifest.instance_id);
        if self.live.get(&key).is_some_and(|known| manifest.epoch_s < known.epoch_s && now_ns < known.expires_ns) {
            return Outcome::Stale;
        }
        let shutdown = manifest.flags & FLAG_SHUTDOWN != 0;
        self.live.retain(|_, live| now_ns < live.expires_ns);
        if self.live.len() >= MOST && !self.live.contains_key(&key) {
            return Outcome::Full;
        }
        let interval = if manifest.interval_s == 0 { INTERVAL_S } else { u64::from(manifest.interval_s) };
        let life_s = if manifest.ttl_s == 0 { INTERVALS * interval } else { u64::from(manifest.ttl_s) };
        let told = manifest.sources.iter().map(|source| Ipv6Addr::from(*source));
        let live = Live {
            epoch_s: manifest.epoch_s,
            authoritative: manifest.flags & FLAG_AUTHORITATIVE != 0 && !shutdown,
            // Who has gone is remembered for as long: an older manifest that comes late must not bring it back.
            sources: if shutdown { BTreeSet::new() } else { told.collect() },
            expires_ns: now_ns.saturating_add(life_s * NS_PER_S),
        };
        self.live.insert(key, live);
        if shutdown { Outcome::Shutdown } else { Outcome::Taken }
    }

    /// The sources to join: the operator's publishers always, and the union of what the live manifests say. Where one
    /// speaks for the operator (authoritative), those that do not are not heard.
    #[must_use]
    pub fn wanted(&self, now_ns: u64) -> BTreeSet<Ipv6Addr> {
        let live = || self.live.values().filter(|live| now_ns < live.expires_ns);
        let only_authoritative = live().any(|live| live.authoritative);
        let told = live().filter(|live| live.authoritative || !only_authoritative).flat_map(|live| &live.sources);
        let usable = |source: &&Ipv6Addr| {
            Some(**source) != self.own && !source.is_multicast() && !source.is_unspecified() && !source.is_loopback()
        };
        self.publishers.iter().chain(told).filter(usable).copied().collect()
    }
}

/// What an operator has to know of the generation to come; `None` when it changes nothing here.
#[must_use]
pub fn successor_advice(successor: &Successor, shard_bits: u8, ssm: bool) -> Option<String> {
    let to_ssm = successor.flags & 0x01 != 0;
    (successor.shard_bits != shard_bits || to_ssm != ssm).then(|| {
        format!(
            "the fabric changes to -shard-bits {} and -source-mode {} at {} s of Unix time: this endpoint has {shard_bits} \
             and {}, and has to be started anew by then",
            successor.shard_bits,
            if to_ssm { "ssm" } else { "asm" },
            successor.transition_s,
            if ssm { "ssm" } else { "asm" },
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use retry_common::wire::manifest::Groups;

    use super::*;

    const S: u64 = NS_PER_S;

    fn ip(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last)
    }

    fn set(last: &[u16]) -> BTreeSet<Ipv6Addr> {
        last.iter().map(|last| ip(*last)).collect()
    }

    fn manifest<'a>(sources: &'a [[u8; 16]], epoch_s: u32, flags: u8) -> Manifest<'a> {
        Manifest {
            flags,
            source: [0; 16],
            instance_id: 7,
            epoch_s,
            ttl_s: 10,
            interval_s: 3,
            shard_bits: 2,
            role: 1,
            generation_id: [1; 16],
            groups: Groups::None,
            sources,
            successor: None,
            rest: &[],
        }
    }

    fn known() -> Sources {
        let mut sources = Sources::new(Some(ip(99)));
        sources.set_publishers(set(&[1]));
        sources.set_senders(set(&[50, 51]));
        sources
    }

    #[test]
    fn a_conversation() {
        let mut sources = known();
        assert_eq!(sources.wanted(0), set(&[1]));
        let (two, three) = ([ip(2).octets(), ip(99).octets(), Ipv6Addr::LOCALHOST.octets()], [ip(3).octets()]);
        assert_eq!(sources.handle_manifest(&manifest(&two, 100, 0), ip(60), 0), Outcome::Foreign);
        assert_eq!(sources.handle_manifest(&manifest(&two, 100, 0), ip(50), 0), Outcome::Taken);
        // Neither our own address nor one that nobody can have.
        assert_eq!(sources.wanted(S), set(&[1, 2]));
        assert_eq!(sources.handle_manifest(&manifest(&three, 99, 0), ip(50), S), Outcome::Stale);
        assert_eq!(sources.handle_manifest(&manifest(&three, 5, 0), ip(51), S), Outcome::Taken);
        assert_eq!(sources.wanted(S), set(&[1, 2, 3]));
        // One speaks for the operator.
        assert_eq!(sources.handle_manifest(&manifest(&three, 6, FLAG_AUTHORITATIVE), ip(51), S), Outcome::Taken);
        assert_eq!(sources.wanted(2 * S), set(&[1, 3]));
        assert_eq!(sources.handle_manifest(&manifest(&[], 7, FLAG_SHUTDOWN), ip(51), 3 * S), Outcome::Shutdown);
        assert_eq!(sources.wanted(3 * S), set(&[1, 2]));
        // One from before it went, late.
        assert_eq!(sources.handle_manifest(&manifest(&three, 6, 0), ip(51), 3 * S), Outcome::Stale);
        // Not renewed.
        assert_eq!(sources.wanted(10 * S - 1), set(&[1, 2]));
        assert_eq!(sources.wanted(10 * S), set(&[1]));
        // A sender that was restarted with a clock behind is heard once its old word is over.
        assert_eq!(sources.handle_manifest(&manifest(&three, 1, 0), ip(50), 10 * S), Outcome::Taken);
        assert_eq!(sources.wanted(11 * S), set(&[1, 3]));
        // No longer named.
        sources.set_senders(set(&[51]));
        assert_eq!(sources.wanted(11 * S), set(&[1]));
    }

    #[test]
    fn without_a_life_it_holds_for_three_intervals() {
        let mut sources = known();
        let two = [ip(2).octets()];
        let manifest = Manifest { ttl_s: 0, ..manifest(&two, 1, 0) };
        assert_eq!(sources.handle_manifest(&manifest, ip(50), 0), Outcome::Taken);
        assert_eq!(sources.wanted(9 * S - 1).len(), 2);
        assert_eq!(sources.wanted(9 * S).len(), 1);
    }

    #[test]
    fn an_operator_is_told_of_a_change_to_come() {
        let successor = Successor { generation_id: [2; 16], shard_bits: 3, flags: 1, transition_s: 77 };
        assert_eq!(successor_advice(&successor, 3, true), None);
        let advice = successor_advice(&successor, 2, true).expect("other bits");
        assert!(advice.contains("-shard-bits 3") && advice.contains("77"), "{advice}");
        assert!(successor_advice(&successor, 3, false).is_some());
    }

    proptest! {
        #[test]
        fn publishers_are_always_wanted_and_nobody_else_unasked(
            told in prop::collection::vec((50u16..53, 0u32..4, prop::collection::vec(1u16..9, 0..4), any::<u8>()), 0..12),
        ) {
            let mut sources = known();
            let mut named = set(&[1]);
            for (sender, epoch, list, flags) in told {
                let list: Vec<[u8; 16]> = list.iter().map(|last| ip(*last).octets()).collect();
                if sources.handle_manifest(&manifest(&list, epoch, flags), ip(sender), 0) == Outcome::Taken {
                    named.extend(list.iter().map(|source| Ipv6Addr::from(*source)));
                }
            }
            let wanted = sources.wanted(1);
            prop_assert!(wanted.contains(&ip(1)));
            prop_assert!(wanted.is_subset(&named));
        }
    }
}
