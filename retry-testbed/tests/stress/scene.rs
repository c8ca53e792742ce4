//! What the scenes have in common: a daemon in its default mode on two queues, someone who looks after it all the time, and
//! the checks at the end.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::peers::answer::nack;
use retry_testbed::scene::flags;

use super::held;
use super::material::{Kind, Material, mix};
use super::sender::Path;

/// Seconds of traffic of all scenes together, unless `RETRY_STRESS_SECONDS` says otherwise.
const SECONDS: u32 = 100;
/// How often `/metrics` is asked for, and how long it may take.
const LOOK: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the log is checked during the traffic.
const LOOKS_PER_CHECK: u32 = 6;
/// How long the daemon may take to end.
const END: Duration = Duration::from_secs(5);
/// The shortest frame of these scenes; answers of other kinds are shorter.
const SHORTEST: usize = 140;
/// Frames of a flow of their own that are sent at the end: the log still takes them.
const LAST: u64 = 64;

/// The share of the time for traffic that a scene has, in hundredths.
pub(crate) fn share(hundredths: u32) -> Duration {
    let seconds = match std::env::var("RETRY_STRESS_SECONDS") {
        Ok(text) => text.parse().expect("RETRY_STRESS_SECONDS is a number of seconds"),
        Err(_) => SECONDS,
    };
    Duration::from_secs(1).mul_f64(f64::from(seconds) * f64::from(hundredths) / 100.0)
}

/// Flags with repairs by unicast, so that listeners' bytes can be compared; what comes later wins.
pub(crate) fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    flags("native", &[&["-beacon-flags-unicast", "-beacon-flags-multicast=false"], more].concat())
}

/// Two hosts and a daemon.
pub(crate) struct Stage {
    fabric: Fabric,
    binary: PathBuf,
}

/// What is asked of a scene's end.
pub(crate) struct Wanted {
    /// Generations that were published.
    pub(crate) generations: u8,
    /// Most frames that may be held.
    pub(crate) most: u64,
    /// Lives do not end meanwhile, so counts can be compared.
    pub(crate) lives_last: bool,
}

/// Sets a flag when it is dropped.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stage {
    pub(crate) fn new() -> Self {
        let fabric = Fabric::flat_with_queues(1_500, 2).expect("a fabric");
        Self { fabric, binary: Daemon::binary().expect("xtask names the daemon's binary") }
    }

    pub(crate) fn publisher(&self) -> &Host {
        self.fabric.host("client").expect("a client")
    }

    fn endpoint(&self) -> &Host {
        self.fabric.host("endpoint").expect("an endpoint")
    }

    pub(crate) fn daemon(&self, flags: &[&str]) -> Daemon<'_> {
        let daemon = Daemon::start(&self.binary, &self.endpoint().ns, flags).expect("a daemon");
        let mode = daemon.metrics().expect("a scrape").state("bre_xdp_mode", "mode");
        assert_eq!(mode.as_deref(), Some("native"), "{}", daemon.log());
        daemon
    }

    /// Runs traffic while the daemon is looked after: it answers in time, and its log is right all the time.
    #[expect(clippy::panic, reason = "a test's panic is its message")]
    pub(crate) fn watch(&self, daemon: &Daemon<'_>, traffic: impl FnOnce(&AtomicBool)) {
        let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let trouble = Mutex::new(None);
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut looks = 0;
                while !over.load(Ordering::Relaxed) {
                    if let Err(what) = look(daemon, looks) {
                        *trouble.lock().expect("no panic holds it") =
                            Some(format!("{:.1} s into the traffic: {what}", start.elapsed().as_secs_f64()));
                        stop.store(true, Ordering::Relaxed);
                        return;
                    }
                    looks += 1;
                    thread::sleep(LOOK);
                }
            });
            // Also when the traffic panics: the scope waits for the thread that looks.
            let _over = SetOnDrop(&over);
            traffic(&stop);
        });
        if let Some(trouble) = trouble.into_inner().expect("no panic holds it") {
            let log =
                daemon.verify_log(true).map_or_else(|error| format!("{error:#}"), |_| "its log is right".to_owned());
            panic!("{trouble}\nthen: {log}");
        }
    }

    /// Asks for random frames of a flow as listeners do, until `stop` or `time` is over; every frame that comes is compared.
    pub(crate) fn listen(
        &self,
        material: &Material,
        flow: u64,
        seq_nums: u64,
        generations: u8,
        time: Duration,
        stop: &AtomicBool,
    ) -> u64 {
        let host = self.publisher();
        let socket = host.ns.enter(|| UdpSocket::bind((host.addr, 0))).expect("a socket");
        socket.set_nonblocking(true).expect("an option");
        let (start, to) = (Instant::now(), self.endpoint().nack_address());
        let (mut asked, mut frames) = (0u64, 0);
        let (mut buffer, mut room) = (vec![0; 65_536], Vec::new());
        while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
            for _ in 0..16 {
                asked += 1;
                let seq_num = 1 + mix(asked ^ 0xa5) % seq_nums;
                // What the socket has no room for is not asked.
                let _ = socket.send_to(&nack(FrameKey::new(flow, seq_num)), to);
            }
            thread::sleep(Duration::from_millis(2));
            while let Ok(length) = socket.recv(&mut buffer) {
                let bytes = &buffer[..length];
                if length < SHORTEST {
                    continue;
                }
                let key = FrameKey::from_bytes(bytes[40..56].try_into().expect("16 bytes"));
                let generation = material.generation(key, generations, bytes, &mut room);
                assert!(generation.is_some(), "an answer for {key} with bytes that were never sent");
                frames += 1;
            }
        }
        frames
    }

    /// The checks at the end of a scene, and the daemon's end.
    pub(crate) fn end(&self, mut daemon: Daemon<'_>, material: &Material, wanted: &Wanted) {
        let path = Path::open(self.publisher(), 4_900, material);
        let flow = Kind::Tx.flow(0x1a57);
        self.watch(&daemon, |stop| {
            quiet(&daemon);
            for seq_num in 1..=LAST {
                path.send(FrameKey::new(flow, seq_num), 0);
            }
            quiet(&daemon);
            let hits = || daemon.metrics().expect("a scrape").count("bre_cache_hits_total", &[]);
            let before = hits();
            // With the defaults its repairs are multicast, and no host here is a member.
            self.listen(material, flow, LAST, 1, Duration::from_millis(200), stop);
            assert!(hits() > before, "the log takes no frames any more");
        });
        let report = daemon.verify_log(true).expect("a right log").expect("pins");
        let held = held::compare(daemon.pins(), material, wanted.generations).expect("bytes as they were published");
        println!("{held} frames held, all right; {report}");
        assert!(report.entries <= wanted.most, "{} frames, {} allowed", report.entries, wanted.most);
        if wanted.lives_last {
            assert_eq!(held, report.entries);
            let deadline = Instant::now() + Duration::from_secs(5);
            let size = || daemon.metrics().expect("a scrape").count("bre_cache_size", &[]);
            while size() != held && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(size(), held, "bre_cache_size is what can be found");
        }
        daemon.child().signal(Signal::SIGTERM).expect("a signal");
        let start = Instant::now();
        while daemon.child().try_wait().expect("a child").is_none() {
            assert!(start.elapsed() < END, "SIGTERM has not ended it in {END:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// One look at the daemon.
fn look(daemon: &Daemon<'_>, looks: u32) -> Result<(), String> {
    let start = Instant::now();
    let scrape = daemon.metrics();
    let took = start.elapsed();
    match scrape {
        Ok(_) if took <= PATIENCE => {}
        Ok(_) => return Err(format!("/metrics took {took:?}")),
        Err(error) => return Err(format!("/metrics is silent: {error:#}")),
    }
    if looks % LOOKS_PER_CHECK == LOOKS_PER_CHECK - 1 {
        daemon.verify_log(false).map_err(|error| format!("{error:#}"))?;
    }
    Ok(())
}

/// Waits until the daemon has taken in all that was sent.
fn quiet(daemon: &Daemon<'_>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let taken = || daemon.metrics().map(|metrics| metrics.count("bre_frames_received_total", &[])).unwrap_or_default();
    let mut before = taken();
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
        let now = taken();
        if now == before {
            return;
        }
        before = now;
    }
}
