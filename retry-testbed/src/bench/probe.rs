//! One listener that asks at an even pace and times every answer.
//!
//! Open loop: a NACK leaves when it is due, whatever has come back. Its time runs from before the `send` call to after
//! the `recv` call that brought the frame. Thread and NAPI of the listener run before all else on the load's core, and
//! its end is not moderated, so that what is timed is the server and the two ways. Every frame is compared byte by byte.

use std::{
    net::{SocketAddrV6, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sched::{CloneFlags, setns},
    sys::time::TimeSpec,
};
use retry_common::key::FrameKey;
use retry_testbed::{
    peers::answer::{self, Answer},
    scheduling::urgent,
};

use super::rig::{FLOW, LOAD_CORE, Rig, frame, pin};

/// How long the last answers are awaited.
const LAST: Duration = Duration::from_millis(50);

/// What is asked, and what is a right answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// NACKs a second.
    pub(crate) rate: u32,
    /// How long.
    pub(crate) time: Duration,
    /// The first SeqNum; each is asked for once.
    pub(crate) first: u64,
    /// Length of the frames.
    pub(crate) length: usize,
    /// Whether the NACK itself comes back instead of frame and ACK.
    pub(crate) reflected: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Probed {
    /// NACKs sent.
    pub(crate) sent: u64,
    /// Those answered in full.
    pub(crate) answered: u64,
    times: Histogram<u64>,
}

impl Probed {
    /// A quantile of the times, µs.
    #[expect(clippy::cast_precision_loss, reason = "times are below 2^53 ns")]
    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Share of the NACKs that were answered.
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub(crate) fn share(&self) -> f64 {
        self.answered as f64 / self.sent.max(1) as f64
    }
}

/// One NACK under way.
#[derive(Clone, Copy, Default)]
struct Asked {
    at: Option<Instant>,
    frame: bool,
    ack: bool,
}

/// Where a probe asks from: everything that a thread of its own needs.
pub(crate) struct Listener {
    namespace: std::fs::File,
    from: SocketAddrV6,
    to: SocketAddrV6,
}

impl Listener {
    /// The client of a rig.
    pub(crate) fn of(rig: &Rig) -> Result<Self> {
        let client = rig.client()?;
        let from = SocketAddrV6::new(client.addr, 0, 0, 0);
        Ok(Self { namespace: client.ns.handle()?, from, to: rig.endpoint()?.nack_address() })
    }

    /// Asks.
    ///
    /// # Errors
    /// An answer is wrong.
    pub(crate) fn ask(&self, probe: &Probe) -> Result<Probed> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
                pin(0, LOAD_CORE)?;
                urgent(0, true)?;
                let socket = UdpSocket::bind(self.from)?;
                socket.set_nonblocking(true)?;
                run(&socket, self.to, probe)
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Asks from the client of an otherwise idle rig.
///
/// # Errors
/// An answer is wrong.
pub(crate) fn ask(rig: &Rig, probe: &Probe) -> Result<Probed> {
    rig.attentive(true)?;
    let probed = Listener::of(rig)?.ask(probe);
    rig.attentive(false)?;
    probed
}

fn run(socket: &UdpSocket, to: SocketAddrV6, probe: &Probe) -> Result<Probed> {
    let count = u64::try_from(probe.time.as_millis())? * u64::from(probe.rate) / 1000;
    let interval = Duration::from_secs(1) / probe.rate;
    let mut asked = vec![Asked::default(); usize::try_from(count)?];
    let mut probed = Probed { sent: 0, answered: 0, times: Histogram::new_with_bounds(1, 10_000_000_000, 3)? };
    let start = Instant::now();
    while probed.sent < count {
        let due = start + interval * u32::try_from(probed.sent)?;
        await_until(socket, due, probe, &mut asked, &mut probed)?;
        let nack = answer::nack(FrameKey::new(FLOW, probe.first + probed.sent));
        asked[usize::try_from(probed.sent)?].at = Some(Instant::now());
        socket.send_to(&nack, to).context("send a NACK")?;
        probed.sent += 1;
    }
    await_until(socket, Instant::now() + LAST, probe, &mut asked, &mut probed)?;
    Ok(probed)
}

/// Takes what comes until it is time for the next NACK.
fn await_until(
    socket: &UdpSocket,
    due: Instant,
    probe: &Probe,
    asked: &mut [Asked],
    probed: &mut Probed,
) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => take(&buffer[..length], probe, asked, probed)?,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let now = Instant::now();
                if now >= due {
                    return Ok(());
                }
                let mut wait = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match ppoll(&mut wait, Some(TimeSpec::from_duration(due - now)), None) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads one answer.
fn take(bytes: &[u8], probe: &Probe, asked: &mut [Asked], probed: &mut Probed) -> Result<()> {
    let now = Instant::now();
    let at = match (bytes.len(), probe.reflected) {
        (64, true) => 16,
        (16, false) => 8,
        (length, false) if length == probe.length => 48,
        (length, _) => anyhow::bail!("an answer of {length} bytes"),
    };
    let seq_num = bytes[at..at + 8].iter().fold(0, |value, byte| (value << 8) | u64::from(*byte));
    let place = seq_num.checked_sub(probe.first).and_then(|place| asked.get_mut(usize::try_from(place).ok()?));
    let Some(state) = place else { anyhow::bail!("an answer for SeqNum {seq_num}, which was not asked for") };
    let Some(sent) = state.at else { anyhow::bail!("an answer for SeqNum {seq_num} before it was asked for") };
    let (mut frame_came, mut ack_came) = (state.frame, state.ack);
    match bytes.len() {
        64 => (frame_came, ack_came) = (true, true),
        16 => {
            let answer = Answer::parse(bytes, seq_num).map_err(anyhow::Error::msg)?;
            ensure!(matches!(answer, Answer::Ack { unicast: true, .. }), "{answer:?} for SeqNum {seq_num}");
            ack_came = true;
        }
        length => {
            ensure!(bytes == frame(seq_num, length, 1), "wrong bytes in the frame of SeqNum {seq_num}");
            frame_came = true;
        }
    }
    if frame_came && !state.frame {
        let nanoseconds = u64::try_from((now - sent).as_nanos())?;
        probed.times.saturating_record(nanoseconds);
    }
    if frame_came && ack_came && !(state.frame && state.ack) {
        probed.answered += 1;
    }
    (state.frame, state.ack) = (frame_came, ack_came);
    Ok(())
}
