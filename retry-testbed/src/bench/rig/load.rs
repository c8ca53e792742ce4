//! A stretch of load: NACKs or frames from the kernel, what came back, and what it cost.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aya::{Pod, programs::Xdp};
use nix::sched::{CloneFlags, setns};

use super::{
    Answers, Generator, LOAD_CORE, Rig, on_core, pin, program,
    samples::{self, Checked, Right, Sample},
    template::{self, Ask, Sources},
};

/// Packets a second of a generator at full rate, about: a stretch is one call of that length, for a call idles for about
/// 27 ms.
const FLOOD: f64 = 3.5e6;
/// Packets that a generator makes before it hands them over: few at a pace, which is evener so; else as many as the kernel
/// allows, for its pool of pages is that long, and what the pool has no room for goes by the page allocator.
fn batch(rate: Option<f64>) -> u32 {
    match rate {
        Some(rate) if rate < 500e3 => 8,
        Some(_) => 16,
        None => 256,
    }
}

/// Samples that the counting program keeps.
const SAMPLES: u32 = 1024;

/// As the generators write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) sent: u64,
    stretch: u64,
    first_ns: u64,
    last_ns: u64,
    origin_ns: u64,
    since_origin: u64,
}
// SAFETY: words without padding.
unsafe impl Pod for Progress {}

impl Progress {
    /// The same at the start of a stretch.
    pub(super) fn fresh(&self) -> Self {
        Self { sent: self.sent, ..Self::default() }
    }

    const fn active(&self) -> Duration {
        Duration::from_nanos(self.last_ns.saturating_sub(self.first_ns))
    }
}

/// How a stretch is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    /// What is asked for.
    pub(crate) ask: Ask,
    /// NACKs a second; none: as fast as it goes.
    pub(crate) rate: Option<f64>,
    /// About how long.
    pub(crate) time: Duration,
    /// Length of the frames in the cache.
    pub(crate) length: usize,
    /// Whether an ACK goes before its frame.
    pub(crate) ack_leads: bool,
}

/// What one stretch of load gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// What was sent.
    pub(crate) sent: u64,
    /// What came back.
    pub(crate) answers: Answers,
    /// From the first to the last packet sent.
    pub(crate) active: Duration,
    /// The same with the pauses of the generator, in which a server works off what it has queued.
    pub(crate) whole: Duration,
    /// Time on a core of the server's NAPI thread.
    pub(crate) napi: Duration,
    /// Answers that were looked at, byte by byte.
    pub(crate) checked: Checked,
}

impl Rig {
    /// Loads the server and counts and checks what comes back.
    ///
    /// # Errors
    /// An answer is wrong, or there are answers that no NACK asked for.
    pub(crate) fn load(&mut self, stretch: &Stretch) -> Result<Load> {
        self.load_while(stretch, || Ok(())).map(|(load, ())| load)
    }

    /// As [`Rig::load`], until `work` is done when that takes longer.
    ///
    /// # Errors
    /// As [`Rig::load`], and what `work` returns.
    pub(crate) fn load_while<T>(&mut self, stretch: &Stretch, work: impl FnOnce() -> Result<T>) -> Result<(Load, T)> {
        let (mut packet, template) = template::nacks(self.client()?, self.endpoint()?, &stretch.ask, stretch.rate)?;
        // The generator makes it whole.
        packet.truncate(packet.len() - 2);
        self.nacks.set(0, template, 0)?;
        let before = (self.answers()?, self.seen()?, self.new_stretch()?, on_core(self.server_napi)?);
        let start = Instant::now();
        let batch = batch(stretch.rate);
        let once = count(stretch.rate.unwrap_or(FLOOD) * stretch.time.as_secs_f64())?;
        let done = AtomicBool::new(false);
        let value = self.generate(
            "bench_nacks",
            packet,
            |generator| {
                generator.send(once, batch)?;
                while !done.load(Ordering::Relaxed) {
                    generator.send(once, batch)?;
                }
                Ok(())
            },
            || {
                let value = work();
                done.store(true, Ordering::Relaxed);
                value
            },
        )?;
        let whole = start.elapsed();
        let napi = on_core(self.server_napi)?.saturating_sub(before.3);
        let progress = self.progress()?;
        // What is still queued in a socket when the load ends is answered, but not in this time.
        let answers = self.answers()?.since(&before.0);
        let Ask { first, count, flows, sources, .. } = stretch.ask;
        let spoofed = sources != Sources::Own;
        let right = Right { length: stretch.length, flows, first, count, ack_leads: stretch.ack_leads, spoofed };
        let checked = self.check_samples(before.1, &right)?;
        ensure!(answers.other <= answers.total() / 1000, "answers that no listener should have got: {answers:?}");
        let load =
            Load { sent: progress.sent - before.2.sent, answers, active: progress.active(), whole, napi, checked };
        Ok((load, value))
    }

    /// Multicasts `count` frames of `length` bytes of one flow, numbered from `first`, `rate` a second or as fast as it
    /// goes. Returns how long it took from the first to the last.
    pub(crate) fn send_frames(&mut self, first: u64, count: u32, length: usize, rate: Option<f64>) -> Result<Duration> {
        self.send_frames_of(1, first, count, length, rate)
    }

    /// As [`Rig::send_frames`], of so many flows.
    pub(crate) fn send_frames_of(
        &mut self,
        flows: u64,
        first: u64,
        count: u32,
        length: usize,
        rate: Option<f64>,
    ) -> Result<Duration> {
        let sent = self.new_stretch()?.sent;
        let (packet, template) = template::frames(self.client()?, (length, flows), first.wrapping_sub(sent), rate)?;
        self.frames.set(0, template, 0)?;
        self.generate("bench_frames", packet, |generator| generator.send(count, batch(rate)), || Ok(()))?;
        let progress = self.progress()?;
        ensure!(progress.sent - sent == u64::from(count), "{} of {count} frames were sent", progress.sent - sent);
        Ok(progress.active())
    }

    /// Time on a core of the server's NAPI so far.
    pub(crate) fn server_napi_time(&self) -> Result<Duration> {
        on_core(self.server_napi)
    }

    /// Runs a generator on the load's core, and `work` beside it on this thread.
    fn generate<T>(
        &mut self,
        name: &str,
        packet: Vec<u8>,
        send: impl FnOnce(&Generator<'_>) -> Result<()> + Send,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let host = self.fabric.host("client")?;
        let (index, namespace) = (host.ifindex, host.ns.handle()?);
        let program: &Xdp = program(&mut self.client, name)?;
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || -> Result<()> {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                pin(0, LOAD_CORE)?;
                send(&Generator { program, packet, index })
            });
            let value = work();
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            value
        })
    }

    /// Looks at the samples since packet `since`.
    fn check_samples(&self, since: u64, right: &Right) -> Result<Checked> {
        let mut samples: Vec<Sample> = Vec::new();
        for at in 0..SAMPLES {
            samples.push(self.samples.get(&at, 0)?);
        }
        samples.sort_by_key(|sample| sample.number);
        samples::check(&samples, since, right, self.endpoint()?, self.client()?)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
fn count(packets: f64) -> Result<u32> {
    ensure!((0.0..4e9).contains(&packets), "{packets} packets in one go");
    Ok((packets as u32).max(1))
}

impl Load {
    /// How many of `count` things a second, for what answers at once or not at all.
    pub(crate) fn rate(&self, count: u64) -> f64 {
        as_f64(count) / self.active.as_secs_f64()
    }

    /// The same for a server on a socket, which goes on with what is queued while the generator pauses.
    pub(crate) fn rate_by_socket(&self, count: u64) -> f64 {
        as_f64(count) / self.whole.as_secs_f64()
    }

    /// Time of the server's NAPI thread for each of `count` things, ns.
    pub(crate) fn nanoseconds(&self, count: u64) -> f64 {
        1e9 * self.napi.as_secs_f64() / as_f64(count.max(1))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}
