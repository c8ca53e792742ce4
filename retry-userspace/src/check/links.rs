//! The interfaces that the settings name: addresses, links, drivers, XDP, multicast.

use std::io;
use std::net::SocketAddrV6;
use std::time::Duration;

use super::device::{self, XDP_BASIC, XDP_FRAGS, XDP_XMIT};
use super::finding::Finding;
use super::host::no_xdp;
use crate::datapath::{self, inspect, kernel_settings, native_mtu};
use crate::fabric::{Fabric, FabricError, Names};
use crate::interfaces::plan::{Seen, problems};
use crate::interfaces::watch::{BridgeSettings, Watch, WatchError};
use crate::net::interface::{self, AddressState, Interface};
use crate::net::{bound, mld};
use crate::settings::{Settings, XdpMode};

/// A receive ring below this overflows when a burst meets a busy processor.
const SHORT_RING: u32 = 512;

/// What the kernel shows of its links.
pub(super) struct Links {
    seen: Seen,
    fabric: Result<Fabric, FabricError>,
    /// The bridge that the fabric interface is, or is a port of.
    bridge: Option<BridgeSettings>,
}

impl Links {
    /// Looks at all links of this network namespace.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub(super) async fn look(settings: &Settings) -> Result<Self, WatchError> {
        let names = Names::from(settings);
        let mut watch = Watch::open()?;
        let seen = watch.look(&names).await?;
        let bridge = watch.bridge_of(&names.ingress).await?;
        let fabric = Fabric::among(&seen.interfaces, &names);
        Ok(Self { seen, fabric, bridge })
    }

    /// Everything about them.
    pub(super) fn judge(&self, settings: &Settings, listen: Option<Duration>) -> Vec<Finding> {
        let fabric = match &self.fabric {
            Ok(fabric) => fabric,
            // Without the interfaces there is nothing more to look at.
            Err(error) => {
                return vec![
                    Finding::red("fabric", error.to_string(), "give the interface its address, or correct the setting")
                        .see("The daemon is not ready"),
                ];
            }
        };
        let mut findings = vec![self.fabric_line(settings, fabric), nack_port(settings, fabric)];
        if settings.xdp.mode != XdpMode::Off {
            findings.push(programs(settings, fabric));
            for (name, index) in fabric.attach_to() {
                if let Ok(interface) = Interface::among(&self.seen.interfaces, &name) {
                    findings.push(self.attached(settings, interface));
                    findings.push(native(settings, interface));
                    findings.push(offloads(&name, index));
                }
            }
        }
        for (name, index) in fabric.attach_to() {
            findings.extend([queues(&name, index), ring(&name, index)]);
        }
        findings.push(snooping(self.bridge.as_ref(), &fabric.ingress, listen));
        findings
    }

    fn fabric_line(&self, settings: &Settings, fabric: &Fabric) -> Finding {
        let names = Names { nack_addr: Some(fabric.nack_addr), ..Names::from(settings) };
        let mut wrong = problems(&names, &self.seen.interfaces);
        let address = fabric.nack.addresses.iter().find(|address| address.ip == fabric.nack_addr);
        if address.is_some_and(|address| address.state == AddressState::Unusable) {
            wrong.push(format!(
                "{}: duplicate address detection has not ended, or has found a duplicate",
                fabric.nack_addr
            ));
        }
        let shown = format!("{} with {} takes NACKs", fabric.nack.name, fabric.nack_addr);
        if !wrong.is_empty() {
            return Finding::red(
                "fabric",
                wrong.join("; "),
                "bring the link up, with an address and 1280 bytes or more",
            )
            .see("The daemon is not ready");
        }
        if address.is_some_and(|address| address.state == AddressState::Passing) {
            let advice = "give the interface a static address, or name one with -nack-addr";
            return Finding::yellow("fabric", format!("{shown}: the address is temporary or deprecated"), advice)
                .see("The daemon is not ready");
        }
        if let Some(narrow) = fabric.narrow().next() {
            let found =
                format!("{shown}; the other end of {} takes {} bytes of {}", narrow.name, narrow.reach(), narrow.mtu);
            return Finding::yellow("fabric", found, "set the same MTU on both ends")
                .see("Answers are lost at an interface");
        }
        Finding::green("fabric", shown)
    }

    /// Which program is on an interface already.
    fn attached(&self, settings: &Settings, interface: &Interface) -> Finding {
        const NAME: &str = "xdp_program";
        let Interface { name, index, .. } = interface;
        let Some(program) = self.seen.programs.get(index) else {
            return Finding::green(NAME, format!("{name}: none is attached"));
        };
        let states = match inspect::states(&settings.xdp.bpffs) {
            Ok(states) => states,
            Err(error) => {
                return Finding::unknown(
                    NAME,
                    format!("{name}: program {program} is attached: {error}"),
                    "run this as root",
                );
            }
        };
        match states.iter().find(|state| state.links.iter().any(|(_, linked)| linked == index)) {
            Some(state) if state.is_served => {
                Finding::green(NAME, format!("{name}: program {program} is that of a daemon that runs"))
            }
            Some(_) => Finding::green(
                NAME,
                format!("{name}: program {program} is that of an earlier daemon, to be taken over"),
            ),
            None => no_xdp(
                settings,
                NAME,
                format!("{name}: program {program} of another owner is attached"),
                &format!("find its owner with `bpftool net`, and remove it: ip link set dev {name} xdp off"),
            ),
        }
    }
}

/// Whether the kernel takes the programs.
fn programs(settings: &Settings, fabric: &Fabric) -> Finding {
    const NAME: &str = "xdp_load";
    let Some(config) = datapath::Config::from(settings, fabric, kernel_settings(settings, fabric, 0)) else {
        return Finding::green(NAME, "-xdp off");
    };
    match datapath::try_load(&config) {
        Ok(()) => Finding::green(NAME, "this kernel takes the programs"),
        Err(error) => no_xdp(settings, NAME, error.to_string(), "see capabilities and kernel above"),
    }
}

/// Whether a driver takes programs, at this MTU, and packets that they redirect.
fn native(settings: &Settings, interface: &Interface) -> Finding {
    const NAME: &str = "xdp_driver";
    let Interface { name, index, mtu, .. } = interface;
    let driver = interface::driver(name).unwrap_or_else(|_| "unknown".to_owned());
    let shown = format!("{name}: driver {driver}, MTU {mtu}");
    if settings.xdp.mode == XdpMode::Skb {
        return Finding::green(NAME, format!("{shown}: -xdp skb runs on any driver"));
    }
    let features = device::xdp_features(*index);
    if features.as_ref().is_ok_and(|features| features & XDP_BASIC == 0) {
        return no_xdp(
            settings,
            NAME,
            format!("{shown}: no native XDP"),
            "use -xdp skb or -xdp off, or another interface",
        );
    }
    let several_buffers = features.as_ref().ok().map(|features| features & XDP_FRAGS != 0);
    if let Some(most) = native_mtu(&driver, several_buffers).filter(|most| mtu > most) {
        let advice = format!("ip link set dev {name} mtu {most}, or use -xdp skb or -xdp off");
        return no_xdp(settings, NAME, format!("{shown}: too large for native XDP, which takes {most}"), &advice);
    }
    match features {
        Ok(features) if features & XDP_XMIT == 0 => {
            let advice = match driver.as_str() {
                "veth" => "switch GRO on at the other end: ethtool -K PEER gro on".to_owned(),
                _ => format!("look whether {driver} sends redirected packets only with a program attached"),
            };
            Finding::yellow(NAME, format!("{shown}: it takes no redirected packets, so no answers"), advice)
                .see("Answers are lost at an interface")
        }
        Ok(features) => {
            let frags = if features & XDP_FRAGS == 0 { "one buffer" } else { "several buffers" };
            Finding::green(NAME, format!("{shown}: native XDP, packets of {frags}, redirects"))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Finding::unknown(NAME, format!("{shown}: this kernel does not tell XDP features"), "Linux 6.3 and later do")
        }
        Err(error) => Finding::unknown(NAME, format!("{shown}: {error}"), "ask the driver's documentation"),
    }
}

/// Offloads that merge packets before XDP sees them, or keep programs off.
fn offloads(name: &str, index: u32) -> Finding {
    const NAME: &str = "offloads";
    let active = match device::active_features(index) {
        Ok(active) => active,
        Err(error) => return Finding::unknown(NAME, format!("{name}: {error}"), format!("ethtool -k {name}")),
    };
    let merging: Vec<&str> =
        active.iter().map(String::as_str).filter(|one| matches!(*one, "rx-lro" | "rx-gro-hw")).collect();
    if merging.is_empty() {
        return Finding::green(NAME, format!("{name}: neither LRO nor GRO in hardware"));
    }
    let off: Vec<String> = merging.iter().map(|one| format!("{one} off")).collect();
    Finding::yellow(
        NAME,
        format!("{name}: {} on: the hardware merges packets, and drivers refuse XDP", merging.join(", ")),
        format!("ethtool -K {name} {}", off.join(" ")),
    )
    .see("XDP fell back")
}

fn queues(name: &str, index: u32) -> Finding {
    const NAME: &str = "queues";
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    match device::receive_queues(index) {
        Ok((now, most)) if now < most.min(u32::try_from(cpus).unwrap_or(u32::MAX)) => Finding::yellow(
            NAME,
            format!("{name}: {now} of {most} receive queues for {cpus} CPUs: one CPU per queue answers NACKs"),
            format!("ethtool -L {name} combined {}", most.min(u32::try_from(cpus).unwrap_or(u32::MAX))),
        )
        .see("The receive buffer overflows"),
        Ok((now, most)) => Finding::green(NAME, format!("{name}: {now} of {most} receive queues, {cpus} CPUs")),
        Err(error) => Finding::unknown(NAME, format!("{name}: {error}"), format!("ethtool -l {name}")),
    }
}

fn ring(name: &str, index: u32) -> Finding {
    const NAME: &str = "rx_ring";
    match device::receive_ring(index) {
        Ok((now, most)) if now < SHORT_RING.min(most) => Finding::yellow(
            NAME,
            format!("{name}: {now} of {most} entries: a burst overflows them"),
            format!("ethtool -G {name} rx {most}"),
        )
        .see("The receive buffer overflows"),
        Ok((now, most)) => Finding::green(NAME, format!("{name}: {now} of {most} entries")),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Finding::green(NAME, format!("{name}: a driver without rings"))
        }
        Err(error) => Finding::unknown(NAME, format!("{name}: {error}"), format!("ethtool -g {name}")),
    }
}

/// Whether another program has the NACK port.
fn nack_port(settings: &Settings, fabric: &Fabric) -> Finding {
    const NAME: &str = "nack_port";
    let address = SocketAddrV6::new(fabric.nack_addr, settings.nack.port, 0, 0);
    let runs = inspect::directory_name(&settings.xdp.bpffs, &settings.ingress.mc_iface).ok().and_then(|own| {
        let states = inspect::states(&settings.xdp.bpffs).ok()?;
        states.into_iter().find(|state| state.is_served && state.directory == settings.xdp.bpffs.join(&own))
    });
    match bound::rival(address) {
        Ok(None) => Finding::green(NAME, format!("{address} is free")),
        Ok(Some(_)) if runs.is_some() => Finding::green(NAME, format!("{address} is bound by a daemon that runs")),
        Ok(Some(rival)) => Finding::red(
            NAME,
            format!("{address} is bound by another program, of user {}, inode {}", rival.user, rival.inode),
            format!("find it with `ss -uapne 'sport = :{}'`, and end it, or set another -nack-port", address.port()),
        )
        .see("Another program has the NACK port"),
        Err(error) => Finding::unknown(NAME, format!("{address}: {error}"), "mount /proc"),
    }
}

/// Whether a switch could forget the memberships: one that snoops MLD on a link where no router asks.
fn snooping(bridge: Option<&BridgeSettings>, ingress: &Interface, listen: Option<Duration>) -> Finding {
    const NAME: &str = "mld_querier";
    const ADVICE: &str = "give the link a querier (of a bridge: ip link set BRIDGE type bridge mcast_querier 1), or switch \
                          snooping off";
    let name = &ingress.name;
    let heard = listen.map(|patience| mld::await_query(ingress.index, patience).map(|from| (from, patience)));
    match (heard, bridge) {
        (Some(Ok((Some(from), _))), _) => Finding::green(NAME, format!("{name}: {from} asks for memberships")),
        (Some(Err(error)), _) => Finding::unknown(NAME, format!("{name}: cannot listen: {error}"), needs_raw(&error)),
        (_, Some(bridge)) if !bridge.snooping => {
            Finding::green(NAME, format!("{name}: bridge {} does not snoop MLD", bridge.name))
        }
        (None, Some(bridge)) if bridge.querier => {
            Finding::green(NAME, format!("{name}: bridge {} asks itself", bridge.name))
        }
        (Some(Ok((None, patience))), _) => Finding::yellow(
            NAME,
            format!("{name}: no MLD query within {} s: a switch that snoops forgets us", patience.as_secs()),
            ADVICE,
        )
        .see("A beacon is not heard"),
        (None, Some(bridge)) => Finding::yellow(
            NAME,
            format!("{name}: bridge {} snoops MLD and does not ask itself; another querier is not known", bridge.name),
            ADVICE,
        )
        .see("A beacon is not heard"),
        (None, None) => Finding::unknown(
            NAME,
            format!("{name}: whether its switch snoops MLD, and a router asks, is not told here"),
            "listen for a query: -listen 130s",
        ),
    }
}

fn needs_raw(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(libc::EPERM) { "it needs CAP_NET_RAW" } else { "listen with tcpdump: icmp6" }
}
