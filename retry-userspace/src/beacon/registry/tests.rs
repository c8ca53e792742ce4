//! Conversations in virtual time, and the table against a plain model.

use proptest::prelude::*;

use super::*;

const START: u64 = 1_000 * NS_PER_S;
const OWN: u32 = 77;
const ETH0: u32 = 4;

fn at(seconds: u64) -> u64 {
    START + seconds * NS_PER_S
}

fn sender() -> SocketAddrV6 {
    SocketAddrV6::new("fe80::9".parse().expect("an address"), 40_000, 0, ETH0)
}

fn advert(instance_id: u32) -> Advert {
    Advert {
        scope: advert::BeaconScope::Site.byte(),
        nack_addr: "fd10::20".parse::<Ipv6Addr>().expect("an address").octets(),
        nack_port: 9300,
        tier: 0,
        preference: 128,
        interval_s: 60,
        flags: advert::FLAG_MULTICAST,
        instance_id,
    }
}

fn with_address(text: &str) -> Advert {
    Advert { nack_addr: text.parse::<Ipv6Addr>().expect("an address").octets(), ..advert(1) }
}

fn registry() -> Registry {
    Registry::new(OWN, MOST_ENDPOINTS)
}

fn hear(registry: &mut Registry, advert: &Advert, now_ns: u64) -> Outcome {
    registry.handle_advert(&advert.to_bytes(), sender(), now_ns)
}

fn ids(registry: &Registry, now_ns: u64) -> Vec<u32> {
    registry.endpoints(now_ns).iter().map(|endpoint| endpoint.instance_id).collect()
}

#[test]
fn an_endpoint_is_known_until_three_intervals_of_silence() {
    let mut registry = registry();
    assert_eq!(hear(&mut registry, &advert(1), at(0)), Outcome::New);
    for minute in 1..=10 {
        assert_eq!(hear(&mut registry, &advert(1), at(minute * 60)), Outcome::Refreshed);
    }
    let [endpoint] = &registry.endpoints(at(630))[..] else { panic!("one endpoint") };
    assert_eq!(
        *endpoint,
        Endpoint {
            nack: "[fd10::20]:9300".parse().expect("an address"),
            tier: 0,
            preference: 128,
            flags: advert::FLAG_MULTICAST,
            instance_id: 1,
            heard_from: sender(),
            age: Duration::from_secs(30),
            expires_in: Duration::from_secs(150),
        }
    );
    assert_eq!(ids(&registry, at(600 + 180) - 1), [1]);
    assert!(ids(&registry, at(600 + 180)).is_empty());
    // An endpoint that comes back is new.
    assert_eq!(hear(&mut registry, &advert(1), at(900)), Outcome::New);
}

#[test]
fn the_newest_advert_holds() {
    let mut registry = registry();
    hear(&mut registry, &Advert { interval_s: 3_600, ..advert(1) }, at(0));
    let draining = Advert { interval_s: 1, flags: advert::FLAG_DRAINING, tier: 9, ..advert(1) };
    assert!(!registry.endpoints(at(1))[0].is_draining());
    assert_eq!(hear(&mut registry, &draining, at(1)), Outcome::Refreshed);
    let endpoint = &registry.endpoints(at(1))[0];
    assert!(endpoint.is_draining());
    assert_eq!((endpoint.tier, endpoint.expires_in), (9, Duration::from_secs(3)));
    // The old interval is forgotten with the rest.
    assert!(ids(&registry, at(4)).is_empty());

    hear(&mut registry, &advert(1), at(10));
    let elsewhere = Advert { nack_port: 9301, ..advert(1) };
    assert_eq!(hear(&mut registry, &elsewhere, at(11)), Outcome::Moved);
    assert_eq!(registry.endpoints(at(11))[0].nack.port(), 9301);
}

#[test]
fn ours_and_what_is_no_advert_leave_no_trace() {
    let mut registry = registry();
    assert_eq!(hear(&mut registry, &advert(OWN), at(0)), Outcome::Own);
    let bytes = advert(1).to_bytes();
    let refused = |registry: &mut Registry, bytes: &[u8]| registry.handle_advert(bytes, sender(), at(0));
    assert_eq!(refused(&mut registry, &bytes[..55]), Outcome::Refused(AdvertError::Size));
    assert_eq!(refused(&mut registry, &[0; 56]), Outcome::Refused(AdvertError::Magic));
    assert!(ids(&registry, at(0)).is_empty());
    // 0 is the field's word for 1.
    assert_eq!(hear(&mut registry, &advert(0), at(0)), Outcome::New);
    assert_eq!(hear(&mut registry, &advert(1), at(0)), Outcome::Refreshed);
    assert_eq!(ids(&registry, at(0)), [1]);
    assert_eq!(Registry::new(1, 8).handle_advert(&advert(0).to_bytes(), sender(), at(0)), Outcome::Own);
}

#[test]
fn an_unreachable_address_is_refused() {
    let mut registry = registry();
    for (advert, why) in [
        (with_address("::"), Unusable::Unspecified),
        (with_address("ff05::1"), Unusable::Multicast),
        (with_address("::1"), Unusable::Loopback),
        (with_address("::ffff:10.0.0.1"), Unusable::Mapped),
        (Advert { nack_port: 0, ..advert(1) }, Unusable::NoPort),
    ] {
        assert_eq!(hear(&mut registry, &advert, at(0)), Outcome::Unusable(why));
    }
    let link_local = with_address("fe80::20");
    let from_anywhere = SocketAddrV6::new(*sender().ip(), 1, 0, 0);
    assert_eq!(
        registry.handle_advert(&link_local.to_bytes(), from_anywhere, at(0)),
        Outcome::Unusable(Unusable::NoInterface)
    );
    assert!(ids(&registry, at(0)).is_empty());
    assert_eq!(hear(&mut registry, &link_local, at(0)), Outcome::New);
    assert_eq!(
        registry.endpoints(at(0))[0].nack,
        SocketAddrV6::new("fe80::20".parse().expect("an address"), 9300, 0, ETH0)
    );
}

#[test]
fn they_stand_in_the_order_of_asking() {
    let mut registry = registry();
    for (id, tier, preference) in [(5, 1, 255), (4, 0, 10), (3, 0, 200), (2, 0, 200), (6, 255, 255)] {
        hear(&mut registry, &Advert { tier, preference, ..advert(id) }, at(0));
    }
    assert_eq!(ids(&registry, at(0)), [2, 3, 4, 5, 6]);
}

/// A host of its own for each number.
fn host(number: u32) -> SocketAddrV6 {
    SocketAddrV6::new(Ipv6Addr::from_bits(0xfd10 << 112 | u128::from(number)), 40_000, 0, ETH0)
}

fn hear_from(registry: &mut Registry, number: u32, id: u32, now_ns: u64) -> Outcome {
    registry.handle_advert(&advert(id).to_bytes(), host(number), now_ns)
}

#[test]
fn a_full_table_keeps_those_that_were_heard_again() {
    let mut registry = Registry::new(OWN, 4);
    for id in 1..=4 {
        hear_from(&mut registry, id, id, at(0));
    }
    // Half an interval later, and from the same host: the last place stays one for newcomers.
    for id in 1..=4 {
        assert_eq!(hear_from(&mut registry, id, id, at(30)), Outcome::Refreshed);
    }
    for id in 100..200 {
        assert_eq!(hear_from(&mut registry, id, id, at(31)), Outcome::New, "a newcomer is taken");
    }
    assert_eq!((ids(&registry, at(31)), registry.displaced), (vec![1, 2, 3, 199], 100));
    // Those that are known are forgotten as before.
    assert_eq!(ids(&registry, at(30 + 180)), [199]);
}

#[test]
fn a_flood_locks_no_newcomer_out() {
    let mut registry = registry();
    hear_from(&mut registry, 1, 1, at(0));
    hear_from(&mut registry, 1, 1, at(60));
    for id in 1_000..101_000 {
        hear_from(&mut registry, id, id, at(61));
    }
    assert_eq!(hear_from(&mut registry, 2, 2, at(62)), Outcome::New);
    let known = registry.endpoints(at(62));
    assert_eq!(known.len(), MOST_ENDPOINTS);
    assert!([1, 2].iter().all(|id| known.iter().any(|one| one.instance_id == *id)));
    // The forgers repeat themselves: a quarter of the places is not theirs.
    for id in 1_000..101_000 {
        hear_from(&mut registry, id, id, at(62));
    }
    for round in 0..3 {
        for id in 100_000..101_000 {
            hear_from(&mut registry, id, id, at(100 + 40 * round));
        }
    }
    assert_eq!(hear_from(&mut registry, 3, 3, at(190)), Outcome::New);
    let confirmed = registry.entries.values().filter(|one| one.confirmed).count();
    assert_eq!(confirmed, MOST_ENDPOINTS / 4 * 3);
    assert!(registry.entries.len() <= MOST_ENDPOINTS);
}

#[test]
fn one_address_announces_sixteen_newcomers() {
    let mut registry = registry();
    hear_from(&mut registry, 1, 1, at(0));
    for id in 1_010..2_000 {
        assert_eq!(hear_from(&mut registry, 2, id, at(1)), Outcome::New);
    }
    assert_eq!(registry.entries.len(), 1 + MOST_OF_ONE);
    assert!(registry.entries.contains_key(&1) && registry.entries.contains_key(&1_999));
}

#[test]
fn an_instance_is_not_taken_over_while_it_is_heard() {
    let mut registry = registry();
    let forged = Advert { flags: advert::FLAG_DRAINING, nack_port: 1, ..advert(7) };
    let forge = |registry: &mut Registry, now_ns| registry.handle_advert(&forged.to_bytes(), host(2), now_ns);
    hear_from(&mut registry, 1, 7, at(0));
    hear_from(&mut registry, 1, 7, at(60));
    assert_eq!(forge(&mut registry, at(149)), Outcome::Contested);
    assert!(!registry.endpoints(at(149))[0].is_draining());
    // Its ADVERT is overdue: it may have moved.
    assert_eq!(forge(&mut registry, at(150)), Outcome::Moved);
    assert_eq!(registry.endpoints(at(150))[0].nack.port(), 1);
}

/// What was heard once, or is on its way out, stands against no other; a forged interval is not waited for.
#[test]
fn an_instance_is_taken_over_from_whom_was_heard_once_or_drains() {
    let seldom = Advert { interval_s: u16::MAX, ..advert(7) };
    let mut once = registry();
    assert_eq!(once.handle_advert(&seldom.to_bytes(), host(2), at(0)), Outcome::New);
    assert_eq!(hear_from(&mut once, 1, 7, at(1)), Outcome::Refreshed);
    assert_eq!(once.endpoints(at(1))[0].heard_from, host(1));

    let mut draining = registry();
    hear_from(&mut draining, 1, 7, at(0));
    hear_from(&mut draining, 1, 7, at(60));
    let last = Advert { flags: advert::FLAG_DRAINING, ..advert(7) };
    draining.handle_advert(&last.to_bytes(), host(1), at(61));
    assert_eq!(hear_from(&mut draining, 2, 7, at(62)), Outcome::Refreshed, "the next pod");

    let mut long = registry();
    long.handle_advert(&seldom.to_bytes(), host(2), at(0));
    long.handle_advert(&seldom.to_bytes(), host(2), at(40_000));
    assert_eq!(hear_from(&mut long, 1, 7, at(40_179)), Outcome::Contested);
    assert_eq!(hear_from(&mut long, 1, 7, at(40_180)), Outcome::Refreshed);
}

/// One ADVERT that says that it holds for 54 hours.
#[test]
fn what_was_heard_once_is_told_of_for_a_quarter_of_an_hour() {
    let mut registry = registry();
    let seldom = Advert { interval_s: u16::MAX, ..advert(1) };
    hear(&mut registry, &seldom, at(0));
    assert_eq!(registry.endpoints(at(899))[0].expires_in, Duration::from_secs(1));
    assert!(ids(&registry, at(900)).is_empty());
    // An endpoint that is heard so seldom is one that is known from its second ADVERT on.
    let interval = u64::from(u16::MAX);
    assert_eq!(hear(&mut registry, &seldom, at(interval)), Outcome::Refreshed);
    assert_eq!(ids(&registry, at(4 * interval) - 1), [1]);
}

#[test]
fn an_address_that_another_host_announces() {
    let mut registry = registry();
    hear_from(&mut registry, 0x20, 1, at(0));
    hear_from(&mut registry, 0x21, 2, at(0));
    let at_its_source: Vec<bool> = registry.endpoints(at(0)).iter().map(Endpoint::is_at_its_source).collect();
    assert_eq!(at_its_source, [true, false]);
}

#[test]
fn what_is_heard_is_counted() {
    let counters = Arc::new(UserCounters::default());
    let shared = SharedRegistry::new("me", Arc::clone(&counters));
    let theirs = Advert { interval_s: 1, ..advert(1) }.to_bytes();
    let hear = |bytes: &[u8], from| shared.hear(bytes, from, |_| false);
    hear(&theirs, sender());
    std::thread::sleep(Duration::from_millis(600));
    hear(&theirs, sender());
    hear(&theirs, host(1));
    hear(&Advert { nack_port: 9301, ..advert(1) }.to_bytes(), sender());
    hear(&Advert { instance_id: advert::instance_id("me"), ..advert(1) }.to_bytes(), sender());
    hear(b"no advert", sender());
    hear(&with_address("::1").to_bytes(), sender());
    for id in 2..=u32::try_from(MOST_ENDPOINTS).expect("small") + 4 {
        hear(&advert(id).to_bytes(), host(0x20));
    }
    shared.hear(&with_address("fd10::21").to_bytes(), sender(), |address| address.segments()[7] == 0x21);
    let count = counters.snapshot();
    let heard = u64::try_from(MOST_ENDPOINTS).expect("small") + 3 + 4;
    assert_eq!((count.adverts_heard, count.adverts_refused, count.adverts_unusable), (heard, 1, 1));
    assert_eq!((count.adverts_contested, count.adverts_elsewhere), (1, 3));
    assert_eq!(count.adverts_overflow, heard - 4 - 16);
    assert_eq!(shared.endpoints().len(), 1 + MOST_OF_ONE);
}

/// What happens to the table: an ADVERT after some time.
fn event() -> impl Strategy<Value = (Advert, u64)> {
    let address = prop_oneof![
        8 => Just("fd10::20"),
        2 => Just("fd10::21"),
        1 => Just("fe80::1"),
        1 => Just("::1"),
        1 => Just("ff05::1"),
    ];
    (0u32..12, address, 0u16..4, 0u8..3, 0u8..3, any::<u16>(), 0u64..4_000_000_000).prop_map(
        |(id, address, interval_s, tier, preference, flags, later_ns)| {
            let advert = Advert { interval_s, tier, preference, flags, ..with_address(address) };
            (Advert { instance_id: if id == 11 { OWN } else { id }, ..advert }, later_ns)
        },
    )
}

proptest! {
    /// The table is the last usable ADVERT of each id, while it lives.
    #[test]
    fn it_holds_what_a_list_would(events in prop::collection::vec(event(), 1..60)) {
        let mut registry = registry();
        let mut list: Vec<(u32, Advert, u64)> = Vec::new();
        let mut now = START;
        for (advert, later_ns) in events {
            now += later_ns;
            list.retain(|(_, _, expires)| now < *expires);
            let outcome = hear(&mut registry, &advert, now);
            let id = advert.instance_id.max(1);
            let usable = !matches!(advert.nack_addr, [0xff, ..] | [0, .., 1]);
            let known = list.iter().position(|(known, ..)| *known == id);
            let took = id != OWN && usable;
            prop_assert_eq!(took, matches!(outcome, Outcome::New | Outcome::Refreshed | Outcome::Moved));
            prop_assert_eq!(outcome == Outcome::New, took && known.is_none());
            if took {
                let expires = now + 3 * NS_PER_S * u64::from(advert.interval_s.max(1));
                list.retain(|(known, ..)| *known != id);
                list.push((id, advert, expires));
            }
            list.sort_by_key(|(id, advert, _)| (advert.tier, 255 - advert.preference, *id));
            let endpoints = registry.endpoints(now);
            prop_assert_eq!(endpoints.len(), list.len());
            for (endpoint, (id, advert, expires)) in endpoints.iter().zip(&list) {
                prop_assert_eq!(endpoint.instance_id, *id);
                prop_assert_eq!((endpoint.flags, endpoint.nack.ip().octets()), (advert.flags, advert.nack_addr));
                prop_assert_eq!(endpoint.expires_in, Duration::from_nanos(*expires - now));
            }
        }
    }

    #[test]
    fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), now: u64, id: u32) {
        let mut registry = Registry::new(1, 4);
        registry.handle_advert(&bytes, sender(), now);
        let mut advert = advert(id).to_bytes();
        advert[8..].iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
        registry.handle_advert(&advert, sender(), now);
        prop_assert!(registry.endpoints(now).len() <= 2);
        prop_assert!(registry.endpoints(0).len() <= 2);
    }
}
