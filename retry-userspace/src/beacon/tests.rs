//! The ADVERT against the field's program, and the socket on a veth pair.

use super::*;
use crate::ingress::joins::Joins;
use crate::net::batch::Batch;
use crate::net::interface::Interface;
use crate::net::testing::{Pair, QUIET, SOON, in_namespace};

fn config(scope: BeaconScope) -> Config {
    Config {
        nack_address: "fd10::20".parse().expect("an address"),
        nack_port: 9300,
        tier: 0,
        preference: 128,
        interval: Duration::from_secs(3),
        scope,
        source_mode: SourceMode::Asm,
        control_groups: ControlGroupCompat::Both,
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
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
    digits.chunks(2).map(byte).collect()
}

#[test]
fn the_advert_is_that_of_the_fields_program() {
    // The capture does not tell the instance's name.
    let mut expected = golden();
    expected[32..36].copy_from_slice(&advert::instance_id("NAME").to_be_bytes());
    assert_eq!(advert(&config(BeaconScope::Site), false)[..], expected);
}

#[test]
fn each_setting_has_its_place() {
    let read = |config: &Config, draining| Advert::parse(&advert(config, draining)).expect("our own ADVERT");
    let other = Config {
        nack_port: 9301,
        tier: 3,
        preference: 7,
        interval: Duration::from_millis(1_500),
        unicast: true,
        ..config(BeaconScope::All)
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
    let flags = |change: fn(&mut Config), draining| {
        let mut config = Config { multicast: false, ..config(BeaconScope::Site) };
        change(&mut config);
        read(&config, draining).flags
    };
    assert_eq!(flags(|_| {}, false), 0);
    assert_eq!(flags(|_| {}, true), 0x0004);
    assert_eq!(flags(|config| config.draining = true, false), 0x0004);
    assert_eq!(flags(|config| config.has_parent = true, false), 0x0002);
    assert_eq!(flags(|config| config.unicast = true, false), 0x0008);
    assert_eq!(flags(|config| config.multicast = true, false), 0x0010);
    let scopes =
        [(BeaconScope::Site, 0x05), (BeaconScope::Org, 0x08), (BeaconScope::Global, 0x0E), (BeaconScope::All, 0xFF)];
    for (scope, byte) in scopes {
        assert_eq!(read(&config(scope), false).scope, byte);
    }
    let forever = Config { interval: Duration::MAX, ..config(BeaconScope::Site) };
    assert_eq!(read(&forever, false).interval_s, u16::MAX);
}

#[test]
fn an_instance_is_its_crc32c_and_never_0() {
    // The check value of CRC-32C (RFC 3720, appendix B.4, names the polynomial).
    assert_eq!(advert::instance_id("123456789"), 0xE306_9283);
    assert_eq!(advert::instance_id(""), 1);
}

#[test]
fn source_specific_groups_are_added_where_the_scope_has_them() {
    let groups = |scope, mode| {
        let all = groups(scope, mode, 0x000B);
        all.iter().map(Ipv6Addr::to_string).collect::<Vec<_>>().join(" ")
    };
    for (scope, asm, ssm) in [
        (BeaconScope::Site, "ff05::b:fffd", "ff05::b:fffd ff35::b:fffd"),
        (BeaconScope::Org, "ff08::b:fffd", "ff08::b:fffd"),
        (BeaconScope::Global, "ff0e::b:fffd", "ff0e::b:fffd ff3e::b:fffd"),
        (
            BeaconScope::All,
            "ff05::b:fffd ff08::b:fffd ff0e::b:fffd",
            "ff05::b:fffd ff08::b:fffd ff0e::b:fffd ff35::b:fffd ff3e::b:fffd",
        ),
    ] {
        assert_eq!((groups(scope, SourceMode::Asm).as_str(), groups(scope, SourceMode::Ssm).as_str()), (asm, ssm));
    }
}

#[test]
fn the_groups_under_ssm_are_those_of_the_operators_choice() {
    use ControlGroupCompat::{AsmOnly, Both, Derived};
    let sent = |scope, mode, compat| {
        let all = announced(scope, mode, compat, 0x000B);
        all.iter().map(Ipv6Addr::to_string).collect::<Vec<_>>().join(" ")
    };
    for (scope, compat, expected) in [
        (BeaconScope::Site, AsmOnly, "ff05::b:fffd"),
        (BeaconScope::Site, Both, "ff05::b:fffd ff35::b:fffd"),
        (BeaconScope::Site, Derived, "ff35::b:fffd"),
        (BeaconScope::Global, Derived, "ff3e::b:fffd"),
        // There is no such group for the scope org: an ADVERT that leaves is better than none.
        (BeaconScope::Org, Derived, "ff08::b:fffd"),
        (BeaconScope::All, AsmOnly, "ff05::b:fffd ff08::b:fffd ff0e::b:fffd"),
        (BeaconScope::All, Derived, "ff35::b:fffd ff08::b:fffd ff3e::b:fffd"),
    ] {
        assert_eq!(sent(scope, SourceMode::Ssm, compat), expected, "{scope:?} {compat:?}");
        assert_eq!(sent(scope, SourceMode::Asm, compat), sent(scope, SourceMode::Asm, AsmOnly), "{scope:?} {compat:?}");
    }
}

#[test]
fn every_group_hears_it_from_the_chosen_source() {
    in_namespace("every_group_hears_it_from_the_chosen_source", |Pair { near, far }| {
        let all = groups(BeaconScope::All, SourceMode::Ssm, 0x000B);
        let joins = Joins::open(far.index, BEACON_PORT, &all).expect("joined");
        let socket = joins.fds().next().expect("at least one");
        options::tell_hop_limit(&socket).expect("an option");
        let mut batch = Batch::new(8, 2048);
        for (scope, mode) in [
            (BeaconScope::Site, SourceMode::Asm),
            (BeaconScope::Org, SourceMode::Asm),
            (BeaconScope::Global, SourceMode::Asm),
            (BeaconScope::All, SourceMode::Asm),
            (BeaconScope::Org, SourceMode::Ssm),
            (BeaconScope::All, SourceMode::Ssm),
        ] {
            let config = Config {
                source_mode: mode,
                interface: near.index,
                source: "fd01::2".parse().expect("an address"),
                hop_limit: 5,
                ..config(scope)
            };
            let expected = groups(scope, mode, 0x000B);
            let sender = BeaconSender::open(config.clone()).expect("opened");
            for draining in [false, true] {
                assert_eq!(sender.send(draining).expect("sent"), expected.len());
                let mut destinations = Vec::new();
                while destinations.len() < expected.len() && batch.recv(&socket, SOON).expect("received") > 0 {
                    for one in batch.datagrams() {
                        assert_eq!(one.bytes, advert(&config, draining));
                        assert_eq!((*one.source.ip(), one.hop_limit), (config.source, Some(5)));
                        destinations.push(one.destination.expect("asked for"));
                    }
                }
                assert_eq!(destinations, expected);
            }
        }
        assert_eq!(batch.recv(&socket, QUIET).expect("no error"), 0);
    });
}

#[test]
fn an_advert_that_cannot_leave_is_an_error() {
    let lo = Interface::by_name("lo").expect("every namespace has lo");
    let config = Config {
        interface: lo.index,
        source: "2001:db8::dead".parse().expect("an address"),
        ..config(BeaconScope::All)
    };
    let sender = BeaconSender::open(config).expect("opened");
    let error = sender.send(false).expect_err("the source is not this host's");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}
