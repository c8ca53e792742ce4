//! Private fabrics: hosts in namespaces of their own, joined by one veth pair or by a bridge that snoops MLD.
//!
//! Every host's interface is `eth0`. Neighbours are permanent, duplicate address detection is off, and so is transmit
//! checksum offload: a checksum that is captured is a checksum that was computed. GRO is on at every end, or a veth end
//! without an XDP program would not take in what XDP redirects to it.

use std::{
    collections::HashSet,
    net::{Ipv6Addr, SocketAddrV6},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::net::{
    loss::{Loss, LossPoint, LossRule},
    netns::{Netns, host_command},
};

/// Name of every host's interface.
pub const INTERFACE: &str = "eth0";
/// Name of the interface that [`Host::second_link`] adds.
pub const SECOND_INTERFACE: &str = "eth1";
/// Its address.
pub const SECOND_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xFD11, 0, 0, 0, 0, 0, 0, 1);
/// Its MAC.
pub const SECOND_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// The group id of the field's default, the second-last word of a group address.
pub const GROUP_ID: u16 = 0x000B;
/// The multicast data port.
pub const DATA_PORT: u16 = 9001;
/// The NACK port.
pub const NACK_PORT: u16 = 9300;

/// The site-local group address of a group index under the default group id.
#[must_use]
pub const fn group(index: u16) -> Ipv6Addr {
    group_in(0xFF05, index)
}

/// The group address of a group index under a prefix (FF02, FF05, FF08 and FF0E are any-source, FF35 and FF3E source-specific).
#[must_use]
pub const fn group_in(prefix: u16, index: u16) -> Ipv6Addr {
    Ipv6Addr::new(prefix, 0, 0, 0, 0, 0, GROUP_ID, index)
}

/// One host of a fabric.
#[derive(Debug)]
pub struct Host {
    /// The namespace it lives in.
    pub ns: Netns,
    /// What the test calls it.
    pub name: String,
    /// `02:00:00:00:00:<number>`.
    pub mac: [u8; 6],
    /// `fd10::<number>`.
    pub addr: Ipv6Addr,
    /// Index of its interface in its own namespace.
    pub ifindex: u32,
    number: u8,
}

impl Host {
    fn new(name: &str, number: u8) -> Result<Self> {
        Ok(Self {
            ns: Netns::new(name)?,
            name: name.to_owned(),
            mac: [2, 0, 0, 0, 0, number],
            addr: Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, u16::from(number)),
            ifindex: 0,
            number,
        })
    }

    /// Where this host answers NACKs, if it is the endpoint.
    #[must_use]
    pub const fn nack_address(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.addr, NACK_PORT, 0, 0)
    }

    fn mac_text(&self) -> String {
        mac_text(self.mac)
    }

    /// Gives this host a further address on [`INTERFACE`].
    ///
    /// # Errors
    /// It has the address already.
    pub fn add_address(&self, address: Ipv6Addr) -> Result<()> {
        self.ns.run(&["ip", "-6", "addr", "add", &format!("{address}/64"), "dev", INTERFACE, "nodad"])?;
        Ok(())
    }

    /// Gives this host a second interface `eth1` with the address `fd11::1`, and returns the host at its other end, `fd11::2`.
    ///
    /// The two networks know nothing of each other: nothing is forwarded between them.
    ///
    /// # Errors
    /// As [`Fabric::flat`]; it has a second interface already.
    pub fn second_link(&self, name: &str, mtu: u16) -> Result<Self> {
        let mut far = Self::new(name, 2)?;
        far.addr = Ipv6Addr::new(0xFD11, 0, 0, 0, 0, 0, 0, 2);
        far.mac = [2, 0, 0, 0, 1, 2];
        veth(&self.ns, SECOND_INTERFACE, &far.ns, INTERFACE)?;
        far.finish(mtu)?;
        self.ns.quiet_ipv6(SECOND_INTERFACE)?;
        let (near, address) = (mac_text(SECOND_MAC), format!("{SECOND_ADDRESS}/64"));
        for argv in [
            &["ip", "link", "set", SECOND_INTERFACE, "address", &near, "mtu", &mtu.to_string()][..],
            &["ip", "-6", "addr", "add", &address, "dev", SECOND_INTERFACE, "nodad"],
            &["ip", "link", "set", SECOND_INTERFACE, "up"],
        ] {
            self.ns.run(argv)?;
        }
        offloads(&self.ns, SECOND_INTERFACE)?;
        know(&self.ns, SECOND_INTERFACE, far.addr, far.mac)?;
        know(&far.ns, INTERFACE, SECOND_ADDRESS, SECOND_MAC)?;
        for (ns, interface) in [(&self.ns, SECOND_INTERFACE), (&far.ns, INTERFACE)] {
            await_text(ns, &["ip", "-6", "route", "show", "table", "local", "type", "multicast"], interface)?;
        }
        Ok(far)
    }

    fn finish(&mut self, mtu: u16) -> Result<()> {
        self.set_up(mtu)?;
        self.ifindex = self.ns.interface_index(INTERFACE)?;
        Ok(())
    }

    /// Gives [`INTERFACE`] this host's MAC and address, and brings it up.
    fn set_up(&self, mtu: u16) -> Result<()> {
        let mac = self.mac_text();
        let mtu = mtu.to_string();
        let address = format!("{}/64", self.addr);
        self.ns.quiet_ipv6(INTERFACE)?;
        for argv in [
            &["ip", "link", "set", INTERFACE, "address", &mac, "mtu", &mtu][..],
            &["ip", "-6", "addr", "add", &address, "dev", INTERFACE, "nodad"],
            &["ip", "link", "set", INTERFACE, "up"],
        ] {
            self.ns.run(argv)?;
        }
        offloads(&self.ns, INTERFACE)
    }
}

/// Hosts, and what joins them.
#[derive(Debug)]
pub struct Fabric {
    hosts: Vec<Host>,
    bridge: Option<Netns>,
}

impl Fabric {
    /// Two hosts, `endpoint` and `client`, on the two ends of one veth pair.
    ///
    /// # Errors
    /// Not root, or one of [`crate::net::netns::TOOLS`] is missing or refuses.
    pub fn flat(mtu: u16) -> Result<Self> {
        Self::flat_with_queues(mtu, 1)
    }

    /// As [`Fabric::flat`] with so many queues in each direction: flows are spread over them, and each is another CPU's.
    ///
    /// # Errors
    /// As [`Fabric::flat`].
    pub fn flat_with_queues(mtu: u16, queues: u8) -> Result<Self> {
        let mut hosts = vec![Host::new("endpoint", 1)?, Host::new("client", 2)?];
        let (queues, peer) = (queues.to_string(), hosts[1].ns.name());
        let each = ["numtxqueues", &queues, "numrxqueues", &queues];
        let argv = [&["ip", "link", "add", INTERFACE], &each[..], &["type", "veth", "peer", "name", INTERFACE], &each];
        hosts[0].ns.run(&[&argv.concat()[..], &["netns", peer]].concat())?;
        for host in &mut hosts {
            host.finish(mtu)?;
        }
        Self::ready(hosts, None)
    }

    /// As [`Fabric::flat`] on two cards of the machine that are on one link; they move to the hosts' namespaces, and return
    /// when these end.
    ///
    /// # Errors
    /// As [`Fabric::flat`]; there are no such interfaces.
    pub fn of_cards(cards: [&str; 2], mtu: u16) -> Result<Self> {
        let mut hosts = vec![Host::new("endpoint", 1)?, Host::new("client", 2)?];
        for (host, card) in hosts.iter_mut().zip(cards) {
            host_command(&["ip", "link", "set", card, "netns", host.ns.name(), "name", INTERFACE])?;
            host.finish(mtu)?;
        }
        Self::ready(hosts, None)
    }

    /// Named hosts (1 to 200) on the ports of one bridge with MLD snooping and a querier: a host gets the groups that it joined and no others.
    ///
    /// # Errors
    /// As [`Fabric::flat`].
    pub fn bridged(names: &[&str], mtu: u16) -> Result<Self> {
        ensure!((1..=200).contains(&names.len()), "a fabric has 1 to 200 hosts");
        let bridge = Netns::new("fabric")?;
        let mtu_text = mtu.to_string();
        // The querier decides by query intervals that are set before it starts; by default every group is flooded for ten seconds.
        bridge.run(&[
            "ip",
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "1",
            "mcast_mld_version",
            "2",
            "mcast_hash_max",
            "32768",
            "mcast_startup_query_count",
            "1",
            "mcast_startup_query_interval",
            "10",
            "mcast_query_interval",
            "500",
            "mcast_query_response_interval",
            "5",
        ])?;
        bridge.run(&["ip", "link", "set", "br0", "mtu", &mtu_text, "up"])?;
        let mut hosts = Vec::with_capacity(names.len());
        for (name, number) in names.iter().zip(1u8..) {
            let mut host = Host::new(name, number)?;
            let port = port_name(number);
            veth(&bridge, &port, &host.ns, INTERFACE)?;
            bridge.quiet_ipv6(&port)?;
            offloads(&bridge, &port)?;
            bridge.run(&["ip", "link", "set", &port, "mtu", &mtu_text, "master", "br0", "up"])?;
            host.finish(mtu)?;
            hosts.push(host);
        }
        bridge.run(&["ip", "link", "set", "br0", "type", "bridge", "mcast_querier", "1"])?;
        Self::ready(hosts, Some(bridge))
    }

    /// The hosts in the order in which they were named.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("no host {name} in this fabric"))
    }

    /// The namespace of the bridge, if there is one.
    #[must_use]
    pub const fn bridge(&self) -> Option<&Netns> {
        self.bridge.as_ref()
    }

    /// Loses packets on the way to a host until the returned value is dropped.
    ///
    /// # Errors
    /// No such host, or nft refuses the rule.
    pub fn lose(&self, host: &str, rule: &LossRule) -> Result<Loss<'_>> {
        let target = self.host(host)?;
        match rule.point {
            LossPoint::Arrival => Loss::install(&target.ns, "ingress", INTERFACE, rule),
            LossPoint::Departure => Loss::install(&target.ns, "egress", INTERFACE, rule),
            LossPoint::Link => match &self.bridge {
                Some(bridge) => Loss::install(bridge, "egress", &port_name(target.number), rule),
                None => {
                    let other =
                        self.hosts.iter().find(|other| other.name != host).context("a veth pair has two ends")?;
                    Loss::install(&other.ns, "egress", INTERFACE, rule)
                }
            },
        }
    }

    /// Waits until the bridge has heard that a host joined all these groups; without a bridge there is nothing to hear.
    ///
    /// # Errors
    /// No such host, or it has not joined within five seconds.
    pub fn await_members(&self, host: &str, groups: &[Ipv6Addr]) -> Result<()> {
        let port = format!("port {} grp ", port_name(self.host(host)?.number));
        let Some(bridge) = &self.bridge else {
            return Ok(());
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let text = bridge.run(&["bridge", "mdb", "show"])?;
            let members: HashSet<Ipv6Addr> = text
                .lines()
                .filter_map(|line| line.split_once(&port)?.1.split_whitespace().next()?.parse().ok())
                .collect();
            let Some(missing) = groups.iter().find(|group| !members.contains(group)) else {
                return Ok(());
            };
            ensure!(Instant::now() < deadline, "{host} has not joined {missing}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Deletes the veth pair of a flat fabric.
    ///
    /// # Errors
    /// It has been deleted.
    pub fn unplug(&self) -> Result<()> {
        ensure!(self.bridge.is_none(), "only a flat fabric can be unplugged");
        self.hosts[0].ns.run(&["ip", "link", "del", INTERFACE])?;
        Ok(())
    }

    /// Makes the veth pair of a flat fabric anew after [`Fabric::unplug`]: same names, MACs and addresses, other indexes.
    /// [`Host::ifindex`] keeps the index of the first one.
    ///
    /// # Errors
    /// As [`Fabric::flat`].
    pub fn replug(&self, mtu: u16) -> Result<()> {
        ensure!(self.bridge.is_none() && self.hosts.len() == 2, "only a flat fabric can be plugged in again");
        veth(&self.hosts[0].ns, INTERFACE, &self.hosts[1].ns, INTERFACE)?;
        for host in &self.hosts {
            host.set_up(mtu)?;
        }
        self.settle()
    }

    /// Introduces the hosts to each other and waits until packets can flow.
    fn ready(hosts: Vec<Host>, bridge: Option<Netns>) -> Result<Self> {
        let fabric = Self { hosts, bridge };
        fabric.settle()?;
        Ok(fabric)
    }

    fn settle(&self) -> Result<()> {
        self.meet()?;
        // The kernel tells of a new carrier up to a second late, and only then routes multicast or forwards on a bridge port.
        for host in &self.hosts {
            await_text(&host.ns, &["ip", "-6", "route", "show", "table", "local", "type", "multicast"], INTERFACE)?;
        }
        if let Some(bridge) = &self.bridge {
            for host in &self.hosts {
                let port = port_name(host.number);
                await_text(bridge, &["bridge", "link", "show", "dev", &port], "state forwarding")?;
            }
            // The querier speaks from the bridge's link-local address; before that, groups are flooded.
            await_text(bridge, &["ip", "-6", "route", "show", "table", "local", "type", "multicast"], "br0")?;
        }
        Ok(())
    }

    /// Gives a host further addresses on [`INTERFACE`], and makes every other host know them for good.
    ///
    /// # Errors
    /// No such host, or it has one of the addresses already.
    pub fn add_addresses(&self, host: &str, addresses: &[Ipv6Addr]) -> Result<()> {
        // One process a host: a process for each address would take seconds.
        let batch =
            |line: &dyn Fn(&Ipv6Addr) -> String| addresses.iter().map(line).collect::<Vec<_>>().join("\n") + "\n";
        let owner = self.host(host)?;
        let mac = owner.mac_text();
        let own = batch(&|address| format!("addr add {address}/64 dev {INTERFACE} nodad"));
        let others = batch(&|address| format!("neigh replace {address} lladdr {mac} dev {INTERFACE} nud permanent"));
        for other in &self.hosts {
            let lines = if other.name == host { &own } else { &others };
            other.ns.feed(&["ip", "-6", "-batch", "-"], lines)?;
        }
        Ok(())
    }

    /// Makes every host know every other for good.
    fn meet(&self) -> Result<()> {
        for host in &self.hosts {
            for other in self.hosts.iter().filter(|other| other.name != host.name) {
                know(&host.ns, INTERFACE, other.addr, other.mac)?;
            }
        }
        Ok(())
    }
}

/// Makes a host know who an address belongs to, for good.
fn know(ns: &Netns, interface: &str, address: Ipv6Addr, mac: [u8; 6]) -> Result<()> {
    let (address, mac) = (address.to_string(), mac_text(mac));
    ns.run(&["ip", "-6", "neigh", "replace", &address, "lladdr", &mac, "dev", interface, "nud", "permanent"])?;
    Ok(())
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn port_name(number: u8) -> String {
    format!("p{number}")
}

fn veth(left: &Netns, left_name: &str, right: &Netns, right_name: &str) -> Result<()> {
    left.run(&["ip", "link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", right.name()])?;
    Ok(())
}

fn await_text(ns: &Netns, argv: &[&str], wanted: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let text = ns.run(argv)?;
        if text.contains(wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no {wanted:?} in {}: {text}", argv.join(" "));
        thread::sleep(Duration::from_millis(10));
    }
}

fn offloads(ns: &Netns, interface: &str) -> Result<()> {
    ns.run(&["ethtool", "-K", interface, "tx", "off", "gro", "on"])?;
    Ok(())
}
