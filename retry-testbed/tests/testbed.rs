//! The testbed itself, in namespaces: what it says about a fabric must be true before it judges a daemon. Needs root.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::Duration,
};

use retry_common::key::FrameKey;
use retry_testbed::{
    daemon::http,
    net::{
        capture::{Capture, RawSender, datagrams, is_udp},
        fabric::{DATA_PORT, Fabric, INTERFACE, NACK_PORT, group},
        forward,
        loss::{LossPoint, LossRule},
        netns::{Netns, host_command},
        packet::{Packet, PacketBuilder},
        replay::Joiner,
    },
    peers::{
        answer::nack,
        frames::{Flow, Kind},
        journal::Journal,
        listener::{Listener, ListenerSettings},
        publish::Publisher,
    },
};

const WAIT: Duration = Duration::from_secs(2);

fn namespaces() -> String {
    host_command(&["ip", "netns", "list"]).expect("ip works")
}

#[test]
fn a_server_inside_is_reached_from_outside() {
    let ns = Netns::new("server").expect("root");
    let server = ns.enter(|| TcpListener::bind("[::1]:0")).expect("a port inside");
    let address = forward::to_namespace(&ns, server.local_addr().expect("bound")).expect("a port outside");
    assert!(address.ip().is_loopback());
    // Two at a time: a browser has several connections open.
    let mut clients = [(); 2].map(|()| TcpStream::connect(address).expect("a connection"));
    let mut inside = [(); 2].map(|()| server.accept().expect("a client").0);
    for client in &mut clients {
        client.write_all(b"question").expect("written");
        client.shutdown(Shutdown::Write).expect("half closed");
    }
    for server in &mut inside {
        let mut asked = String::new();
        server.read_to_string(&mut asked).expect("read to the end");
        assert_eq!(asked, "question");
        server.write_all(b"answer").expect("written");
    }
    drop(inside);
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("read to the end");
        assert_eq!(answer, "answer");
    }
}

#[test]
fn a_namespace_ends_with_its_value_and_its_children() {
    let ns = Netns::new("short").expect("root");
    let name = ns.name().to_owned();
    assert!(namespaces().contains(&name));
    let outside = UdpSocket::bind("[::1]:0").expect("lo outside");
    let port = outside.local_addr().expect("bound").port();
    let inside = ns.enter(|| UdpSocket::bind(("::1", port)));
    assert!(inside.is_ok(), "the same port is free inside: {inside:?}");
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let child = ns.spawn(sleep).expect("sleep starts");
    let inode = ns.inode().expect("open");
    let link = std::fs::read_link(format!("/proc/{}/ns/net", child.id())).expect("it runs");
    assert!(link.to_string_lossy().contains(&inode.to_string()));
    let pid = child.id();
    drop(child);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(ns);
    assert!(!namespaces().contains(&name));
}

#[test]
fn a_panic_inside_passes_through_and_cleans_up() {
    let name = std::sync::Mutex::new(String::new());
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let ns = Netns::new("panic").expect("root");
        ns.name().clone_into(&mut name.lock().expect("no other holder"));
        ns.enter(|| assert_eq!(1, 2, "on purpose"));
    }));
    assert!(caught.is_err());
    let name = name.into_inner().expect("no other holder");
    assert!(name.starts_with("rt-"));
    assert!(!namespaces().contains(&name));
}

#[test]
fn unicast_and_large_datagrams_cross_a_flat_fabric_with_right_checksums() {
    let fabric = Fabric::flat(1500).expect("root");
    let (endpoint, client) = (&fabric.hosts()[0], &fabric.hosts()[1]);
    let capture = Capture::start(&endpoint.ns, INTERFACE).expect("root");
    let socket = client.ns.enter(|| UdpSocket::bind("[::]:0")).expect("a socket");
    for length in [64, 1400, 3000] {
        socket.send_to(&vec![7; length], endpoint.nack_address()).expect("sent");
    }
    let mut joiner = Joiner::default();
    let packets = capture.wait(5, WAIT, |packet| packet.bytes.len() > 100);
    let lengths: Vec<usize> =
        packets.iter().filter_map(|packet| joiner.take(&packet.bytes)).map(|datagram| datagram.payload.len()).collect();
    assert_eq!(lengths, [64, 1400, 3000]);
    let whole = datagrams(&packets).expect("right checksums");
    assert_eq!(whole.len(), 2, "the third came in fragments");
    assert_eq!(whole[0].src_mac, client.mac);
    assert_eq!(whole[0].dst_mac, endpoint.mac);
    assert_eq!(*whole[0].src.ip(), client.addr);
}

#[test]
fn a_bridge_brings_a_group_to_its_members_only() {
    let fabric = Fabric::bridged(&["publisher", "member", "stranger"], 1500).expect("root");
    let publisher = fabric.host("publisher").expect("named");
    let member = fabric.host("member").expect("named");
    let stranger = fabric.host("stranger").expect("named");
    let journal = Arc::new(Journal::new());
    let settings = ListenerSettings::new(vec![group(1)], publisher.nack_address());
    let listener = Listener::start(&member.ns, settings, Arc::clone(&journal)).expect("joins");
    let at_member = Capture::start(&member.ns, INTERFACE).expect("root");
    let at_stranger = Capture::start(&stranger.ns, INTERFACE).expect("root");
    thread::sleep(Duration::from_millis(200));
    let publish = Publisher::open(&publisher.ns, Arc::clone(&journal)).expect("opens");
    let mut flow = Flow::new(Kind::Tx, 1, 2, 300..=300);
    for _ in 0..50 {
        publish.publish(&mut flow).expect("sent");
    }
    let seen = at_member.wait(50, WAIT, |packet| packet.bytes.len() > 300);
    let frames = datagrams(&seen).expect("right checksums");
    assert_eq!(frames.len(), 50);
    assert_eq!(frames[0].hop_limit, 1);
    assert_eq!(frames[0].dst, SocketAddrV6::new(group(1), DATA_PORT, 0, 0));
    let stray = datagrams(&at_stranger.take()).expect("readable");
    assert_eq!(stray, [], "snooping keeps the group from others");
    let stats = listener.stop().expect("it ran");
    assert_eq!((stats.received, stats.lost, stats.wrong_bytes), (50, 0, 0));
}

#[test]
fn loss_takes_the_named_frames_and_counts_them() {
    let fabric = Fabric::bridged(&["publisher", "one", "other"], 1500).expect("root");
    let publisher = fabric.host("publisher").expect("named");
    let journal = Arc::new(Journal::new());
    let start = |name: &str| {
        let mut settings = ListenerSettings::new(vec![group(2), group(0xFFFE)], publisher.nack_address());
        settings.ask = false;
        let host = fabric.host(name).expect("named");
        Listener::start(&host.ns, settings, Arc::clone(&journal)).expect("joins")
    };
    let (one, other) = (start("one"), start("other"));
    let mut flow = Flow::new(Kind::Tx, 2, 2, 300..=300);
    // Every third is above the MTU: losing its first fragment loses it.
    let mut large = Flow::new(Kind::Anchor, 0, 2, 3000..=3000);
    let loss = fabric.lose("one", &LossRule::frames(flow.hash_key(), vec![3, 4, 9])).expect("nft works");
    let large_loss = fabric.lose("one", &LossRule::frames(large.hash_key(), vec![2])).expect("nft works");
    thread::sleep(Duration::from_millis(200));
    let publish = Publisher::open(&publisher.ns, Arc::clone(&journal)).expect("opens");
    for _ in 0..10 {
        publish.publish(&mut flow).expect("sent");
    }
    for _ in 0..4 {
        publish.publish(&mut large).expect("sent");
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(loss.dropped().expect("counted"), 3);
    assert_eq!(large_loss.dropped().expect("counted"), 1);
    drop((loss, large_loss));
    let one = one.stop().expect("it ran");
    assert_eq!((one.received, one.lost, one.unrecovered), (10, 4, 4));
    let lost: Vec<u64> = one.unrecovered_keys.iter().map(|key| key.seq_num()).collect();
    assert_eq!(lost.len(), 4);
    assert!([3, 4, 9, 2].iter().all(|seq| lost.contains(seq)), "{lost:?}");
    let other = other.stop().expect("it ran");
    assert_eq!((other.received, other.lost, other.wrong_bytes), (14, 0, 0));
}

#[test]
fn random_loss_is_near_its_share_and_ends_when_dropped() {
    let fabric = Fabric::flat(1500).expect("root");
    let journal = Arc::new(Journal::new());
    let settings =
        ListenerSettings { ask: false, ..ListenerSettings::new(vec![group(0)], fabric.hosts()[1].nack_address()) };
    let listener = Listener::start(&fabric.hosts()[1].ns, settings, Arc::clone(&journal)).expect("joins");
    let publish = Publisher::open(&fabric.hosts()[0].ns, Arc::clone(&journal)).expect("opens");
    let mut flows = [Flow::new(Kind::Tx, 0, 2, 100..=300)];
    let stop = AtomicBool::new(false);
    let loss = fabric.lose("client", &LossRule::random(100)).expect("nft works");
    let sent = publish.run(&mut flows, 4000, Duration::from_millis(500), &stop, |_| 0).expect("sent");
    assert_eq!(sent, 2000, "the rate is kept");
    let dropped = loss.dropped().expect("counted");
    drop(loss);
    assert!((120..=280).contains(&dropped), "{dropped} of 2000 at 10 %");
    let [flow] = &mut flows;
    publish.publish(flow).expect("sent");
    listener.expect(journal.keys());
    assert!(listener.settle(WAIT));
    let stats = listener.stop().expect("it ran");
    assert_eq!(stats.lost, dropped, "each loss is a gap");
    assert_eq!(stats.received + dropped, 2001);
}

#[test]
fn a_listener_works_through_every_answer() {
    let fabric = Fabric::flat(1500).expect("root");
    let (endpoint, client) = (&fabric.hosts()[0], &fabric.hosts()[1]);
    let journal = Arc::new(Journal::new());
    let settings = ListenerSettings {
        answer_wait: Duration::from_millis(60),
        backoff: Duration::from_millis(20),
        attempts: 3,
        ..ListenerSettings::new(vec![group(0)], endpoint.nack_address())
    };
    let socket = endpoint.ns.enter(|| UdpSocket::bind(("::", NACK_PORT))).expect("a socket");
    socket.set_read_timeout(Some(WAIT)).expect("set");
    let mut flow = Flow::new(Kind::Tx, 0, 2, 200..=200);
    let frames: Vec<Vec<u8>> = (0..7).map(|_| flow.next_frame()).collect();
    for frame in &frames {
        journal.record(frame);
    }
    let listener = Listener::start(&client.ns, settings, Arc::clone(&journal)).expect("joins");
    thread::sleep(Duration::from_millis(100));
    let publisher = Publisher::open(&endpoint.ns, Arc::new(Journal::new())).expect("opens");
    publisher.send(group(0), &frames[6]).expect("sent");
    let answer = |kind: u8, flags: u8, seq: u64| {
        let mut bytes = frames[0][..6].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(seq.to_be_bytes());
        bytes
    };
    // 1 frame then ACK, 2 ACK then frame, 3 MISS, 4 wrong bytes then silence, 5 ACK by multicast, 6 THROTTLED once, then the frame.
    let mut asked = [0; 7];
    let mut buffer = [0; 100];
    let mut done = 0;
    while done < 9 {
        let (length, from) = socket.recv_from(&mut buffer).expect("a NACK");
        assert_eq!(length, 64);
        let seq = buffer[23];
        let key = FrameKey::new(flow.hash_key(), seq.into());
        assert_eq!(buffer[..64], nack(key));
        let at = usize::from(seq);
        asked[at] += 1;
        done += 1;
        let send = |bytes: &[u8]| socket.send_to(bytes, from).expect("sent");
        let frame = &frames[at - 1];
        match (seq, asked[at]) {
            (1, _) => {
                send(frame);
                send(&answer(0x12, 2, 1));
            }
            (2, _) => {
                send(&answer(0x12, 2, 2));
                send(frame);
            }
            (3, _) => drop(send(&answer(0x11, 0, 0))),
            (4, 1) => {
                let mut wrong = frame.clone();
                wrong[150] ^= 1;
                send(&wrong);
            }
            (5, _) => {
                publisher.send(group(0), frame).expect("sent");
                send(&answer(0x12, 1, 5));
            }
            (6, 1) => drop(send(&answer(0x13, 2, 6))),
            (6, _) => drop(send(frame)),
            _ => {}
        }
    }
    assert!(listener.settle(WAIT));
    thread::sleep(Duration::from_millis(50));
    let stats = listener.stop().expect("it ran");
    assert_eq!(asked, [0, 1, 1, 1, 3, 1, 2]);
    assert_eq!((stats.lost, stats.recovered_unicast, stats.recovered_multicast), (6, 3, 1), "{stats:?}");
    assert_eq!((stats.unrecovered, stats.missed, stats.silent), (2, 1, 3));
    assert_eq!((stats.nacks, stats.acks, stats.misses, stats.throttled), (9, 3, 1, 1));
    assert_eq!((stats.wrong_bytes, stats.bad_answers), (1, 0), "{:?}", stats.complaints);
    assert_eq!(stats.latency.len(), 4);
}

#[test]
fn vlan_tags_and_loss_places_are_seen_raw() {
    let fabric = Fabric::flat(1500).expect("root");
    let (endpoint, client) = (&fabric.hosts()[0], &fabric.hosts()[1]);
    let capture = Capture::start(&endpoint.ns, INTERFACE).expect("root");
    let sender = RawSender::open(&client.ns, INTERFACE).expect("root");
    let mut packet = PacketBuilder::udp(SocketAddrV6::new(client.addr, 40000, 0, 0), endpoint.nack_address(), &[1; 64]);
    for tags in 0..=2 {
        sender.send(&packet.build()).expect("sent");
        packet = packet.vlan(10 + tags);
    }
    let seen = capture.wait(3, WAIT, |packet| is_udp(&packet.bytes));
    let tags: Vec<Vec<u16>> =
        seen.iter().filter_map(|packet| Packet::check(&packet.bytes).ok()).map(|packet| packet.vlans).collect();
    assert_eq!(tags, [vec![], vec![10], vec![10, 11]]);
    let arrival = LossRule { port: NACK_PORT, ..LossRule::random(1000).at(LossPoint::Arrival) };
    let loss = fabric.lose("endpoint", &arrival).expect("nft works");
    let socket = client.ns.enter(|| UdpSocket::bind("[::]:0")).expect("a socket");
    socket.send_to(&[1; 64], endpoint.nack_address()).expect("sent");
    let seen = capture.wait(1, WAIT, |packet| is_udp(&packet.bytes));
    let seen = datagrams(&seen).expect("right checksums");
    assert_eq!(seen.len(), 1, "it reaches the interface");
    assert_eq!(loss.dropped().expect("counted"), 1, "and not the stack");
}

/// Serves one connection: reads a request as long as its head says, and answers with `status` and the request itself.
fn serve_once(server: &TcpListener, status: &str) {
    let (mut stream, _) = server.accept().expect("a client comes");
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.split_once("content-length: ").map_or("0", |(_, rest)| rest.lines().next().expect("a line"));
            if body.len() >= length.parse().expect("a length") {
                break;
            }
        }
        let length = stream.read(&mut buffer).expect("a request");
        assert_ne!(length, 0, "the client went away: {request:?}");
        request.extend(&buffer[..length]);
    }
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", request.len());
    stream.write_all(&[head.as_bytes(), &request].concat()).expect("an answer leaves");
}

#[test]
fn a_request_reaches_the_server_of_its_own_namespace() {
    let ns = Netns::new("http").expect("root");
    let other = Netns::new("nohttp").expect("root");
    let server = ns.enter(|| TcpListener::bind("[::1]:0")).expect("a port");
    let address = server.local_addr().expect("bound");
    assert!(http::get(&other, address, "/").is_err(), "no server is there");

    // Not scoped: a test that fails must not wait for the connections that then do not come.
    let serving =
        thread::spawn(move || ["503 Wait", "200 OK", "201 Created"].map(|status| serve_once(&server, status)));
    let (status, told) = http::get(&ns, address, "/readyz").expect("an answer");
    assert_eq!(status, 503, "a status that is no success is an answer");
    assert!(told.starts_with("GET /readyz HTTP/1.1\r\n") && told.ends_with("\r\n\r\n"), "{told}");

    let (status, told) = http::request(&ns, address, "POST", "/loglevel?level=debug").expect("an answer");
    assert_eq!(status, 200);
    assert!(told.starts_with("POST /loglevel?level=debug HTTP/1.1\r\n") && told.ends_with("\r\n\r\n"), "{told}");

    let put = http::exchange(&ns, address, "PUT", "/v1/frames/1/2", Some("secret"), &[0xE3, 0, 0xFF]);
    let (status, told) = put.expect("an answer");
    assert_eq!(status, 201);
    let head = String::from_utf8_lossy(&told).to_lowercase();
    assert!(head.contains("authorization: bearer secret\r\n"), "{head}");
    assert!(told.ends_with(b"\r\n\r\n\xE3\0\xFF"), "{head}");
    serving.join().expect("three requests");
}
