//! What a network device says of itself: by the generic netlink families `netdev` (Linux 6.3) and `ethtool` (Linux 5.6).

use std::io;

use crate::net::generic_netlink::{NESTED, ask, attribute, attributes, find};

/// It takes XDP programs in the driver (linux/netdev.h, `NETDEV_XDP_ACT_BASIC`).
pub(super) const XDP_BASIC: u64 = 0x01;
/// It takes redirected packets (`NETDEV_XDP_ACT_NDO_XMIT`).
pub(super) const XDP_XMIT: u64 = 0x04;
/// Its programs see packets of several buffers (`NETDEV_XDP_ACT_RX_SG`).
pub(super) const XDP_FRAGS: u64 = 0x20;

/// The XDP features of the device of this index.
///
/// # Errors
/// ENOENT before Linux 6.3.
pub(super) fn xdp_features(index: u32) -> io::Result<u64> {
    const DEV_GET: u8 = 1;
    const IFINDEX: u16 = 1;
    const XDP_FEATURES: u16 = 3;
    let answer = ask("netdev", DEV_GET, &attribute(IFINDEX, &index.to_ne_bytes()))?;
    let features = find(&answer, XDP_FEATURES).and_then(|value| value.first_chunk().copied());
    features.map(u64::from_ne_bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Names of the features that are switched on, as `ethtool -k` has them.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn active_features(index: u32) -> io::Result<Vec<String>> {
    const FEATURES_GET: u8 = 11;
    const ACTIVE: u16 = 4;
    const BITS: u16 = 3;
    const BIT_NAME: u16 = 2;
    let answer = ask("ethtool", FEATURES_GET, &header(index))?;
    let bits = find(&answer, ACTIVE).and_then(|set| find(set, BITS)).unwrap_or(&[]);
    // A list of bits that are set: without a mask, each that is there is on.
    let name = |bit: &[u8]| {
        let name = find(bit, BIT_NAME)?;
        Some(String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
    };
    Ok(attributes(bits).filter_map(|(_, bit)| name(bit)).collect())
}

/// Entries of the receive ring: now, and at most.
///
/// # Errors
/// EOPNOTSUPP for a driver without rings.
pub(super) fn receive_ring(index: u32) -> io::Result<(u32, u32)> {
    const RINGS_GET: u8 = 15;
    const RX_MAX: u16 = 2;
    const RX: u16 = 6;
    let answer = ask("ethtool", RINGS_GET, &header(index))?;
    pair(&answer, RX, RX_MAX).ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// Receive queues: now, and at most.
///
/// # Errors
/// EOPNOTSUPP for a driver that does not tell.
pub(super) fn receive_queues(index: u32) -> io::Result<(u32, u32)> {
    const CHANNELS_GET: u8 = 17;
    const RX_MAX: u16 = 2;
    const COMBINED_MAX: u16 = 5;
    const RX: u16 = 6;
    const COMBINED: u16 = 9;
    let answer = ask("ethtool", CHANNELS_GET, &header(index))?;
    let (rx, combined) = (pair(&answer, RX, RX_MAX), pair(&answer, COMBINED, COMBINED_MAX));
    let sum = |a: Option<(u32, u32)>, b: Option<(u32, u32)>| {
        let ((now, most), (more, also)) = (a.unwrap_or_default(), b.unwrap_or_default());
        (now + more, most.max(also))
    };
    Some(sum(rx, combined)).filter(|(now, _)| *now > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// The device that a message of the family `ethtool` is about: its header.
fn header(index: u32) -> Vec<u8> {
    const HEADER: u16 = 1;
    const DEV_INDEX: u16 = 1;
    attribute(HEADER | NESTED, &attribute(DEV_INDEX, &index.to_ne_bytes()))
}

fn pair(answer: &[u8], now: u16, most: u16) -> Option<(u32, u32)> {
    let number = |kind| find(answer, kind).and_then(|value| value.first_chunk().copied()).map(u32::from_ne_bytes);
    Some((number(now)?, number(most)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::in_namespace;

    #[test]
    fn a_veth_tells_of_itself() {
        in_namespace("a_veth_tells_of_itself", |pair| {
            let index = pair.near.index;
            match xdp_features(index) {
                Ok(features) => assert_ne!(features & XDP_BASIC, 0, "{features:#x}"),
                // Linux 6.1 has no such family.
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT)),
            }
            let active = active_features(index).expect("it tells");
            assert!(active.iter().any(|name| name == "highdma"), "{active:?}");
            assert!(!active.iter().any(|name| name == "rx-lro"), "{active:?}");
            assert_eq!(receive_queues(index).expect("it tells").0, 1);
            assert_eq!(receive_ring(index).expect_err("no ring").raw_os_error(), Some(libc::EOPNOTSUPP));
            assert!(xdp_features(99_999).is_err());
        });
    }
}
