use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::*;
use crate::acl::Acl;
use crate::acl::testing::{all_admitted, deny};
use crate::beacon::BEACON_PORT;
use crate::ingress::joins::Delivery;
use crate::ingress::source_discovery;
use crate::ingress::subscription::Status;
use crate::ingress::testing::{self, Publisher, count, eventually, source};
use crate::net::nack_socket::{self, NackSocket};
use crate::net::testing::{Pair, SOON, in_namespace};
use crate::settings::{Host, Ssm};
use crate::stop_flag::StopFlag;

const ASM: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x000b, 0xfffd);
const SSM: Ipv6Addr = Ipv6Addr::new(0xff35, 0, 0, 0, 0, 0, 0x000b, 0xfffd);
const SUBTREES: Ipv6Addr = Ipv6Addr::new(0xff35, 0, 0, 0, 0, 0, 0x000b, 0xfffc);

type Heard = Arc<Mutex<Vec<SocketAddrV6>>>;

struct Scene {
    control: Arc<Control>,
    acl: Arc<Acl>,
    counters: Arc<UserCounters>,
    adverts: Heard,
    wanted: Sender<BTreeSet<Ipv6Addr>>,
    status: Arc<Status>,
}

impl Scene {
    fn count(&self, counter: Counter) -> u64 {
        count(&self.counters, counter)
    }

    fn adverts(&self) -> Vec<SocketAddrV6> {
        self.adverts.lock().expect("no panic").clone()
    }
}

/// Runs `test` with a beacon listener at the far end that takes manifests of `source(1)`.
fn with_ear(name: &'static str, test: impl FnOnce(&Pair, &Publisher, &Scene) + Send + 'static) {
    in_namespace(name, |pair| {
        let counters = Arc::new(UserCounters::default());
        let ssm = Ssm {
            manifests: vec![Host::Address(source(1))],
            beacons: Vec::new(),
            subtree_announcers: Vec::new(),
            publishers: Vec::new(),
            refresh: Duration::from_secs(30),
        };
        let config = source_discovery::Config { ssm, own: None, shard_bits: 2, is_ssm: true };
        let control = Arc::new(Control::new(config, Arc::clone(&counters)));
        let group_set = GroupSet {
            delivery: Delivery::Single,
            interface: pair.far.index,
            port: BEACON_PORT,
            any_source: vec![ASM],
            by_source: vec![SSM, SUBTREES],
        };
        let acl = all_admitted();
        let (wanted, sets) = channel();
        let adverts = Heard::default();
        let heard = Arc::clone(&adverts);
        let on_advert: OnAdvert = Box::new(move |_, from| heard.lock().expect("no panic").push(from));
        let config = Config { groups: group_set };
        let beacons = BeaconListener::open(
            config,
            sets,
            on_advert,
            Arc::clone(&control),
            Arc::clone(&acl),
            Arc::clone(&counters),
        );
        let beacons = beacons.expect("joined");
        let scene = Scene { control, acl, counters, adverts, wanted, status: beacons.subscription.status() };
        let stop = StopFlag::default();
        let stopped = stop.clone();
        let listener = thread::spawn(move || beacons.run(&stopped));
        test(&pair, &Publisher::new(&pair, BEACON_PORT), &scene);
        stop.ask();
        listener.join().expect("no panic").expect("no error");
    });
}

fn advert() -> Vec<u8> {
    Advert {
        scope: 0x05,
        nack_addr: source(1).octets(),
        nack_port: 9300,
        tier: 0,
        preference: 128,
        interval_s: 3,
        flags: 0x0010,
        instance_id: 9,
    }
    .to_bytes()
    .to_vec()
}

fn manifest(epoch_s: u32) -> Vec<u8> {
    let sources = [source(2).octets()];
    let manifest = testing::manifest(&sources, epoch_s, 0);
    let mut bytes = vec![0; 200];
    let length = manifest.write(&mut bytes).expect("room");
    bytes.truncate(length);
    bytes
}

#[test]
fn each_datagram_goes_where_it_belongs() {
    with_ear("each_datagram_goes_where_it_belongs", |pair, publisher, scene| {
        publisher.send(source(2), ASM, &advert());
        eventually("an ADVERT", || scene.adverts().len() == 1);
        let from = scene.adverts()[0];
        assert_eq!((*from.ip(), from.scope_id()), (source(2), pair.far.index));
        publisher.send(source(2), ASM, &manifest(10));
        publisher.send(source(1), ASM, &manifest(10));
        publisher.send(source(1), ASM, &manifest(9));
        eventually("manifests", || scene.count(Counter::ManifestsHeard) == 3);
        assert_eq!((scene.count(Counter::ManifestsForeign), scene.count(Counter::ManifestsStale)), (1, 1));
        assert_eq!(scene.control.wanted(), BTreeSet::from([source(2)]));
        let mut broken = manifest(11);
        broken[70] ^= 1;
        publisher.send(source(1), ASM, &broken);
        publisher.send(source(1), ASM, &manifest(11)[..40]);
        eventually("two that cannot be read", || scene.count(Counter::ManifestsRefused) == 2);
        for other in [&b"x"[..], &[0; 64], &advert()[..55]] {
            publisher.send(source(1), ASM, other);
        }
        eventually("three of another kind", || scene.count(Counter::AdvertsRefused) == 3);
        assert_eq!((scene.control.wanted(), scene.adverts().len()), (BTreeSet::from([source(2)]), 1));
    });
}

#[test]
fn refused_sources_are_not_heard() {
    with_ear("refused_sources_are_not_heard", |_, publisher, scene| {
        deny(&scene.acl, &[source(1)]);
        publisher.send(source(1), ASM, &advert());
        publisher.send(source(1), ASM, &manifest(10));
        publisher.send(source(2), ASM, &advert());
        eventually("an ADVERT of the other", || scene.adverts().len() == 1);
        assert_eq!(*scene.adverts()[0].ip(), source(2));
        assert_eq!((scene.count(Counter::AdvertsDenied), scene.count(Counter::ManifestsDenied)), (1, 1));
        assert_eq!(scene.count(Counter::ManifestsHeard), 0);
        assert_eq!(scene.control.wanted(), BTreeSet::new());
    });
}

#[test]
fn named_sources_are_heard_on_their_groups_and_others_are_not() {
    with_ear("named_sources_are_heard_on_their_groups_and_others_are_not", |_, publisher, scene| {
        let sources = |wanted: &[Ipv6Addr]| {
            scene.wanted.send(wanted.iter().copied().collect()).expect("listened to");
            eventually("joined", || scene.status.sources() == wanted.len());
        };
        publisher.send(source(1), SSM, &manifest(10));
        sources(&[source(1)]);
        publisher.send(source(2), SSM, &advert());
        // Announcements of subtrees are joined, and say nothing to us.
        publisher.send(source(1), SUBTREES, b"announcement");
        publisher.send(source(1), SSM, &manifest(11));
        eventually("the manifest of the named one", || !scene.control.wanted().is_empty());
        sources(&[source(1), source(2)]);
        publisher.send(source(2), SSM, &advert());
        eventually("the ADVERT of the new one", || scene.adverts().len() == 1);
        assert_eq!((scene.count(Counter::ManifestsHeard), scene.count(Counter::AdvertsRefused)), (1, 0));
        sources(&[]);
    });
}

#[test]
fn the_nack_socket_keeps_its_datagrams() {
    with_ear("the_nack_socket_keeps_its_datagrams", |pair, publisher, scene| {
        let address: Ipv6Addr = "fd02::1".parse().expect("an address");
        // Opened after the beacon listener, and before another one: the order does not matter.
        let nacks = NackSocket::open(&nack_socket::Config {
            address,
            port: BEACON_PORT,
            receive_buffer: 1 << 20,
            shared: false,
            multicast_loop: false,
        })
        .expect("opened");
        let (_wanted, sets) = channel();
        let group_set = GroupSet {
            delivery: Delivery::Single,
            interface: pair.far.index,
            port: BEACON_PORT,
            any_source: vec![ASM],
            by_source: Vec::new(),
        };
        let later = Subscription::open(group_set, &BTreeSet::new(), sets).expect("joined");
        let mut batch = Batch::new(64, 2048);
        for number in 0..20_u8 {
            publisher.send(source(1), address, &[number; 64]);
            publisher.send(source(1), ASM, &advert());
            assert_eq!(batch.recv(&nacks, SOON).expect("received"), 1);
            let nack = batch.datagrams().next().expect("one");
            assert_eq!((nack.bytes, nack.destination), (&[number; 64][..], Some(address)));
        }
        eventually("the ADVERTs", || scene.adverts().len() == 20);
        assert_eq!(scene.count(Counter::AdvertsRefused), 0);
        let at_the_other = testing::drain(later.fds());
        assert_eq!(at_the_other.len(), 20);
        assert!(at_the_other.iter().all(|(_, destination)| *destination == ASM));
    });
}
