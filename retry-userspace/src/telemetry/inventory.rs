//! What this host and this daemon are: one event at start, one metric, and the resource of what goes to a collector.

use std::sync::LazyLock;

use super::SERVICE;
use crate::fabric::Fabric;
use crate::settings::Settings;

/// Facts of the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Its architecture.
    pub arch: String,
    /// CPUs that the daemon may use.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory: u64,
    /// `instance`.
    pub instance: String,
}

impl Host {
    /// The host that this runs on. What cannot be read is empty.
    pub fn here(instance: &str) -> Self {
        static FACTS: LazyLock<Host> = LazyLock::new(|| {
            let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
            let names = nix::sys::utsname::uname().ok();
            let part = |of: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
                names.as_ref().map(|names| text(of(names))).unwrap_or_default()
            };
            Host {
                name: part(nix::sys::utsname::UtsName::nodename),
                kernel: part(nix::sys::utsname::UtsName::release),
                arch: part(nix::sys::utsname::UtsName::machine),
                cpus: std::thread::available_parallelism().map_or(0, usize::from),
                memory: memory().unwrap_or(0),
                instance: String::new(),
            }
        });
        Self { instance: instance.to_owned(), ..FACTS.clone() }
    }

    /// Labels of `bre_host_info`.
    pub fn labels(&self) -> [(&'static str, &str); 5] {
        [
            ("arch", &self.arch),
            ("host", &self.name),
            ("instance", &self.instance),
            ("kernel", &self.kernel),
            ("version", env!("CARGO_PKG_VERSION")),
        ]
    }
}

/// `MemTotal` of /proc/meminfo, which is in KiB.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Tells once what runs where.
pub fn tell(settings: &Settings, fabric: &Fabric, xdp_mode: &str) {
    let host = Host::here(&settings.telemetry.instance);
    let egress: Vec<&str> = fabric.egress.iter().map(|egress| egress.interface.name.as_str()).collect();
    tracing::info!(
        event = "host.inventory",
        service = SERVICE,
        host.name = host.name,
        host.arch = host.arch,
        os.kernel = host.kernel,
        host.cpus = host.cpus,
        host.memory_bytes = host.memory,
        mc_iface = %fabric.ingress.name,
        mc_iface_mtu = fabric.ingress.mtu,
        egress_ifaces = %egress.join(","),
        nack_addr = %fabric.nack_addr,
        xdp = xdp_mode,
        cache_memory_bytes = settings.cache.memory.saturating_add(settings.cache.memory_long),
        "host.inventory"
    );
}
