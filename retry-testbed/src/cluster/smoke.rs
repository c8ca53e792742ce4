//! What must work with more than one machine, step by step, before and after a master's death.

use std::{
    net::{SocketAddr, SocketAddrV6, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use retry_common::key::FrameKey;
use retry_testbed::{
    answer::{Answer, nack},
    daemon::Daemon,
    fabric::Fabric,
    frames::{Flow, Kind},
    http,
    journal::{Journal, Verdict},
    loss::LossRule,
    publish::Publisher,
    redis::Cluster,
};

use super::{ADMIN, ENDPOINTS, say};

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// The first flow; each step has one of its own.
const FLOW: u64 = 0xc1_0000_0000;

/// Walks through the scenarios; true when all of them worked.
pub(super) fn run(fabric: &Fabric, redis: &mut Cluster<'_>, endpoints: &[Daemon<'_>]) -> Result<bool> {
    let mut walk = Walk { fabric, endpoints, journal: Arc::new(Journal::new()), good: true };
    let mut flow = FLOW;
    walk.step("PUT on endpoint 1, GET on endpoint 5", |walk| walk.put_and_get(flow));
    walk.step("a frame that only endpoint 1 heard comes back through endpoint 5", |walk| walk.one_hears(flow + 1, 5));

    let old = FrameKey::new(flow + 1, 1);
    let master = redis.master_of(old)?;
    redis.kill(master)?;
    let killed = format!("redis{} is killed, a replica takes over its slots", master + 1);
    walk.step(&killed, |_| redis.await_failover(old, master).map(drop));
    // Nobody but the store has it here: endpoint 4 was never asked for it.
    walk.step("a frame stored before comes back through endpoint 4", |walk| walk.asks(4, old));

    // Flows whose frames live in the slots that were lost.
    let now = redis.master_of(old)?;
    flow = next_at(redis, flow + 2, now)?;
    walk.step("PUT on endpoint 1, GET on endpoint 5, in the slots that moved", |walk| walk.put_and_get(flow));
    flow = next_at(redis, flow + 1, now)?;
    walk.step("a frame that only endpoint 1 hears now comes back through endpoint 5", |walk| walk.one_hears(flow, 5));
    walk.step("every endpoint is still ready", Walk::all_ready);
    say(format_args!("{}", if walk.good { "all of it works" } else { "something does not work" }));
    Ok(walk.good)
}

/// The next flow whose first frame is at this node.
fn next_at(redis: &Cluster<'_>, from: u64, node: usize) -> Result<u64> {
    for flow in from..from + 1_000 {
        if redis.master_of(FrameKey::new(flow, 1))? == node {
            return Ok(flow);
        }
    }
    anyhow::bail!("no key at node {node}")
}

struct Walk<'a> {
    fabric: &'a Fabric,
    endpoints: &'a [Daemon<'a>],
    journal: Arc<Journal>,
    good: bool,
}

impl Walk<'_> {
    fn step(&mut self, what: &str, work: impl FnOnce(&Self) -> Result<()>) {
        let start = Instant::now();
        match work(self) {
            Ok(()) => say(format_args!("ok      {what} ({:.1} s)", start.elapsed().as_secs_f64())),
            Err(error) => {
                self.good = false;
                say(format_args!("FAILED  {what}: {error:#}"));
            }
        }
    }

    fn endpoint(&self, number: usize) -> Result<&Daemon<'_>> {
        self.endpoints.get(number - 1).with_context(|| format!("no endpoint {number}"))
    }

    fn manage(&self, number: usize, method: &str, key: FrameKey, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let name = ENDPOINTS.get(number - 1).context("no such endpoint")?;
        let address: SocketAddr = ADMIN.parse()?;
        let path = format!("/v1/frames/{:016x}/{}", key.hash_key(), key.seq_num());
        http::exchange(&self.fabric.host(name)?.ns, address, method, &path, body)
    }

    fn put_and_get(&self, flow: u64) -> Result<()> {
        let frame = Flow::new(Kind::Tx, 0, 2, 300..=300).with_hash_key(flow).next_frame();
        let key = FrameKey::new(flow, 1);
        let (status, body) = self.manage(1, "PUT", key, &frame)?;
        ensure!(status == 201, "PUT: {status} {}", String::from_utf8_lossy(&body));
        eventually(|| {
            let (status, body) = self.manage(5, "GET", key, &[])?;
            ensure!(status == 200, "GET: {status} {}", String::from_utf8_lossy(&body));
            ensure!(body == frame, "GET: other bytes");
            Ok(())
        })
    }

    fn one_hears(&self, flow: u64, asked: usize) -> Result<()> {
        let mut frames = Flow::new(Kind::Tx, 0, 2, 300..=300).with_hash_key(flow);
        let publisher = Publisher::open(&self.fabric.host("publisher")?.ns, Arc::clone(&self.journal))?;
        let rule = LossRule::frames(flow, vec![1]).from(self.fabric.host("publisher")?.addr);
        let lost: Vec<_> = ENDPOINTS.iter().skip(1).map(|name| self.fabric.lose(name, &rule)).collect::<Result<_>>()?;
        let written =
            || Ok::<_, anyhow::Error>(self.endpoint(1)?.metrics()?.count("bre_store_frames_written_total", &[]));
        let before = written()?;
        let received = self.endpoint(asked)?.metrics()?.count("bre_frames_received_total", &[]);
        let key = publisher.publish(&mut frames)?.context("a frame has a key")?;
        eventually(|| {
            ensure!(written()? > before, "endpoint 1 has not written the frame to Redis");
            Ok(())
        })?;
        for loss in &lost {
            ensure!(loss.dropped()? == 1, "another endpoint heard the frame");
        }
        drop(lost);
        let now = self.endpoint(asked)?.metrics()?.count("bre_frames_received_total", &[]);
        ensure!(now == received, "endpoint {asked} received the frame by multicast");
        self.asks(asked, key)
    }

    /// Asks an endpoint for a frame by NACK and compares what comes back.
    fn asks(&self, number: usize, key: FrameKey) -> Result<()> {
        let client = self.fabric.host("client")?;
        let to = self.fabric.host(ENDPOINTS.get(number - 1).context("no such endpoint")?)?.nack_address();
        let socket = client.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(client.addr, 0, 0, 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        eventually(|| {
            socket.send_to(&nack(key), to)?;
            let (mut frame, mut acked) = (false, false);
            let mut buffer = [0; 2048];
            while !(frame && acked) {
                let length = socket.recv(&mut buffer).context("no whole answer")?;
                let bytes = buffer.get(..length).unwrap_or_default();
                match Answer::parse(bytes, key.seq_num()) {
                    Ok(Answer::Ack { .. }) => acked = true,
                    Ok(other) => anyhow::bail!("the answer is {other:?}"),
                    Err(_) => {
                        ensure!(self.journal.compare(key, bytes) == Verdict::Same, "other bytes than were published");
                        frame = true;
                    }
                }
            }
            Ok(())
        })
    }

    fn all_ready(&self) -> Result<()> {
        for (name, daemon) in ENDPOINTS.iter().zip(self.endpoints) {
            let (status, body) = daemon.get("/readyz")?;
            ensure!(status == 200, "{name}: {status} {body}");
        }
        Ok(())
    }
}

/// Tries again until it works or the time is over; the last error is the one told.
fn eventually(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            Ok(()) => return Ok(()),
        }
    }
}
