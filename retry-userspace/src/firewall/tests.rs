use std::net::Ipv6Addr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::import::{Imported, import};
use super::judge::Nacks;
use super::ruleset::{Ruleset, range};

/// What is made of these rules of the chain `input`, whose policy is given.
fn imported(policy: &str, rules: &[Value], more: &[Value]) -> Imported {
    let mut list = vec![
        json!({"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": policy}}),
    ];
    list.extend_from_slice(more);
    list.extend((10..).zip(rules).map(|(handle, expr)| {
        json!({"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": handle, "expr": expr}})
    }));
    of(&list, Some("eth0"))
}

fn of(list: &[Value], interface: Option<&str>) -> Imported {
    let rules = Ruleset::parse(&json!({ "nftables": list }).to_string()).expect("a ruleset");
    let nacks = Nacks {
        port: 9300,
        address: Some(Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x20)),
        interface: interface.map(str::to_owned),
    };
    import(&rules, &nacks)
}

fn matches(left: Value, op: &str, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn payload(protocol: &str, field: &str, right: Value) -> Value {
    matches(json!({"payload": {"protocol": protocol, "field": field}}), "==", right)
}

fn port() -> Value {
    payload("udp", "dport", json!(9300))
}

fn from(right: Value) -> Value {
    payload("ip6", "saddr", right)
}

fn prefix(addr: &str, len: u8) -> Value {
    json!({"prefix": {"addr": addr, "len": len}})
}

fn drop() -> Value {
    json!({"drop": null})
}

fn accept() -> Value {
    json!({"accept": null})
}

/// The lines without the comment, and the rules that are not among them.
fn lines(imported: &Imported) -> (Vec<&str>, usize) {
    (imported.rules.lines().filter(|line| !line.starts_with('#')).collect(), imported.warnings.len())
}

#[test]
fn drops_of_a_source_are_denied() {
    let rules = [
        json!([from(json!("fd10::66")), port(), {"counter": {"packets": 0, "bytes": 0}}, drop()]),
        json!([from(prefix("fd11::", 16)), {"reject": {"type": "icmpv6"}}]),
        json!([from(json!({"set": ["fd12::1", prefix("fd13::", 32)]})), payload("udp", "dport", json!({"set": [53, {"range": [9000, 9400]}]})), {"log": null}, drop()]),
        // Of other ports, other protocols and other interfaces.
        json!([from(json!("fd10::1")), payload("udp", "dport", json!(9301)), drop()]),
        json!([from(json!("fd10::2")), payload("tcp", "dport", json!(9300)), drop()]),
        json!([payload("ip", "saddr", json!("10.0.0.1")), drop()]),
        json!([matches(json!({"meta": {"key": "iifname"}}), "==", json!("eth1")), from(json!("fd10::3")), drop()]),
        json!([matches(json!({"meta": {"key": "iifname"}}), "==", json!("lo")), accept()]),
        json!([payload("ip6", "daddr", json!("fd10::99")), from(json!("fd10::4")), drop()]),
    ];
    let wanted = ["deny fd11::/16", "deny fd13::/32", "deny fd10::66/128", "deny fd12::1/128"];
    assert_eq!(lines(&imported("accept", &rules, &[])), (wanted.to_vec(), 0));
}

#[test]
fn the_first_rule_that_holds_decides() {
    let rules = [
        json!([from(prefix("fd10::", 64)), accept()]),
        json!([from(json!("fd10::66")), drop()]),
        json!([from(prefix("fd10::", 16)), port(), drop()]),
    ];
    // fd10::66 is accepted before the rule that would drop it.
    let wanted = ["allow ::/0", "deny fd10::/16", "allow fd10::/64"];
    assert_eq!(lines(&imported("accept", &rules, &[])), (wanted.to_vec(), 0));
    assert_eq!(lines(&imported("drop", &rules, &[])), (vec!["deny ::/0", "allow fd10::/64"], 0));
    // A chain after it may drop what it accepts.
    let later = [
        json!({"chain": {"family": "ip6", "table": "raw", "name": "early", "handle": 1, "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}}),
        json!({"rule": {"family": "ip6", "table": "raw", "chain": "early", "handle": 2, "expr": [from(json!("fd10::66")), drop()]}}),
    ];
    let wanted = ["deny ::/0", "allow fd10::/64", "deny fd10::66/128"];
    assert_eq!(lines(&imported("drop", &rules, &later)), (wanted.to_vec(), 0));
}

#[test]
fn everything_but_a_set_is_dropped() {
    let all_but = matches(json!({"payload": {"protocol": "ip6", "field": "saddr"}}), "!=", json!("@listeners"));
    let set = json!({"set": {"family": "inet", "table": "filter", "name": "listeners", "type": "ipv6_addr", "flags": ["interval"], "elem": [prefix("fd10::", 64), {"elem": {"val": "fd11::1", "comment": "x"}}]}});
    let rules = [json!([port(), all_but, drop()])];
    let wanted = ["deny ::/0", "allow fd10::/64", "allow fd11::1/128"];
    assert_eq!(lines(&imported("accept", &rules, &[set])), (wanted.to_vec(), 0));
}

#[test]
fn a_long_set_takes_no_hour() {
    let elements: Vec<Value> =
        (0..50_000u32).map(|number| json!(format!("fd10::{:x}:{:x}", number >> 16, number & 0xffff))).collect();
    let set =
        json!({"set": {"family": "inet", "table": "filter", "name": "bad", "type": "ipv6_addr", "elem": elements}});
    let imported = imported("accept", &[json!([from(json!("@bad")), drop()])], &[set]);
    assert_eq!(lines(&imported).0.len(), 50_000);
}

#[test]
fn jumps_are_followed() {
    let chain = |name: &str| json!({"chain": {"family": "inet", "table": "filter", "name": name, "handle": 5}});
    let rule = |chain: &str, handle: u8, expr: Value| json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "handle": handle, "expr": expr}});
    let more = [
        chain("nacks"),
        rule("nacks", 2, json!([from(json!("fd10::1")), {"return": null}])),
        rule("nacks", 3, json!([from(prefix("fd10::", 64)), drop()])),
    ];
    let rules = [json!([port(), {"jump": {"target": "nacks"}}]), json!([from(json!("fd10::1")), drop()])];
    assert_eq!(lines(&imported("accept", &rules, &more)), (vec!["deny fd10::/64"], 0));
    let goes = [json!([port(), {"goto": {"target": "nacks"}}]), json!([from(json!("fd10::1")), drop()])];
    let wanted = ["allow ::/0", "deny fd10::/64", "allow fd10::1/128"];
    assert_eq!(lines(&imported("accept", &goes, &more)), (wanted.to_vec(), 0));
}

#[test]
fn what_cannot_be_expressed_is_named() {
    let rules = [
        json!([port(), {"limit": {"rate": 10, "per": "second", "inv": true}}, drop()]),
        json!([matches(json!({"ct": {"key": "state"}}), "in", json!(["invalid"])), drop()]),
        json!([matches(json!({"payload": {"protocol": "ip6", "field": "hoplimit"}}), "<", json!(64)), port(), drop()]),
        json!([port(), {"vmap": {"key": {"payload": {"protocol": "ip6", "field": "saddr"}}, "data": "@verdicts"}}]),
        json!([{"xt": {"type": "match", "name": "recent"}}, drop()]),
        json!([payload("udp", "sport", json!(53)), drop()]),
        // These decide nothing, or not on NACKs.
        json!([payload("tcp", "dport", json!(22)), {"limit": {"rate": 10, "per": "second"}}, accept()]),
        json!([port(), {"limit": {"rate": 1, "per": "second"}}, {"log": null}]),
        json!([from(json!("fd10::66")), drop()]),
    ];
    let imported = imported("accept", &rules, &[]);
    assert_eq!(lines(&imported), (vec!["deny fd10::66/128"], 6), "{:#?}", imported.warnings);
    for (warning, (handle, what)) in imported.warnings.iter().zip([
        (10, "limit"),
        (11, "state"),
        (12, "hoplimit"),
        (13, "vmap"),
        (14, "xt"),
        (15, "sport"),
    ]) {
        assert!(
            warning.starts_with(&format!("table inet filter, chain input, handle {handle}: not imported: ")),
            "{warning}"
        );
        assert!(warning.contains(what), "{warning}");
    }
}

#[test]
fn a_rule_for_an_interface_needs_its_name() {
    let chain = json!({"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}});
    let on = |name: &str| matches(json!({"meta": {"key": "iifname"}}), "==", json!(name));
    let rule = json!({"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 2, "expr": [on("eth*"), from(json!("fd10::1")), drop()]}});
    let list = [chain, rule];
    assert_eq!(lines(&of(&list, Some("eth0"))), (vec!["deny fd10::1/128"], 0));
    assert_eq!(lines(&of(&list, Some("fabric0"))), (vec![], 0));
    assert_eq!(lines(&of(&list, None)), (vec![], 1));
}

#[test]
fn what_is_no_ruleset_is_refused() {
    for text in ["", "[]", "{}", "{\"nftables\": 1}"] {
        assert!(Ruleset::parse(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn a_range_is_its_prefixes(first in 0u128..600, count in 0u128..600, high: bool, probe in 0u128..1_300) {
        let base = if high { u128::MAX - 1_299 } else { 0 };
        let (first, last, probe) = (base + first, base + first + count, base + probe);
        let all = range(first, last);
        let holding = all.iter().filter(|one| one.covers(&retry_common::acl::Prefix::of(probe.into(), 128))).count();
        prop_assert_eq!(holding, usize::from((first..=last).contains(&probe)));
        prop_assert!(all.len() <= 20);
    }

    #[test]
    fn no_json_panics(text in "\\PC{0,60}") {
        let _ = Ruleset::parse(&text).map(|rules| import(&rules, &Nacks { port: 9300, address: None, interface: None }));
    }
}

#[test]
fn all_addresses_are_one_prefix() {
    assert_eq!(range(0, u128::MAX), [retry_common::acl::Prefix::ALL]);
}
