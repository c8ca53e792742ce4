//! What this host and this daemon are: labels of one metric, fields of the event at start, and the resource of what goes to a
//! collector.

use std::sync::LazyLock;

/// The commit that the daemon was built from; `unknown` for a build outside its repository.
pub(crate) const COMMIT: &str = env!("RETRY_COMMIT");

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_this_one() {
        let host = Host::here("i");
        assert_eq!(host.name, nix::unistd::gethostname().expect("a name").to_string_lossy());
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
        assert_eq!((host.kernel.as_str(), host.arch.as_str()), (release.trim_end(), std::env::consts::ARCH));
        assert_eq!((host.instance.as_str(), Host::here("j").instance.as_str()), ("i", "j"));
        assert!(host.cpus > 0 && host.memory > 64 << 20, "{host:?}");
    }
}
