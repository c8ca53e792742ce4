//! Repair suppression as a fabric sees it: hundreds of listeners miss the same frames and ask; the copies of the repairs
//! are counted on the wire of one of them.
//!
//! Every listener has an IPv6 address and sockets of its own; a few namespaces hold them. The frames are lost on the links
//! to all of these, so no listener has what it asks for, and each repair is a packet that came by multicast.

mod listeners;

use std::{
    collections::HashMap,
    net::Ipv6Addr,
    path::Path,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use retry_common::key::FrameKey;

use self::listeners::{Asked, Listeners, Plan};
use crate::{
    daemon::Daemon,
    net::{
        capture::{Capture, Captured, is_udp},
        fabric::{DATA_PORT, Fabric, Host, INTERFACE, group},
        loss::LossRule,
        packet::Packet,
    },
    peers::{
        frames::{Flow, Kind},
        journal::{Journal, Verdict, key_of},
        listener::raise_descriptor_limit,
        publish::Publisher,
    },
};

/// Group index of the frames.
const SHARD: u16 = 1;
/// Longest time for frames to be taken in, by the daemon and by all listeners.
const ARRIVAL: Duration = Duration::from_secs(10);
/// No limit interferes: what is measured is the hold-down.
const NO_LIMITS: [&str; 8] =
    ["-rl-ip-rate", "0", "-rl-chain-rate", "0", "-rl-sequence-max", "0", "-rl-group-rate", "0"];

/// When the listeners ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// All for the same frame at the same moment, one frame after the other.
    AtOnce,
    /// Each for each frame at a moment of its own.
    Spread {
        /// The moments lie within this time.
        over: Duration,
        /// Who hears the repair before its moment does not ask.
        stop_when_heard: bool,
    },
}

impl Asking {
    /// Whether a listener that hears the repair before its moment does not ask.
    const fn is_stopped_by_a_repair(self) -> bool {
        matches!(self, Self::Spread { stop_when_heard: true, .. })
    }
}

/// What is played.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The daemon's `-xdp`.
    pub xdp: &'a str,
    /// Its `-repair-holddown`.
    pub hold_down: Duration,
    /// Namespaces that hold the listeners.
    pub hosts: u16,
    /// Listeners in each.
    pub listeners: u16,
    /// Frames that all of them miss.
    pub frames: u64,
    /// When they ask.
    pub asking: Asking,
    /// How many of a thousand repairs a listener loses, each listener on its own.
    pub lost_repairs: u32,
}

impl<'a> Scene<'a> {
    /// 200 listeners that miss 50 frames and ask at once, under the default hold-down.
    #[must_use]
    pub const fn at_once(xdp: &'a str) -> Self {
        Self {
            xdp,
            hold_down: Duration::from_millis(10),
            hosts: 4,
            listeners: 50,
            frames: 50,
            asking: Asking::AtOnce,
            lost_repairs: 0,
        }
    }

    /// The same listeners, asking within 200 ms and losing a tenth of the repairs as well; who hears a repair in time does
    /// not ask.
    #[must_use]
    pub const fn spread(xdp: &'a str) -> Self {
        let asking = Asking::Spread { over: Duration::from_millis(200), stop_when_heard: true };
        Self { asking, lost_repairs: 100, ..Self::at_once(xdp) }
    }

    /// As [`Scene::spread`], when every listener asks whatever it hears: no listener helps the hold-down.
    #[must_use]
    pub const fn spread_all_the_same(xdp: &'a str) -> Self {
        let asking = Asking::Spread { over: Duration::from_millis(200), stop_when_heard: false };
        // 200 NACKs for each frame: with more frames the rate of NACKs would be what is measured.
        Self { asking, frames: 4, ..Self::spread(xdp) }
    }
}

/// What came of a [`Scene`].
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Listeners.
    pub listeners: u64,
    /// Frames that count: all that were asked for, without [`Counts::late_rounds`].
    pub frames: u64,
    /// Multicast copies of these frames on the wire of the first host.
    pub copies: u64,
    /// The most copies of one of them.
    pub most_copies: u64,
    /// Frames whose NACKs were not all answered within the hold-down, because this machine was busy: they do not count.
    pub late_rounds: u64,
    /// The longest time from the first NACK for a frame until all were answered, of the frames that count; only with
    /// [`Asking::AtOnce`].
    pub longest_asking: Duration,
    /// From the first NACK of all to the last.
    pub asking: Duration,
    /// As long as copies were counted: from before the first NACK until after the last copy.
    pub counting: Duration,
    /// Pairs of a listener and a frame that it missed, late rounds included.
    pub missed: u64,
    /// Pairs of these whose frame came, with the bytes that were published.
    pub recovered: u64,
    /// Pairs that were asked for.
    pub asked: u64,
    /// Pairs that were asked for and have an ACK that says multicast and nothing else.
    pub acked: u64,
    /// NACKs sent.
    pub nacks: u64,
    /// ACKs received that say multicast and nothing else.
    pub acks: u64,
    /// Repairs that listeners lost.
    pub lost_repairs: u64,
    /// `bre_retransmits_total`.
    pub retransmits: u64,
    /// `bre_retransmit_holddown_total`.
    pub held_down: u64,
    /// Other answers, and frames with other bytes: the first ones in words.
    pub complaints: Vec<String>,
}

impl Counts {
    /// The most copies of one frame that a hold-down allows in the time in which they were counted: one in each.
    #[must_use]
    pub fn copies_allowed(&self, hold_down: Duration) -> u64 {
        u64::try_from(self.counting.as_nanos().div_ceil(hold_down.as_nanos().max(1))).unwrap_or(u64::MAX)
    }

    /// Copies on the wire for each frame that was missed.
    #[must_use]
    pub fn copies_per_frame(&self) -> f64 {
        ratio(self.copies, self.frames)
    }

    /// NACKs for each frame that was missed, late rounds included.
    #[must_use]
    pub fn nacks_per_frame(&self) -> f64 {
        ratio(self.nacks, self.frames + self.late_rounds)
    }
}

/// Plays a scene with the daemon's binary.
///
/// # Errors
/// Not root, no fabric, no daemon, or what was to be lost was not lost. What the listeners were not given is no error: it
/// stands in the counts.
pub fn run(binary: &Path, scene: &Scene<'_>) -> Result<Counts> {
    raise_descriptor_limit();
    let names: Vec<String> = (0..scene.hosts).map(|number| format!("crowd{number}")).collect();
    let mut hosts = vec!["endpoint", "publisher"];
    hosts.extend(names.iter().map(String::as_str));
    let fabric = Fabric::bridged(&hosts, 1500)?;
    let endpoint = fabric.host("endpoint")?;
    let hold_down = format!("{}us", scene.hold_down.as_micros());
    let mut flags = vec!["-xdp", scene.xdp, "-cache-memory", "16m", "-cache-memory-long", "16m"];
    flags.extend(["-repair-holddown", &hold_down, "-beacon-flags-multicast=true", "-beacon-flags-unicast=false"]);
    flags.extend(NO_LIMITS);
    let daemon = Daemon::start(binary, &endpoint.ns, &flags)?;

    let journal = Arc::new(Journal::new());
    let mut crowds = Vec::new();
    for (number, name) in (0..).zip(&names) {
        let addresses: Vec<Ipv6Addr> =
            (1..=scene.listeners).map(|listener| Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 1, number, listener)).collect();
        fabric.add_addresses(name, &addresses)?;
        crowds.push(Listeners::gather(
            &fabric.host(name)?.ns,
            &addresses,
            endpoint.nack_address(),
            Arc::clone(&journal),
        )?);
    }
    for name in names.iter().map(String::as_str).chain(["endpoint"]) {
        fabric.await_members(name, &[group(SHARD)])?;
    }
    let missed = publish_and_lose(&fabric, &names, scene, &journal, &mut crowds)?;
    await_cached(&daemon, u64::try_from(journal.len())?)?;

    let first = fabric.host(names.first().context("a crowd has a host")?)?;
    let capture = Capture::start(&first.ns, INTERFACE)?;
    let started = Instant::now();
    let rounds = ask(scene, &missed, &mut crowds)?;
    let last = rounds.iter().map(|round| round.asked.last).max();
    // A copy too many would come at once; this is for the thread that captures.
    thread::sleep(Duration::from_millis(50));
    let captured = capture.take();
    let counting = started.elapsed();
    let copies = copies(&captured, endpoint, &journal)?;
    let metrics = daemon.metrics()?;

    let mut counts = Counts {
        listeners: u64::from(scene.hosts) * u64::from(scene.listeners),
        asking: last.map_or(Duration::ZERO, |last| last.saturating_duration_since(started)),
        counting,
        retransmits: metrics.count("bre_retransmits_total", &[]),
        held_down: metrics.count("bre_retransmit_holddown_total", &[]),
        ..Counts::default()
    };
    for round in &rounds {
        if round.is_late(scene) {
            counts.late_rounds += u64::try_from(round.frames.len())?;
            continue;
        }
        if scene.asking == Asking::AtOnce {
            counts.longest_asking = counts.longest_asking.max(round.asked.took());
        }
        for frame in &round.frames {
            let copies = copies.get(frame).copied().unwrap_or(0);
            counts.frames += 1;
            counts.copies += copies;
            counts.most_copies = counts.most_copies.max(copies);
        }
    }
    for crowd in &crowds {
        crowd.add_to(&mut counts);
    }
    Ok(counts)
}

/// Publishes a frame that all hear, those that no listener hears, and one more that all hear; returns the SeqNums of those lost.
fn publish_and_lose(
    fabric: &Fabric,
    names: &[String],
    scene: &Scene<'_>,
    journal: &Arc<Journal>,
    crowds: &mut [Listeners],
) -> Result<Vec<FrameKey>> {
    // A round that this machine disturbs is played again with another frame.
    let frames = if scene.asking == Asking::AtOnce { 4 * scene.frames } else { scene.frames };
    let mut flow = Flow::new(Kind::Tx, SHARD, 2, 200..=1000);
    let hash_key = flow.hash_key();
    let missed: Vec<u64> = (2..2 + frames).collect();
    let publisher = fabric.host("publisher")?;
    let rule = LossRule::frames(hash_key, missed.clone()).from(publisher.addr);
    let losses = names.iter().map(|name| fabric.lose(name, &rule)).collect::<Result<Vec<_>>>()?;
    let publish = Publisher::open(&publisher.ns, Arc::clone(journal))?;
    for _ in 0..frames + 2 {
        publish.publish(&mut flow)?;
    }
    let deadline = Instant::now() + ARRIVAL;
    while !crowds.iter_mut().map(Listeners::hears_the_last).collect::<Result<Vec<_>>>()?.into_iter().all(|heard| heard)
    {
        ensure!(Instant::now() < deadline, "a listener did not hear the frame that was not lost");
        thread::sleep(Duration::from_millis(2));
    }
    for (name, loss) in names.iter().zip(&losses) {
        ensure!(loss.dropped()? == frames, "{name} was to lose {frames} frames");
    }
    ensure!(crowds.iter().all(|crowd| crowd.heard_each() == Some(2)), "each listener was to hear two frames");
    Ok(missed.into_iter().map(|seq_num| FrameKey::new(hash_key, seq_num)).collect())
}

fn await_cached(daemon: &Daemon<'_>, frames: u64) -> Result<()> {
    let deadline = Instant::now() + ARRIVAL;
    while daemon.metrics()?.count("bre_frames_cached_total", &[]) < frames {
        ensure!(Instant::now() < deadline, "the daemon has not taken in all of {frames} frames\n{}", daemon.log());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Frames that were asked for together.
struct Round {
    frames: Vec<FrameKey>,
    asked: Asked,
}

impl Round {
    /// Whether NACKs that were to be read within one hold-down may not have been.
    fn is_late(&self, scene: &Scene<'_>) -> bool {
        scene.asking == Asking::AtOnce && self.asked.took() >= scene.hold_down
    }
}

/// Lets the listeners ask, until each frame is there or given up.
fn ask(scene: &Scene<'_>, missed: &[FrameKey], crowds: &mut [Listeners]) -> Result<Vec<Round>> {
    let at_a_time = if scene.asking == Asking::AtOnce { 1 } else { missed.len().max(1) };
    let mut rounds = Vec::new();
    let mut in_time = 0;
    for frames in missed.chunks(at_a_time) {
        let plan = Plan { frames, asking: scene.asking, lost_repairs: scene.lost_repairs };
        let round = Round { frames: frames.to_vec(), asked: play(&plan, crowds)? };
        in_time += if round.is_late(scene) { 0 } else { u64::try_from(frames.len())? };
        rounds.push(round);
        if in_time >= scene.frames {
            break;
        }
    }
    Ok(rounds)
}

/// One round of all crowds, each on a thread of its own.
fn play(plan: &Plan<'_>, crowds: &mut [Listeners]) -> Result<Asked> {
    let barrier = Barrier::new(crowds.len());
    let asked = thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = crowds
            .iter_mut()
            .map(|crowd| {
                scope.spawn(move || {
                    barrier.wait();
                    crowd.play(plan)
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Asked>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    asked.into_iter().reduce(Asked::and).context("there is a crowd")
}

/// Multicast copies of each frame among what came in, each compared with what was published.
fn copies(packets: &[Captured], endpoint: &Host, journal: &Journal) -> Result<HashMap<FrameKey, u64>> {
    let mut copies = HashMap::new();
    for packet in packets.iter().filter(|packet| is_udp(&packet.bytes)) {
        let packet = Packet::check(&packet.bytes).map_err(anyhow::Error::msg)?;
        let is_repair = *packet.src.ip() == endpoint.addr && packet.dst.port() == DATA_PORT;
        if !is_repair || !packet.dst.ip().is_multicast() {
            continue;
        }
        let key = key_of(&packet.payload).context("a repair that is no frame")?;
        ensure!(
            journal.compare(key, &packet.payload) == Verdict::Same,
            "a repair with other bytes than were published"
        );
        *copies.entry(key).or_insert(0) += 1;
    }
    Ok(copies)
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn ratio(count: u64, of: u64) -> f64 {
    count as f64 / of.max(1) as f64
}
