//! Who the upstreams are: the operator's names, resolved; endpoints heard by beacon; those of the last run, from disk.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use rand::Rng;
use retry_common::counter::Counter;
use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};

use super::Discover;
use super::refresh::{JITTER_NS, Seen, State, Step};
use super::state_file::{self, StateFile};
use super::upstreams::{Member, Upstreams, bare, members};
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::settings::{HostPort, Proxy};

/// How often it is asked whether to look for them again.
const TICK: Duration = Duration::from_secs(1);
/// How long a name server may take; the resolver's own patience would hold up the others.
const RESOLVE: Duration = Duration::from_secs(5);

/// A name of the operator's.
struct Named {
    name: HostPort,
    /// The last answer.
    address: Option<SocketAddr>,
    failing: bool,
}

/// Looks for the members.
pub(super) struct Members {
    named: Vec<Named>,
    discover: Option<Discover>,
    state: State,
    file: Option<StateFile>,
    counters: Arc<UserCounters>,
}

impl Members {
    pub(super) fn new(proxy: &Proxy, discover: Discover, counters: Arc<UserCounters>) -> Self {
        let file = proxy.state_dir.as_deref().filter(|_| proxy.discover).map(StateFile::in_directory);
        let remembered = file.as_ref().map(|file| file.load(state_file::now_s())).unwrap_or_default();
        let named = proxy.upstreams.iter().map(|name| Named { name: name.clone(), address: None, failing: false });
        Self {
            named: named.collect(),
            discover: proxy.discover.then_some(discover),
            state: State::remembering(remembered),
            file,
            counters,
        }
    }

    /// Looks for them when it is time to: the first time at once.
    pub(super) async fn look(&mut self, upstreams: &Mutex<Upstreams>) {
        let jitter_ns = rand::rng().random_range(0..=JITTER_NS);
        let Some(Step { state, save }) = self.state.step(&self.seen(), monotonic_ns(), jitter_ns) else {
            return;
        };
        self.state = state;
        self.resolve().await;
        let named: Vec<Member> = self.named.iter().filter_map(Named::member).collect();
        let members = members(&named, &self.state.discovered);
        upstreams.lock().unwrap_or_else(PoisonError::into_inner).refresh(members);
        if let Some(file) = self.file.clone().filter(|_| save) {
            let discovered = self.state.discovered.clone();
            // The disk may be slow. Should the runtime end meanwhile, the old file stands.
            let _ = tokio::task::spawn_blocking(move || file.save(state_file::now_s(), discovered)).await;
        }
    }

    /// Looks for them again and again.
    pub(super) async fn keep(mut self, upstreams: &Mutex<Upstreams>) {
        loop {
            sleep(TICK).await;
            self.look(upstreams).await;
        }
    }

    fn seen(&self) -> Seen {
        let heard = self.discover.iter().flat_map(|discover| discover()).map(SocketAddr::V6).collect();
        Seen { heard, unresolved: self.named.iter().any(|named| named.address.is_none()) }
    }

    async fn resolve(&mut self) {
        let answers = join_all(self.named.iter().map(|named| resolve(&named.name, named.address))).await;
        for (named, answer) in self.named.iter_mut().zip(answers) {
            match answer {
                Ok(address) => {
                    named.address = Some(address);
                    named.failing = false;
                }
                // The last answer stands.
                Err(error) => {
                    self.counters.one(Counter::ResolveErrors);
                    if !std::mem::replace(&mut named.failing, true) {
                        let (upstream, last) = (shown(&named.name), named.address);
                        tracing::warn!(%upstream, %error, ?last, "-upstream-retry-endpoints: a name does not resolve");
                    }
                }
            }
        }
    }
}

impl Named {
    fn member(&self) -> Option<Member> {
        Some(Member { name: shown(&self.name), address: self.address?, pinned: true })
    }
}

/// The address of a name: `last` while the name still has it, so that what is known of the upstream stays of use.
async fn resolve(name: &HostPort, last: Option<SocketAddr>) -> io::Result<SocketAddr> {
    let answer = timeout(RESOLVE, lookup_host((name.host.as_str(), name.port))).await;
    let mut addresses: Vec<SocketAddr> = answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.collect();
    // The fabric is IPv6; IPv4 only where there is nothing else.
    addresses.sort_by_key(SocketAddr::is_ipv4);
    let kept = addresses.iter().copied().find(|address| last.is_some_and(|last| bare(last) == bare(*address)));
    kept.or_else(|| addresses.first().copied()).ok_or_else(|| io::Error::other("the name has no address"))
}

fn shown(name: &HostPort) -> String {
    let HostPort { host, port } = name;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
