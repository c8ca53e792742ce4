//! What interfaces take of what the program redirects to them: the kernel tells, and it is counted.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, INTERFACE};
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::peers::answer::nack;
use retry_testbed::scene::is_root;
use retry_testbed::xdp::fixture::{Interface, Loaded, NACK_ADDRESS, difference};

const HELD: FrameKey = FrameKey::new(0x5e47, 1);
const MISSED: FrameKey = FrameKey::new(0x5e47, 2);

/// The other end of a veth pair takes redirected packets while it has GRO on, and none without.
#[test]
fn what_an_interface_does_not_take_is_counted() {
    if !is_root("what_an_interface_does_not_take_is_counted") {
        return;
    }
    let fabric = Fabric::flat(1_500).expect("root and the tools");
    let (endpoint, client) = (&fabric.hosts()[0], &fabric.hosts()[1]);
    let source = SocketAddrV6::new(Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 2), 40_000, 0, 0);
    let ask = |key| PacketBuilder::udp(source, NACK_ADDRESS, &nack(key)).build();
    let gro = |state| drop(client.ns.run(&["ethtool", "-K", INTERFACE, "gro", state]).expect("ethtool"));
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    endpoint.ns.enter(|| {
        let here = Interface::named(INTERFACE, endpoint.mac).expect("it is there");
        let mut loaded = Loaded::open(&here, &[], true).expect("the kernel takes the program");
        loaded.put(HELD, 3, &[7; 400], Duration::from_secs(600), false);
        let mut expected = (0, 0);
        for (state, taken, lost) in [("on", 1, 0), ("off", 0, 1), ("on", 1, 0)] {
            gro(state);
            // One packet, two packets, and a probe.
            for (packets, send) in [
                (1, &(|| loaded.run_live(&ask(MISSED))) as &dyn Fn() -> anyhow::Result<()>),
                (2, &|| loaded.run_live(&ask(HELD))),
                (1, &|| loaded.probe()),
            ] {
                let before = loaded.counters().expect("counters");
                send().expect("the kernel runs it");
                expected = (expected.0 + packets * taken, expected.1 + packets * lost);
                // Since Linux 6.3 an interface says that it takes nothing: then nothing comes to the driver.
                let (taken, lost) = loaded.delivered().expect("counts");
                assert_eq!(taken, expected.0, "GRO {state}, {packets} packets");
                assert!([0, expected.1].contains(&lost), "GRO {state}, {packets} packets: {lost}");
                let after = loaded.counters().expect("counters");
                let errors = [Counter::RetransmitErrors, Counter::AckErrors, Counter::MissErrors];
                let counted = difference(&before, &after);
                assert!(!counted.iter().any(|(counter, _)| errors.contains(counter)), "{counted:?}");
            }
        }
    });
    let probes = capture.wait(2, Duration::from_secs(5), |packet| packet.bytes[12..14] == [0x88, 0xb5]);
    let probes = probes.iter().filter(|packet| packet.bytes[12..14] == [0x88, 0xb5]).count();
    assert_eq!(probes, 2, "those that were taken arrived");
}
