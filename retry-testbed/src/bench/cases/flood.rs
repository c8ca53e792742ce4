//! A few honest NACKs amid a flood from addresses that do not exist, a new one each time.

use std::time::Duration;

use anyhow::Result;
use retry_testbed::daemon::Daemon;

use crate::bench::{
    contenders::{Contenders, best_offer},
    model::{Measurement, Row, Target},
    options::Settings,
    plain::{Answering, Plain},
    probe::{self, Listener, Probe},
    rig::{Ask, Load, Rig, Sources, Stretch},
    subject::{self, IN_XDP, LIMITS_OUT_OF_REACH, UNICAST},
};

const LENGTH: usize = 400;
/// Frames that the flood asks for, in the cache.
const FLOODED: u64 = 1024;
/// Frames in the cache.
const FRAMES: u64 = 16_384;
/// Addresses of the flood, more than it sends.
const SOURCES: u64 = 1 << 28;
/// How many times the plain server's hits the flood is, if the generator can.
const TIMES: f64 = 20.0;
/// Honest NACKs a second.
const HONEST: u32 = 1000;

/// The honest listener may ask as fast as it does; the window of a frame is the product's own.
const FLAGS: &[&str] = &["-rl-sequence-max", "100", "-rl-sequence-window", "1m"];

pub(super) fn measure(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let fabrics = (rigs.subject.fabric(), rigs.plain.fabric());
    let daemon = subject::start(&settings.binary, &fabrics.0, &[UNICAST, LIMITS_OUT_OF_REACH, FLAGS, IN_XDP])?;
    subject::fill(&mut rigs.subject, &daemon, FRAMES, LENGTH)?;
    let capacity = plain_capacity(settings, rigs)?;

    let time = Duration::from_millis(if settings.quick { 300 } else { 750 });
    let known = Ask { sources: Sources::InTurn(SOURCES), ..Ask::frames(FLOODED) };
    let unknown = Ask { first: 1 << 40, ..known };
    let mut found = Measurement::default();
    become_known(&rigs.subject, &daemon)?;
    for (what, ask, is_wanted) in [
        ("for frames it has", known, false),
        ("for frames it has not", unknown, false),
        ("for the frames that the known listener wants", known, true),
    ] {
        let flood = Stretch { ask, rate: Some(TIMES * capacity), time, length: LENGTH, ack_leads: true };
        if ask == known {
            // The windows of these frames are used up before, as they are in a flood that goes on.
            rigs.subject.load(&flood)?;
        }
        let (mut shares, mut calm, mut tails, mut offered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut first = if is_wanted { 1 } else { FLOODED + 1 };
        for _ in 0..settings.rounds {
            let probe = Probe { rate: HONEST, time, first, length: LENGTH, reflected: false };
            calm.push(probe::ask(&rigs.subject, &probe)?.micros(0.99));
            let (load, probed) = amid(&mut rigs.subject, &flood, &probe)?;
            shares.push(probed.share());
            tails.push(probed.micros(0.99));
            offered.push(load.rate(load.sent));
            // Each round asks for frames of its own, twice: far from their windows. The windows of the frames that the flood
            // asks for are full in any case.
            first += if is_wanted { 0 } else { probed.sent };
        }
        let plain = vec![capacity; offered.len()];
        let case = |figure| format!("{name} {what}: {figure}");
        found.rows.push(Row::alone(case("honest NACKs answered"), "share", &shares, Target::AtLeast(0.999)));
        found.rows.push(Row::beside(case("p99"), "µs", &tails, ("without flood", &calm), Target::RatioAtMost(2.0)));
        found.rows.push(Row::beside(case("offered"), "NACK/s", &offered, ("plain's hits", &plain), Target::None));
    }
    found.notes.push(format!(
        "{HONEST} honest NACKs a second from one address for frames of their own; the flood is {TIMES} times the plain \
         server's hits, or what the generator can on a core that it shares with the listener; the daemon's flags beside \
         those of the hit cases: {}",
        FLAGS.join(" ")
    ));
    found.notes.push(
        "the share has what the interface's queue of 256 packets dropped before the program saw it: one core takes in less \
         than is offered"
            .to_owned(),
    );
    Ok(found)
}

/// Lets the listener be known before strangers come: it asks in different seconds.
fn become_known(rig: &Rig, daemon: &Daemon<'_>) -> Result<()> {
    for attempt in 0..10 {
        let first = FLOODED + 1 + attempt;
        let once = Probe { rate: 10, time: Duration::from_millis(100), first, length: LENGTH, reflected: false };
        probe::ask(rig, &once)?;
        std::thread::sleep(Duration::from_millis(700));
        if daemon.metrics()?.count("bre_known_listeners", &[]) > 0 {
            return Ok(());
        }
    }
    anyhow::bail!("the listener did not become known")
}

/// Asks while the flood runs.
fn amid(rig: &mut Rig, flood: &Stretch, probe: &Probe) -> Result<(Load, probe::Probed)> {
    rig.attentive(true)?;
    let listener = Listener::of(rig)?;
    let result = rig.load_while(flood, || {
        // The flood is there before the first honest NACK.
        std::thread::sleep(Duration::from_millis(100));
        listener.ask(probe)
    });
    rig.attentive(false)?;
    result
}

/// Hits a second of the plain server.
fn plain_capacity(settings: &Settings, rigs: &mut Contenders) -> Result<f64> {
    let fabric = rigs.plain.fabric();
    let answering = Answering { ack: true, unicast: true, multicast: false };
    let _plain = Plain::answering(&fabric, FRAMES, LENGTH, answering)?;
    let count = |load: &Load| load.answers.acks.min(load.answers.unicast_frames);
    let full =
        Stretch { ask: Ask::frames(FRAMES), rate: None, time: settings.stretch, length: LENGTH, ack_leads: true };
    let offer = best_offer(&mut rigs.plain, &full, count)?;
    let load = rigs.plain.load(&Stretch { rate: Some(offer), ..full })?;
    Ok(load.rate_by_socket(count(&load)))
}
