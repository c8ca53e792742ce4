use retry_common::wire::answer::{AckFlags, Answer};

use super::report::{Outcome, Report};
use super::*;
use exchange::Heard;

const KEY: FrameKey = FrameKey::new(0xfeed, 42);

fn options(more: &[&str]) -> Result<Request, String> {
    let args = [&["retry-endpoint nack", "fd10::20", "feed", "42"], more].concat();
    request(&command().try_get_matches_from(args).map_err(|error| error.to_string())?)
}

fn report(listening: bool) -> Report {
    let request = options(&[]).expect("it is read");
    let mut report = Report::new(request.to, request.to, request.nack, request.sharding);
    report.joined = listening.then_some(1);
    report
}

fn hear(report: &mut Report, answer: Answer) {
    report.hear(Duration::ZERO, Heard::Unicast(&answer.to_bytes(), "[fd10::20]:9300".parse().expect("an address")));
}

#[test]
fn the_options_become_a_nack() {
    let plain = options(&[]).expect("it is read");
    assert_eq!((plain.to.to_string().as_str(), plain.nack.key, plain.nack.flags), ("[fd10::20]:9300", KEY, 0));
    assert!(plain.listening.is_none() && plain.from.is_none());
    let flagged = options(&["--flags", "0x80", "--proxied", "--subtree", &"0f".repeat(32)]).expect("it is read");
    assert_eq!((flagged.nack.flags, flagged.nack.subtree_id), (0x81, [0x0f; 32]));
    for refused in [
        &["--flags", "256"][..],
        &["--subtree", "0f"],
        &["--subtree", &"é".repeat(32)],
        &["--from", "10.0.0.1"],
        &["--group", "1"],
        &["--iface", "eth0", "--source-mode", "ssm", "--scope", "link"],
        &["--iface", "eth0", "--group", "fd10::1"],
        &["--shard-bits", "13"],
    ] {
        assert!(options(refused).is_err(), "{refused:?}");
    }
    assert_eq!((hash_key("0xFEED"), hash_key("feed")), (Ok(0xfeed), Ok(0xfeed)));
    assert!(hash_key("+1").is_err() && hash_key("").is_err() && hash_key("11112222333344445").is_err());
}

#[test]
fn the_groups_are_those_that_an_endpoint_joins() {
    let groups = |more: &[&str]| {
        let listening = options(&[&["--iface", "eth0"], more].concat()).expect("it is read").listening.expect("groups");
        let names: Vec<String> = listening.groups.iter().map(ToString::to_string).collect();
        (names, listening.source.map(|source| source.to_string()))
    };
    let (all, source) = groups(&["--shard-bits", "1"]);
    assert_eq!(all, ["ff05::b:0", "ff05::b:1", "ff05::b:fffe", "ff05::b:fffb", "ff05::b:1000"]);
    assert_eq!(source, None);
    assert_eq!(groups(&["--group", "0xFFFE", "--mc-group-id", "12"]).0, ["ff05::c:fffe"]);
    assert_eq!(groups(&["--group", "ff0e::1"]).0, ["ff0e::1"]);
    let ssm = groups(&["--source-mode", "ssm", "--group", "1"]);
    assert_eq!(ssm, (vec!["ff35::b:1".to_owned()], Some("fd10::20".to_owned())));
    assert_eq!(
        groups(&["--source-mode", "ssm", "--source", "fd10::21", "--group", "1"]).1.as_deref(),
        Some("fd10::21")
    );
}

#[test]
fn it_is_whole_when_nothing_promised_is_missing() {
    for (flags, listening, whole) in [
        (AckFlags::MULTICAST, false, true),
        (AckFlags::MULTICAST, true, false),
        (AckFlags::UNICAST, false, false),
        (AckFlags::default(), true, true),
    ] {
        let mut report = report(listening);
        assert!(!report.is_whole() && report.outcome() == Outcome::Silence);
        hear(&mut report, Answer::Ack { flags, seq_num: 42 });
        let ends = if whole { Outcome::AckAlone } else { Outcome::Wrong };
        assert_eq!((report.is_whole(), report.outcome()), (whole, ends), "{flags:?}");
    }
    let mut missed = report(true);
    hear(&mut missed, Answer::Miss);
    assert_eq!((missed.is_whole(), missed.outcome()), (true, Outcome::Miss));
}

#[test]
fn a_frame_after_a_miss_has_been_recovered() {
    let copy = |report: &mut Report| {
        report.hear(Duration::ZERO, Heard::Unicast(&golden(42), "[fd10::20]:9300".parse().expect("an address")));
    };
    let mut recovered = report(false);
    hear(&mut recovered, Answer::Miss);
    assert!(recovered.may_be_recovered());
    copy(&mut recovered);
    assert_eq!((recovered.may_be_recovered(), recovered.outcome()), (false, Outcome::Frame));
    assert!(recovered.to_string().contains("recovered from upstream"), "{recovered}");
    let mut before = report(false);
    copy(&mut before);
    hear(&mut before, Answer::Miss);
    assert_eq!(before.outcome(), Outcome::Wrong);
    let mut throttled = report(true);
    hear(&mut throttled, Answer::Throttled { bucket: 0, seq_num: 42 });
    let (from, group) = ("[fd10::9]:9300".parse().expect("an address"), "ff05::b:0".parse().expect("a group"));
    throttled.hear(Duration::ZERO, Heard::Multicast(&golden(42), from, group));
    assert_eq!(throttled.outcome(), Outcome::Frame, "another listener's repair");
    copy(&mut throttled);
    assert_eq!(throttled.outcome(), Outcome::Wrong);
}

#[test]
fn other_frames_of_the_fabric_are_nothing() {
    let mut report = report(true);
    let from = "[fd10::9]:9001".parse().expect("an address");
    let group = "ff05::b:0".parse().expect("a group");
    report.hear(Duration::ZERO, Heard::Multicast(b"no frame", from, group));
    let mut other = [0; 92];
    let head = retry_common::wire::frame::Head::parse(&golden(KEY.seq_num() + 1), 92).expect("a frame");
    head.write(&mut other).expect("it fits");
    report.hear(Duration::ZERO, Heard::Multicast(&other, from, group));
    assert_eq!(report.outcome(), Outcome::Silence);
    // Ours, in a group that its bytes do not name.
    report.hear(Duration::ZERO, Heard::Multicast(&golden(KEY.seq_num()), from, "ff05::b:3".parse().expect("a group")));
    assert_eq!(report.outcome(), Outcome::Wrong);
    assert!(report.to_string().contains("group index 0x0003; its bytes say 0x0000"), "{report}");
}

/// A transaction frame of shard 0 without a payload.
fn golden(seq_num: u64) -> [u8; 92] {
    let mut bytes = [0; 92];
    bytes[..7].copy_from_slice(&[0xE3, 0xE1, 0xF3, 0xE8, 2, 0xBF, 2]);
    bytes[40..56].copy_from_slice(&FrameKey::new(KEY.hash_key(), seq_num).to_bytes());
    bytes
}
