//! The daemon under test: its flags for each case from one table, on the server's core, filled.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use retry_testbed::{daemon::Daemon, net::fabric::Fabric};

use super::rig::{Rig, on_server_core};

/// Frames a second at which a cache is filled before a case: what every daemon here takes in without loss.
const FILL_RATE: f64 = 150_000.0;
/// Frames sent before it is seen whether all have arrived.
const CHUNK: u64 = 131_072;

/// Every daemon: on the one interface there is, without beacons of its own.
const ALWAYS: &[&str] = &["-mc-iface", "eth0", "-egress-iface", "eth0", "-beacon-enabled=false", "-cache-ttl", "1h"];

/// The limits are on, so that what they cost is measured, and out of reach.
pub(crate) const LIMITS_OUT_OF_REACH: &[&str] = &[
    "-rl-ip-rate",
    "1000000000",
    "-rl-ip-burst",
    "1000000",
    "-rl-group-rate",
    "1000000000",
    "-rl-group-burst",
    "1000000",
    "-rl-sequence-max",
    "1000000",
    "-rl-sequence-window",
    "100ms",
    "-rl-chain-rate",
    "1000000",
    "-rl-chain-window",
    "1ms",
];

/// A hit is answered by a copy to the sender.
pub(crate) const UNICAST: &[&str] = &["-beacon-flags-multicast=false", "-beacon-flags-unicast"];
/// By multicast.
pub(crate) const MULTICAST: &[&str] = &["-beacon-flags-multicast", "-beacon-flags-unicast=false"];
/// By both.
pub(crate) const BOTH: &[&str] = &["-beacon-flags-multicast", "-beacon-flags-unicast"];
/// In the kernel.
pub(crate) const IN_XDP: &[&str] = &["-xdp", "native"];
/// By the daemon's socket.
pub(crate) const BY_SOCKET: &[&str] = &["-xdp", "off"];

/// Starts a daemon with these groups of flags and puts its threads on the server's core.
///
/// # Errors
/// It is not ready in time.
pub(crate) fn start<'a>(binary: &Path, fabric: &'a Fabric, groups: &[&[&str]]) -> Result<Daemon<'a>> {
    let flags = flags(groups);
    let mut daemon = Daemon::start(binary, &fabric.host("endpoint")?.ns, &flags)
        .with_context(|| format!("a daemon with {}", flags.join(" ")))?;
    on_server_core(daemon.child().id())?;
    Ok(daemon)
}

/// All flags in their order; a later one of the same name counts.
pub(crate) fn flags<'a>(groups: &[&[&'a str]]) -> Vec<&'a str> {
    ALWAYS.iter().copied().chain(groups.iter().flat_map(|group| group.iter().copied())).collect()
}

/// Fills the cache with frames 1 to `count` of one flow and sees that all of them are in it.
///
/// # Errors
/// Some are not, after six attempts in a row at ever lower rates.
pub(crate) fn fill(rig: &mut Rig, daemon: &Daemon<'_>, count: u64, length: usize) -> Result<()> {
    fill_flows(rig, daemon, 1, count, length)
}

/// As [`fill`], with frames of so many flows.
///
/// # Errors
/// As [`fill`].
pub(crate) fn fill_flows(rig: &mut Rig, daemon: &Daemon<'_>, flows: u64, count: u64, length: usize) -> Result<()> {
    let (mut rate, mut held, mut attempts) = (FILL_RATE, 0, 0);
    while held < count {
        let chunk = CHUNK.min(count - held);
        rig.send_frames_of(flows, held + 1, u32::try_from(chunk)?, length, Some(rate))?;
        std::thread::sleep(Duration::from_millis(100));
        // Among a million keys a few buckets of the index are full, and give up their oldest frame for a new one.
        let metrics = daemon.metrics()?;
        let given_up = metrics.count("bre_cache_evicted_total", &[("reason", "bucket_full")]);
        let found = metrics.count("bre_cache_size", &[]) + given_up;
        ensure!(given_up * 10_000 <= held + chunk, "{given_up} of {} frames had no room in the index", held + chunk);
        if found == held + chunk {
            (held, attempts) = (found, 0);
            continue;
        }
        attempts += 1;
        ensure!(attempts < 6, "{found} of {} frames are in the cache", held + chunk);
        rate /= 1.6;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{IN_XDP, UNICAST, flags};

    #[test]
    fn groups_of_flags_stand_one_behind_the_other() {
        let all = flags(&[UNICAST, IN_XDP]);
        assert_eq!(all[..2], ["-mc-iface", "eth0"]);
        assert!(all.ends_with(&["-beacon-flags-unicast", "-xdp", "native"]));
    }
}
