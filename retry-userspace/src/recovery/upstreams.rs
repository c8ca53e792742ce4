//! The upstream endpoints: who they are, how they do, who is asked first. Pure: observations and time are handed in.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::health::{Health, Observation};
use crate::settings::ProxySelect;

/// Most upstreams known; those that the operator named are known however many they are.
pub(crate) const MOST: usize = 64;
/// How often one that is ill is tried, so that it can return.
const TRY_AGAIN_NS: u64 = 5_000_000_000;
/// Jobs that wait at the same time for one that is ill, while a healthy one is there to ask.
const MOST_TRIALS: usize = 8;
/// How often a healthy one that is never first is measured, where its round-trip time decides.
const MEASURE_NS: u64 = 30_000_000_000;
/// The fastest takes the place of one that is slower by more than this factor.
const TOO_SLOW: u64 = 2;

/// Where an upstream is, and how the operator or the beacon named it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Member {
    /// `host:port` as the operator wrote it, or the announced address.
    pub name: String,
    /// Where NACKs go.
    pub address: SocketAddr,
    /// Named by the operator: it never leaves.
    pub pinned: bool,
}

/// One upstream as it is known.
#[derive(Clone, Debug)]
struct Upstream {
    member: Member,
    health: Health,
    /// Smoothed round-trip time.
    rtt_ns: Option<u64>,
    /// THROTTLED: not asked until then.
    held_until_ns: u64,
    tried_ns: u64,
    /// Jobs that wait for it although it does not answer usually.
    trials: usize,
}

/// What is told of an upstream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UpstreamStatus {
    /// `host:port`.
    pub name: String,
    /// Where NACKs go.
    pub address: SocketAddr,
    /// Named by the operator.
    pub pinned: bool,
    /// It answers. One that does not is asked after all others if it is pinned, else only now and then.
    pub healthy: bool,
    /// Smoothed round-trip time, once measured.
    pub rtt: Option<Duration>,
    /// Time since its last answer.
    pub last_answer: Option<Duration>,
}

/// One that is asked for a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Choice {
    /// Where the NACK goes.
    pub address: SocketAddr,
    /// It answers usually: its silence means something.
    pub healthy: bool,
}

/// Who is asked for a frame.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Order {
    /// One after the other, each address once.
    pub ask: Vec<Choice>,
    /// Upstreams that were left out because they told us to hold, in the same order.
    pub held: Vec<Choice>,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams {
    all: Vec<Upstream>,
}

impl Upstreams {
    /// Who is asked for a frame of `flow`: healthy ones as `select` has it, then discovered ones that have never answered, then pinned
    /// ones that do not answer as listed; others only when there is no other upstream. Those that told us to hold are left out.
    #[must_use]
    pub(crate) fn order(&self, select: ProxySelect, flow: u64, now_ns: u64) -> Order {
        let (healthy, ill): (Vec<&Upstream>, Vec<&Upstream>) = self.all.iter().partition(|one| one.health.is_up());
        let (mut healthy, mut unproven): (Vec<&Upstream>, Vec<&Upstream>) =
            healthy.into_iter().partition(|one| one.is_proven());
        for some in [&mut healthy, &mut unproven] {
            match select {
                ProxySelect::Order => {}
                ProxySelect::Rtt => some.sort_by_key(|one| one.rtt_ns.unwrap_or(u64::MAX)),
                ProxySelect::Hash => by_hash(some, flow),
            }
        }
        let is_any_proven = !healthy.is_empty();
        let pinned = ill.iter().copied().filter(|one| one.member.pinned);
        let mut chosen: Vec<&Upstream> = healthy.iter().chain(&unproven).copied().chain(pinned).collect();
        if chosen.is_empty() {
            chosen = ill;
        }
        let mut seen = HashSet::new();
        chosen.retain(|one| seen.insert(bare(one.member.address)));
        let (held, ask): (Vec<&Upstream>, Vec<&Upstream>) = chosen.into_iter().partition(|one| one.is_held(now_ns));
        let choice = |one: &Upstream| {
            let Choice { address, healthy } = one.choice();
            Choice { address, healthy: healthy && (one.is_proven() || !is_any_proven) }
        };
        let choices = |some: Vec<&Upstream>| some.into_iter().map(choice).collect();
        Order { ask: choices(ask), held: choices(held) }
    }

    /// One that has not been asked for a while, and of which more should be known: it is sent a copy of a NACK.
    pub(crate) fn take_idle(&mut self, select: ProxySelect, now_ns: u64) -> Option<SocketAddr> {
        let due = |one: &&mut Upstream| {
            let pause = match (one.health.is_up() && one.is_proven(), select) {
                (false, _) => TRY_AGAIN_NS,
                (true, ProxySelect::Hash | ProxySelect::Rtt) => MEASURE_NS,
                (true, ProxySelect::Order) => return false,
            };
            !one.is_held(now_ns) && now_ns.saturating_sub(one.tried_ns) >= pause
        };
        let one = self.all.iter_mut().filter(due).min_by_key(|one| one.tried_ns)?;
        one.tried_ns = now_ns;
        Some(one.member.address)
    }

    /// A job is about to ask one that does not answer usually, and to wait for it; false when enough others do.
    pub(crate) fn begin_trial(&mut self, address: SocketAddr) -> bool {
        let Some(one) = self.find(address).filter(|one| one.trials < MOST_TRIALS) else {
            return false;
        };
        one.trials += 1;
        true
    }

    /// The end of what [`Upstreams::begin_trial`] began.
    pub(crate) fn end_trial(&mut self, address: SocketAddr) {
        if let Some(one) = self.find(address) {
            one.trials = one.trials.saturating_sub(1);
        }
    }

    /// A NACK was sent there.
    pub(crate) fn sent(&mut self, address: SocketAddr, now_ns: u64) {
        if let Some(one) = self.find(address) {
            one.tried_ns = now_ns;
            one.health.observe(Observation::Sent, now_ns);
        }
    }

    /// It answered, after `rtt_ns` where that is known.
    pub(crate) fn answered(&mut self, address: SocketAddr, rtt_ns: Option<u64>, now_ns: u64) {
        if let Some(one) = self.find(address) {
            one.health.observe(Observation::Answer, now_ns);
            if let Some(new) = rtt_ns {
                // The weight that TCP gives a new measurement (RFC 6298, section 2).
                one.rtt_ns = Some(one.rtt_ns.map_or(new, |old| old - old / 8 + new / 8));
            }
        }
    }

    /// It did not answer in time.
    pub(crate) fn silent(&mut self, address: SocketAddr, now_ns: u64) {
        if let Some(one) = self.find(address) {
            one.health.observe(Observation::NoAnswer, now_ns);
        }
    }

    /// The network says that it cannot be reached.
    pub(crate) fn unreachable(&mut self, address: SocketAddr, now_ns: u64) {
        if let Some(one) = self.find(address) {
            one.health.observe(Observation::Unreachable, now_ns);
        }
    }

    /// It asked us to hold until then.
    pub(crate) fn hold(&mut self, address: SocketAddr, until_ns: u64) {
        if let Some(one) = self.find(address) {
            one.held_until_ns = one.held_until_ns.max(until_ns);
        }
    }

    /// How long it still asks us to hold.
    #[must_use]
    pub(crate) fn hold_left(&self, address: SocketAddr, now_ns: u64) -> Duration {
        let until_ns =
            self.all.iter().find(|one| is_same(one.member.address, address)).map_or(0, |one| one.held_until_ns);
        Duration::from_nanos(until_ns.saturating_sub(now_ns))
    }

    /// True when no upstream is known.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// True for the address of an upstream.
    #[must_use]
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.all.iter().any(|one| is_same(one.member.address, address))
    }

    /// The members from now on; what is known of those that stay is kept.
    pub(crate) fn refresh(&mut self, members: Vec<Member>) {
        let mut old = std::mem::take(&mut self.all);
        self.all = members
            .into_iter()
            .map(|member| {
                let known = old.iter().position(|one| is_same(one.member.address, member.address));
                match known.map(|at| old.swap_remove(at)) {
                    Some(known) => Upstream { member, ..known },
                    None => Upstream {
                        member,
                        health: Health::new(),
                        rtt_ns: None,
                        held_until_ns: 0,
                        // To be tried soon, but not before the first job.
                        tried_ns: 0,
                        trials: 0,
                    },
                }
            })
            .collect();
    }

    /// What is known of each, in order.
    #[must_use]
    pub(crate) fn status(&self, now_ns: u64) -> Vec<UpstreamStatus> {
        let status = |one: &Upstream| UpstreamStatus {
            name: one.member.name.clone(),
            address: one.member.address,
            pinned: one.member.pinned,
            healthy: one.health.is_up(),
            rtt: one.rtt_ns.map(Duration::from_nanos),
            last_answer: one.health.last_answer_ns().map(|at| Duration::from_nanos(now_ns.saturating_sub(at))),
        };
        self.all.iter().map(status).collect()
    }

    fn find(&mut self, address: SocketAddr) -> Option<&mut Upstream> {
        self.all.iter_mut().find(|one| is_same(one.member.address, address))
    }
}

impl Upstream {
    const fn choice(&self) -> Choice {
        Choice { address: self.member.address, healthy: self.health.is_up() }
    }

    /// It is the operator's, or has answered: what was only heard of may be forged.
    const fn is_proven(&self) -> bool {
        self.member.pinned || self.health.last_answer_ns().is_some()
    }

    const fn is_held(&self, now_ns: u64) -> bool {
        self.held_until_ns > now_ns
    }
}

/// Highest weight first; the fastest takes the place of a first choice that is too slow.
fn by_hash(healthy: &mut Vec<&Upstream>, flow: u64) {
    healthy.sort_by_cached_key(|one| std::cmp::Reverse(weight(&one.member.name, flow)));
    let measured = healthy.iter().enumerate().filter_map(|(at, one)| Some((one.rtt_ns?, at)));
    if let Some((best, at)) = measured.min()
        && let Some(chosen) = healthy.first().and_then(|first| first.rtt_ns)
        && chosen > best.saturating_mul(TOO_SLOW)
    {
        let fastest = healthy.remove(at);
        healthy.insert(0, fastest);
    }
}

/// The members that follow from what the operator named and what was discovered: named ones first and verbatim, then the
/// discovered ones in their order, each once, without those that cannot be reached from here, up to [`MOST`] in all.
#[must_use]
pub(crate) fn members(named: &[Member], discovered: &[SocketAddr]) -> Vec<Member> {
    let mut all = named.to_vec();
    let mut seen: HashSet<SocketAddr> = named.iter().map(|member| bare(member.address)).collect();
    for address in discovered.iter().copied().filter(|address| is_reachable(*address)) {
        if all.len() >= MOST {
            break;
        }
        if seen.insert(bare(address)) {
            all.push(Member { name: address.to_string(), address, pinned: false });
        }
    }
    all
}

/// True for an address that a NACK can be sent to from here.
#[must_use]
pub(crate) fn is_reachable(address: SocketAddr) -> bool {
    let zone = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    let usable = match address.ip() {
        IpAddr::V6(ip) => !ip.is_multicast() && (!ip.is_unicast_link_local() || zone),
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast() && !ip.is_link_local(),
    };
    usable && address.port() != 0 && !address.ip().is_loopback() && !address.ip().is_unspecified()
}

/// Without what a received address has more than one that was resolved: flow label, and a zone where none is needed.
pub(super) fn bare(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            if !v6.ip().is_unicast_link_local() {
                v6.set_scope_id(0);
            }
            SocketAddr::V6(v6)
        }
        v4 @ SocketAddr::V4(_) => v4,
    }
}

/// True for two forms of one address.
#[must_use]
pub(crate) fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    bare(a) == bare(b)
}

/// Rendezvous hashing: of all weights for a flow the highest is the first choice, so that a member that comes or goes
/// moves only its own flows. FNV-1a with splitmix64's finish: the same on every host, in every version.
fn weight(name: &str, flow: u64) -> u64 {
    let bytes = name.bytes().chain(flow.to_be_bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
