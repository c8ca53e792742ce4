//! Attaching the program to interfaces, and what to do when one refuses it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpError;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya_obj::programs::XdpAttachType;

use super::adopt::{self, Left, PROGRAM};
use super::pins::Pins;
use super::sent::Prober;
use super::{Config, DatapathError, Mode, chain, pin_name, program};
use crate::net::interface::{self, Interface};

/// The program, and the interfaces that it is attached to. Dropping it detaches it, once the pins are gone.
pub struct Attachments {
    program: Xdp,
    program_id: u32,
    mode: Mode,
    /// None once the daemon ends.
    pins: Option<Arc<Pins>>,
    links: Vec<Attached>,
    /// Name and index of interfaces that the program is yet to be put in place on, beside what an earlier daemon left; and
    /// whether the link that it left there can change to this program.
    unchanged: Vec<(String, u32, bool)>,
    prober: Prober,
}

struct Attached {
    path: PathBuf,
    _link: FdLink,
}

impl Attachments {
    /// Attached to each of the interfaces; where an earlier daemon left its program, to none: that serves until
    /// [`Attachments::change_links`], and until then no link runs this program.
    pub(super) fn open(
        ebpf: &mut Ebpf,
        config: &Config,
        pins: &Arc<Pins>,
        left: Option<&Left>,
    ) -> Result<Self, DatapathError> {
        let refused = |error: ProgramError| DatapathError::Load(chain(&error));
        let loaded = program(ebpf, PROGRAM)?;
        let pin = pin_name(PROGRAM, left.is_some());
        let path = pins.path(&pin);
        loaded.pin(&path).map_err(|error| pins.error(&pin, &error))?;
        // A handle of its own: attaching waits for other users of the network stack, which nothing else has to.
        let program = Xdp::from_pin(&path, XdpAttachType::Interface).map_err(refused)?;
        let program_id = program.info().map_err(refused)?.id();
        let mut attachments = Self {
            program,
            program_id,
            mode: config.mode,
            pins: Some(Arc::clone(pins)),
            links: Vec::new(),
            unchanged: Vec::new(),
            prober: Prober::open(ebpf, pins)?,
        };
        for (name, ifindex) in &config.interfaces.all {
            match left {
                Some(left) => attachments.unchanged.push((name.clone(), *ifindex, left.is_mode(config.mode))),
                None => attachments.attach(name, *ifindex)?,
            }
        }
        Ok(attachments)
    }

    /// Changes the links of an earlier daemon to this program, and ends those of interfaces that are not served any more.
    pub(super) fn change_links(&mut self) -> Result<(), DatapathError> {
        let Some(pins) = self.pins.clone() else { return Ok(()) };
        for (name, ifindex, can_change) in std::mem::take(&mut self.unchanged) {
            let pin = Pins::link_name(&name);
            let changed =
                if can_change { adopt::change_link(&mut self.program, &pins, &pin, ifindex) } else { Ok(None) };
            match changed {
                Ok(Some(link)) => self.links.push(Attached { path: pins.path(&pin), _link: link }),
                // The interface is new, has come back, or gets another mode. Where it refuses, the follower says so, tries
                // again, and lets the daemon's socket answer meanwhile.
                Ok(None) => {
                    if let Err(error) = self.attach(&name, ifindex) {
                        tracing::warn!(%error, "the kernel program is not attached");
                    }
                }
                Err(error) => {
                    let why = explain(&error, &name, self.mode);
                    return Err(DatapathError::Attach { interface: name, mode: self.mode.name(), why });
                }
            }
        }
        let names = pins.names().map_err(|error| pins.error(PROGRAM, &error))?;
        for name in names.iter().filter(|name| Pins::is_link(name)) {
            let path = pins.path(name);
            if !self.links.iter().any(|link| link.path == path) {
                self.forget(&path).map_err(|error| pins.error(name, &error))?;
            }
        }
        Ok(())
    }

    /// Id of the program, as the kernel tells it of an interface.
    #[must_use]
    pub const fn program_id(&self) -> u32 {
        self.program_id
    }

    /// How it is attached.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Attaches the program to an interface, in place of the link that the interface of this name had.
    ///
    /// # Errors
    /// [`DatapathError::Attach`] says what to do.
    pub fn attach(&mut self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        let mode_name = self.mode.name();
        let mode = match self.mode {
            Mode::Native => XdpMode::Driver,
            Mode::Skb => XdpMode::Skb,
        };
        let refused = |why: String| DatapathError::Attach { interface: name.to_owned(), mode: mode_name, why };
        let Some(pins) = &self.pins else {
            return Err(refused("the daemon ends".to_owned()));
        };
        let (pins, pin) = (Arc::clone(pins), Pins::link_name(name));
        let path = pins.path(&pin);
        // One that lost its interface, or was detached, holds on to nothing.
        self.forget(&path).map_err(|error| pins.error(&pin, &error))?;
        let id = self
            .program
            .attach_to_if_index(ifindex, mode)
            .map_err(|error| refused(explain(&error, name, self.mode)))?;
        let link = self.program.take_link(id).map_err(|error| refused(chain(&error)))?;
        // Without a link there is nothing to pin, and nothing that ends with the daemon.
        let link = FdLink::try_from(link).map_err(|_| {
            refused(
                "its kernel offers no BPF link for it: the driver has no native XDP; use -xdp skb or -xdp off"
                    .to_owned(),
            )
        })?;
        let pinned = link.pin(&path).map_err(|error| pins.error(&pin, &error))?;
        self.links.push(Attached { path, _link: FdLink::from(pinned) });
        Ok(())
    }

    /// Sends a frame that no host does anything with by an interface, at `place` among all of the last
    /// [`super::Datapath::adapt`]; [`super::Datapath::delivered`] says whether it was taken. It takes some 30 ms.
    ///
    /// # Errors
    /// The kernel has no such test runs (before Linux 5.18).
    pub fn probe(&self, place: usize, ifindex: u32, mac: [u8; 6]) -> Result<(), DatapathError> {
        self.prober.send(u8::try_from(place).unwrap_or(u8::MAX), ifindex, mac)
    }

    /// Detaches the program from every interface.
    pub fn detach_all(&mut self) {
        for path in self.links.iter().map(|link| link.path.clone()).collect::<Vec<_>>() {
            if let Err(error) = self.forget(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove a pin");
            }
        }
    }

    /// Attaches nothing any more; removing the pins detaches.
    pub(super) fn end(&mut self) {
        self.links.clear();
        self.pins = None;
    }

    /// Gives up the link that is pinned there, if there is one.
    fn forget(&mut self, path: &std::path::Path) -> io::Result<()> {
        self.links.retain(|link| link.path != path);
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The longest MTU, bytes, at which these drivers run a program on packets of one buffer.
const ONE_BUFFER: [(&str, u32); 7] = [
    ("veth", 3506),
    ("virtio_net", 3506),
    ("ixgbe", 3050),
    ("i40e", 3046),
    ("ice", 3046),
    ("igb", 3046),
    ("gve", 2032),
];

/// The longest MTU, bytes, at which the driver of this name takes the program, which handles packets of several buffers;
/// `None` where there is no limit, or none that is known.
///
/// `several_buffers` is what the driver says of such packets; before Linux 6.3 it does not say it, and of these drivers only
/// veth takes them.
pub(crate) fn native_mtu(driver: &str, several_buffers: Option<bool>) -> Option<u32> {
    if several_buffers.unwrap_or(driver == "veth") {
        return None;
    }
    ONE_BUFFER.iter().find(|(name, _)| *name == driver).map(|(_, most)| *most)
}

/// What the system said about an attach, and what to do.
fn explain(error: &ProgramError, name: &str, mode: Mode) -> String {
    let errno = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        // Tried by aya where a link is refused with EINVAL.
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    let advice = advice(errno, mode, || {
        let mtu = Interface::by_name(name).ok()?.mtu;
        Some((interface::driver(name).unwrap_or_else(|_| "unknown".to_owned()), mtu))
    });
    format!("{}; {advice}", chain(error))
}

/// What to do about this error; `link` tells the driver and the MTU of the interface.
fn advice(errno: Option<i32>, mode: Mode, link: impl Fn() -> Option<(String, u32)>) -> String {
    const OTHERWISE: &str = "use -xdp skb or -xdp off";
    match errno {
        Some(libc::EBUSY) => {
            "another XDP program is attached: remove it with `ip link set dev IFACE xdp off`, or use -xdp off"
                .to_owned()
        }
        // Drivers say either: veth the first, virtio_net and ixgbe the second.
        Some(libc::ERANGE | libc::EINVAL) if mode == Mode::Native => {
            let limits: Vec<_> = ONE_BUFFER.iter().map(|(driver, most)| format!("{driver} {most}")).collect();
            let limits = limits.join(", ");
            let (driver, mtu) = link().unwrap_or_else(|| ("unknown".to_owned(), 0));
            match native_mtu(&driver, Some(false)) {
                Some(most) if mtu > most => format!(
                    "the MTU {mtu} is too large for native XDP by this driver, {driver}, on this kernel, which takes {most}: \
                     lower it, or {OTHERWISE}"
                ),
                Some(_) => format!("the driver {driver} refuses native XDP: LRO must be off; or {OTHERWISE}"),
                None => format!(
                    "the driver {driver} refuses native XDP: its MTU {mtu} may be too large (drivers without packets of \
                     several buffers take up to: {limits} bytes), or LRO is on; lower the MTU, or {OTHERWISE}"
                ),
            }
        }
        Some(libc::EOPNOTSUPP) => format!("the driver has no native XDP, or not at this MTU: {OTHERWISE}"),
        Some(libc::EPERM) => "CAP_NET_ADMIN and CAP_BPF are missing: run as root or grant them".to_owned(),
        _ => OTHERWISE.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_limited_where_packets_have_one_buffer() {
        assert_eq!(native_mtu("virtio_net", Some(false)), Some(3506));
        assert_eq!(native_mtu("virtio_net", Some(true)), None);
        // Linux 6.1 does not say.
        assert_eq!((native_mtu("virtio_net", None), native_mtu("veth", None)), (Some(3506), None));
        assert_eq!(native_mtu("unheard_of", Some(false)), None);
    }

    #[test]
    fn a_refusal_comes_with_its_advice() {
        let link = |driver: &str, mtu| Some((driver.to_owned(), mtu));
        let told = |errno, mode, driver, mtu| advice(Some(errno), mode, || link(driver, mtu));
        for errno in [libc::ERANGE, libc::EINVAL] {
            let text = told(errno, Mode::Native, "virtio_net", 9000);
            assert!(text.starts_with("the MTU 9000 is too large for native XDP by this driver, virtio_net"), "{text}");
            assert!(text.contains("takes 3506: lower it"), "{text}");
            let text = told(errno, Mode::Native, "virtio_net", 1500);
            assert!(!text.contains("MTU") && text.contains("LRO"), "{text}");
            let text = told(errno, Mode::Native, "unheard_of", 9000);
            assert!(text.contains("its MTU 9000 may be too large") && text.contains("ixgbe 3050"), "{text}");
        }
        assert_eq!(told(libc::EINVAL, Mode::Skb, "virtio_net", 9000), "use -xdp skb or -xdp off");
        assert!(told(libc::EBUSY, Mode::Native, "veth", 9000).contains("another XDP program"));
        assert_eq!(advice(None, Mode::Native, || None), "use -xdp skb or -xdp off");
    }
}
