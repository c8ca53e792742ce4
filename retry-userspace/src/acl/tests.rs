use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use proptest::prelude::*;
use retry_common::acl::{LENGTHS, Prefix, entry_flag};

use super::rules::MOST;
use super::*;
use crate::settings;

fn prefix(text: &str) -> Prefix {
    settings::prefix(text).expect("a prefix")
}

fn set(texts: &[&str]) -> BTreeSet<Prefix> {
    texts.iter().map(|text| prefix(text)).collect()
}

fn rules(allow: &[&str], deny: &[&str]) -> Rules {
    Rules { allow: set(allow), deny: set(deny), peers: None, publishers: None }
}

fn acl(size: Size) -> Acl {
    Acl::new(Tables::plain(size).expect("memory"), 0)
}

/// What becomes of a NACK of a source.
fn verdict(acl: &Acl, source: &str) -> Result<bool, Counter> {
    acl.admit(source.parse().expect("an address"), Some(64))
}

#[test]
fn every_source_may_ask_where_there_is_no_list() {
    let acl = acl(Size::default());
    assert_eq!(verdict(&acl, "fd10::1"), Ok(true));
    acl.replace(&rules(&[], &["fd10::1"])).expect("room");
    assert_eq!(verdict(&acl, "fd10::1"), Err(Counter::NackDenied));
    acl.replace(&Rules::default()).expect("room");
    assert_eq!(verdict(&acl, "fd10::1"), Ok(true));
}

#[test]
fn the_longest_prefix_decides_and_deny_wins_a_tie() {
    let acl = acl(Size::default());
    let allow = ["fd10::/16", "fd10:0:0:1::7", "fd10:0:0:2::/64"];
    acl.replace(&rules(&allow, &["fd10:0:0:1::/64", "fd10:0:0:2::/64", "fd11::/16"])).expect("room");
    for (source, wanted) in [
        ("fd10::1", Ok(true)),
        ("fd10:0:0:1::8", Err(Counter::NackDenied)),
        ("fd10:0:0:1::7", Ok(true)),
        ("fd10:0:0:2::1", Err(Counter::NackDenied)),
        ("fd11::1", Err(Counter::NackDenied)),
        ("fd12::1", Err(Counter::NackNotListed)),
    ] {
        assert_eq!(verdict(&acl, source), wanted, "{source}");
    }
    // Without an allow list every source that is not denied.
    acl.replace(&rules(&[], &["fd10:0:0:1::/64"])).expect("room");
    assert_eq!((verdict(&acl, "fd12::1"), verdict(&acl, "fd10:0:0:1::7")), (Ok(true), Err(Counter::NackDenied)));
    acl.replace(&rules(&[], &["::/0"])).expect("room");
    assert_eq!(verdict(&acl, "fd12::1"), Err(Counter::NackDenied));
}

#[test]
fn peers_are_those_of_their_own_list() {
    let acl = acl(Size::default());
    let peers = Some(set(&["fd20::/16"]));
    acl.replace(&Rules { peers: peers.clone(), ..Rules::default() }).expect("room");
    assert_eq!((verdict(&acl, "fd20::1"), verdict(&acl, "fd10::1")), (Ok(true), Ok(false)));
    // A longer prefix of another list changes nothing of that.
    acl.replace(&Rules { peers, ..rules(&["fd10::/16", "fd20:1::/32"], &["fd20::/16"]) }).expect("room");
    assert_eq!(verdict(&acl, "fd20:1::1"), Ok(true));
    assert_eq!((verdict(&acl, "fd20::1"), verdict(&acl, "fd10::1")), (Err(Counter::NackDenied), Ok(false)));
}

#[test]
fn a_low_hop_limit_is_refused() {
    let acl = Acl::new(Tables::plain(Size::default()).expect("memory"), 64);
    let of = |hop_limit| acl.admit("fd10::1".parse().expect("an address"), hop_limit);
    assert_eq!((of(Some(64)), of(Some(255))), (Ok(true), Ok(true)));
    assert_eq!(
        (of(Some(63)), of(Some(0)), of(None)),
        (Err(Counter::NackHopLimit), Err(Counter::NackHopLimit), Err(Counter::NackHopLimit))
    );
    assert!(!acl.refuses("fd10::1".parse().expect("an address")), "other datagrams have hop limits of their own");
}

#[test]
fn an_ipv4_upstream_is_looked_up_as_mapped() {
    let acl = acl(Size::default());
    acl.replace(&rules(&[], &["::ffff:10.0.0.0/104"])).expect("room");
    assert!(acl.refuses(IpAddr::from([10, 1, 2, 3])) && !acl.refuses(IpAddr::from([11, 1, 2, 3])));
}

#[test]
fn a_hundred_thousand_of_each() {
    let of = |first: u16| -> BTreeSet<Prefix> {
        let address = |number: u32| (u128::from(first) << 112) | (u128::from(number) * 65_537) << 64 | 0xffff;
        let lengths = [128, 96, 64, 48];
        (0..100_000)
            .map(|number| Prefix::of(address(number).into(), lengths[usize::try_from(number % 4).unwrap_or(0)]))
            .collect()
    };
    let rules = Rules { allow: of(0xfd10), deny: of(0xfd11), peers: None, publishers: None };
    assert_eq!((rules.allow.len(), rules.deny.len()), (MOST, MOST));
    let acl = acl(Size::most());
    acl.replace(&rules).expect("room");
    for (list, wanted) in [(&rules.allow, Ok(true)), (&rules.deny, Err(Counter::NackDenied))] {
        for one in list.iter().step_by(97) {
            assert_eq!(acl.admit(one.bits().into(), Some(1)), wanted, "{one}");
        }
    }
    assert_eq!(verdict(&acl, "fd12::1"), Err(Counter::NackNotListed));
}

#[test]
fn neighbours_of_every_length_are_spread() {
    let acl = acl(Size::default());
    for length in 8..=128u32 {
        let deny =
            (0..256u128).map(|number| Prefix::of((number << (128 - length)).into(), u8::try_from(length).unwrap_or(0)));
        acl.tables
            .write(0, &Rules { deny: deny.collect(), ..Rules::default() })
            .unwrap_or_else(|error| panic!("{length}: {error}"));
    }
}

#[test]
fn what_has_no_place_changes_nothing() {
    let acl = acl(Size::default());
    acl.replace(&rules(&["fd10::/16"], &[])).expect("room");
    let many: Vec<String> = (0..=LENGTHS).map(|length| format!("::/{length}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = acl.replace(&rules(&[], &many)).expect_err("17 lengths").to_string();
    assert!(error.ends_with("prefixes of 17 lengths are too many: at most 16 are accepted"), "{error}");
    let host = |number: u32| Prefix::of(u128::from(number).into(), 128);
    let error = acl.replace(&Rules { deny: (0..5_000).map(host).collect(), ..Rules::default() }).expect_err("no room");
    assert!(error.to_string().contains("5000 prefixes are more than the 4096"), "{error}");
    assert_eq!((verdict(&acl, "fd10::1"), verdict(&acl, "::1")), (Ok(true), Err(Counter::NackNotListed)));
}

#[test]
fn a_file_is_read_whole_or_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rules");
    let source = Source { rules: rules(&["fd77::1"], &[]), file: Some(path.clone()) };
    let read = |text: &[u8]| {
        fs::write(&path, text).expect("written");
        source.read().map(|(rules, _)| rules)
    };
    let good = "# who\n\nallow fd10::/16  # listeners\n\tdeny\tfd10:0:0:1::/64\r\ndeny fd10::9\n";
    let wanted = Rules {
        allow: set(&["fd77::1", "fd10::/16"]),
        deny: set(&["fd10:0:0:1::/64", "fd10::9"]),
        peers: None,
        publishers: None,
    };
    assert_eq!(read(good.as_bytes()).expect("rules"), wanted);
    let name = path.display();
    for (line, accepted) in [
        ("permit fd10::/16", "allow PREFIX or deny PREFIX is accepted, and # before a comment"),
        ("allow", "allow PREFIX or deny PREFIX is accepted, and # before a comment"),
        ("deny fd10::1 fd10::2", "allow PREFIX or deny PREFIX is accepted, and # before a comment"),
        (
            "deny fd10::1/16",
            "an IPv6 address, or address/length with no bit set behind the length, such as fd10::/64, is accepted; perhaps fd10::/16 is meant",
        ),
        (
            "deny 10.0.0.1",
            "an IPv6 address, or address/length with no bit set behind the length, such as fd10::/64, is accepted",
        ),
    ] {
        let error = read(format!("{good}{line}\n").as_bytes()).expect_err("a bad line").to_string();
        assert_eq!(error, format!("-acl-file {name}: line 6: {line:?}: {accepted}"));
    }
    let error = read(b"\xff\xfe").expect_err("no text").to_string();
    assert!(error.starts_with(&format!("-acl-file {name}: ")), "{error}");
    fs::remove_file(&path).expect("there");
    let error = source.read().expect_err("no file").to_string();
    assert!(error.contains("a readable file of at most 32 MiB is accepted"), "{error}");
}

/// The rule as it is documented, without tables.
fn by_the_rule(rules: &Rules, source: u128) -> u32 {
    let longest = |list: &BTreeSet<Prefix>| {
        list.iter().filter(|one| one.covers(&Prefix::of(source.into(), 128))).map(Prefix::length).max()
    };
    let verdict = match (longest(&rules.allow), longest(&rules.deny)) {
        (None, None) if rules.allow.is_empty() => entry_flag::ALLOWED,
        (None, None) => entry_flag::NOT_LISTED,
        (allow, deny) if deny >= allow => entry_flag::DENIED,
        _ => entry_flag::ALLOWED,
    };
    let also = |list: &Option<BTreeSet<Prefix>>, flag| {
        if list.as_ref().is_none_or(|list| longest(list).is_some()) { flag } else { 0 }
    };
    verdict | also(&rules.peers, entry_flag::PEER) | also(&rules.publishers, entry_flag::PUBLISHER)
}

/// Prefixes of few lengths and few bits, so that they hold each other often.
fn a_list() -> impl Strategy<Value = BTreeSet<Prefix>> {
    let length = prop_oneof![Just(0u8), Just(2), Just(4), Just(64), Just(66), Just(126), Just(128)];
    proptest::collection::btree_set(
        (an_address(), length).prop_map(|(bits, length)| Prefix::of(bits.into(), length)),
        0..12,
    )
}

fn an_address() -> impl Strategy<Value = u128> {
    (0u128..16, 0u128..4, 0u128..8).prop_map(|(high, middle, low)| high << 124 | middle << 62 | low)
}

proptest! {
    #[test]
    fn the_tables_say_what_the_rule_says(
        allow in a_list(), deny in a_list(), peers in proptest::option::of(a_list()),
        publishers in proptest::option::of(a_list()), sources in proptest::collection::vec(an_address(), 30)
    ) {
        let rules = Rules { allow, deny, peers, publishers };
        let acl = acl(Size::default());
        acl.replace(&rules).expect("room");
        for source in sources {
            let wanted = by_the_rule(&rules, source);
            let wanted = match wanted & entry_flag::VERDICT {
                entry_flag::DENIED => Err(Counter::NackDenied),
                entry_flag::NOT_LISTED => Err(Counter::NackNotListed),
                _ => Ok(wanted & entry_flag::PEER != 0),
            };
            prop_assert_eq!(acl.admit(source.into(), Some(1)), wanted, "{}", Ipv6Addr::from(source));
            let publishes = by_the_rule(&rules, source) & entry_flag::PUBLISHER != 0;
            prop_assert_eq!(acl.publishes(source.into()), publishes, "frames of {}", Ipv6Addr::from(source));
        }
    }
}

#[test]
fn a_list_names_what_it_names() {
    let of = |allow: &[&str], deny: &[&str], peers: Option<&[&str]>| {
        let acl = acl(Size::default());
        let rules =
            Rules { allow: set(allow), deny: set(deny), peers: peers.map(set), publishers: Some(set(&["fd12::/16"])) };
        acl.replace(&rules).expect("room");
        ["fd10::1", "fd11::1", "fd12::1"].map(|source| acl.names(source.parse().expect("an address")))
    };
    assert_eq!(of(&[], &[], None), [false; 3], "every source may ask, and none is named");
    assert_eq!(of(&[], &["fd10::/16"], None), [false; 3]);
    assert_eq!(of(&["fd10::/16"], &[], None), [true, false, false]);
    assert_eq!(of(&["fd10::/16"], &["fd10::1"], None), [false; 3], "denied");
    assert_eq!(of(&[], &[], Some(&["fd11::/16"])), [false, true, false]);
    assert!(!acl(Size::default()).names("fd10::1".parse().expect("an address")), "no list at all");
}
