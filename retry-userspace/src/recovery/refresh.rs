//! When the upstreams are looked for again, and which discovered ones there are then. Pure.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::SocketAddr;

use super::upstreams::bare;

const SECOND_NS: u64 = 1_000_000_000;
/// How often they are looked for.
const REFRESH_NS: u64 = 60 * SECOND_NS;
/// More time at random, at most, so that instances do not do it together.
pub(super) const JITTER_NS: u64 = 10 * SECOND_NS;
/// How often while a name has no address.
const UNRESOLVED_NS: u64 = 5 * SECOND_NS;
/// How old what is saved may become while nothing changes. Far less than what is too old at a start.
const SAVE_NS: u64 = 3600 * SECOND_NS;

/// What is known from before.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct State {
    /// Endpoints heard last, or else what the last run had heard.
    pub(super) discovered: Vec<SocketAddr>,
    /// This run has heard of one.
    heard: bool,
    /// When they were looked for, and when they will be.
    looked: Option<Looked>,
    saved_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Looked {
    at_ns: u64,
    next_ns: u64,
}

/// What is seen now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Seen {
    /// Endpoints of whom beacons are heard.
    pub(super) heard: Vec<SocketAddr>,
    /// A name of the operator's has no address yet.
    pub(super) unresolved: bool,
}

/// What is to be done now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Step {
    /// The state afterwards.
    pub(super) state: State,
    /// What was discovered is to be saved.
    pub(super) save: bool,
}

impl State {
    /// At a start, with what the last run had heard.
    pub(super) fn remembering(discovered: Vec<SocketAddr>) -> Self {
        Self { discovered, ..Self::default() }
    }

    /// Looks for the upstreams when it is time to; `jitter_ns` is added to the time until the next.
    ///
    /// Endpoints keep their places while they are heard. When no endpoint is heard any more, the previous ones stay in use: the beacons
    /// may be what is lost.
    #[must_use]
    pub(super) fn step(&self, seen: &Seen, now_ns: u64, jitter_ns: u64) -> Option<Step> {
        let is_first = !seen.heard.is_empty() && !self.heard;
        let is_due = self.looked.is_none_or(|looked| {
            let again_ns = looked.at_ns.saturating_add(UNRESOLVED_NS);
            now_ns >= looked.next_ns || seen.unresolved && now_ns >= again_ns
        });
        if !is_first && !is_due {
            return None;
        }
        let mut state = self.clone();
        if !seen.heard.is_empty() {
            state.heard = true;
            state.discovered = keeping_places(&self.discovered, &seen.heard);
        }
        let is_new = state.discovered != self.discovered;
        let is_old = self.saved_ns.is_none_or(|saved_ns| now_ns.saturating_sub(saved_ns) >= SAVE_NS);
        let save = !seen.heard.is_empty() && (is_new || is_old);
        if save {
            state.saved_ns = Some(now_ns);
        }
        let next_ns = now_ns.saturating_add(REFRESH_NS).saturating_add(jitter_ns.min(JITTER_NS));
        state.looked = Some(Looked { at_ns: now_ns, next_ns });
        Some(Step { state, save })
    }
}

/// Those of `now`, each once: first those that were there before, in the order of then.
fn keeping_places(before: &[SocketAddr], now: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut left: HashSet<SocketAddr> = now.iter().copied().map(bare).collect();
    before.iter().chain(now).copied().filter(|one| left.remove(&bare(*one))).collect()
}
