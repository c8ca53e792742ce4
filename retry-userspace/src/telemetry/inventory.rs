//! What this host and this daemon are: one event at start, one metric, and the resource of what goes to a collector.

use std::path::Path;
use std::sync::LazyLock;

use super::SERVICE;
use crate::fabric::Fabric;
use crate::net::interface::Interface;
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

/// The driver of an interface by the links under `sys`, which is `/sys`; `-` for one without a device, as veth and
/// bridges are, and for one that cannot be read.
fn driver(sys: &Path, interface: &Interface) -> String {
    let link = sys.join("class/net").join(&interface.name).join("device/driver");
    let target = std::fs::read_link(link).ok();
    let name = target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "-".to_owned())
}

/// Tells once what runs where.
pub fn tell(settings: &Settings, fabric: &Fabric, xdp_mode: &str) {
    let host = Host::here(&settings.telemetry.instance);
    let egress = |of: &dyn Fn(&Interface) -> String| {
        let each: Vec<String> = fabric.egress.iter().map(|egress| of(&egress.interface)).collect();
        each.join(",")
    };
    let sys = Path::new("/sys");
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
        mc_iface_driver = %driver(sys, &fabric.ingress),
        egress_ifaces = %egress(&|interface| interface.name.clone()),
        egress_mtus = %egress(&|interface| interface.mtu.to_string()),
        egress_drivers = %egress(&|interface| driver(sys, interface)),
        nack_addr = %fabric.nack_addr,
        xdp = xdp_mode,
        cache_memory_bytes = settings.cache.memory.saturating_add(settings.cache.memory_long),
        "host.inventory"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::{interface, object_of};

    #[test]
    fn the_host_is_this_one() {
        let host = Host::here("i");
        assert_eq!(host.name, nix::unistd::gethostname().expect("a name").to_string_lossy());
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
        assert_eq!((host.kernel.as_str(), host.arch.as_str()), (release.trim_end(), std::env::consts::ARCH));
        assert_eq!((host.instance.as_str(), Host::here("j").instance.as_str()), ("i", "j"));
        assert!(host.cpus > 0 && host.memory > 64 << 20, "{host:?}");
    }

    #[test]
    fn the_driver_is_where_the_link_leads() {
        let sys = tempfile::tempdir().expect("a directory");
        let device = sys.path().join("class/net/eth0/device");
        std::fs::create_dir_all(&device).expect("made");
        std::os::unix::fs::symlink("../../../../bus/pci/drivers/mlx5_core", device.join("driver")).expect("made");
        assert_eq!(driver(sys.path(), &interface("eth0", 1500)), "mlx5_core");
        assert_eq!(driver(sys.path(), &interface("veth0", 1500)), "-");
    }

    #[test]
    fn one_event_tells_what_runs_where() {
        let (near, far) = (interface("near0", 9000), interface("far0", 1500));
        let source = std::net::Ipv6Addr::LOCALHOST;
        let egress = [&near, &far].map(|interface| crate::fabric::Egress { interface: interface.clone(), source });
        let fabric = Fabric { ingress: near.clone(), nack: near, nack_addr: source, egress: egress.into() };
        let object = object_of(&["-cache-memory=16m", "-cache-memory-long=16m"], |settings| {
            tell(settings, &fabric, "native");
        });
        let host = Host::here("endpoint-1");
        for (name, value) in [
            ("event", "host.inventory".into()),
            ("host.name", host.name.into()),
            ("host.arch", host.arch.into()),
            ("os.kernel", host.kernel.into()),
            ("host.cpus", host.cpus.into()),
            ("host.memory_bytes", host.memory.into()),
            ("mc_iface", "near0".into()),
            ("mc_iface_mtu", 9000.into()),
            ("mc_iface_driver", "-".into()),
            ("egress_ifaces", "near0,far0".into()),
            ("egress_mtus", "9000,1500".into()),
            ("egress_drivers", "-,-".into()),
            ("nack_addr", "::1".into()),
            ("xdp", "native".into()),
            ("cache_memory_bytes", (32 << 20).into()),
        ] {
            let value: serde_json::Value = value;
            assert_eq!(object[name], value, "{name}");
        }
    }
}
