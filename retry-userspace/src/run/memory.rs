//! Whether the host has the memory that the frame log asks for.

use std::fs;
use std::path::{Path, PathBuf};

use crate::datapath::inspect;
use crate::framelog::Sizes;
use crate::settings::{Settings, XdpMode};

/// Less memory than the frame log asks for.
#[derive(Debug, thiserror::Error)]
#[error(
    "-cache-memory, -cache-memory-long: the frame log takes {asked} MiB, and {limit} leaves {there} MiB: ask for less, or \
     give it more; what an earlier daemon left is freed by `retry-endpoint detach`"
)]
pub struct TooLittle {
    /// MiB that the frame log takes.
    pub asked: u64,
    /// MiB that there are.
    pub there: u64,
    /// What says so.
    pub limit: String,
}

/// Holds the sizes against what this host and this process's control groups have. What an earlier daemon left, and this one
/// goes on with or frees, is there.
///
/// # Errors
/// [`TooLittle`], with the smallest of them. A limit that cannot be read is none.
pub(crate) fn check(settings: &Settings) -> Result<(), TooLittle> {
    let sizes = Sizes::from(settings);
    let parts = [sizes.ring_len(), sizes.index_len(), sizes.hold_down_len(), sizes.lanes_len()];
    let asked = parts.into_iter().sum::<usize>() as u64;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limits_of(Path::new("/sys/fs/cgroup"), &groups);
    let held = left_behind(settings, sizes);
    let available = available().map(|(limit, bytes)| (limit, bytes + held));
    check_against(asked, available.into_iter().chain(limits))
}

/// Bytes of the frame log that an earlier daemon on this interface left, unless it is read over and both logs are needed.
fn left_behind(settings: &Settings, sizes: Sizes) -> u64 {
    let root = &settings.xdp.bpffs;
    let Ok(own) = inspect::directory_name(root, &settings.ingress.mc_iface) else { return 0 };
    let states = inspect::states(root).unwrap_or_default();
    let Some(state) = states.iter().find(|state| state.directory == root.join(&own)) else { return 0 };
    let is_read_over = settings.xdp.handover
        && settings.xdp.mode != XdpMode::Off
        && usize::try_from(state.ring_bytes) != Ok(sizes.ring_len());
    // The index is in proportion.
    let freed = state.waiting_bytes + if is_read_over { 0 } else { state.ring_bytes };
    freed + freed / 8
}

fn check_against(asked: u64, limits: impl Iterator<Item = (String, u64)>) -> Result<(), TooLittle> {
    match limits.min_by_key(|(_, bytes)| *bytes) {
        Some((limit, there)) if there < asked => Err(TooLittle { asked: asked >> 20, there: there >> 20, limit }),
        _ => Ok(()),
    }
}

/// `MemAvailable` of /proc/meminfo, which has it in KiB.
fn available() -> Option<(String, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(("MemAvailable of /proc/meminfo".to_owned(), kib << 10))
}

/// `memory.max` of the control group of version 2 that `groups`, a /proc/self/cgroup, names below `root`, and of those
/// above it.
fn limits_of(root: &Path, groups: &str) -> Vec<(String, u64)> {
    let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let limit = |directory: &Path| {
        let file: PathBuf = directory.join("memory.max");
        let bytes = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        Some((file.display().to_string(), bytes))
    };
    root.join(own).ancestors().take_while(|directory| directory.starts_with(root)).filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_decides() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("pods/one");
        fs::create_dir_all(&inner).expect("made");
        fs::write(root.path().join("pods/memory.max"), "1073741824\n").expect("written");
        fs::write(inner.join("memory.max"), "max\n").expect("written");
        let limits = limits_of(root.path(), "1:cpu:/x\n0::/pods/one\n");
        let outer = root.path().join("pods/memory.max").display().to_string();
        assert_eq!(limits, [(outer.clone(), 1 << 30)]);
        assert!(limits_of(root.path(), "1:memory:/x\n").is_empty());
        let host = || [("host".to_owned(), 4 << 30)].into_iter().chain(limits.clone());
        assert!(check_against(1 << 30, host()).is_ok());
        let refused = check_against(2 << 30, host()).expect_err("too much").to_string();
        assert!(refused.contains("2048 MiB") && refused.contains("1024 MiB") && refused.contains(&outer), "{refused}");
    }
}
