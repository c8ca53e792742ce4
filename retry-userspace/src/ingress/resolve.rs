//! DNS names of sources, asked again and again: a host that moves is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use retry_common::counter::Counter;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::counters::UserCounters;
use crate::settings::Host;

/// The last answer for each name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Names(BTreeMap<String, BTreeSet<Ipv6Addr>>);

impl Names {
    /// The addresses of these hosts, as far as they are known.
    #[must_use]
    pub(crate) fn of(&self, hosts: &[Host]) -> BTreeSet<Ipv6Addr> {
        let mut all = BTreeSet::new();
        for host in hosts {
            match host {
                Host::Address(address) => {
                    all.insert(*address);
                }
                Host::Name(name) => all.extend(self.0.get(name).into_iter().flatten()),
            }
        }
        all
    }
}

/// Asks for every name now and after each `refresh`, all at the same time, by the system's resolv.conf and hosts file. Each
/// round ends with a new value in `out`, the same where nothing changed. A name without an answer keeps its last one.
///
/// Runs until it is dropped.
pub(crate) async fn keep(
    names: BTreeSet<String>,
    refresh: Duration,
    counters: Arc<UserCounters>,
    out: watch::Sender<Names>,
) {
    let mut round = tokio::time::interval(refresh);
    // After a round that took longer, the next one is a whole period later.
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        round.tick().await;
        let answers = if names.is_empty() { Vec::new() } else { ask(&names).await };
        let mut now = out.borrow().clone();
        for (name, answer) in answers {
            match answer {
                Ok(addresses) => {
                    now.0.insert(name, addresses);
                }
                Err(error) => {
                    counters.one(Counter::ResolveErrors);
                    tracing::warn!(name, error, "a name does not resolve: its last answer stands");
                }
            }
        }
        out.send_replace(now);
    }
}

type Answer = Result<BTreeSet<Ipv6Addr>, String>;

async fn ask(names: &BTreeSet<String>) -> Vec<(String, Answer)> {
    let resolver = match resolver() {
        Ok(resolver) => resolver,
        Err(error) => return names.iter().map(|name| (name.clone(), Err(error.to_string()))).collect(),
    };
    let mut questions = JoinSet::new();
    for name in names {
        let (resolver, name) = (resolver.clone(), name.clone());
        questions.spawn(async move {
            let answer = look_up(&resolver, &name).await;
            (name, answer)
        });
    }
    questions.join_all().await
}

/// Made anew for each round: it follows a changed resolv.conf, and remembers no old answers.
fn resolver() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6Only;
    builder.build()
}

async fn look_up(resolver: &TokioResolver, name: &str) -> Answer {
    let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
    let addresses: BTreeSet<Ipv6Addr> = found
        .iter()
        .filter_map(|address| match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        })
        .collect();
    if addresses.is_empty() { Err("no IPv6 address".to_owned()) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests;
