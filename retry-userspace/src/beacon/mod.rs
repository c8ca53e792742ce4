//! The ADVERT beacon (BRC-126, wire.md): tells listeners that this endpoint is here, where to send NACKs, and when it drains.

use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

use retry_common::group::{self, SourceMode};
use retry_common::wire::advert::{self, ADVERT_LEN, Advert};
use socket2::Socket;

use crate::net::multicast::{self, Egress};
use crate::net::options;

/// UDP port of the beacon groups. It is a fact of the fabric: `nack-port` is announced inside the ADVERT.
pub const BEACON_PORT: u16 = 9300;

/// How far an ADVERT is announced: `beacon-scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The site's beacon group.
    Site,
    /// The organisation's.
    Org,
    /// The global one.
    Global,
    /// All three (`both`), with the scope byte 0xFF.
    All,
}

impl Scope {
    /// The scopes whose beacon groups get the ADVERT.
    const fn scopes(self) -> &'static [group::Scope] {
        match self {
            Self::Site => &[group::Scope::Site],
            Self::Org => &[group::Scope::Org],
            Self::Global => &[group::Scope::Global],
            Self::All => &[group::Scope::Site, group::Scope::Org, group::Scope::Global],
        }
    }

    /// The scope byte of the ADVERT.
    const fn byte(self) -> u8 {
        match self {
            Self::Site => 0x05,
            Self::Org => 0x08,
            Self::Global => 0x0E,
            Self::All => 0xFF,
        }
    }
}

/// What is announced, and how it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `nack-addr`.
    pub nack_address: Ipv6Addr,
    /// `nack-port`.
    pub nack_port: u16,
    /// `beacon-tier`, 0 to 254: lower is asked first.
    pub tier: u8,
    /// `beacon-preference`: higher is asked first within a tier.
    pub preference: u8,
    /// `beacon-interval`: listeners forget an endpoint after three of them.
    pub interval: Duration,
    /// `beacon-scope`.
    pub scope: Scope,
    /// `mc-group-id`.
    pub group_id: u16,
    /// `beacon-flags-multicast`: repairs go by multicast.
    pub multicast: bool,
    /// `beacon-flags-unicast`: repairs go by unicast.
    pub unicast: bool,
    /// `beacon-flags-draining`: every ADVERT says Draining.
    pub draining: bool,
    /// `proxy-enabled`: the endpoint asks others for what it does not have.
    pub has_parent: bool,
    /// `instance`: listeners know the endpoint by this name's CRC32c.
    pub instance: String,
    /// Index of the first egress interface.
    pub interface: u32,
    /// `bind-source`, else the interface's address; unspecified leaves the choice to the kernel.
    pub source: Ipv6Addr,
    /// `egress-hoplimit`.
    pub hop_limit: u8,
}

/// The ADVERT of these settings; `draining` announces a shutdown whatever the settings say.
#[must_use]
pub fn advert(settings: &Settings, draining: bool) -> [u8; ADVERT_LEN] {
    let flag = |on, bit| if on { bit } else { 0 };
    // A part of a second counts as a whole one: listeners must not forget us early.
    let seconds = settings.interval.as_nanos().div_ceil(1_000_000_000);
    Advert {
        scope: settings.scope.byte(),
        nack_addr: settings.nack_address.octets(),
        nack_port: settings.nack_port,
        tier: settings.tier,
        preference: settings.preference,
        interval_s: u16::try_from(seconds).unwrap_or(u16::MAX),
        flags: flag(settings.has_parent, advert::FLAG_HAS_PARENT)
            | flag(settings.draining || draining, advert::FLAG_DRAINING)
            | flag(settings.unicast, advert::FLAG_UNICAST)
            | flag(settings.multicast, advert::FLAG_MULTICAST),
        instance_id: advert::instance_id(&settings.instance),
    }
    .to_bytes()
}

/// Sends ADVERTs; when is up to the caller: at once at start, then every interval, and with `draining` before a shutdown.
#[derive(Debug)]
pub struct BeaconSender {
    settings: Settings,
    groups: Vec<Ipv6Addr>,
    socket: Socket,
}

impl BeaconSender {
    /// Opens the socket; its port is a free one, as in the field's program.
    ///
    /// # Errors
    /// What the system returns.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let socket = options::udp_socket()?;
        // A listener on this host hears its own endpoint's ADVERTs.
        socket.set_multicast_loop_v6(true)?;
        // Beacon groups are any-source in either source mode: who has not heard an ADVERT cannot name its source.
        let prefixes = settings.scope.scopes().iter().filter_map(|&scope| group::prefix(scope, SourceMode::Asm));
        let groups = prefixes.map(|prefix| Ipv6Addr::from(group::address(prefix, settings.group_id, group::BEACON)));
        Ok(Self { groups: groups.collect(), settings: settings.clone(), socket })
    }

    /// Sends one ADVERT to the group of each scope and returns how many left.
    ///
    /// # Errors
    /// Those of [`multicast::send`], when none left. Each scope is tried; one that fails beside others that do not is logged.
    pub fn send(&self, draining: bool) -> io::Result<usize> {
        let bytes = advert(&self.settings, draining);
        let egress = Egress {
            interface: self.settings.interface,
            source: self.settings.source,
            port: BEACON_PORT,
            hop_limit: self.settings.hop_limit,
        };
        let mut sent = 0;
        let mut failed = None;
        for &group in &self.groups {
            match multicast::send(&self.socket, &egress, group, &bytes) {
                Ok(()) => sent += 1,
                Err(error) => failed = Some((group, error)),
            }
        }
        match failed {
            Some((_, error)) if sent == 0 => Err(error),
            Some((group, error)) => {
                tracing::warn!(%group, %error, "an ADVERT did not leave");
                Ok(sent)
            }
            None => Ok(sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::joins::Joins;
    use crate::net::batch::Batch;
    use crate::net::interface::Interface;
    use crate::net::testing::{Pair, QUIET, SOON, in_namespace};

    fn settings(scope: Scope) -> Settings {
        Settings {
            nack_address: "fd10::20".parse().expect("an address"),
            nack_port: 9300,
            tier: 0,
            preference: 128,
            interval: Duration::from_secs(3),
            scope,
            group_id: 0x000B,
            multicast: true,
            unicast: false,
            draining: false,
            has_parent: false,
            instance: "NAME".into(),
            interface: 0,
            source: Ipv6Addr::UNSPECIFIED,
            hop_limit: 1,
        }
    }

    fn golden() -> Vec<u8> {
        let text = include_str!("../../../retry-common/tests/golden/advert-1.hex");
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn the_advert_is_that_of_the_fields_program() {
        // The capture does not tell the instance's name.
        let mut expected = golden();
        expected[32..36].copy_from_slice(&advert::instance_id("NAME").to_be_bytes());
        assert_eq!(advert(&settings(Scope::Site), false)[..], expected);
    }

    #[test]
    fn each_setting_has_its_place() {
        let read = |settings: &Settings, draining| Advert::parse(&advert(settings, draining)).expect("our own ADVERT");
        let other = Settings {
            nack_port: 9301,
            tier: 3,
            preference: 7,
            interval: Duration::from_millis(1_500),
            unicast: true,
            ..settings(Scope::All)
        };
        assert_eq!(
            read(&other, false),
            Advert {
                scope: 0xFF,
                nack_addr: other.nack_address.octets(),
                nack_port: 9301,
                tier: 3,
                preference: 7,
                interval_s: 2,
                flags: 0x0018,
                instance_id: advert::instance_id("NAME"),
            }
        );
        let flags = |change: fn(&mut Settings), draining| {
            let mut settings = Settings { multicast: false, ..settings(Scope::Site) };
            change(&mut settings);
            read(&settings, draining).flags
        };
        assert_eq!(flags(|_| {}, false), 0);
        assert_eq!(flags(|_| {}, true), 0x0004);
        assert_eq!(flags(|settings| settings.draining = true, false), 0x0004);
        assert_eq!(flags(|settings| settings.has_parent = true, false), 0x0002);
        assert_eq!(flags(|settings| settings.unicast = true, false), 0x0008);
        assert_eq!(flags(|settings| settings.multicast = true, false), 0x0010);
        let scopes = [(Scope::Site, 0x05), (Scope::Org, 0x08), (Scope::Global, 0x0E), (Scope::All, 0xFF)];
        for (scope, byte) in scopes {
            assert_eq!(read(&settings(scope), false).scope, byte);
        }
        let forever = Settings { interval: Duration::MAX, ..settings(Scope::Site) };
        assert_eq!(read(&forever, false).interval_s, u16::MAX);
    }

    #[test]
    fn an_instance_is_its_crc32c_and_never_0() {
        // The check value of CRC-32C (RFC 3720, appendix B.4, names the polynomial).
        assert_eq!(advert::instance_id("123456789"), 0xE306_9283);
        assert_eq!(advert::instance_id(""), 1);
    }

    #[test]
    fn every_scope_hears_it_from_the_chosen_source() {
        in_namespace("every_scope_hears_it_from_the_chosen_source", |Pair { near, far }| {
            let groups = ["ff05::b:fffd", "ff08::b:fffd", "ff0e::b:fffd"].map(|text| text.parse().expect("an address"));
            let joins = Joins::open(far.index, BEACON_PORT, &groups).expect("joined");
            let socket = joins.fds().next().expect("at least one");
            options::tell_hop_limit(&socket).expect("an option");
            let mut batch = Batch::new(8, 2048);
            for (scope, heard) in [
                (Scope::Site, &groups[..1]),
                (Scope::Org, &groups[1..2]),
                (Scope::Global, &groups[2..]),
                (Scope::All, &groups),
            ] {
                let settings = Settings {
                    interface: near.index,
                    source: "fd01::2".parse().expect("an address"),
                    hop_limit: 5,
                    ..settings(scope)
                };
                let sender = BeaconSender::open(&settings).expect("opened");
                for draining in [false, true] {
                    assert_eq!(sender.send(draining).expect("sent"), heard.len());
                    let mut destinations = Vec::new();
                    while destinations.len() < heard.len() && batch.recv(&socket, SOON).expect("received") > 0 {
                        for one in batch.datagrams() {
                            assert_eq!(one.bytes, advert(&settings, draining));
                            assert_eq!((*one.source.ip(), one.hop_limit), (settings.source, Some(5)));
                            destinations.push(one.destination.expect("asked for"));
                        }
                    }
                    assert_eq!(destinations, heard);
                }
            }
            assert_eq!(batch.recv(&socket, QUIET).expect("no error"), 0);
        });
    }

    #[test]
    fn an_advert_that_cannot_leave_is_an_error() {
        let lo = Interface::by_name("lo").expect("every namespace has lo");
        let settings = Settings {
            interface: lo.index,
            source: "2001:db8::dead".parse().expect("an address"),
            ..settings(Scope::All)
        };
        let sender = BeaconSender::open(&settings).expect("opened");
        let error = sender.send(false).expect_err("the source is not this host's");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
