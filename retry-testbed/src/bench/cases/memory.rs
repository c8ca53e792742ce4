//! Memory of a frame of 400 bytes: of a ring that has come round, and of the index beside it.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use retry_testbed::daemon::Daemon;

use crate::bench::{
    contenders::Contenders,
    model::{Measurement, Row, Target},
    options::Settings,
    subject::{self, IN_XDP, UNICAST},
};

const LENGTH: usize = 400;
/// A ring of 64 MiB holds fewer than that.
const FRAMES: u32 = 200_000;
const RATE: f64 = 60e3;
/// What the process's memory may grow by for each frame without being a cost of frames, bytes: pages of its heap.
const NOISE: f64 = 4.0;

pub(super) fn measure(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let fabric = rigs.subject.fabric();
    let flags: &[&[&str]] = &[UNICAST, &["-cache-memory", "64m", "-cache-memory-long", "16m"], IN_XDP];
    let daemon = subject::start(&settings.binary, &fabric, flags)?;
    // A few before, so that nothing is touched for the first time.
    rigs.subject.send_frames(1, FRAMES / 20, LENGTH, Some(RATE))?;
    let before = (anonymous(daemon.pid())?, daemon.metrics()?.sum("bre_cache_size", &[]));
    rigs.subject.send_frames(1_000_000, FRAMES, LENGTH, Some(RATE))?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let metrics = daemon.metrics()?;
    let frames = metrics.sum("bre_cache_size", &[]);
    let size = |ring| metrics.sum("bre_cache_ring_size_bytes", &[("ring", ring)]);
    let (short, long) = (size("short"), size("long"));
    let lapped = metrics.sum("bre_cache_evicted_total", &[("reason", "lap")]);
    ensure!(lapped > 0.0 && frames > 0.0, "the ring has not come round: {frames} frames in {short} bytes");
    let maps = maps(&daemon)?;
    // The index serves both rings; this one's share of it.
    let index = maps.get("INDEX").context("no map INDEX among the daemon's")? * short / (short + long);
    let own = (anonymous(daemon.pid())? - before.0) / (frames - before.1);

    let mut found = Measurement::default();
    let row = |what: &str, value: f64, target| Row::alone(format!("{name}: {what}"), "B", &[value], target);
    found.rows.push(row("a frame of 400 B, index included", (short + index) / frames, Target::AtMost(560.0)));
    found.rows.push(row("of that, the index", index / frames, Target::None));
    found.rows.push(row("the process's own memory for each further frame", own.max(0.0), Target::AtMost(NOISE)));
    found.notes.push(format!("{frames} frames in a ring of {short} bytes that has come round"));
    Ok(found)
}

/// Memory of each BPF map that the daemon holds open, by the map's name.
fn maps(daemon: &Daemon<'_>) -> Result<HashMap<String, f64>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid()))? {
        // A descriptor may be closed while the directory is read.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            let info = aya::maps::MapInfo::from_id(id.parse()?)?;
            found.insert(info.name_as_str().unwrap_or_default().to_owned(), bytes.parse()?);
        }
    }
    Ok(found)
}

/// Bytes of memory that only this process has.
fn anonymous(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kibibytes: f64 = line.split_whitespace().next().context("an empty RssAnon")?.parse()?;
    Ok(kibibytes * 1024.0)
}
