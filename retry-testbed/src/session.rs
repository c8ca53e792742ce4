//! What the demo and the cluster stand on: tools that must be there, signals that end a run in order, pins of this run.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use retry_testbed::daemon;

/// A run's pins stand in a directory of this name and the process id.
const PINS: &str = "retry-endpoint-testbed-";

/// Looks for programs, each given with the Debian package that brings it.
pub(crate) fn look_for(tools: &[(&str, &str)]) -> Result<()> {
    for (tool, package) in tools {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|directory| directory.join(tool).is_file());
        ensure!(found, "{tool} is missing (Debian package {package})");
    }
    Ok(())
}

/// A flag that is set by SIGINT, SIGTERM or SIGHUP: the run then takes its fabric down in order.
///
/// Called before any other thread exists, so that every thread inherits the mask.
pub(crate) fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    thread::spawn(move || {
        while signals.wait().is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    });
    Ok(stop)
}

/// An error once the run is to stop.
pub(crate) fn check(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        bail!("stopped");
    }
    Ok(())
}

/// bpffs for the run: unmounted at the end if this run mounted it, and without this run's pins in any case.
pub(crate) struct Bpffs {
    mounted: bool,
}

impl Bpffs {
    /// Mounts it unless it is there, and clears what runs left that were killed.
    pub(crate) fn mount() -> Result<Self> {
        let mounted = daemon::mount_bpffs()?;
        for entry in std::fs::read_dir(daemon::BPFFS)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix(PINS).and_then(|pid| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { mounted })
    }

    /// `-bpffs` for every daemon of this run: each namespace has a directory of its own below.
    pub(crate) fn pins() -> String {
        format!("{}/{PINS}{}", daemon::BPFFS, std::process::id())
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // A daemon removes its pins; the directory is ours. Absent is as good.
        let _ = std::fs::remove_dir_all(Self::pins());
        if self.mounted {
            // Another process may use it by now: then it stays.
            let _ = nix::mount::umount(daemon::BPFFS);
        }
    }
}
