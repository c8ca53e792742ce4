//! A Redis Cluster of three masters and their replicas, each on a host of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use redis::Value;
use retry_common::key::FrameKey;

use super::{PORT, Server, name};
use crate::net::fabric::Host;

/// How long a master may be silent before its replica takes over.
const NODE_TIMEOUT_MS: &str = "1500";
/// How long the cluster may take to form, and to elect.
const PATIENCE: Duration = Duration::from_secs(30);
/// Hash slots of a cluster.
const SLOTS: u16 = 16_384;
/// Where a replica says how it follows.
const LINK: &str = "master_link_status";

/// Six servers: the first three begin as masters, the others as their replicas.
#[derive(Debug)]
pub struct Cluster<'a> {
    nodes: Vec<Server<'a>>,
    dead: Vec<bool>,
}

impl<'a> Cluster<'a> {
    /// Starts the servers, joins them, and waits until every slot is served, every replica follows, and every
    /// node knows which they are.
    ///
    /// # Errors
    /// As [`Server::start`], or the cluster does not form in time.
    pub fn start(hosts: [&'a Host; 6]) -> Result<Self> {
        let mut nodes = Vec::with_capacity(hosts.len());
        for host in hosts {
            let address = host.addr.to_string();
            let arguments = [
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                NODE_TIMEOUT_MS,
                "--cluster-announce-ip",
                &address,
                "--repl-diskless-sync-delay",
                "0",
            ];
            nodes.push(Server::start_with(host, PORT, None, &arguments)?);
        }
        let cluster = Self { dead: vec![false; nodes.len()], nodes };
        cluster.form()?;
        Ok(cluster)
    }

    fn form(&self) -> Result<()> {
        let third = SLOTS / 3;
        for (node, first) in self.nodes.iter().take(3).zip([0, third, 2 * third]) {
            let last = if first == 2 * third { SLOTS - 1 } else { first + third - 1 };
            let _: Value = node.run(redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last))?;
        }
        for (node, epoch) in self.nodes.iter().zip(1..) {
            let _: Value = node.run(redis::cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(epoch))?;
        }
        let first = self.nodes.first().context("six nodes")?;
        for node in self.nodes.iter().skip(1) {
            let address = node.address();
            let meet = redis::cmd("CLUSTER").arg("MEET").arg(address.ip().to_string()).arg(address.port()).clone();
            let _: Value = first.run(&meet)?;
        }
        wait("the nodes know each other", || {
            Ok(self.alive().all(|node| self.lines(node).is_ok_and(|lines| lines.len() == self.nodes.len())))
        })?;
        for (replica, master) in self.nodes.iter().skip(3).zip(&self.nodes) {
            let id: String = master.run(redis::cmd("CLUSTER").arg("MYID"))?;
            let _: Value = replica.run(redis::cmd("CLUSTER").arg("REPLICATE").arg(id))?;
        }
        self.await_ok()?;
        wait("every replica follows", || {
            for replica in self.nodes.iter().skip(3) {
                if info(replica, LINK)? != "up" {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        wait("every node knows the replicas", || {
            for node in &self.nodes {
                if self.lines(node)?.iter().filter(|line| line.contains("slave")).count() != self.nodes.len() - 3 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// All servers, dead ones too.
    #[must_use]
    pub fn nodes(&self) -> &[Server<'a>] {
        &self.nodes
    }

    /// `-redis-addr` for this cluster.
    #[must_use]
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.address().to_string()).collect::<Vec<_>>().join(",")
    }

    /// The server that serves the slot of a frame's key.
    ///
    /// # Errors
    /// The cluster does not say.
    pub fn master_of(&self, key: FrameKey) -> Result<usize> {
        let asked = self.alive().next().context("no node is left")?;
        let slot: u16 = asked.run(redis::cmd("CLUSTER").arg("KEYSLOT").arg(name("bre:frame:", key)))?;
        for line in self.lines(asked)? {
            if slots(&line).any(|(first, last)| (first..=last).contains(&slot)) {
                return self.place(&line);
            }
        }
        bail!("no node serves slot {slot}")
    }

    /// The servers that serve slots, in order of their slots.
    ///
    /// # Errors
    /// The cluster does not say, or another node serves some.
    pub fn masters(&self) -> Result<Vec<usize>> {
        let asked = self.alive().next().context("no node is left")?;
        let mut masters = Vec::new();
        for line in self.lines(asked)? {
            if let Some(first) = slots(&line).map(|(first, _)| first).min() {
                masters.push((first, self.place(&line)?));
            }
        }
        masters.sort_unstable();
        Ok(masters.into_iter().map(|(_, place)| place).collect())
    }

    /// Kills a server.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self, place: usize) -> Result<()> {
        self.nodes.get_mut(place).context("no such node")?.kill()?;
        self.dead[place] = true;
        Ok(())
    }

    /// Starts a server again after [`Cluster::kill`]: still the same node, without data, and the replica of the node that took its
    /// place. Waits until it follows.
    ///
    /// # Errors
    /// As [`Server::start`], or it takes too long.
    pub fn restart(&mut self, place: usize) -> Result<()> {
        let node = self.nodes.get_mut(place).context("no such node")?;
        node.start_again()?;
        self.dead[place] = false;
        let node = &self.nodes[place];
        wait("it follows the new master", || Ok(info(node, "role")? == "slave" && info(node, LINK)? == "up"))
    }

    /// Waits until each replica that lives has what its master has now: what a master's death does not take away.
    ///
    /// # Errors
    /// It takes too long.
    pub fn await_replicated(&self) -> Result<()> {
        for replica in self.alive() {
            if info(replica, "role")? != "slave" {
                continue;
            }
            let address = info(replica, "master_host")?;
            let master = self.alive().find(|node| node.address().ip().to_string() == address);
            let wanted: u64 = info(master.context("a master that is none of ours")?, "master_repl_offset")?.parse()?;
            wait("a replica has what its master has", || {
                Ok(info(replica, "slave_repl_offset")?.parse::<u64>()? >= wanted)
            })?;
        }
        Ok(())
    }

    /// Waits until a live node serves every slot, as all live nodes see it.
    ///
    /// # Errors
    /// It takes too long.
    pub fn await_ok(&self) -> Result<()> {
        wait("every slot is served", || {
            for node in self.alive() {
                let info: String = node.run(redis::cmd("CLUSTER").arg("INFO"))?;
                let lines = self.lines(node)?;
                let failed = |line: &&String| {
                    // A dead master that still has slots: no replica has taken over yet.
                    line.contains("fail") && line.split_whitespace().count() > 8
                };
                if !info.contains("cluster_state:ok") || lines.iter().any(|line| failed(&line)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Waits until another server serves a key than `before`.
    ///
    /// # Errors
    /// It takes too long.
    pub fn await_failover(&self, key: FrameKey, before: usize) -> Result<usize> {
        wait("a replica takes over", || Ok(self.master_of(key).is_ok_and(|now| now != before)))?;
        self.await_ok()?;
        self.master_of(key)
    }

    /// Which server a line of CLUSTER NODES tells of.
    fn place(&self, line: &str) -> Result<usize> {
        let address = line.split_whitespace().nth(1).and_then(|place| place.split('@').next()).unwrap_or_default();
        let ours = |node: &Server<'_>| format!("{}:{}", node.address().ip(), node.address().port()) == address;
        self.nodes.iter().position(ours).with_context(|| format!("{address:?} is none of ours"))
    }

    fn alive(&self) -> impl Iterator<Item = &Server<'a>> {
        self.nodes.iter().zip(&self.dead).filter(|(_, dead)| !**dead).map(|(node, _)| node)
    }

    fn lines(&self, node: &Server<'_>) -> Result<Vec<String>> {
        let text: String = node.run(redis::cmd("CLUSTER").arg("NODES"))?;
        ensure!(!text.is_empty(), "an empty list of nodes");
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// First and last of each range of slots that a line of CLUSTER NODES tells of. `[…]`, a slot on its way, is left out.
fn slots(line: &str) -> impl Iterator<Item = (u16, u16)> {
    line.split_whitespace().skip(8).filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.parse().ok()?, last.parse().ok()?))
    })
}

/// A line of INFO's part on replication.
fn info(node: &Server<'_>, name: &str) -> Result<String> {
    let text: String = node.run(redis::cmd("INFO").arg("replication"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(str::to_owned).with_context(|| format!("no {name} in the answer to INFO"))
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A node that is busy with an election may not answer for a moment.
        match done() {
            Ok(true) => return Ok(()),
            Ok(false) | Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Ok(false) => bail!("{what}: not in time"),
            Err(error) => return Err(error.context(what.to_owned())),
        }
    }
}
