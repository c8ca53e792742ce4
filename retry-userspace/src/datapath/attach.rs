//! Attaching the program to interfaces, and what to do when one refuses it.

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, XdpMode};

use super::pins::Pins;
use super::{DatapathError, Mode, Request, chain, program};

pub(super) fn attach(ebpf: &mut Ebpf, request: &Request<'_>, pins: &Pins) -> Result<Vec<FdLink>, DatapathError> {
    let (mode, mode_name) = match request.mode {
        Mode::Native => (XdpMode::Driver, "native"),
        Mode::Skb => (XdpMode::Skb, "skb"),
    };
    let program = program(ebpf, "retry_nack")?;
    program.pin(pins.path("retry_nack")).map_err(|error| pins.error("retry_nack", &error))?;
    let mut links = Vec::new();
    for (name, ifindex) in request.interfaces {
        let refused = |why: String| DatapathError::Attach { interface: name.clone(), mode: mode_name, why };
        let id = program.attach_to_if_index(*ifindex, mode).map_err(|error| refused(explain(&error)))?;
        let link = program.take_link(id).map_err(|error| refused(chain(&error)))?;
        // Without a link there is nothing to pin, and nothing that ends with the daemon.
        let link = FdLink::try_from(link).map_err(|_| {
            refused(
                "its kernel offers no BPF link for it: the driver has no native XDP; use -xdp skb or -xdp off"
                    .to_owned(),
            )
        })?;
        let pin = Pins::link_name(name);
        let pinned = link.pin(pins.path(&pin)).map_err(|error| pins.error(&pin, &error))?;
        links.push(FdLink::from(pinned));
    }
    Ok(links)
}

/// What the system said about an attach, and what to do.
fn explain(error: &ProgramError) -> String {
    let errno = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    let advice = match errno {
        Some(libc::EBUSY) => {
            "another XDP program is attached: remove it with `ip link set dev IFACE xdp off`, or use -xdp off"
        }
        Some(libc::ERANGE) => {
            "its MTU is too large for native XDP (veth 3520, virtio 3506, ixgbe 3050, i40e and ice 3046 bytes): lower it, or use -xdp skb or -xdp off"
        }
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP, or not at this MTU: use -xdp skb or -xdp off",
        Some(libc::EPERM) => "CAP_NET_ADMIN and CAP_BPF are missing: run as root or grant them",
        _ => "use -xdp skb or -xdp off",
    };
    format!("{}; {advice}", chain(error))
}
