//! What must work with more than one machine, step by step, before and after a master's death.
//!
//! Only endpoint 1 hears the publisher: what any other endpoint has of it came from Redis or from a repair.

use std::{
    net::{SocketAddr, SocketAddrV6, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use retry_common::key::FrameKey;
use retry_testbed::{
    daemon::{Metrics, http},
    net::{
        fabric::Host,
        loss::{Loss, LossRule},
    },
    peers::{
        answer::{Answer, nack},
        frames::{Flow, Kind},
        journal::{Journal, Verdict},
        publish::Publisher,
    },
};
use serde::Serialize;

use super::{ADMIN, CLIENT, ENDPOINTS, PUBLISHER, Site, Voice};

/// How long a step may try again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long all of it may take: what is left after it has one try.
const ALL: Duration = Duration::from_secs(60);
/// How long one NACK waits for its answer. A listener waits 300 ms; a busy machine is not a failure.
const ANSWER: Duration = Duration::from_secs(1);
/// The first flow; each frame has one of its own.
const FLOW: u64 = 0xc1_0000_0000;

/// What became of a step.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    what: String,
    seconds: f64,
    error: Option<String>,
}

impl Step {
    pub(super) const fn is_good(&self) -> bool {
        self.error.is_none()
    }
}

/// Walks through the scenarios.
///
/// # Errors
/// What the scenarios need cannot be had; what does not work in them stands in the steps.
pub(super) fn run(site: &mut Site<'_>, voice: Voice, stop: &AtomicBool) -> Result<Vec<Step>> {
    let mut walk = Walk::new(site, voice, stop)?;
    let _deaf = walk.deafen()?;
    walk.step("every endpoint is connected to the cluster", |walk| walk.all_connected());
    walk.step("PUT on endpoint 1, GET on endpoint 5, at each master", |walk| walk.puts_and_gets());
    let mut known = Vec::new();
    walk.step("frames that only endpoint 1 heard come back through endpoint 5, from each master", |walk| {
        known = walk.only_one_hears()?;
        walk.asks(5, &known)
    });
    let mut kept = Vec::new();
    walk.step("more of these are in Redis, and no NACK asks for them yet", |walk| {
        kept = walk.only_one_hears()?;
        walk.site.redis.await_replicated()
    });

    let victim = *kept.first().or(known.first()).unwrap_or(&FrameKey::new(FLOW, 1));
    let dead = walk.site.redis.master_of(victim)?;
    walk.site.redis.kill(dead)?;
    walk.step(&format!("redis{} is killed; endpoint 5 answers hit and miss meanwhile", dead + 1), |walk| {
        let missing = walk.key_at(dead)?;
        ensure!(!known.is_empty(), "no frame that it has");
        walk.asks(5, &known)?;
        ensure!(walk.ask(5, missing)? == Some(Answer::Miss), "no MISS for a frame that no endpoint has");
        Ok(())
    });
    walk.step("a replica takes over its slots", |walk| walk.site.redis.await_failover(victim, dead).map(drop));
    walk.step("frames stored before come back through endpoint 4, that of the dead master too", |walk| {
        ensure!(!kept.is_empty(), "none were stored");
        walk.asks(4, &kept)
    });
    walk.step("PUT on endpoint 1, GET on endpoint 5, at each master of now", |walk| walk.puts_and_gets());
    walk.step("frames that only endpoint 1 heard come back through endpoint 5, from each master of now", |walk| {
        let new = walk.only_one_hears()?;
        walk.asks(5, &new)
    });
    walk.step(&format!("redis{} comes back as a replica", dead + 1), |walk| {
        walk.site.redis.restart(dead)?;
        walk.site.redis.await_ok()
    });
    walk.step("every endpoint is connected, and all that endpoint 1 heard was written", |walk| {
        walk.all_connected()?;
        let lost = walk.metrics(1)?.count("bre_store_frames_lost_total", &[]);
        ensure!(lost == 0, "{lost} frames were not written to Redis");
        Ok(())
    });
    Ok(walk.steps)
}

struct Walk<'a, 'site> {
    site: &'a mut Site<'site>,
    voice: Voice,
    stop: &'a AtomicBool,
    end: Instant,
    journal: Arc<Journal>,
    publisher: Publisher,
    next_flow: u64,
    steps: Vec<Step>,
}

impl<'a, 'site> Walk<'a, 'site> {
    fn new(site: &'a mut Site<'site>, voice: Voice, stop: &'a AtomicBool) -> Result<Self> {
        let journal = Arc::new(Journal::new());
        let publisher = Publisher::open(&site.fabric.host(PUBLISHER)?.ns, Arc::clone(&journal))?;
        let end = Instant::now() + ALL;
        Ok(Self { site, voice, stop, end, journal, publisher, next_flow: FLOW, steps: Vec::new() })
    }

    fn step(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<()>) {
        let start = Instant::now();
        let outcome = if self.stop.load(Ordering::Relaxed) { Err(anyhow::anyhow!("stopped")) } else { work(self) };
        let seconds = start.elapsed().as_secs_f64();
        let error = outcome.err().map(|error| format!("{error:#}"));
        match &error {
            None => self.voice.say(&format!("ok      {what} ({seconds:.1} s)")),
            Some(error) => self.voice.say(&format!("FAILED  {what} ({seconds:.1} s): {error}")),
        }
        self.steps.push(Step { what: what.to_owned(), seconds, error });
    }

    /// What the publisher sends reaches endpoint 1 alone.
    fn deafen(&self) -> Result<Vec<Loss<'site>>> {
        let fabric = self.site.fabric;
        let rule = LossRule::random(1000).from(fabric.host(PUBLISHER)?.addr);
        ENDPOINTS.iter().skip(1).map(|name| fabric.lose(name, &rule)).collect()
    }

    fn all_connected(&self) -> Result<()> {
        self.eventually(|| {
            for (name, daemon) in ENDPOINTS.iter().zip(&self.site.endpoints) {
                let (status, body) = daemon.get("/readyz")?;
                ensure!(status == 200, "{name}: /readyz says {status} {body}");
                ensure!(daemon.metrics()?.count("bre_store_up", &[]) == 1, "{name} is not connected to Redis");
            }
            Ok(())
        })
    }

    /// One frame for each master, by the management API.
    fn puts_and_gets(&mut self) -> Result<()> {
        for (flow, key) in self.one_for_each_master()? {
            let frame = frames(flow).next_frame();
            let (status, body) = self.manage(1, "PUT", key, &frame)?;
            ensure!(status == 201, "PUT of {key}: {status} {}", String::from_utf8_lossy(&body));
            self.eventually(|| {
                let (status, body) = self.manage(5, "GET", key, &[])?;
                ensure!(status == 200, "GET of {key}: {status} {}", String::from_utf8_lossy(&body));
                ensure!(body == frame, "GET of {key}: other bytes");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Publishes one frame for each master and waits until endpoint 1 has written them to Redis. No other endpoint heard them.
    fn only_one_hears(&mut self) -> Result<Vec<FrameKey>> {
        let written = |metrics: &Metrics| metrics.count("bre_store_frames_written_total", &[]);
        let before = written(&self.metrics(1)?);
        let received = self.received()?;
        let mut keys = Vec::new();
        for (flow, _) in self.one_for_each_master()? {
            keys.push(self.publisher.publish(&mut frames(flow))?.context("a frame has a key")?);
        }
        let wanted = before + u64::try_from(keys.len())?;
        self.eventually(|| {
            let now = written(&self.metrics(1)?);
            ensure!(now >= wanted, "endpoint 1 has written {} frames to Redis", now - before);
            Ok(())
        })?;
        ensure!(self.received()? == received, "another endpoint received frames by multicast");
        Ok(keys)
    }

    /// Frames that all endpoints but the first received by multicast.
    fn received(&self) -> Result<u64> {
        (2..=ENDPOINTS.len()).map(|number| Ok(self.metrics(number)?.count("bre_frames_received_total", &[]))).sum()
    }

    /// Asks an endpoint for each of these frames by NACK until it comes, byte for byte, with its ACK.
    fn asks(&self, number: usize, keys: &[FrameKey]) -> Result<()> {
        for key in keys {
            self.eventually(|| match self.ask(number, *key)? {
                Some(Answer::Ack { unicast: true, .. }) => Ok(()),
                other => bail!("endpoint {number} answers {other:?} to a NACK for {key}"),
            })?;
        }
        Ok(())
    }

    /// Sends one NACK and returns its answer, `None` after silence. With an ACK came the frame, as it was published.
    fn ask(&self, number: usize, key: FrameKey) -> Result<Option<Answer>> {
        let client = self.site.fabric.host(CLIENT)?;
        let socket = client.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(client.addr, 0, 0, 0)))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send_to(&nack(key), self.host(number)?.nack_address())?;
        let (mut frame, mut answer) = (false, None);
        let mut buffer = [0; 2048];
        while let Ok(length) = socket.recv(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            match Answer::parse(bytes, key.seq_num()) {
                Ok(now) => answer = Some(now),
                Err(_) => {
                    let same = self.journal.compare(key, bytes) == Verdict::Same;
                    ensure!(same, "endpoint {number} sent other bytes for {key} than were published");
                    frame = true;
                }
            }
            if answer.is_some_and(|answer| frame || !matches!(answer, Answer::Ack { .. })) {
                return Ok(answer);
            }
        }
        ensure!(answer.is_none(), "endpoint {number} says {answer:?} for {key}, and no frame came");
        Ok(None)
    }

    fn manage(&self, number: usize, method: &str, key: FrameKey, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let address: SocketAddr = ADMIN.parse()?;
        let path = format!("/v1/frames/{:016x}/{}", key.hash_key(), key.seq_num());
        http::exchange(&self.host(number)?.ns, address, method, &path, None, body)
    }

    fn host(&self, number: usize) -> Result<&'site Host> {
        let name = number.checked_sub(1).and_then(|at| ENDPOINTS.get(at));
        self.site.fabric.host(name.with_context(|| format!("no endpoint {number}"))?)
    }

    fn metrics(&self, number: usize) -> Result<Metrics> {
        let daemon = number.checked_sub(1).and_then(|at| self.site.endpoints.get(at));
        daemon.with_context(|| format!("no endpoint {number}"))?.metrics()
    }

    /// New flows whose first frame is at one of the cluster's masters each.
    fn one_for_each_master(&mut self) -> Result<Vec<(u64, FrameKey)>> {
        let masters = self.site.redis.masters()?;
        masters
            .into_iter()
            .map(|master| {
                let key = self.key_at(master)?;
                Ok((key.hash_key(), key))
            })
            .collect()
    }

    /// The key of the first frame of a new flow, at this node of Redis.
    fn key_at(&mut self, node: usize) -> Result<FrameKey> {
        for flow in self.next_flow..self.next_flow + 1_000 {
            let key = FrameKey::new(flow, 1);
            if self.site.redis.master_of(key)? == node {
                self.next_flow = flow + 1;
                return Ok(key);
            }
        }
        bail!("no key at node {node}")
    }

    /// Tries again until it works or the time is over; the last error is the one told.
    fn eventually(&self, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = (Instant::now() + PATIENCE).min(self.end);
        loop {
            match attempt() {
                Err(error) if Instant::now() > deadline || self.stop.load(Ordering::Relaxed) => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(100)),
                Ok(()) => return Ok(()),
            }
        }
    }
}

/// A flow of transactions of shard 0.
fn frames(flow: u64) -> Flow {
    Flow::new(Kind::Tx, 0, 2, 300..=900).with_hash_key(flow)
}
