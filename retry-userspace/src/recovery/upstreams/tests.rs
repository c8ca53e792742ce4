use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([0xfd10, 0, 0, 0, 0, 0, 0, host], 9300))
}

fn member(host: u16, pinned: bool) -> Member {
    Member { name: format!("host-{host}:9300"), address: address(host), pinned }
}

/// `hosts`, of which the first `pinned` are.
fn table(hosts: impl IntoIterator<Item = u16>, pinned: usize) -> Upstreams {
    let mut upstreams = Upstreams::default();
    upstreams.refresh(hosts.into_iter().enumerate().map(|(i, host)| member(host, i < pinned)).collect());
    upstreams
}

fn order(upstreams: &Upstreams, select: ProxySelect, flow: u64) -> Vec<SocketAddr> {
    upstreams.order(select, flow, SECOND).ask.iter().map(|choice| choice.address).collect()
}

fn hosts(hosts: &[u16]) -> Vec<SocketAddr> {
    hosts.iter().copied().map(address).collect()
}

fn fail(upstreams: &mut Upstreams, host: u16) {
    for _ in 0..3 {
        upstreams.silent(address(host), SECOND);
    }
}

fn first(upstreams: &Upstreams, flow: u64) -> SocketAddr {
    order(upstreams, ProxySelect::Hash, flow)[0]
}

#[test]
fn one_that_was_only_heard_of_comes_behind_until_it_answers() {
    for select in [ProxySelect::Order, ProxySelect::Hash, ProxySelect::Rtt] {
        let mut upstreams = table([1, 2, 3, 4, 5, 6, 7, 8], 1);
        for flow in 0..100 {
            let asked = upstreams.order(select, flow, SECOND).ask;
            assert_eq!((asked[0], asked.len()), (Choice { address: address(1), healthy: true }, 8));
            assert!(asked[1..].iter().all(|one| !one.healthy), "none holds a job up");
        }
        // Each is measured, whatever decides.
        assert_ne!(upstreams.take_idle(select, 10 * SECOND), None);
        upstreams.answered(address(5), Some(1), SECOND);
        assert!(upstreams.order(select, 1, SECOND).ask[..2].iter().all(|one| one.healthy));
        assert!(
            (0..100).any(|flow| order(&upstreams, select, flow)[0] == address(5)) != (select == ProxySelect::Order)
        );
    }
    // Where there is no other, they are asked as all were.
    let upstreams = table([1, 2], 0);
    assert!(upstreams.order(ProxySelect::Hash, 7, SECOND).ask.iter().all(|one| one.healthy));
}

#[test]
fn as_listed() {
    let upstreams = table([3, 1, 2], 1);
    assert_eq!(order(&upstreams, ProxySelect::Order, 7), hosts(&[3, 1, 2]));
}

#[test]
fn the_fastest_first_and_the_unmeasured_last() {
    let mut upstreams = table([1, 2, 3, 4], 4);
    for (host, ms) in [(2, 9), (3, 2), (4, 5)] {
        upstreams.answered(address(host), Some(ms * MS), SECOND);
    }
    assert_eq!(order(&upstreams, ProxySelect::Rtt, 7), hosts(&[3, 4, 2, 1]));
}

#[test]
fn one_that_does_not_answer_leaves_and_a_pinned_one_comes_last() {
    let mut upstreams = table([1, 2, 3], 1);
    fail(&mut upstreams, 1);
    fail(&mut upstreams, 2);
    let Order { ask, .. } = upstreams.order(ProxySelect::Order, 7, SECOND);
    assert_eq!(ask, [Choice { address: address(3), healthy: true }, Choice { address: address(1), healthy: false }]);
    let healthy: Vec<bool> = upstreams.status(SECOND).iter().map(|one| one.healthy).collect();
    assert_eq!(healthy, [false, false, true]);
}

#[test]
fn when_none_answers_all_are_asked() {
    let mut upstreams = table([1, 2], 0);
    fail(&mut upstreams, 1);
    fail(&mut upstreams, 2);
    assert_eq!(order(&upstreams, ProxySelect::Order, 7), hosts(&[1, 2]));
}

#[test]
fn who_throttles_is_left_out_for_a_while() {
    let mut upstreams = table([1, 2], 2);
    upstreams.hold(address(1), SECOND + 1);
    upstreams.hold(address(1), 5);
    let now = upstreams.order(ProxySelect::Order, 7, SECOND);
    assert_eq!((now.ask.len(), now.held.len()), (1, 1));
    let later = upstreams.order(ProxySelect::Order, 7, SECOND + 1);
    assert_eq!((later.ask.len(), later.held.len()), (2, 0));
}

#[test]
fn an_address_named_twice_is_asked_once() {
    let mut upstreams = Upstreams::default();
    let other_name = Member { name: "alias:9300".to_owned(), ..member(1, true) };
    upstreams.refresh(members(&[member(1, true), other_name, member(2, true)], &[]));
    assert_eq!(upstreams.status(0).len(), 3, "verbatim");
    assert_eq!(order(&upstreams, ProxySelect::Order, 7), hosts(&[1, 2]));
}

#[test]
fn the_round_trip_is_smoothed() {
    let mut upstreams = table([1], 1);
    upstreams.answered(address(1), Some(8 * MS), SECOND);
    upstreams.answered(address(1), None, SECOND);
    upstreams.answered(address(1), Some(16 * MS), SECOND);
    let status = &upstreams.status(3 * SECOND)[0];
    assert_eq!(status.rtt, Some(Duration::from_millis(9)));
    assert_eq!(status.last_answer, Some(Duration::from_secs(2)));
}

#[test]
fn a_refresh_keeps_what_is_known_of_those_that_stay() {
    let mut upstreams = table([1, 2], 0);
    upstreams.answered(address(2), Some(MS), SECOND);
    fail(&mut upstreams, 1);
    upstreams.refresh(vec![member(3, false), member(2, false), member(1, false)]);
    let status = upstreams.status(SECOND);
    assert_eq!(status.iter().map(|one| one.healthy).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(status[1].rtt, Some(Duration::from_millis(1)));
    upstreams.refresh(vec![member(3, false)]);
    upstreams.refresh(vec![member(1, false)]);
    assert!(upstreams.status(SECOND)[0].healthy, "one that was gone begins anew");
}

#[test]
fn one_that_left_is_tried_now_and_then() {
    let mut upstreams = table([1, 2], 2);
    assert_eq!(upstreams.take_idle(ProxySelect::Order, 100 * SECOND), None, "nothing is to be learnt");
    upstreams.sent(address(2), 100 * SECOND);
    fail(&mut upstreams, 2);
    assert_eq!(upstreams.take_idle(ProxySelect::Order, 104 * SECOND), None);
    assert_eq!(upstreams.take_idle(ProxySelect::Order, 105 * SECOND), Some(address(2)));
    assert_eq!(upstreams.take_idle(ProxySelect::Order, 106 * SECOND), None);
}

#[test]
fn where_time_decides_everybody_is_measured_now_and_then() {
    for select in [ProxySelect::Rtt, ProxySelect::Hash] {
        let mut upstreams = table([1, 2], 2);
        upstreams.sent(address(1), 90 * SECOND);
        assert_eq!(upstreams.take_idle(select, 100 * SECOND), Some(address(2)));
        assert_eq!(upstreams.take_idle(select, 119 * SECOND), None);
        assert_eq!(upstreams.take_idle(select, 120 * SECOND), Some(address(1)));
        upstreams.hold(address(2), 500 * SECOND);
        assert_eq!(upstreams.take_idle(select, 140 * SECOND), None, "never while it holds us off");
    }
}

#[test]
fn more_than_twice_as_slow_as_the_fastest_loses_its_flows() {
    let flow = (0..).find(|flow| first(&table([1, 2, 3], 3), *flow) == address(2)).expect("each has its flows");
    for (slow_ms, expected) in [(20, 2), (21, 3)] {
        let mut upstreams = table([1, 2, 3], 3);
        upstreams.answered(address(3), Some(10 * MS), SECOND);
        assert_eq!(first(&upstreams, flow), address(2), "not measured");
        upstreams.answered(address(2), Some(slow_ms * MS), SECOND);
        assert_eq!(first(&upstreams, flow), address(expected), "{slow_ms} ms to 10 ms");
    }
}

/// Computed by another program, in another language: every version on every host chooses these.
#[test]
fn the_choice_survives_restarts_and_versions() {
    let upstreams = table([1, 2, 3, 4], 4);
    let chosen: Vec<u16> = (0..12)
        .map(|flow| match first(&upstreams, flow) {
            SocketAddr::V6(v6) => v6.ip().segments()[7],
            _ => 0,
        })
        .collect();
    assert_eq!(chosen, [4, 1, 3, 4, 3, 2, 4, 3, 4, 2, 2, 1]);
}

#[test]
fn flows_are_spread_evenly() {
    let upstreams = table(1..=4, 4);
    let mut shares = [0_u32; 4];
    for flow in 0..4_000 {
        let chosen = first(&upstreams, flow);
        shares[(1..=4).position(|host| address(host) == chosen).expect("one of them")] += 1;
    }
    assert!(shares.iter().all(|share| (900..=1_100).contains(share)), "{shares:?}");
}

proptest! {
    #[test]
    fn the_order_of_members_is_nothing_to_a_hash(
        ids in prop::collection::btree_set(1..500_u16, 1..20), seed: u64, flow: u64,
    ) {
        let sorted: Vec<u16> = ids.iter().copied().collect();
        let mut shuffled = sorted.clone();
        shuffled.sort_by_key(|id| weight(&id.to_string(), seed));
        prop_assert_eq!(
            order(&table(sorted, 0), ProxySelect::Hash, flow),
            order(&table(shuffled, 0), ProxySelect::Hash, flow)
        );
    }

    #[test]
    fn one_that_goes_moves_only_its_own_flows(
        ids in prop::collection::btree_set(1..500_u16, 2..20), gone: prop::sample::Index, flow: u64,
    ) {
        let all: Vec<u16> = ids.iter().copied().collect();
        let gone = all[gone.index(all.len())];
        let before = order(&table(all.clone(), 0), ProxySelect::Hash, flow);
        let after = order(&table(all.into_iter().filter(|id| *id != gone), 0), ProxySelect::Hash, flow);
        let expected: Vec<SocketAddr> = before.into_iter().filter(|one| *one != address(gone)).collect();
        prop_assert_eq!(after, expected);
    }

    #[test]
    fn members_are_named_ones_verbatim_then_discovered_ones_once(
        named in prop::collection::vec(1..40_u16, 0..80), found in prop::collection::vec(0..150_u16, 0..200),
    ) {
        let named: Vec<Member> = named.into_iter().map(|host| member(host, true)).collect();
        let found: Vec<SocketAddr> = found.into_iter().map(address).collect();
        let all = members(&named, &found);
        prop_assert_eq!(&all[..named.len()], &named[..]);
        let rest: Vec<SocketAddr> = all[named.len()..].iter().map(|one| one.address).collect();
        let mut expected: Vec<SocketAddr> = Vec::new();
        for one in found {
            if named.iter().all(|other| other.address != one) && !expected.contains(&one) {
                expected.push(one);
            }
        }
        expected.truncate(MOST.saturating_sub(named.len()));
        prop_assert_eq!(rest, expected);
        prop_assert!(all[named.len()..].iter().all(|one| !one.pinned));
    }
}

#[test]
fn what_cannot_be_reached_is_not_discovered_and_what_is_named_stays() {
    let unusable =
        ["[::1]:9300", "[::]:9300", "[fe80::1]:9300", "[ff05::1]:9300", "[fd10::1]:0", "127.0.0.1:1", "169.254.1.1:1"];
    let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
    for text in unusable {
        assert!(!is_reachable(parse(text)), "{text}");
    }
    let usable = ["[fd10::1]:9300", "[fe80::1%3]:9300", "10.0.0.1:9300"];
    for text in usable {
        assert!(is_reachable(parse(text)), "{text}");
    }
    let found: Vec<SocketAddr> = unusable.into_iter().chain(usable).map(parse).collect();
    let named = [Member { name: "localhost:9300".to_owned(), address: parse("[::1]:9300"), pinned: true }];
    let all: Vec<SocketAddr> = members(&named, &found).iter().map(|one| one.address).collect();
    let expected: Vec<SocketAddr> = ["[::1]:9300"].into_iter().chain(usable).map(parse).collect();
    assert_eq!(all, expected);
}

#[test]
fn two_forms_of_one_address() {
    let plain: SocketAddr = "[fd10::1]:9300".parse().expect("an address");
    let mut received = std::net::SocketAddrV6::new("fd10::1".parse().expect("an address"), 9300, 5, 3);
    assert!(is_same(plain, received.into()));
    received.set_port(1);
    assert!(!is_same(plain, received.into()));
    let zone =
        |zone| SocketAddr::from(std::net::SocketAddrV6::new("fe80::1".parse().expect("an address"), 9300, 0, zone));
    assert!(!is_same(zone(1), zone(2)));
}
