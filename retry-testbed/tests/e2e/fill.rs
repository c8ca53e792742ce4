//! Frames stored by the kernel.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, group};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, await_count, binary, flags, frame, is_root, two_hosts};
use socket2::{Domain, Socket, Type};

const FRAMES: u64 = 50;

/// Stored by the kernel and counted once, answered; what it leaves is stored by the daemon, and neither twice.
#[test]
fn the_kernel_stores_frames() {
    if !is_root("the_kernel_stores_frames") {
        return;
    }
    let cases = [
        ("kernel", true, 1500, 300),
        ("auto", true, 1500, 300),
        ("daemon", false, 1500, 300),
        // In several buffers, and longer than what the kernel sends.
        ("auto", true, 9000, 8_860),
    ];
    for (fill, by_kernel, mtu, length) in cases {
        let fabric = Fabric::flat(mtu).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-fill", fill])).expect("a daemon");
        let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
        let key = |seq_num| FrameKey::new(0xF111, seq_num);
        for seq_num in 1..=FRAMES {
            publish.send(group(0), &frame(key(seq_num), length, 1)).expect("a frame leaves");
        }
        await_count(&daemon, "bre_frames_cached_total", &[], FRAMES);
        // Again, and other bytes.
        publish.send(group(0), &frame(key(7), length, 1)).expect("a frame leaves");
        publish.send(group(0), &frame(key(8), length, 2)).expect("a frame leaves");
        let metrics = await_count(&daemon, "bre_frames_received_total", &[], FRAMES + 2);
        let stored = metrics.count("bre_fill_kernel_frames_total", &[]);
        assert_eq!(stored, if by_kernel { FRAMES } else { 0 }, "-fill {fill}");
        assert_eq!(metrics.count("bre_frames_received_total", &[]), FRAMES + 2, "-fill {fill}");
        assert_eq!(metrics.count("bre_cache_duplicates_total", &[("kind", "same")]), 1, "-fill {fill}");
        assert_eq!(metrics.count("bre_cache_duplicates_total", &[("kind", "replaced")]), 1, "-fill {fill}");
        let socket = asker(client);
        for seq_num in [1, 8, FRAMES] {
            let answers = ask(&socket, endpoint.nack_address(), &nack(key(seq_num)), 1);
            assert!(
                matches!(Answer::parse(&answers[0], seq_num), Ok(Answer::Ack { .. })),
                "-fill {fill}: {answers:02x?}"
            );
        }
        assert_eq!(daemon.metrics().expect("a scrape").count("bre_cache_hits_total", &[("path", "xdp")]), 3);
    }
}

/// `-fill kernel` where no kernel can.
#[test]
fn kernel_fill_needs_xdp() {
    if !is_root("kernel_fill_needs_xdp") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let error = Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-fill", "kernel"])).expect_err("refused");
    assert!(format!("{error:#}").contains("-fill"), "{error:#}");
}

/// A listener beside the endpoint gets its frames too, and when it is gone the kernel stores again.
#[test]
fn a_neighbour_gets_its_frames() {
    if !is_root("a_neighbour_gets_its_frames") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let mut sent = 0;
    let mut send = || {
        sent += 1;
        publish.send(group(0), &frame(FrameKey::new(0xF112, sent), 300, 1)).expect("a frame leaves");
        let metrics = await_count(&daemon, "bre_frames_cached_total", &[], sent);
        metrics.count("bre_fill_kernel_frames_total", &[])
    };
    assert_eq!(send(), 1);
    let neighbour = endpoint.ns.enter(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("an option");
        socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 9_001, 0, 0).into()).expect("a port that is shared");
        let socket = UdpSocket::from(socket);
        socket.join_multicast_v6(&group(0), endpoint.ifindex).expect("a group");
        socket
    });
    // It is looked for every second.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(send(), 1);
    let mut buffer = [0; 2_048];
    assert!(neighbour.recv(&mut buffer).is_ok_and(|len| len > 300));
    drop(neighbour);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(send(), 2);
}
