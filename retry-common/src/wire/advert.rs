//! The ADVERT beacon (BRC-126): an endpoint says where it is and what it offers.

use crate::crc32c;
use crate::group::Scope;
use crate::wire::{HEAD, MAGIC};

/// Length of an ADVERT, bytes.
pub const ADVERT_LEN: usize = 56;
/// The endpoint asks others for what it has not.
pub const FLAG_HAS_PARENT: u16 = 0x0002;
/// The endpoint is about to go.
pub const FLAG_DRAINING: u16 = 0x0004;
/// Repairs go by unicast.
pub const FLAG_UNICAST: u16 = 0x0008;
/// Repairs go by multicast.
pub const FLAG_MULTICAST: u16 = 0x0010;

const TYPE: u8 = 0x20;

/// How far an ADVERT is announced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BeaconScope {
    /// The site's beacon group.
    Site,
    /// The organisation's.
    Org,
    /// The global one.
    Global,
    /// All three.
    All,
}

impl BeaconScope {
    /// The scopes whose beacon groups get the ADVERT.
    pub const fn scopes(self) -> &'static [Scope] {
        match self {
            Self::Site => &[Scope::Site],
            Self::Org => &[Scope::Org],
            Self::Global => &[Scope::Global],
            Self::All => &[Scope::Site, Scope::Org, Scope::Global],
        }
    }

    /// [`Advert::scope`].
    pub const fn byte(self) -> u8 {
        match self {
            Self::Site => 0x05,
            Self::Org => 0x08,
            Self::Global => 0x0E,
            Self::All => 0xFF,
        }
    }
}

/// The id of an instance name: its CRC32c, 1 in place of 0.
pub fn instance_id(name: &str) -> u32 {
    crc32c::of(&[name.as_bytes()]).max(1)
}

/// An announcement.
///
/// ```
/// use std::net::Ipv6Addr;
/// use retry_common::wire::advert::{Advert, BeaconScope, FLAG_MULTICAST, instance_id};
///
/// let advert = Advert {
///     scope: BeaconScope::Site.byte(),
///     nack_addr: "fd10::20".parse::<Ipv6Addr>()?.octets(),
///     nack_port: 9300,
///     tier: 0,
///     preference: 128,
///     interval_s: 60,
///     flags: FLAG_MULTICAST,
///     instance_id: instance_id("retry-1"),
/// };
/// assert_eq!(Advert::parse(&advert.to_bytes())?, advert);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Advert {
    /// [`BeaconScope::byte`].
    pub scope: u8,
    /// Where NACKs are taken.
    pub nack_addr: [u8; 16],
    /// The port there.
    pub nack_port: u16,
    /// 0 to 254, lower first.
    pub tier: u8,
    /// Higher first within a tier.
    pub preference: u8,
    /// Seconds between ADVERTs; receivers expire an endpoint after three of them.
    pub interval_s: u16,
    /// `FLAG_` bits.
    pub flags: u16,
    /// [`instance_id`]; never 0.
    pub instance_id: u32,
}

/// Why bytes are no ADVERT.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AdvertError {
    /// Not 56 bytes.
    #[error("an ADVERT has 56 bytes")]
    Size,
    /// Another magic.
    #[error("the magic is not the fabric's")]
    Magic,
    /// Another type than 0x20.
    #[error("the type is not ADVERT")]
    Type,
}

impl Advert {
    /// The ADVERT of a datagram. The last 20 bytes are reserved and not looked at.
    pub fn parse(datagram: &[u8]) -> Result<Self, AdvertError> {
        let bytes = <&[u8; ADVERT_LEN]>::try_from(datagram).map_err(|_| AdvertError::Size)?;
        let [m0, m1, m2, m3, _, _, kind, scope, rest @ ..] = *bytes;
        if u32::from_be_bytes([m0, m1, m2, m3]) != MAGIC {
            return Err(AdvertError::Magic);
        }
        if kind != TYPE {
            return Err(AdvertError::Type);
        }
        let (nack_addr, rest) = rest.split_first_chunk::<16>().ok_or(AdvertError::Size)?;
        let [p0, p1, tier, preference, i0, i1, f0, f1, d0, d1, d2, d3, ..] = *rest else {
            return Err(AdvertError::Size);
        };
        Ok(Self {
            scope,
            nack_addr: *nack_addr,
            nack_port: u16::from_be_bytes([p0, p1]),
            tier,
            preference,
            interval_s: u16::from_be_bytes([i0, i1]),
            flags: u16::from_be_bytes([f0, f1]),
            instance_id: u32::from_be_bytes([d0, d1, d2, d3]),
        })
    }

    /// The datagram of this ADVERT.
    pub fn to_bytes(&self) -> [u8; ADVERT_LEN] {
        let port = self.nack_port.to_be_bytes();
        let (interval, flags) = (self.interval_s.to_be_bytes(), self.flags.to_be_bytes());
        let instance_id = self.instance_id.to_be_bytes();
        let (kind, rank) = ([TYPE, self.scope], [self.tier, self.preference]);
        let parts = HEAD
            .iter()
            .chain(&kind)
            .chain(&self.nack_addr)
            .chain(&port)
            .chain(&rank)
            .chain(&interval)
            .chain(&flags)
            .chain(&instance_id);
        let mut bytes = [0; ADVERT_LEN];
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = *from;
        }
        bytes
    }
}
