//! A private network for tests: a veth pair in a namespace of its own.

use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::batch::Batch;
use super::interface::Interface;
use super::multicast::{self, Egress};
use super::options;
use crate::ingress::joins::Joins;

/// Longest wait for what must come: a busy machine is not a failure.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How long nothing comes before a test believes that nothing more will.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// The two ends of a veth with MTU 1500: `near` has fd01::1 and fd01::2, `far` has fd02::1.
pub(crate) struct Pair {
    pub(crate) near: Interface,
    pub(crate) far: Interface,
}

/// Runs `test` on a thread inside a new network namespace, which goes away with the thread.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce(Pair) + Send + 'static) {
    if !geteuid().is_root() {
        println!("SKIP {name}: needs root");
        return;
    }
    let outcome = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace (CAP_SYS_ADMIN)");
        ip("link set lo up");
        ip("link add near type veth peer name far");
        for (end, address) in [("near", "fd01::2"), ("near", "fd01::1"), ("far", "fd02::1")] {
            ip(&format!("link set {end} mtu 1500 up"));
            ip(&format!("addr add {address}/64 dev {end} nodad"));
        }
        let end = |name| Interface::by_name(name).expect("it was just made");
        let pair = Pair { near: end("near"), far: end("far") };
        wait_until_it_carries(&pair);
        test(pair);
    })
    .join();
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// A new veth drops what is sent before the kernel has noticed its carrier, and an address becomes local some time after it was added.
fn wait_until_it_carries(pair: &Pair) {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x7e57);
    let joins = Joins::open(pair.far.index, 7, &[group]).expect("joined");
    let far = joins.fds().next().expect("at least one");
    let egress = Egress { interface: pair.near.index, source: Ipv6Addr::UNSPECIFIED, port: 7, hop_limit: 1 };
    let socket = options::udp_socket().expect("a socket");
    // Refused until the interface has its routes.
    until_it_arrives(&far, || drop(multicast::send(&socket, &egress, group, b"probe")));
    for address in pair.near.addresses.iter().chain(&pair.far.addresses) {
        if !address.ip.is_unicast_link_local() {
            let own = UdpSocket::bind((address.ip, 0)).expect("bound");
            let to = own.local_addr().expect("bound");
            until_it_arrives(&own, || drop(socket.send_to(b"probe", &to.into())));
        }
    }
}

fn until_it_arrives(at: &impl AsFd, send: impl Fn()) {
    let mut batch = Batch::new(64, 64);
    let arrived = (0..1_000).any(|_| {
        send();
        batch.recv(at, Duration::from_millis(10)).expect("no error") > 0
    });
    assert!(arrived, "the veth carries nothing");
}

/// Runs `ip` (iproute2) in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("`ip` (Debian package iproute2) is installed");
    assert!(status.success(), "ip {arguments}: {status}");
}
