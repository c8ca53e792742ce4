//! ADVERTs: to the group of each scope, saying what the endpoint does, with the hop limit and the source of the settings.

use std::net::Ipv6Addr;
use std::time::Duration;

use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, INTERFACE, group_in};
use retry_testbed::net::packet::{ParsedPacket, multicast_mac};
use retry_testbed::peers::announce::Advert;
use retry_testbed::scene::{adverts, await_advert, binary, counted, eventually, flags, is_root, two_hosts};

const BOUND: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x77);
const BEACON: u16 = 0xFFFD;
/// The first ADVERT leaves at start and the next a minute later: what has not come in this time is not sent.
const BOTH_WAYS: Duration = Duration::from_millis(300);

/// What a daemon with these flags announces at its start.
fn announced(fabric: &Fabric, more: &[&str]) -> Vec<(ParsedPacket, Advert)> {
    let (endpoint, client) = two_hosts(fabric);
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let address = endpoint.addr.to_string();
    let mut all = flags("off", &["-nack-addr", &address]);
    all.extend(more);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &all).expect("a daemon");
    await_advert(&capture, |_| true);
    std::thread::sleep(BOTH_WAYS);
    adverts(&capture.take())
}

fn groups(adverts: &[(ParsedPacket, Advert)]) -> Vec<Ipv6Addr> {
    let mut groups: Vec<_> = adverts.iter().map(|(packet, _)| *packet.dst.ip()).collect();
    groups.sort();
    groups
}

#[test]
fn every_scope_has_its_groups() {
    if !is_root("every_scope_has_its_groups") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    endpoint.add_address(BOUND).expect("an address");
    let bound = BOUND.to_string();
    let scopes: [(&str, u8, &[u16]); 4] = [
        ("site", 0x05, &[0xFF05]),
        ("org", 0x08, &[0xFF08]),
        ("global", 0x0E, &[0xFF0E]),
        ("both", 0xFF, &[0xFF05, 0xFF08, 0xFF0E]),
    ];
    for (scope, byte, prefixes) in scopes {
        let more = ["-beacon-scope", scope, "-egress-hoplimit", "9", "-bind-source", &bound];
        let got = announced(&fabric, &more);
        let wanted: Vec<_> = prefixes.iter().map(|prefix| group_in(*prefix, BEACON)).collect();
        assert_eq!(groups(&got), wanted, "-beacon-scope {scope}");
        for (packet, advert) in got {
            assert_eq!((packet.hop_limit, *packet.src.ip()), (9, BOUND));
            assert_eq!((packet.src_mac, packet.dst_mac), (endpoint.mac, multicast_mac(*packet.dst.ip())));
            assert_eq!((advert.scope, advert.flags, advert.interval_seconds), (byte, 0x0010, 60));
            assert_eq!((advert.tier, advert.preference), (0, 128));
            assert_eq!(advert.nack_address, endpoint.nack_address(), "NACKs do not go to -bind-source");
        }
    }
}

#[test]
fn every_flag_is_announced() {
    if !is_root("every_flag_is_announced") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let parent = ["-proxy-enabled", "-upstream-retry-endpoints", "[fd10::2]:9300"];
    let unicast = ["-beacon-flags-multicast=false", "-beacon-flags-unicast"];
    let cases: [(&[&str], u16); 5] = [
        (&["-beacon-flags-unicast"], 0x0018),
        (&unicast, 0x0008),
        (&["-beacon-flags-draining"], 0x0014),
        (&parent, 0x0012),
        (&["-beacon-flags-draining", "-beacon-flags-unicast", parent[0], parent[1], parent[2]], 0x001E),
    ];
    for (more, wanted) in cases {
        let got = announced(&fabric, more);
        assert_eq!(groups(&got), [group_in(0xFF05, BEACON)]);
        assert_eq!(got[0].1.flags, wanted, "{more:?}");
    }
}

/// The rank, another NACK port and another group id.
#[test]
fn a_beacon_says_where_to_ask() {
    if !is_root("a_beacon_says_where_to_ask") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let more = [
        ["-nack-port", "9777", "-mc-group-id", "0x00AB"],
        ["-beacon-tier", "254", "-beacon-preference", "0"],
        ["-beacon-interval", "90s", "-instance", "another"],
    ];
    let got = announced(&fabric, &more.concat());
    assert_eq!(groups(&got), [Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0xab, BEACON)]);
    let advert = got[0].1;
    assert_eq!((*advert.nack_address.ip(), advert.nack_address.port()), (endpoint.addr, 9777));
    assert_eq!((advert.tier, advert.preference, advert.interval_seconds), (254, 0, 90));
    assert_eq!(advert.instance_id, retry_common::wire::advert::instance_id("another"));
    assert_eq!((got[0].0.hop_limit, *got[0].0.src.ip()), (1, endpoint.addr));
}

/// With sources named, ADVERTs go where `-control-group-compat` says. Listeners of the field's older versions hear them on
/// the any-source group, newer ones on the source-specific group too (BRC-126): the source is the one in their settings.
#[test]
fn source_specific_mode_announces_from_the_bound_source() {
    if !is_root("source_specific_mode_announces_from_the_bound_source") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    endpoint.add_address(BOUND).expect("an address");
    let bound = BOUND.to_string();
    let cases: [(&str, u8, &[&str], &[u16]); 5] = [
        ("site", 0x05, &[], &[0xFF05]),
        ("site", 0x05, &["-control-group-compat", "asm-only"], &[0xFF05]),
        ("site", 0x05, &["-control-group-compat", "both"], &[0xFF05, 0xFF35]),
        ("site", 0x05, &["-control-group-compat", "derived"], &[0xFF35]),
        ("global", 0x0E, &["-control-group-compat", "both"], &[0xFF0E, 0xFF3E]),
    ];
    for (scope, byte, compat, prefixes) in cases {
        let more = [
            ["-source-mode", "ssm", "-scope", scope],
            ["-ssm-publishers-static", "fd10::2", "-bind-source", &bound],
            ["-beacon-scope", scope, "-egress-hoplimit", "3"],
        ];
        let got = announced(&fabric, &[&more.concat(), compat].concat());
        let wanted: Vec<_> = prefixes.iter().map(|prefix| group_in(*prefix, BEACON)).collect();
        assert_eq!(groups(&got), wanted, "{scope} {compat:?}");
        for (packet, advert) in got {
            assert_eq!((*packet.src.ip(), packet.hop_limit), (BOUND, 3));
            assert_eq!((advert.scope, advert.nack_address), (byte, endpoint.nack_address()));
        }
    }
}

/// An interface that has come up has its multicast route a moment later: an ADVERT that could not leave does not wait for the next
/// interval, which is a minute away. Here it is nft that holds it up.
#[test]
fn an_advert_that_did_not_leave_is_sent_again() {
    if !is_root("an_advert_that_did_not_leave_is_sent_again") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let address = endpoint.addr.to_string();
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-nack-addr", &address])).expect("a daemon");
    let chain = "chain out { type filter hook output priority 0; ip6 daddr ff00::/8 udp dport 9300 drop; };";
    endpoint.ns.feed(&["nft", "-f", "-"], &format!("table inet hold {{ {chain} }};")).expect("a rule");
    // That it is ready again is announced.
    endpoint.ns.run(&["ip", "-6", "addr", "del", &format!("{address}/64"), "dev", INTERFACE]).expect("no address");
    eventually("it is not ready", || matches!(daemon.get("/readyz"), Ok((503, _))));
    endpoint.add_address(endpoint.addr).expect("an address");
    // As often as the daemon announces a change by itself.
    eventually("ADVERTs that did not leave", || daemon.log().matches("a beacon did not leave").count() >= 3);
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    endpoint.ns.run(&["nft", "delete", "table", "inet", "hold"]).expect("no rule");
    await_advert(&capture, |_| true);
}

/// Endpoints of the field announce themselves to the any-source group, to the source-specific one, or to both: with sources
/// named, this one hears both.
#[test]
fn adverts_to_either_kind_of_group_are_heard() {
    if !is_root("adverts_to_either_kind_of_group_are_heard") {
        return;
    }
    let fabric = Fabric::bridged(&["endpoint", "client", "other"], 1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let other = fabric.host("other").expect("a host");
    let source = other.addr.to_string();
    let named = ["-source-mode", "ssm", "-ssm-bootstrap-beacon", &source];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &named)).expect("a daemon");
    for compat in ["asm-only", "derived"] {
        let before = daemon.metrics().expect("a scrape").count("bre_beacon_adverts_received_total", &[]);
        let announces = [
            ["-control-group-compat", compat, "-instance", "other", "-beacon-interval", "1s"],
            ["-source-mode", "ssm", "-ssm-bootstrap-beacon", "fd10::77", "-scope", "site"],
        ];
        let _other = Daemon::start(&binary(), &other.ns, &flags("off", &announces.concat())).expect("a daemon");
        counted(&daemon, "bre_beacon_adverts_received_total", &[], before + 1);
    }
}
