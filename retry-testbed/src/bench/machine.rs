//! What the figures were measured on.

/// Cores, processor, kernel and the links' MTU in one line.
pub(super) fn describe(mtu: u16) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} x {model}, Linux {}, MTU {mtu}", read("/proc/sys/kernel/osrelease").trim())
}
