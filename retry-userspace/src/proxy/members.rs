//! Who the upstreams are: the operator's names, resolved; endpoints heard by beacon; those of the last run, from disk.

use std::io::Write;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::Discover;
use super::upstreams::{Member, Upstreams, members};
use crate::settings::{HostPort, Proxy};

/// How often the members are looked for again.
const REFRESH: Duration = Duration::from_secs(60);
/// More time at random, so that instances do not do it together.
const JITTER: Duration = Duration::from_secs(10);
/// While nobody is known, and while endpoints may be heard for the first time.
const SOON: Duration = Duration::from_secs(1);
/// Discovered endpoints of an older run are not asked.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// File in `-state-dir`.
const FILE: &str = "upstreams.json";

/// What is kept on disk.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Saved {
    /// Seconds since 1970.
    saved_at: u64,
    /// Discovered endpoints, in their order.
    discovered: Vec<SocketAddr>,
}

/// Looks for the members.
pub(super) struct Members {
    named: Vec<HostPort>,
    /// The last answer for each name.
    resolved: Vec<Option<SocketAddr>>,
    discovers: bool,
    discover: Discover,
    /// What the last run had discovered, until this one has something of its own.
    remembered: Vec<SocketAddr>,
    saved: Vec<SocketAddr>,
    file: Option<PathBuf>,
}

impl Members {
    pub(super) fn new(proxy: &Proxy, discover: Discover) -> Self {
        let file = proxy.state_dir.as_ref().filter(|_| proxy.discover).map(|directory| directory.join(FILE));
        let remembered = file.as_deref().map(|file| load(file, now())).unwrap_or_default();
        Self {
            named: proxy.upstreams.clone(),
            resolved: vec![None; proxy.upstreams.len()],
            discovers: proxy.discover,
            discover,
            saved: remembered.clone(),
            remembered,
            file,
        }
    }

    /// Looks for them once.
    pub(super) async fn start(&mut self, upstreams: &Mutex<Upstreams>) {
        self.look(upstreams).await;
    }

    /// Looks for them again and again.
    pub(super) async fn keep(mut self, upstreams: &Mutex<Upstreams>) {
        let mut elapsed = Duration::ZERO;
        let mut next = next_refresh();
        loop {
            tokio::time::sleep(SOON).await;
            elapsed += SOON;
            let heard: Vec<SocketAddr> = self.heard();
            // A first endpoint heard is not kept waiting for a minute.
            let first = !heard.is_empty() && self.saved.is_empty();
            let unresolved = self.resolved.iter().all(Option::is_none) && !self.resolved.is_empty();
            if first || unresolved || elapsed >= next {
                self.look(upstreams).await;
                (elapsed, next) = (Duration::ZERO, next_refresh());
            }
        }
    }

    fn heard(&self) -> Vec<SocketAddr> {
        (self.discover)().into_iter().map(|one: SocketAddrV6| SocketAddr::V6(one)).collect()
    }

    async fn look(&mut self, upstreams: &Mutex<Upstreams>) {
        for (name, resolved) in self.named.iter().zip(&mut self.resolved) {
            match resolve(name).await {
                Ok(address) => *resolved = Some(address),
                // The last answer stands.
                Err(error) => {
                    tracing::warn!(upstream = %shown(name), %error, "-upstream-retry-endpoints: a name does not resolve")
                }
            }
        }
        let discovered = if self.discovers {
            let heard = self.heard();
            if heard.is_empty() { self.remembered.clone() } else { heard }
        } else {
            Vec::new()
        };
        if !discovered.is_empty() && discovered != self.saved {
            self.saved.clone_from(&discovered);
            self.remembered = Vec::new();
            if let Some(file) = &self.file
                && let Err(error) = save(file, &Saved { saved_at: now(), discovered: discovered.clone() })
            {
                tracing::warn!(file = %file.display(), %error, "-state-dir: discovered upstreams are not kept");
            }
        }
        let named: Vec<Member> = self
            .named
            .iter()
            .zip(&self.resolved)
            .filter_map(|(name, address)| Some(Member { name: shown(name), address: (*address)?, pinned: true }))
            .collect();
        let members = members(&named, &discovered);
        upstreams.lock().unwrap_or_else(PoisonError::into_inner).refresh(members);
    }
}

fn next_refresh() -> Duration {
    REFRESH + rand::rng().random_range(Duration::ZERO..JITTER)
}

async fn resolve(name: &HostPort) -> std::io::Result<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.host.as_str(), name.port)).await?.collect();
    // The fabric is IPv6; IPv4 only where there is nothing else.
    addresses.sort_by_key(SocketAddr::is_ipv4);
    addresses.into_iter().next().ok_or_else(|| std::io::Error::other("no address"))
}

fn shown(name: &HostPort) -> String {
    if name.host.contains(':') {
        format!("[{}]:{}", name.host, name.port)
    } else {
        format!("{}:{}", name.host, name.port)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the last run discovered; nothing when it is too old or cannot be read.
fn load(file: &Path, now: u64) -> Vec<SocketAddr> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "-state-dir: discovered upstreams cannot be read");
            return Vec::new();
        }
    };
    match serde_json::from_slice::<Saved>(&text) {
        Ok(saved) if now.saturating_sub(saved.saved_at) <= OLDEST.as_secs() => saved.discovered,
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "-state-dir: discovered upstreams cannot be read");
            Vec::new()
        }
    }
}

/// Writes beside the file and renames, so that a crash leaves the old one or the new one.
fn save(file: &Path, saved: &Saved) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let new = file.with_extension("new");
    let mut out = std::fs::File::create(&new)?;
    out.write_all(&serde_json::to_vec_pretty(saved)?)?;
    out.sync_all()?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_for_a_day() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("state").join(FILE);
        assert_eq!(load(&file, 0), []);
        let discovered = vec!["[fd10::2]:9300".parse().expect("an address")];
        save(&file, &Saved { saved_at: 1_000_000, discovered: discovered.clone() }).expect("written");
        assert_eq!(load(&file, 1_000_000 + 24 * 3600), discovered);
        assert_eq!(load(&file, 1_000_000 + 24 * 3600 + 1), []);
        // A clock that was set back does not make it old.
        assert_eq!(load(&file, 5), discovered);
        std::fs::write(&file, b"{ half").expect("written");
        assert_eq!(load(&file, 1_000_000), []);
    }
}
