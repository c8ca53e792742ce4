//! From the start of the daemon's process to its first answer, a MISS: the cache is empty.

use std::{
    net::{SocketAddrV6, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use retry_common::key::FrameKey;
use retry_testbed::{
    daemon::Daemon,
    peers::answer::{self, Answer},
};

use crate::bench::{
    contenders::Contenders,
    model::{Measurement, Row, Target},
    options::Settings,
    rig::{FLOW, Rig},
    subject::{self, IN_XDP, LIMITS_OUT_OF_REACH, UNICAST},
};

/// Memory of the cache, and how long a start may take when the machine has that memory at hand.
const SIZES: [(&str, f64); 2] = [("256m", 300.0), ("1g", 500.0)];
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn measure(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let mut found = Measurement::default();
    for (size, most) in SIZES {
        let first = start(settings, &rigs.subject, size)?;
        let rounds = (0..settings.rounds).map(|_| start(settings, &rigs.subject, size)).collect::<Result<Vec<_>>>()?;
        found.rows.push(Row::alone(format!("{name}: {size}, memory warm"), "ms", &rounds, Target::AtMost(most)));
        found.rows.push(Row::alone(format!("{name}: {size}, the first one"), "ms", &[first], Target::None));
    }
    found.notes.push(
        "the first start may find memory cold that the machine has not had from its host yet; the later ones do not"
            .to_owned(),
    );
    Ok(found)
}

/// Starts a daemon and asks every millisecond until it answers. Milliseconds from before the fork.
fn start(settings: &Settings, rig: &Rig, memory: &str) -> Result<f64> {
    let (client, endpoint) = (rig.client()?, rig.endpoint()?);
    let socket = client.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(client.addr, 0, 0, 0)))?;
    socket.set_read_timeout(Some(Duration::from_millis(1)))?;
    let flags = subject::flags(&[UNICAST, LIMITS_OUT_OF_REACH, &["-cache-memory", memory], IN_XDP]);
    let nack = answer::nack(FrameKey::new(FLOW, 1));
    let mut buffer = [0; 64];
    let before = Instant::now();
    let mut daemon = Daemon::launch(&settings.binary, &endpoint.ns, &flags)?;
    let length = loop {
        ensure!(before.elapsed() < PATIENCE, "no answer in {} s\n{}", PATIENCE.as_secs(), daemon.log());
        socket.send_to(&nack, endpoint.nack_address()).context("send a NACK")?;
        if let Ok(length) = socket.recv(&mut buffer) {
            break length;
        }
    };
    let took = before.elapsed();
    let answer = Answer::parse(&buffer[..length], 1).map_err(anyhow::Error::msg)?;
    ensure!(answer == Answer::Miss, "{answer:?} from an empty cache");
    daemon.end()?;
    Ok(took.as_secs_f64() * 1e3)
}
