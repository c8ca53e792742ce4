//! Which sources the data groups are joined from. Pure: names are resolved and time is read elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use retry_common::wire::manifest::{FLAG_AUTHORITATIVE, FLAG_SHUTDOWN, Manifest, Successor};

/// A manifest without a time to live holds for three intervals (BRC-139).
const INTERVALS: u64 = 3;
/// A manifest that tells neither is taken for one a minute.
const INTERVAL_S: u64 = 60;
const NS_PER_S: u64 = 1_000_000_000;
/// The longest that one manifest holds, seconds, whatever time to live it says, unless three of its intervals are longer.
const MOST_LIFE_S: u64 = 900;
/// The longest that it holds in any case, seconds.
const LONGEST_LIFE_S: u64 = 2 * 60 * 60;
/// How far a manifest may be ahead of the time, seconds: clocks differ.
const AHEAD_S: u64 = 300;
/// A clock that shows less was never set, seconds of Unix time: 2026 began.
const CLOCK_SET_S: u64 = 1_767_225_600;
/// Instances kept: their senders are configured, so that there are few; their ids are their own word.
const MOST: usize = 1_024;
/// Sources that all manifests may name together. A fabric has a few; each costs joins, and kernel time for each datagram.
pub(crate) const MOST_SOURCES: usize = 4_096;

/// What became of a manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It holds from now on.
    Taken,
    /// Its sender is about to go: its sources are no longer joined on its word.
    Shutdown,
    /// Its sender is none that is configured.
    Foreign,
    /// It is older than one of the same sender.
    Stale,
    /// There is no room for one more instance, or for its sources.
    Full,
}

/// The last word of an instance.
#[derive(Clone, Debug)]
struct Live {
    epoch_s: u32,
    heard_ns: u64,
    authoritative: bool,
    /// It was its last: kept so that an older one that comes late does not bring it back.
    shutdown: bool,
    sources: BTreeSet<Ipv6Addr>,
    expires_ns: u64,
    /// How long it may be silent, as it says, before it counts as gone.
    silence_ns: u64,
}

/// What is known of the sources.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
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
    pub(crate) fn new(own: Option<Ipv6Addr>) -> Self {
        Self { own, ..Self::default() }
    }

    /// The publishers named by the operator, from now on.
    pub(crate) fn set_publishers(&mut self, publishers: BTreeSet<Ipv6Addr>) {
        self.publishers = publishers;
    }

    /// The senders of manifests, from now on. What one said that is no longer named counts for another three of its
    /// intervals at most: a sender that moved to a new address has repeated it there by then, and nothing is lost between.
    pub(crate) fn set_senders(&mut self, senders: BTreeSet<Ipv6Addr>, now_ns: u64) {
        for ((sender, _), live) in &mut self.live {
            if self.senders.contains(sender) && !senders.contains(sender) {
                live.expires_ns = live.expires_ns.min(now_ns.saturating_add(live.silence_ns));
            }
        }
        self.senders = senders;
    }

    /// True when a manifest that `sender` sent says that it was made later than now: believed, it would make all that its sender
    /// says stale. Now is what this host's clock shows (`unix_s`, seconds). Where that was never set, it is what the instance's last
    /// manifest said and the time since then; where nothing was heard of it either, it is believed.
    #[must_use]
    pub(crate) fn is_ahead(&self, manifest: &Manifest<'_>, sender: Ipv6Addr, now_ns: u64, unix_s: u64) -> bool {
        let known = self.live.get(&(sender, manifest.instance_id)).filter(|known| now_ns < known.expires_ns);
        let theirs = known.map(|known| u64::from(known.epoch_s) + now_ns.saturating_sub(known.heard_ns) / NS_PER_S);
        let ours = Some(unix_s).filter(|unix_s| *unix_s >= CLOCK_SET_S);
        let now_s = ours.or(theirs);
        self.senders.contains(&sender) && now_s.is_some_and(|now_s| u64::from(manifest.epoch_s) > now_s + AHEAD_S)
    }

    /// Takes a manifest in that `sender` sent.
    pub(crate) fn handle_manifest(&mut self, manifest: &Manifest<'_>, sender: Ipv6Addr, now_ns: u64) -> Outcome {
        if !self.senders.contains(&sender) {
            return Outcome::Foreign;
        }
        self.live.retain(|_, live| now_ns < live.expires_ns);
        let key = (sender, manifest.instance_id);
        let shutdown = manifest.flags & FLAG_SHUTDOWN != 0;
        if self.live.get(&key).is_some_and(|known| {
            // Made in the same second, the last word stays the last.
            manifest.epoch_s < known.epoch_s || (manifest.epoch_s == known.epoch_s && known.shutdown && !shutdown)
        }) {
            return Outcome::Stale;
        }
        let interval = if manifest.interval_s == 0 { INTERVAL_S } else { u64::from(manifest.interval_s) };
        let silence_s = (INTERVALS * interval).min(LONGEST_LIFE_S);
        let most_s = silence_s.max(MOST_LIFE_S);
        let life_s = if manifest.ttl_s == 0 { silence_s } else { u64::from(manifest.ttl_s).min(most_s) };
        let named = if shutdown { &[] } else { manifest.sources };
        let live = Live {
            epoch_s: manifest.epoch_s,
            heard_ns: now_ns,
            authoritative: manifest.flags & FLAG_AUTHORITATIVE != 0,
            shutdown,
            sources: named
                .iter()
                .map(|source| Ipv6Addr::from(*source))
                .filter(|source| self.is_usable(source))
                .collect(),
            expires_ns: now_ns.saturating_add(life_s * NS_PER_S),
            silence_ns: silence_s * NS_PER_S,
        };
        let is_new = !self.live.contains_key(&key);
        let of_others = || self.live.iter().filter(|(other, _)| **other != key).flat_map(|(_, live)| &live.sources);
        let named: BTreeSet<&Ipv6Addr> = of_others().chain(&live.sources).collect();
        if (is_new && self.live.len() >= MOST) || named.len() > MOST_SOURCES {
            return Outcome::Full;
        }
        // The same instance at a new address, after its host moved: only its newest word counts.
        self.live.retain(|(sender, instance), _| *instance != key.1 || self.senders.contains(sender));
        self.live.insert(key, live);
        if shutdown { Outcome::Shutdown } else { Outcome::Taken }
    }

    /// The sources to join: the operator's publishers always, and the union of what the live manifests name. Where one that
    /// speaks for the operator (authoritative) names any, those that do not are not heard.
    #[must_use]
    pub(crate) fn wanted(&self, now_ns: u64) -> BTreeSet<Ipv6Addr> {
        let live = || self.live.values().filter(|live| now_ns < live.expires_ns);
        let only_authoritative = live().any(|live| live.authoritative && !live.sources.is_empty());
        let told = live().filter(|live| live.authoritative || !only_authoritative).flat_map(|live| &live.sources);
        self.publishers.iter().chain(told).filter(|source| self.is_usable(source)).copied().collect()
    }

    /// True for an address that another host can send from.
    fn is_usable(&self, source: &Ipv6Addr) -> bool {
        Some(*source) != self.own && !source.is_multicast() && !source.is_unspecified() && !source.is_loopback()
    }
}

/// What an operator has to know of the generation to come; `None` when it changes nothing here.
#[must_use]
pub(crate) fn successor_advice(successor: &Successor, shard_bits: u8, ssm: bool) -> Option<String> {
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

    use super::*;
    use crate::ingress::testing;

    const S: u64 = NS_PER_S;

    fn ip(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last)
    }

    fn set(last: &[u16]) -> BTreeSet<Ipv6Addr> {
        last.iter().map(|last| ip(*last)).collect()
    }

    /// Good for 10 s.
    fn manifest(sources: &[[u8; 16]], epoch_s: u32, flags: u8) -> Manifest<'_> {
        Manifest { ttl_s: 10, ..testing::manifest(sources, epoch_s, flags) }
    }

    fn known() -> Sources {
        let mut sources = Sources::new(Some(ip(99)));
        sources.set_publishers(set(&[1]));
        sources.set_senders(set(&[50, 51]), 0);
        sources
    }

    #[test]
    fn a_conversation() {
        let mut sources = known();
        assert_eq!(sources.wanted(0), set(&[1]));
        let (two, three) = ([ip(2).octets(), ip(99).octets(), Ipv6Addr::LOCALHOST.octets()], [ip(3).octets()]);
        assert_eq!(sources.handle_manifest(&manifest(&two, 100, 0), ip(60), 0), Outcome::Foreign);
        assert_eq!(sources.handle_manifest(&manifest(&two, 100, 0), ip(50), 0), Outcome::Taken);
        // Neither our own address nor one that no host can have.
        assert_eq!(sources.wanted(S), set(&[1, 2]));
        assert_eq!(sources.handle_manifest(&manifest(&three, 99, 0), ip(50), S), Outcome::Stale);
        assert_eq!(sources.handle_manifest(&manifest(&three, 5, 0), ip(51), S), Outcome::Taken);
        assert_eq!(sources.wanted(S), set(&[1, 2, 3]));
        // One speaks for the operator.
        assert_eq!(sources.handle_manifest(&manifest(&three, 6, FLAG_AUTHORITATIVE), ip(51), S), Outcome::Taken);
        assert_eq!(sources.wanted(2 * S), set(&[1, 3]));
        assert_eq!(sources.handle_manifest(&manifest(&[], 7, FLAG_SHUTDOWN), ip(51), 3 * S), Outcome::Shutdown);
        assert_eq!(sources.wanted(3 * S), set(&[1, 2]));
        // Not renewed.
        assert_eq!(sources.wanted(10 * S - 1), set(&[1, 2]));
        assert_eq!(sources.wanted(10 * S), set(&[1]));
        // A sender that was restarted with a clock behind is heard once its old word is over.
        assert_eq!(sources.handle_manifest(&manifest(&three, 1, 0), ip(50), 10 * S), Outcome::Taken);
        assert_eq!(sources.wanted(11 * S), set(&[1, 3]));
    }

    #[test]
    fn a_sender_that_moves_leaves_no_gap() {
        let mut sources = known();
        let two = [ip(2).octets()];
        let long = Manifest { ttl_s: 3_600, ..manifest(&two, 1, 0) };
        assert_eq!(sources.handle_manifest(&long, ip(50), 0), Outcome::Taken);
        // Its name has another address now. It announces every 3 s, so that it is given 9.
        sources.set_senders(set(&[52]), 10 * S);
        sources.set_senders(set(&[52]), 15 * S);
        assert_eq!((sources.wanted(19 * S - 1), sources.wanted(19 * S)), (set(&[1, 2]), set(&[1])));
        assert_eq!(sources.handle_manifest(&long, ip(50), 11 * S), Outcome::Foreign);
        // At the new address it names another source: its old word is over.
        let three = [ip(3).octets()];
        assert_eq!(sources.handle_manifest(&manifest(&three, 2, 0), ip(52), 12 * S), Outcome::Taken);
        assert_eq!(sources.wanted(12 * S), set(&[1, 3]));
    }

    #[test]
    fn a_shutdown_is_the_last_word() {
        let mut sources = known();
        let two = [ip(2).octets()];
        let of = |epoch_s, flags| manifest(&two, epoch_s, flags);
        assert_eq!(sources.handle_manifest(&of(100, 0), ip(50), 0), Outcome::Taken);
        assert_eq!(sources.handle_manifest(&of(101, FLAG_SHUTDOWN), ip(50), S), Outcome::Shutdown);
        assert_eq!(sources.wanted(S), set(&[1]));
        // Late, twice, and made in the same second.
        for epoch_s in [99, 100, 101] {
            assert_eq!(sources.handle_manifest(&of(epoch_s, 0), ip(50), 2 * S), Outcome::Stale);
        }
        assert_eq!(sources.handle_manifest(&of(101, FLAG_SHUTDOWN), ip(50), 2 * S), Outcome::Shutdown);
        assert_eq!(sources.wanted(2 * S), set(&[1]));
        // Started again.
        assert_eq!(sources.handle_manifest(&of(102, 0), ip(50), 3 * S), Outcome::Taken);
        assert_eq!(sources.wanted(3 * S), set(&[1, 2]));
    }

    #[test]
    fn one_that_speaks_for_the_operator_and_names_no_publisher_silences_none() {
        let mut sources = known();
        let two = [ip(2).octets()];
        assert_eq!(sources.handle_manifest(&manifest(&two, 1, 0), ip(50), 0), Outcome::Taken);
        assert_eq!(sources.handle_manifest(&manifest(&[], 1, FLAG_AUTHORITATIVE), ip(51), 0), Outcome::Taken);
        assert_eq!(sources.wanted(0), set(&[1, 2]));
    }

    #[test]
    fn too_many_sources_or_instances_are_refused_and_the_rest_stays() {
        let mut sources = known();
        let many = |from: usize, count: usize| -> Vec<[u8; 16]> {
            (from..from + count).map(|last| ip(u16::try_from(last).expect("small")).octets()).collect()
        };
        let (all, one) = (many(1_000, MOST_SOURCES), many(999, 1));
        assert_eq!(sources.handle_manifest(&manifest(&all, 1, 0), ip(50), 0), Outcome::Taken);
        assert_eq!(sources.handle_manifest(&manifest(&one, 1, 0), ip(51), 0), Outcome::Full);
        // Named twice it counts once, and what an instance named before makes room.
        assert_eq!(sources.handle_manifest(&manifest(&all[..9], 1, 0), ip(51), 0), Outcome::Taken);
        assert_eq!(sources.handle_manifest(&manifest(&all[9..], 2, 0), ip(50), 0), Outcome::Taken);
        assert_eq!(sources.wanted(0).len(), MOST_SOURCES + 1);
        for instance_id in 100..100 + 1_022 {
            let of = Manifest { instance_id, ..manifest(&[], 1, 0) };
            assert_eq!(sources.handle_manifest(&of, ip(50), 0), Outcome::Taken);
        }
        let one_more = Manifest { instance_id: 9_999, ..manifest(&[], 1, 0) };
        assert_eq!(sources.handle_manifest(&one_more, ip(50), 0), Outcome::Full);
        assert_eq!(sources.handle_manifest(&manifest(&one, 3, 0), ip(50), 0), Outcome::Taken);
        assert_eq!(sources.wanted(0).len(), 1 + 9 + 1);
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
    fn a_manifest_of_tomorrow_is_not_believed() {
        const NOW: u64 = CLOCK_SET_S + 1_000_000;
        let epoch = |ahead: u64| u32::try_from(NOW + ahead).expect("soon");
        let two = [ip(2).octets()];
        let of = |epoch_s| manifest(&two, epoch_s, 0);
        let mut sources = known();
        for (epoch_s, is_ahead) in [(epoch(AHEAD_S), false), (epoch(AHEAD_S + 1), true), (u32::MAX, true), (0, false)] {
            assert_eq!(sources.is_ahead(&of(epoch_s), ip(50), 0, NOW), is_ahead, "{epoch_s}");
        }
        assert!(!sources.is_ahead(&of(u32::MAX), ip(77), 0, NOW), "of a stranger nothing is believed anyway");
        // A clock that was never set: by what was heard before, and the time since then.
        assert!(!sources.is_ahead(&of(u32::MAX), ip(50), 0, 1_000));
        assert_eq!(sources.handle_manifest(&of(epoch(0)), ip(50), 0), Outcome::Taken);
        assert!(!sources.is_ahead(&of(epoch(AHEAD_S + 5)), ip(50), 5 * S, 1_000));
        assert!(sources.is_ahead(&of(epoch(AHEAD_S + 6)), ip(50), 5 * S, 1_000));
        // A sender whose clock is fast stays believed, and none gets ahead step by step.
        assert_eq!(sources.handle_manifest(&of(epoch(AHEAD_S)), ip(50), 5 * S), Outcome::Taken);
        assert!(!sources.is_ahead(&of(epoch(AHEAD_S + 9)), ip(50), 9 * S, NOW + 9));
        assert!(sources.is_ahead(&of(epoch(AHEAD_S + 10)), ip(50), 9 * S, NOW + 9));
    }

    #[test]
    fn no_manifest_holds_for_long() {
        let mut sources = known();
        let two = [ip(2).octets()];
        for (forged, holds_s) in [
            (Manifest { ttl_s: u16::MAX, ..manifest(&two, 1, 0) }, 900),
            (Manifest { ttl_s: u16::MAX, interval_s: 1_200, ..manifest(&two, 1, 0) }, 3_600),
            (Manifest { ttl_s: 0, interval_s: u16::MAX, ..manifest(&two, 1, 0) }, 7_200),
            (Manifest { ttl_s: u16::MAX, interval_s: u16::MAX, ..manifest(&two, 1, 0) }, 7_200),
        ] {
            assert_eq!(sources.handle_manifest(&forged, ip(50), 0), Outcome::Taken);
            assert_eq!((sources.wanted(holds_s * S - 1), sources.wanted(holds_s * S)), (set(&[1, 2]), set(&[1])));
        }
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
        fn publishers_are_always_wanted_and_others_only_when_named(
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
