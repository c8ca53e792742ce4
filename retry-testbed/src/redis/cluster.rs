//! A Redis Cluster of three masters and their replicas, each on a host of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use redis::Value;
use retry_common::key::FrameKey;

use super::{PORT, Server, name};
use crate::fabric::Host;

/// How long a master may be silent before its replica takes over.
const NODE_TIMEOUT_MS: &str = "1500";
/// How long the cluster may take to form, and to elect.
const PATIENCE: Duration = Duration::from_secs(30);
/// Hash slots of a cluster.
const SLOTS: u16 = 16_384;

/// Six servers: the first three begin as masters, the others as their replicas.
#[derive(Debug)]
pub struct Cluster<'a> {
    nodes: Vec<Server<'a>>,
    dead: Vec<bool>,
}

impl<'a> Cluster<'a> {
    /// Starts the servers, joins them, and waits until every slot is served and every replica follows.
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
                let text: String = replica.run(redis::cmd("INFO").arg("replication"))?;
                if !text.contains("master_link_status:up") {
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
        let asked = self.alive().next().context("nobody is left")?;
        let slot: u16 = asked.run(redis::cmd("CLUSTER").arg("KEYSLOT").arg(name("bre:frame:", key)))?;
        for line in self.lines(asked)? {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let serves = fields.iter().skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse().is_ok_and(|first: u16| first <= slot) && last.parse().is_ok_and(|last: u16| slot <= last)
            });
            if serves && let Some(address) = fields.get(1).and_then(|text| text.split('@').next()) {
                let place = self
                    .nodes
                    .iter()
                    .position(|node| format!("{}:{}", node.address().ip(), node.address().port()) == address);
                return place.with_context(|| format!("{address} is none of ours"));
            }
        }
        bail!("nobody serves slot {slot}")
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

    /// Waits until every slot is served by somebody who lives, as all that live see it.
    ///
    /// # Errors
    /// It takes too long.
    pub fn await_ok(&self) -> Result<()> {
        wait("every slot is served", || {
            for node in self.alive() {
                let info: String = node.run(redis::cmd("CLUSTER").arg("INFO"))?;
                let lines = self.lines(node)?;
                let failed = |line: &&String| {
                    // A dead master that still has slots: nobody has taken over yet.
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

    fn alive(&self) -> impl Iterator<Item = &Server<'a>> {
        self.nodes.iter().zip(&self.dead).filter(|(_, dead)| !**dead).map(|(node, _)| node)
    }

    fn lines(&self, node: &Server<'_>) -> Result<Vec<String>> {
        let text: String = node.run(redis::cmd("CLUSTER").arg("NODES"))?;
        ensure!(!text.is_empty(), "an empty list of nodes");
        Ok(text.lines().map(str::to_owned).collect())
    }
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
