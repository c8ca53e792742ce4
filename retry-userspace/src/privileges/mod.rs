//! What the process may do: its capabilities (capabilities(7)), no new privileges (prctl(2)), and its system calls.
//!
//! All three belong to a thread, and new threads inherit them. So they are settled before the first thread is started.

mod seccomp;

use std::io::{self, Write as _};

use caps::{CapSet, Capability, CapsHashSet};
use procfs::process::Process;

use crate::settings::{SeccompMode, Settings, XdpMode};

pub use seccomp::install as filter_system_calls;

/// Ports below this one need CAP_NET_BIND_SERVICE, unless `net.ipv4.ip_unprivileged_port_start` says otherwise.
const FIRST_OPEN_PORT: u16 = 1024;

/// Puts in force what the process may have: the permitted capabilities become effective ones.
///
/// The program in the container image has its capabilities as file capabilities that are permitted and not effective. A kernel
/// refuses to start a program whose effective file capabilities it may not have: the endpoint would not start in a pod without
/// capabilities, where it answers by its socket.
///
/// To be called before threads are started: capabilities belong to a thread, and new ones inherit them.
pub fn raise() {
    let raised = caps::read(None, CapSet::Permitted).and_then(|permitted| {
        let effective = caps::read(None, CapSet::Effective)?;
        if permitted == effective { Ok(()) } else { caps::set(None, CapSet::Effective, &permitted) }
    });
    if let Err(error) = raised {
        // What lacks a capability says so later, and names it.
        let _ = writeln!(io::stderr(), "retry-endpoint: permitted capabilities stay without effect: {error}");
    }
}

/// The capabilities that a daemon with these settings uses, at its start or later.
///
/// What it opens once it opens again when an interface is re-created or an address changes, so nothing is for the start alone but
/// mounting bpffs, which comes before.
fn used_with(settings: &Settings) -> CapsHashSet {
    // Buffers beyond net.core.rmem_max, and the neighbour table.
    let mut used = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
    if settings.xdp.mode != XdpMode::Off {
        used.extend([Capability::CAP_BPF, Capability::CAP_PERFMON]);
    }
    if !settings.ingress.rejoin_interval.is_zero() {
        used.insert(Capability::CAP_NET_RAW);
    }
    let admin = &settings.admin;
    let tcp = [Some(admin.metrics_addr), admin.addr].into_iter().flatten().map(|address| address.port());
    let tee = settings.ingress.tee.map(|address| address.port());
    let mut ports = tcp.chain(tee).chain([settings.nack.port, settings.ingress.listen_port]);
    if ports.any(|port| (1..FIRST_OPEN_PORT).contains(&port)) {
        used.insert(Capability::CAP_NET_BIND_SERVICE);
    }
    used
}

/// Gives up, for good, all capabilities but those that a daemon with these settings uses, and the right to get others by starting
/// a program. To be called before threads are started.
///
/// `besides` are kept as well.
///
/// # Errors
/// What the kernel, or a filter of a service manager, refuses. What was given up before stays given up.
pub(crate) fn give_up_unused(settings: &Settings, besides: &[Capability]) -> io::Result<()> {
    let mut used = used_with(settings);
    used.extend(besides);
    give_up_all_but(&used)
}

/// What `look` finds while the calling thread may use files as its user may, without root's rights to all of them. To be called
/// before threads are started.
///
/// # Errors
/// The kernel does not tell which capabilities the thread has, or does not give them back.
pub(crate) fn without_rights_to_files<T>(look: impl FnOnce() -> T) -> io::Result<T> {
    let fail = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    let before = caps::read(None, CapSet::Effective).map_err(fail)?;
    let rights = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];
    let without: CapsHashSet = before.iter().copied().filter(|one| !rights.contains(one)).collect();
    if without == before {
        return Ok(look());
    }
    caps::set(None, CapSet::Effective, &without).map_err(fail)?;
    let found = look();
    caps::set(None, CapSet::Effective, &before).map_err(fail)?;
    Ok(found)
}

/// Gives up every capability. The holder of sockets needs none.
///
/// # Errors
/// As [`give_up_unused`].
pub(crate) fn give_up_all() -> io::Result<()> {
    give_up_all_but(&CapsHashSet::new())
}

fn give_up_all_but(used: &CapsHashSet) -> io::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    narrow(used).map_err(|error| io::Error::other(error.to_string()))
}

/// Every set of the calling thread, in the order in which the kernel lets go: bounding first, which takes CAP_SETPCAP.
fn narrow(used: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for one in caps::read(None, CapSet::Bounding)?.difference(used) {
            caps::drop(None, CapSet::Bounding, *one)?;
        }
    }
    if !caps::read(None, CapSet::Ambient)?.is_empty() {
        caps::clear(None, CapSet::Ambient)?;
    }
    let kept: CapsHashSet = permitted.intersection(used).copied().collect();
    // A service manager's filter may refuse the call: it is made where something changes.
    for set in [CapSet::Effective, CapSet::Permitted] {
        if caps::read(None, set)? != kept {
            caps::set(None, set, &kept)?;
        }
    }
    if !caps::read(None, CapSet::Inheritable)?.is_empty() {
        caps::clear(None, CapSet::Inheritable)?;
    }
    Ok(())
}

/// What the process may do, as the kernel has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rights {
    /// Effective capabilities, in the order of their numbers, such as `CAP_BPF`.
    pub capabilities: Vec<String>,
    /// It gets no other ones by starting a program.
    pub no_new_privileges: bool,
    /// `on`, `log` or `off`: whether the kernel refuses system calls that the daemon does not use, or logs them.
    pub seccomp: &'static str,
}

impl Default for Rights {
    fn default() -> Self {
        Self { capabilities: Vec::new(), no_new_privileges: false, seccomp: SeccompMode::Off.name() }
    }
}

impl Rights {
    /// Of the calling thread, whose filter was asked for with `seccomp`.
    ///
    /// # Errors
    /// /proc does not tell.
    pub(crate) fn read(seccomp: SeccompMode) -> io::Result<Self> {
        let fail = |error: procfs::ProcError| io::Error::other(error.to_string());
        let status = Process::myself().and_then(|process| process.status()).map_err(fail)?;
        let mut held: Vec<Capability> =
            caps::all().into_iter().filter(|one| status.capeff & one.bitmask() != 0).collect();
        held.sort_by_key(Capability::index);
        Ok(Self {
            capabilities: held.iter().map(ToString::to_string).collect(),
            no_new_privileges: status.nonewprivs == Some(1),
            // A filter of another program is not this one's.
            seccomp: if status.seccomp == Some(FILTERED) { seccomp.name() } else { SeccompMode::Off.name() },
        })
    }
}

/// SECCOMP_MODE_FILTER in /proc/PID/status.
const FILTERED: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own: capabilities belong to the thread.
    fn apart(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().expect("no panic");
    }

    fn with(more: &[&str]) -> Vec<String> {
        let args = ["retry-endpoint", "-mc-iface", "lo"].iter().chain(more).map(Into::into);
        let settings = Settings::from_args_and_env(args, |_| None::<std::ffi::OsString>).expect("settings");
        let mut names: Vec<String> = used_with(&settings).iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_permitted_becomes_effective() {
        apart(|| {
            let permitted = caps::read(None, CapSet::Permitted).expect("readable");
            caps::clear(None, CapSet::Effective).expect("its own");
            raise();
            assert_eq!(caps::read(None, CapSet::Effective).expect("readable"), permitted);
        });
    }

    #[test]
    fn what_is_used_follows_from_the_settings() {
        let all = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"];
        assert_eq!(with(&["-xdp", "native", "-mc-rejoin-interval", "30s"]), all);
        assert_eq!(with(&["-xdp", "off", "-mc-rejoin-interval", "0"]), ["CAP_NET_ADMIN"]);
        for low in
            [["-nack-port", "930"], ["-listen-port", "901"], ["-metrics-addr", ":80"], ["-admin-addr", "[::1]:443"]]
        {
            let names = with(&[&["-xdp", "off", "-mc-rejoin-interval", "0"], &low[..]].concat());
            assert_eq!(names, ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"], "{low:?}");
        }
        assert_eq!(with(&["-xdp", "off", "-mc-rejoin-interval", "0", "-metrics-addr", ":0"]), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn what_is_given_up_is_in_no_set() {
        apart(|| {
            give_up_all().expect("its own");
            let is_root = nix::unistd::geteuid().is_root();
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient, CapSet::Bounding] {
                let held = caps::read(None, set).expect("readable");
                // Without CAP_SETPCAP the bounding set is what it was.
                assert!(held.is_empty() || (matches!(set, CapSet::Bounding) && !is_root), "{set:?}: {held:?}");
            }
        });
    }
}
