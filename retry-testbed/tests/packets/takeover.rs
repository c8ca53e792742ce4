//! What one daemon leaves in the kernel and the next one takes over: the same on every kernel.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_testbed::net::netns::host_command;
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::peers::answer::nack;
use retry_testbed::scene::is_root;
use retry_testbed::xdp::fixture::{Interface, Loaded, NACK_ADDRESS, in_new_namespace};
use retry_testbed::xdp::testrun::Action;

const LISTENER: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xFD10, 0, 0, 1, 0, 0, 0, 0x10), 40_000, 0, 0);
const RESTARTS: u64 = 10;
const FRAMES: u64 = 200;

fn key(number: u64) -> FrameKey {
    FrameKey::new(0x7a4e, number)
}

fn bytes(number: u64) -> Vec<u8> {
    vec![u8::try_from(number % 251).expect("small"); 400]
}

/// Ten restarts, every second one to another build of the programs: the frames of all daemons before are answered, by the
/// program that is attached, and the counters go on.
#[test]
fn ten_restarts() {
    if !is_root("ten_restarts") {
        return;
    }
    let linear = std::env::var_os("RETRY_EBPF_LINEAR").expect("xtask names it");
    in_new_namespace(|| {
        let here = Interface::veth("rt0").expect("ip link works");
        // One of the two builds takes packets of one buffer only.
        for end in ["rt0", "rt0p"] {
            host_command(&["ip", "link", "set", end, "mtu", "1500"]).expect("an MTU");
        }
        let mut loaded = Loaded::open_to_stay(&here).expect("the kernel takes the program");
        for restart in 0..=RESTARTS {
            for number in restart * FRAMES..(restart + 1) * FRAMES {
                let put = loaded.put(key(number), 0, &bytes(number), Duration::from_secs(3_600), false);
                assert!(put.is_stored(), "{put:?}");
            }
            let before = loaded.counters().expect("counters").get(Counter::CacheHits);
            for number in (0..(restart + 1) * FRAMES).step_by(7) {
                let nack = PacketBuilder::udp(LISTENER, NACK_ADDRESS, &nack(key(number))).build();
                let ran = loaded.run(&nack).expect("a legal length");
                assert_eq!(ran.action, Action::Redirect, "frame {number} after {restart} restarts: {:?}", ran.counted);
                assert!(ran.counted.contains(&(Counter::UnicastRetransmits, 1)), "{number}: {:?}", ran.counted);
            }
            let hits = loaded.counters().expect("counters").get(Counter::CacheHits);
            assert_eq!(hits - before, ((restart + 1) * FRAMES).div_ceil(7));
            let object = (restart % 2 == 0).then(|| linear.clone().into());
            loaded = loaded.take_over(object).expect("the next one goes on");
            assert_eq!(loaded.counters().expect("counters").get(Counter::CacheHits), hits);
        }
    });
}
