//! Against responders on this host that stand in for endpoints.

use std::thread;

use retry_common::wire::answer::AckFlags;

use super::*;
use crate::net::testing::in_namespace;

const NO_TIME: Duration = Duration::ZERO;

/// Answers `count` NACKs by another socket than the one that they came to, when there is one; returns the NACKs.
fn respond(socket: UdpSocket, by: Option<UdpSocket>, answers: Vec<Answer>) -> thread::JoinHandle<Vec<Nack>> {
    thread::spawn(move || {
        let answer = |answer: Answer| {
            let mut bytes = [0; 2048];
            let (length, from) = socket.recv_from(&mut bytes).expect("received");
            by.as_ref().unwrap_or(&socket).send_to(&answer.to_bytes(), from).expect("sent");
            Nack::parse(&bytes[..length]).expect("a well-formed NACK")
        };
        answers.into_iter().map(answer).collect()
    })
}

fn bound(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).expect("bound");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

#[test]
fn an_endpoint_that_answers_is_ok() {
    for host in ["[::1]:0", "127.0.0.1:0"] {
        let (socket, address) = bound(host);
        let ack = Answer::Ack { flags: AckFlags::UNICAST, seq_num: 1 };
        let responder = respond(socket, None, vec![Answer::Miss, Answer::Throttled { bucket: 2, seq_num: 1 }, ack]);
        let report = probe(address, 3, NO_TIME, None).expect("a report");
        assert_eq!((report.sent, report.answered, report.unreachable), (3, 3, 0));
        assert!(report.loss.abs() < f64::EPSILON && report.answered_by.is_empty());
        let [least, median, most] = report.rtt_ms.expect("measured");
        assert!(0.0 < least && least <= median && median <= most);
        assert_eq!(report.verdict(), (true, "ok".to_owned()));
        let nacks = responder.join().expect("no panic");
        assert!(nacks.iter().all(Nack::proxied));
        let mut keys: Vec<[u8; 16]> = nacks.iter().map(|nack| nack.key.to_bytes()).collect();
        keys.dedup();
        assert_eq!(keys.len(), 3, "another frame each time");
    }
}

#[test]
fn answers_from_another_address_are_told() {
    in_namespace("answers_from_another_address_are_told", |_| {
        let (socket, address) = bound("[fd01::1]:0");
        let (other, from) = bound(&format!("[fd01::2]:{}", address.port()));
        let responder = respond(socket, Some(other), vec![Answer::Miss; 2]);
        let report = probe(address, 2, NO_TIME, None).expect("a report");
        assert_eq!((report.answered, report.answered_by.first()), (2, Some(&from)));
        let (good, verdict) = report.verdict();
        assert!(!good);
        assert!(verdict.starts_with("answers come from ANOTHER address fd01::2"), "{verdict}");
        assert!(verdict.contains("-nack-addr fd01::1"), "{verdict}");
        responder.join().expect("no panic");
    });
}

#[test]
fn silence_is_no_answer_and_a_lost_one_is_loss() {
    let (_silent, address) = bound("[::1]:0");
    let report = probe(address, 1, NO_TIME, None).expect("a report");
    assert_eq!((report.answered, report.rtt_ms), (0, None));
    let (good, verdict) = report.verdict();
    assert!(!good && verdict.starts_with("no answer"), "{verdict}");
    let lossy = Report { sent: 10, answered: 9, loss: 0.1, rtt_ms: Some([1.0; 3]), ..report };
    assert!(!lossy.verdict().0);
    assert!(lines(&lossy).contains("10 sent, 9 answered, 10 % lost"), "{}", lines(&lossy));
}

#[test]
fn icmp_is_unreachable() {
    for host in ["[::1]:0", "127.0.0.1:0"] {
        let (socket, address) = bound(host);
        drop(socket);
        let report = probe(address, 2, NO_TIME, None).expect("a report");
        assert_eq!((report.answered, report.unreachable), (0, 2));
        let (good, verdict) = report.verdict();
        assert!(!good && verdict.starts_with("unreachable (ICMP)"), "{verdict}");
    }
}

#[test]
fn no_way_there_is_unreachable() {
    in_namespace("no_way_there_is_unreachable", |_| {
        let report = probe("[2001:db8::1]:9300".parse().expect("an address"), 2, NO_TIME, None).expect("a report");
        assert_eq!((report.sent, report.answered, report.unreachable), (2, 0, 2));
    });
}

#[test]
fn a_late_answer_is_not_the_next_ones() {
    let (socket, address) = bound("[::1]:0");
    let responder = thread::spawn(move || {
        let (_, from) = socket.recv_from(&mut [0; 64]).expect("received");
        thread::sleep(PATIENCE + Duration::from_millis(200));
        socket.send_to(&Answer::Miss.to_bytes(), from).expect("sent");
        // The second is not answered.
        socket.recv_from(&mut [0; 64]).expect("received");
        socket
    });
    let report = probe(address, 2, Duration::from_millis(600), None).expect("a report");
    assert_eq!(report.answered, 0);
    responder.join().expect("no panic");
}

#[test]
fn addresses_have_the_nack_port_unless_they_say_another() {
    for (text, expected) in [
        ("fd10::20", "[fd10::20]:9300"),
        ("[fd10::20]", "[fd10::20]:9300"),
        ("[fd10::20]:1", "[fd10::20]:1"),
        ("10.0.0.1", "10.0.0.1:9300"),
        ("10.0.0.1:7", "10.0.0.1:7"),
    ] {
        assert_eq!(resolve(text).expect("an address").to_string(), expected, "{text}");
    }
    assert_eq!(resolve("localhost").expect("a name").port(), NACK_PORT);
    assert_eq!(resolve("localhost:7").expect("a name").port(), 7);
    assert!(resolve("fd10::20:x").is_err());
}

#[test]
fn a_key_is_read_as_logs_show_it() {
    let key = FrameKey::new(0xfeed, 42);
    assert_eq!(frame_key(&key.to_string()), Ok(key));
    for text in ["", "feed", "feed:", ":42", "feed:-1", "+feed:42", "xyz:42", "11112222333344445:1"] {
        assert!(frame_key(text).is_err(), "{text}");
    }
}
