//! `-proxy-retry-…`: when an upstream that says nothing is asked again, each setting by what it changes on the wire.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, NACK_PORT};
use retry_testbed::peers::answer::nack;
use retry_testbed::scene::{asker, binary, flags, is_root, two_hosts};

const FLOW: u64 = 0x7e7;
/// `-proxy-timeout` of these tests.
const TIMEOUT: Duration = Duration::from_millis(50);
/// What a busy machine may be late.
const SLACK: Duration = Duration::from_millis(150);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Each of a flow of its own: of the numbers ahead of one flow, one is asked for at a time.
const fn frame_of(number: u64) -> FrameKey {
    FrameKey::new(FLOW + number, 1)
}

/// When a silent upstream was asked, by frame.
struct Asked(BTreeMap<u64, Vec<Instant>>);

impl Asked {
    /// An endpoint with these settings misses frames: each step asks it for so many more, and waits so long.
    fn of(settings: &[&str], steps: &[(u64, Duration)]) -> Self {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let silent = client.ns.enter(|| UdpSocket::bind((client.addr, NACK_PORT))).expect("a socket");
        silent.set_read_timeout(Some(ms(10))).expect("a timeout");
        let upstream = client.nack_address().to_string();
        let mut all = flags("native", &["-proxy-enabled", "-upstream-retry-endpoints", &upstream]);
        all.extend(["-proxy-timeout", "50ms"]);
        all.extend(settings);
        let _daemon = Daemon::start(&binary(), &endpoint.ns, &all).expect("a daemon");
        let socket = asker(client);
        let (mut asked, mut seq_num, mut bytes) = (BTreeMap::<u64, Vec<Instant>>::new(), 0, [0; 128]);
        for (frames, wait) in steps {
            for _ in 0..*frames {
                seq_num += 1;
                socket.send_to(&nack(frame_of(seq_num)), endpoint.nack_address()).expect("a NACK leaves");
            }
            let until = Instant::now() + *wait;
            while Instant::now() < until {
                if let Ok(length) = silent.recv(&mut bytes) {
                    let wanted = (1..=seq_num).find(|one| nack(frame_of(*one))[8..32] == bytes[8..32]);
                    assert_eq!(length, 64);
                    asked.entry(wanted.expect("a frame of ours")).or_default().push(Instant::now());
                }
            }
        }
        Self(asked)
    }

    /// How often in all.
    fn times(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// The waits between two questions for one frame, without the time that the answer is waited for.
    fn waits(&self, seq_num: u64) -> Vec<Duration> {
        let times = self.0.get(&seq_num).map_or(&[][..], Vec::as_slice);
        times.windows(2).map(|two| (two[1] - two[0]).saturating_sub(TIMEOUT)).collect()
    }
}

/// These waits, each as long as said or a little longer.
#[track_caller]
fn are(waits: &[Duration], wanted: &[Duration]) {
    let fit = |(wait, wanted): (&Duration, &Duration)| *wait + ms(10) >= *wanted && *wait < *wanted + SLACK;
    assert!(waits.len() == wanted.len() && waits.iter().zip(wanted).all(fit), "{waits:?}, not {wanted:?}");
}

const PLAIN: [&str; 2] = ["-proxy-retry-jitter=false", "-proxy-retry-factor=1"];

/// Waits of one frame with these settings beside [`PLAIN`]; later ones win.
fn waits(settings: &[&str], wait: Duration) -> Vec<Duration> {
    Asked::of(&[&PLAIN[..], settings].concat(), &[(1, wait)]).waits(1)
}

/// `-proxy-retry-policy`, `-proxy-retry-attempts`: how often.
#[test]
fn how_often_an_upstream_is_asked() {
    if !is_root("how_often_an_upstream_is_asked") {
        return;
    }
    let often = |settings: &[&str]| {
        let short = [&PLAIN[..], &["-proxy-retry-delay", "50ms"], settings].concat();
        Asked::of(&short, &[(1, ms(900))]).times()
    };
    assert_eq!(often(&["-proxy-retry-policy", "none"]), 1);
    assert_eq!(often(&["-proxy-retry-policy", "exponential"]), 3, "the default of the attempts");
    assert_eq!(often(&["-proxy-retry-attempts", "1"]), 1);
    assert_eq!(often(&["-proxy-retry-attempts", "5"]), 5);
}

/// `-proxy-retry-delay`, `-proxy-retry-factor`, `-proxy-retry-max-delay`: how long between.
#[test]
fn how_long_between_two_questions() {
    if !is_root("how_long_between_two_questions") {
        return;
    }
    are(&waits(&["-proxy-retry-delay", "100ms"], ms(700)), &[ms(100), ms(100)]);
    are(&waits(&["-proxy-retry-delay", "400ms"], ms(1300)), &[ms(400), ms(400)]);
    let tripled = ["-proxy-retry-delay", "200ms", "-proxy-retry-factor", "3"];
    are(&waits(&tripled, ms(1300)), &[ms(200), ms(600)]);
    are(&waits(&[&tripled[..], &["-proxy-retry-max-delay", "300ms"]].concat(), ms(1000)), &[ms(200), ms(300)]);
}

/// `-proxy-retry-jitter`: frames that were asked for together are asked for again together, or not.
#[test]
fn whether_waits_are_spread() {
    if !is_root("whether_waits_are_spread") {
        return;
    }
    let spread = |jitter: &str| {
        let settings = ["-proxy-retry-delay", "800ms", "-proxy-retry-attempts", "2", jitter];
        let asked = Asked::of(&settings, &[(16, ms(2_200))]);
        let waits: Vec<_> = (1..=16).flat_map(|seq_num| asked.waits(seq_num)).collect();
        assert_eq!(waits.len(), 16, "{waits:?}");
        let (least, most) = (waits.iter().min().expect("many"), waits.iter().max().expect("many"));
        assert!(*least + ms(10) >= ms(800), "{waits:?}");
        *most - *least
    };
    let (together, apart) = (spread("-proxy-retry-jitter=false"), spread("-proxy-retry-jitter=true"));
    // Sixteen waits that are spread over 0.8 s lie within a third of it once in a million times.
    assert!(together < ms(250) && apart > ms(260), "{together:?}, {apart:?}");
}

/// `-proxy-retry-breaker`, `-proxy-retry-breaker-open`: after how many failures it is left alone, and how long.
#[test]
fn when_an_upstream_is_left_alone() {
    if !is_root("when_an_upstream_is_left_alone") {
        return;
    }
    let one_by_one = [(1, ms(200)), (1, ms(200)), (1, ms(200)), (1, ms(700)), (1, ms(200))];
    let often = |settings: &[&str]| {
        let once = [&["-proxy-retry-policy", "none"][..], settings].concat();
        Asked::of(&once, &one_by_one).0.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(often(&["-proxy-retry-breaker", "0"]), [1, 2, 3, 4, 5]);
    assert_eq!(often(&["-proxy-retry-breaker", "2", "-proxy-retry-breaker-open", "1m"]), [1, 2]);
    assert_eq!(often(&["-proxy-retry-breaker", "2", "-proxy-retry-breaker-open", "800ms"]), [1, 2, 5]);
}
