//! Who may ask: the lists and the hop limit, before anything of the datagram is looked at.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use retry_common::{
    abi::{Settings, setting_flag as flag},
    acl::Prefix,
    counter::Counter::{
        self, AcksSent, CacheHits, NackDenied, NackHopLimit, NackNoPeer, NackNotListed, NackRequests, PassedSource,
        UnicastRetransmits,
    },
};
use retry_testbed::xdp::{
    expect::{
        Out, once,
        role::{ACK, LEADS, UNI},
    },
    fixture::{Loaded, slow_machine},
    testrun::Action,
};
use retry_userspace::parts::acl::Rules;

use crate::{
    table::{Ask, Scene, asks},
    verdicts::with_program,
};

const UNICAST: &[Counter] = &[NackRequests, CacheHits, UnicastRetransmits, AcksSent];
const COPY: Out = Out::Clones(0x02, ACK | UNI | LEADS);
const PROXIED: u8 = 0x01;

/// What comes of a NACK, and what is counted.
type Got = (Out, &'static [Counter]);

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap_or((text, "128"));
    let prefix = Prefix::new(address.parse().expect("an address"), length.parse().expect("a length"));
    prefix.expect("no bits behind its length")
}

fn set(texts: &[&str]) -> BTreeSet<Prefix> {
    texts.iter().map(|text| prefix(text)).collect()
}

fn rules(allow: &[&str], deny: &[&str]) -> Rules {
    Rules { allow: set(allow), deny: set(deny), peers: None, publishers: None }
}

/// What scenes of this number get from listeners `fd10:0:0:1::NUMBER:10` and `…:11`.
fn play(loaded: &mut Loaded, number: u16, name: &str, first: Got, second: Got) {
    let mut scene = Scene::new(loaded, number);
    scene.play(name, &asks(Ask::Have(0), first.0, first.1));
    scene.play(name, &asks(Ask::Have(1), second.0, second.1).from(1));
}

#[test]
fn a_source_that_may_not_ask_gets_nothing() {
    const SERVED: Got = (COPY, UNICAST);
    const DENIED: Got = (Out::Silence, &[NackDenied]);
    const NOT_LISTED: Got = (Out::Silence, &[NackNotListed]);
    with_program("a_source_that_may_not_ask_gets_nothing", |loaded| {
        let all = "fd10:0:0:1::/64";
        for (number, allow, deny, first, second) in [
            (0x50, &[][..], &[][..], SERVED, SERVED),
            (0x51, &[], &["fd10:0:0:1::51:10"], DENIED, SERVED),
            (0x52, &["fd10:0:0:1::52:11"], &[], NOT_LISTED, SERVED),
            (0x53, &["fd10:0:0:1::53:10"], &[all], SERVED, DENIED),
            (0x54, &[all], &["fd10:0:0:1::54:10/127"], DENIED, DENIED),
            (0x55, &[all], &[all], DENIED, DENIED),
            (0x56, &["::/0"], &["fd10:0:0:1::56:10"], DENIED, SERVED),
            (0x57, &[], &["::/0"], DENIED, DENIED),
            (0x58, &[], &[], SERVED, SERVED),
        ] {
            loaded.set_acl(&rules(allow, deny)).expect("room");
            play(loaded, number, &format!("allow {allow:?}, deny {deny:?}"), first, second);
        }
    });
}

#[test]
fn what_a_refused_source_sends_is_not_looked_at() {
    with_program("what_a_refused_source_sends_is_not_looked_at", |loaded| {
        loaded.set_acl(&rules(&[], &["fd10:0:0:1::/64", "::/80"])).expect("room");
        let good = Scene::new(loaded, 0x60).nack(&asks(Ask::Have(0), Out::Silence, &[]));
        let mut short = good.clone();
        short.payload.truncate(63);
        let mut foreign = good.clone();
        foreign.payload[0] ^= 1;
        let mut unspecified = good.clone();
        unspecified.src = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 40_000, 0, 0);
        for packet in [&good, &short, &foreign, &unspecified] {
            let ran = loaded.run(&packet.build()).expect("a legal length");
            assert_eq!((ran.action, ran.counted), (Action::Drop, once(&[NackDenied])), "{packet:?}");
        }
        // Traffic of others is no business of the lists.
        let mut elsewhere = good.clone();
        elsewhere.dst.set_port(9_301);
        let ran = loaded.run(&elsewhere.build()).expect("a legal length");
        assert_eq!((ran.action, ran.counted), (Action::Pass, Vec::new()));
        loaded.set_acl(&Rules::default()).expect("room");
        let ran = loaded.run(&unspecified.build()).expect("a legal length");
        assert_eq!((ran.action, ran.counted), (Action::Pass, once(&[PassedSource])));
    });
}

#[test]
fn a_nack_from_too_far_gets_nothing() {
    with_program("a_nack_from_too_far_gets_nothing", |loaded| {
        let base = loaded.settings();
        // NACKs of a scene have three hops left.
        for (number, least, out, counted) in [
            (0x70, 3, COPY, UNICAST),
            (0x71, 4, Out::Silence, &[NackHopLimit][..]),
            (0x72, 255, Out::Silence, &[NackHopLimit]),
        ] {
            loaded.set(Settings { hop_limit_min: least, ..base });
            play(loaded, number, &format!("at least {least}"), (out, counted), (out, counted));
        }
    });
}

#[test]
fn a_copy_of_its_own_is_for_peers() {
    const HIT: &[Counter] = &[NackRequests, CacheHits, AcksSent];
    const STRANGER: &[Counter] = &[NackRequests, NackNoPeer, CacheHits, AcksSent];
    with_program("a_copy_of_its_own_is_for_peers", |loaded| {
        let base = loaded.settings();
        loaded.set(Settings { flags: base.flags & !flag::UNICAST, ..base });
        loaded.set_acl(&Rules { peers: Some(set(&["fd10:0:0:1::80:10"])), ..Rules::default() }).expect("room");
        let mut scene = Scene::new(loaded, 0x80);
        scene.play("a peer", &asks(Ask::Have(0), COPY, UNICAST).flags(PROXIED));
        scene.play("a stranger", &asks(Ask::Have(0), Out::Ack(0), STRANGER).flags(PROXIED).from(1));
        scene.play("a listener", &asks(Ask::Have(0), Out::Ack(0), HIT).from(1));
        // A bit that says nothing on the wire makes no stranger of a peer.
        scene.play("a peer with all bits", &asks(Ask::Have(0), COPY, UNICAST).flags(0xFF));
        loaded.set_acl(&Rules::default()).expect("room");
        let mut scene = Scene::new(loaded, 0x81);
        scene.play("anyone", &asks(Ask::Have(0), COPY, UNICAST).flags(PROXIED).from(1));
    });
}

/// Random lists of up to 16 lengths and random sources near their prefixes.
#[test]
fn the_program_says_what_the_daemon_says() {
    with_program("the_program_says_what_the_daemon_says", |loaded| {
        let mut random = SmallRng::seed_from_u64(16);
        let mut nack = Scene::new(loaded, 0x90).nack(&asks(Ask::Lack, Out::Miss, &[]));
        let lists = if slow_machine() { 2 } else { 6 };
        for list in 0..lists {
            let lengths: Vec<u8> = (0..16).map(|_| random.random_range(0..=128)).collect();
            let base: u128 = u128::from(0xFD10u16) << 112;
            let mut some = |count: usize| -> BTreeSet<Prefix> {
                let one = |random: &mut SmallRng| {
                    let bits = base | (random.random::<u128>() >> random.random_range(8..120));
                    Prefix::of(bits.into(), lengths[random.random_range(0..lengths.len())])
                };
                (0..count).map(|_| one(&mut random)).collect()
            };
            let count = [0, 3, 30, 300, 3_000, 30_000][list % 6];
            let rules = Rules { allow: some(count), deny: some(count.max(1)), peers: None, publishers: None };
            loaded.set_acl(&rules).expect("room");
            let mut verdicts = [0; 3];
            for _ in 0..300 {
                let near = rules.allow.iter().chain(&rules.deny).nth(random.random_range(0..rules.deny.len()));
                let bits = near.map_or(base, Prefix::bits) | (random.random::<u128>() >> random.random_range(8..=127));
                nack.src = SocketAddrV6::new((bits | base).into(), 40_000, 0, 0);
                let counted = loaded.run(&nack.build()).expect("a legal length").counted;
                let wanted = loaded.acl().admit(*nack.src.ip(), Some(nack.hop_limit));
                let refused = [NackDenied, NackNotListed].map(|counter| counted.contains(&(counter, 1)));
                let got = match refused {
                    [false, false] => Ok(true),
                    [true, false] => Err(NackDenied),
                    _ => Err(NackNotListed),
                };
                assert_eq!(got, wanted, "{} of list {list}", nack.src.ip());
                verdicts[got.map_or_else(|reason| reason as usize - NackDenied as usize + 1, |_| 0)] += 1;
            }
            assert!(verdicts[1] > 0, "no source was denied by list {list}: {verdicts:?}");
        }
    });
}

#[test]
fn no_list_is_in_force_by_halves() {
    with_program("no_list_is_in_force_by_halves", |loaded| {
        let good = Scene::new(loaded, 0xA0).nack(&asks(Ask::Have(0), Out::Silence, &[])).build();
        // The source is denied by each of them, in another place of the tables.
        let denied = prefix("fd10:0:0:1::a0:10");
        let list = |first: u32| {
            let more = (first..first + 2_000).map(|number| Prefix::of(u128::from(number).into(), 128));
            Rules { deny: more.chain([denied]).collect(), ..Rules::default() }
        };
        loaded.set_acl(&list(0)).expect("room");
        let before = loaded.counters().expect("counters");
        let (done, changes) = (AtomicBool::new(false), if slow_machine() { 4 } else { 20 });
        thread::scope(|scope| {
            let (loaded, done, good) = (&*loaded, &done, &good);
            let asking = scope.spawn(move || {
                let mut runs = 0;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(loaded.run(good).expect("a legal length").action, Action::Drop, "run {runs}");
                    runs += 1;
                }
                runs
            });
            for change in 1..=changes {
                loaded.acl().replace(&list(change * 5_000)).expect("room");
            }
            done.store(true, Ordering::Relaxed);
            let runs: u64 = asking.join().expect("no answer");
            assert!(runs > 1_000 || slow_machine(), "{runs} runs");
        });
        let after = loaded.counters().expect("counters");
        assert!(after.nack_denied > before.nack_denied && after.nack_requests == before.nack_requests);
    });
}
