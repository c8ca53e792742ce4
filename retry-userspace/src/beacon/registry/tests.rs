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

#[test]
fn a_full_table_keeps_those_that_are_there() {
    let mut registry = Registry::new(OWN, 3);
    // The first is closest to its end.
    hear(&mut registry, &Advert { interval_s: 10, ..advert(1) }, at(0));
    hear(&mut registry, &advert(2), at(0));
    hear(&mut registry, &advert(3), at(0));
    assert_eq!(hear(&mut registry, &advert(4), at(29)), Outcome::Full);
    assert_eq!(hear(&mut registry, &advert(2), at(29)), Outcome::Refreshed);
    assert_eq!(ids(&registry, at(29)), [1, 2, 3]);
    // A place is free when its endpoint is forgotten.
    assert_eq!(hear(&mut registry, &advert(4), at(30)), Outcome::New);
    assert_eq!(ids(&registry, at(30)), [2, 3, 4]);
}

#[test]
fn what_is_heard_is_counted() {
    let counters = Arc::new(UserCounters::default());
    let shared = SharedRegistry::new("me", Arc::clone(&counters));
    let theirs = advert(1).to_bytes();
    shared.hear(&theirs, sender());
    shared.hear(&theirs, sender());
    shared.hear(&Advert { nack_port: 9301, ..advert(1) }.to_bytes(), sender());
    shared.hear(&Advert { instance_id: advert::instance_id("me"), ..advert(1) }.to_bytes(), sender());
    shared.hear(b"no advert", sender());
    shared.hear(&with_address("::1").to_bytes(), sender());
    for id in 2..=u32::try_from(MOST_ENDPOINTS).expect("small") + 4 {
        shared.hear(&advert(id).to_bytes(), sender());
    }
    let count = counters.snapshot();
    let heard = u64::try_from(MOST_ENDPOINTS).expect("small") + 2;
    assert_eq!((count.adverts_heard, count.adverts_refused, count.adverts_unusable), (heard, 1, 1));
    assert_eq!(count.adverts_overflow, 4);
    assert_eq!(shared.endpoints().len(), MOST_ENDPOINTS);
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
    /// The table is the last usable ADVERT of each id, while it lives, and as many as there is room for.
    #[test]
    fn it_holds_what_a_list_would(events in prop::collection::vec(event(), 1..60), most in 1usize..8) {
        let mut registry = Registry::new(OWN, most);
        let mut list: Vec<(u32, Advert, u64)> = Vec::new();
        let mut now = START;
        for (advert, later_ns) in events {
            now += later_ns;
            list.retain(|(_, _, expires)| now < *expires);
            let outcome = hear(&mut registry, &advert, now);
            let id = advert.instance_id.max(1);
            let usable = !matches!(advert.nack_addr, [0xff, ..] | [0, .., 1]);
            let known = list.iter().position(|(known, ..)| *known == id);
            let took = id != OWN && usable && (known.is_some() || list.len() < most);
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
