//! Settings that change while the daemon runs: by SIGHUP and POST /v1/config from the files, or by the API alone. The kernel program
//! and the daemon's socket go by them at once, and what cannot stand changes nothing.

use std::fs;
use std::mem::offset_of;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::abi;
use retry_common::holddown::HoldDown;
use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::{Daemon, http};
use retry_testbed::net::fabric::{Fabric, Host, group};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{
    PATIENCE, ask, asker, binary, counted, eventually, flags, frame, is_root, path, read_answers, two_hosts,
};
use retry_userspace::parts::datapath::pinned::{PinnedLog, Words as _};
use serde_json::{Value, json};

const FLOW: u64 = 0x77;
const ADMIN: &str = "[::1]:9401";
const HIT: Option<Answer> = Some(Answer::Ack { multicast: false, unicast: true });
const MISS: Option<Answer> = Some(Answer::Miss);
/// Over the limit of the frame.
const OVER: Option<Answer> = Some(Answer::Throttled { hold: Duration::from_millis(125 << 2) });
/// What stands in the file beside what a test writes there.
const ALWAYS: [&str; 5] =
    ["rl-ip-rate = 0", "rl-chain-rate = 0", "rl-group-rate = 0", "rl-sequence-max = 0", "rl-throttle-response = true"];

/// The text of a file: these lines, and no limits but those that they have.
fn text(lines: &[&str]) -> String {
    let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let more = ALWAYS.into_iter().filter(|one| !lines.iter().any(|line| key(line) == key(one)));
    lines.iter().copied().chain(more).fold(String::new(), |text, line| text + line + "\n")
}

/// A daemon whose settings are in a file.
struct Scene<'a> {
    daemon: Daemon<'a>,
    endpoint: &'a Host,
    socket: UdpSocket,
    publish: Publisher,
    file: PathBuf,
    stored: u64,
    _directory: tempfile::TempDir,
}

impl<'a> Scene<'a> {
    /// Starts with these lines in its file.
    fn start(fabric: &'a Fabric, xdp: &str, lines: &[&str], more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("retry.toml");
        fs::write(&file, text(lines)).expect("a file");
        let (endpoint, client) = two_hosts(fabric);
        let name = file.to_str().expect("UTF-8");
        let mut flags = vec!["-xdp", xdp, "-cache-memory", "16m", "-cache-memory-long", "16m", "-config", name];
        flags.extend(["-admin-addr", ADMIN]);
        flags.extend(more);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
        Self { daemon, endpoint, socket: asker(client), publish, file, stored: 0, _directory: directory }
    }

    /// Gives the file these lines, and has it read by SIGHUP.
    fn change(&mut self, lines: &[&str]) {
        self.rewrite(&text(lines), "ok");
    }

    /// As [`Scene::change`], with this text and this result.
    fn rewrite(&mut self, text: &str, result: &str) {
        let before = self.reloads(result);
        fs::write(&self.file, text).expect("a file");
        self.daemon.child().signal(Signal::SIGHUP).expect("it is told");
        counted(&self.daemon, "bre_config_reloads_total", &[("result", result)], before + 1);
    }

    fn reloads(&self, result: &str) -> u64 {
        self.daemon.metrics().expect("a scrape").count("bre_config_reloads_total", &[("result", result)])
    }

    /// Publishes a frame and waits until it is stored.
    fn publish(&mut self, seq_num: u64) {
        self.publish.send(group(0), &bytes_of(seq_num)).expect("a frame leaves");
        self.stored += 1;
        counted(&self.daemon, "bre_frames_cached_total", &[], self.stored);
    }

    /// What so many NACKs for a frame get, one after the other.
    fn ask(&self, seq_num: u64, times: usize) -> Vec<Option<Answer>> {
        let to = self.endpoint.nack_address();
        let once = |_| {
            let got = ask(&self.socket, to, &nack(FrameKey::new(FLOW, seq_num)), 1);
            let mut all = got.clone();
            if got.iter().any(|bytes| bytes.len() != 16) {
                // The ACK behind the frame.
                let mut answer = [0; 16];
                let length = self.socket.recv(&mut answer).expect("an ACK");
                all.push(answer[..length].to_vec());
            }
            let answers = read_answers(&all, seq_num, &bytes_of(seq_num)).0;
            if got.first().is_some_and(|bytes| bytes.len() == 16) && answers.first() == HIT.as_ref() {
                // The frame behind the ACK.
                self.socket.recv(&mut [0; 2_048]).expect("a frame");
            }
            answers.first().copied()
        };
        (0..times).map(once).collect()
    }

    /// A request to the management API: status and JSON.
    fn api(&self, method: &str, body: &str) -> (u16, Value) {
        let address = ADMIN.parse().expect("an address");
        let answer = http::exchange(&self.endpoint.ns, address, method, "/v1/config", None, body.as_bytes());
        let (status, body) = answer.expect("an answer");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    /// A setting as GET /v1/config has it.
    fn setting(&self, name: &str) -> Value {
        let (status, all) = self.api("GET", "");
        assert_eq!(status, 200, "{all}");
        let all = all["settings"].as_array().expect("settings");
        all.iter().find(|one| one["name"] == name).expect("a setting of this name").clone()
    }
}

fn bytes_of(seq_num: u64) -> Vec<u8> {
    frame(FrameKey::new(FLOW, seq_num), 300, u8::try_from(seq_num).expect("few"))
}

const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];

/// Lowered: answers end where the limit is. Raised: who was over it is served at once.
fn limits(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let mut scene = Scene::start(&fabric, xdp, &[], &UNICAST);
    scene.publish(1);
    assert_eq!(scene.ask(1, 6), [HIT; 6]);
    scene.change(&["rl-sequence-max = 3", "rl-sequence-window = '10m'"]);
    assert_eq!(scene.ask(1, 5), [HIT, HIT, HIT, OVER, OVER]);
    let metrics = scene.daemon.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_rate_limit_drops_total", &[("level", "sequence"), ("path", path(xdp))]), 2);
    scene.change(&["rl-sequence-max = 4", "rl-sequence-window = '10m'"]);
    assert_eq!(scene.ask(1, 5), [HIT, HIT, HIT, HIT, OVER]);
    // A token that takes eleven days to come back is owed to the former limit alone.
    scene.change(&["rl-ip-rate = 0.000001", "rl-ip-burst = 1"]);
    assert_eq!(scene.ask(1, 3), [HIT, None, None]);
    scene.change(&["rl-ip-rate = 1000", "rl-ip-burst = 100"]);
    assert_eq!(scene.ask(1, 3), [HIT; 3]);
}

/// What is not told of in a file changes nothing; each of these is in force with the signal.
fn hold_down_lives_and_misses(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let mut scene = Scene::start(&fabric, xdp, &["repair-holddown = '0s'"], &[]);
    let sent = |scene: &Scene<'_>| {
        let metrics = scene.daemon.metrics().expect("a scrape");
        let of = |name| metrics.count(name, &[("path", path(xdp))]);
        (of("bre_retransmits_total"), of("bre_retransmit_holddown_total"))
    };
    let repaired = Some(Answer::Ack { multicast: true, unicast: false });
    scene.publish(1);
    assert_eq!(scene.ask(1, 3), [repaired; 3]);
    assert_eq!(sent(&scene), (3, 0));
    scene.change(&["repair-holddown = '10m'"]);
    assert_eq!(scene.ask(1, 3), [repaired; 3]);
    assert_eq!(sent(&scene), (4, 2), "the next repair holds");

    assert_eq!(scene.ask(99, 1), [MISS]);
    scene.change(&["repair-holddown = '10m'", "suppress-miss = true"]);
    assert_eq!(scene.ask(99, 1), [None]);

    scene.change(&["cache-ttl-tx = '300ms'"]);
    scene.publish(2);
    let lives = scene.daemon.metrics().expect("a scrape");
    assert!((lives.sum("bre_cache_ttl_seconds", &[("class", "tx")]) - 0.3).abs() < 1e-9);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(scene.ask(2, 1), [MISS], "what is stored from now on lives as long as is said now");
    assert_eq!(scene.ask(1, 1), [repaired], "what was stored before keeps its life");
}

/// Who may ask, by the lists of the settings. Lists that have no place are refused, with all that stands beside them.
fn lists(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let mut scene = Scene::start(&fabric, xdp, &[], &UNICAST);
    scene.publish(1);
    assert_eq!(scene.ask(1, 1), [HIT]);
    let client = two_hosts(&fabric).1.addr;
    scene.change(&[&format!("acl-deny = '{client}/128'")]);
    assert_eq!(scene.ask(1, 2), [None, None]);
    scene.change(&["acl-allow = 'fd10::/64'"]);
    assert_eq!(scene.ask(1, 1), [HIT]);
    scene.change(&["acl-allow = 'fd11::/64'"]);
    assert_eq!(scene.ask(1, 1), [None]);
    let many: Vec<String> = (100..117).map(|length| format!("fd12::/{length}")).collect();
    let many = format!("acl-deny = '{}'", many.join(","));
    scene.rewrite(&text(&[&many, "suppress-miss = true"]), "refused");
    let log = scene.daemon.log();
    assert!(log.lines().last().is_some_and(|line| line.contains("prefixes of 17 lengths are too many")), "{log}");
    assert_eq!(scene.ask(1, 1), [None], "the lists before stay in force");
    scene.change(&[]);
    assert_eq!((scene.ask(1, 1), scene.ask(99, 1)), (vec![HIT], vec![MISS]));
}

both_paths! {
    lists: lists_change_native, lists_change_off;
    limits: limits_change_native, limits_change_off;
    hold_down_lives_and_misses: hold_down_lives_and_misses_change_native, hold_down_lives_and_misses_change_off;
}

/// Repairs by unicast in the place of multicast, and an ADVERT that says so at once.
fn repairs_change(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let mut scene = Scene::start(&fabric, xdp, &["repair-holddown = '0s'"], &[]);
    scene.publish(1);
    assert_eq!(scene.ask(1, 1), [Some(Answer::Ack { multicast: true, unicast: false })]);
    let adverts =
        |scene: &Scene<'_>| scene.daemon.metrics().expect("a scrape").count("bre_beacon_adverts_sent_total", &[]);
    let before = adverts(&scene);
    scene.change(&["repair-holddown = '0s'", "beacon-flags-multicast = false", "beacon-flags-unicast = true"]);
    assert_eq!(scene.ask(1, 2), [HIT; 2]);
    eventually("an ADVERT with the new flags", || adverts(&scene) > before);
    scene.change(&["repair-holddown = '0s'", "beacon-flags-multicast = false", "suppress-ack = true"]);
    assert_eq!(scene.ask(1, 1), [None], "neither way, and no ACK");
}

both_paths! {
    repairs_change: repairs_change_native, repairs_change_off;
}

#[test]
fn what_cannot_stand_changes_nothing_and_says_why() {
    if !is_root("what_cannot_stand_changes_nothing_and_says_why") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let limit = ["rl-sequence-max = 2", "rl-sequence-window = '10m'"];
    let mut scene = Scene::start(&fabric, "native", &limit, &UNICAST);
    scene.publish(1);
    assert_eq!(scene.ask(1, 3), [HIT, HIT, OVER]);
    let read = |scene: &Scene<'_>| {
        let metrics = scene.daemon.metrics().expect("a scrape");
        metrics.sum("bre_config_last_success_timestamp_seconds", &[])
    };
    let first = read(&scene);
    std::thread::sleep(Duration::from_millis(1_100));
    let file = scene.file.to_str().expect("UTF-8").to_owned();
    for (number, (bad, why)) in (90..).zip([
        ("rl-sequence-max = 'many'", format!("-rl-sequence-max (from {file}) many: 0, or a number")),
        ("nack-prot = 9301", format!("nack-prot (from {file}) 9301: there is no such setting")),
        ("nack-port = 0", format!("-nack-port (from {file}) 0: a whole number from 1 to 65535 is accepted")),
        ("rl-ip-rate = ", format!("-config {file}: TOML is accepted: line 3")),
    ]) {
        // All of it is refused: the limit that stands beside it, too.
        let limit = if bad.starts_with("rl-sequence-max") { "# the limit:" } else { "rl-sequence-max = 100" };
        scene.rewrite(&format!("{limit}\nsuppress-miss = true\n{bad}\n"), "refused");
        let log = scene.daemon.log();
        let line = log.lines().last().expect("a line");
        assert!(line.contains("WARN") && line.contains(&why), "{why}: {line}");
        assert_eq!((scene.ask(1, 1), scene.ask(number, 1)), (vec![OVER], vec![MISS]), "{bad}");
    }
    assert_eq!(read(&scene).to_bits(), first.to_bits(), "no success since");
    scene.rewrite(&text(&limit), "unchanged");
    assert_eq!(scene.ask(1, 1), [OVER], "what is as it was goes on counting");
    assert!(read(&scene) > first);
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_in_force() {
    if !is_root("what_needs_a_restart_is_named_and_the_rest_is_in_force") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let mut scene = Scene::start(&fabric, "native", &[], &UNICAST);
    scene.publish(1);
    fs::write(&scene.file, text(&["rl-sequence-max = 1", "rl-sequence-window = '10m'", "nack-port = 9999"]))
        .expect("a file");
    let (status, outcome) = scene.api("POST", "");
    assert_eq!(status, 200, "{outcome}");
    assert_eq!(outcome["needs_restart"], json!([{ "name": "nack-port", "from": "9300", "to": "9999" }]));
    let changed = json!([
        { "name": "rl-sequence-max", "from": "0", "to": "1" },
        { "name": "rl-sequence-window", "from": "1m", "to": "10m" },
    ]);
    assert_eq!(outcome["changed"], changed);
    assert!(
        scene.daemon.log().contains("need a restart settings=\"-nack-port 9300 -> 9999\""),
        "{}",
        scene.daemon.log()
    );
    assert_eq!(scene.ask(1, 2), [HIT, OVER]);
    let port = scene.setting("nack-port");
    assert_eq!((&port["value"], &port["set_by"], &port["live"]), (&json!("9300"), &json!("default"), &json!(false)));
    assert_eq!(port["after_restart"], "9999");
    let limit = scene.setting("rl-sequence-max");
    assert_eq!((&limit["value"], &limit["set_by"], &limit["live"]), (&json!("1"), &json!("file"), &json!(true)));

    // Values of the API hold until the files are read again.
    let (status, outcome) = scene.api("POST", r#"{"rl-sequence-max": 2, "suppress-miss": true}"#);
    assert_eq!(status, 200, "{outcome}");
    assert_eq!(scene.ask(1, 3), [HIT, HIT, OVER]);
    assert_eq!(scene.ask(99, 1), [None]);
    assert_eq!(scene.setting("rl-sequence-max")["set_by"], "api");
    let (status, refused) = scene.api("POST", r#"{"rl-sequence-max": 3, "nack-port": 9999}"#);
    assert_eq!((status, &refused["error"]), (422, &json!("refused")), "{refused}");
    assert_eq!(scene.setting("rl-sequence-max")["value"], "2");
    let before = scene.reloads("ok");
    scene.daemon.child().signal(Signal::SIGHUP).expect("it is told");
    counted(&scene.daemon, "bre_config_reloads_total", &[("result", "ok")], before + 1);
    assert_eq!(scene.ask(1, 2), [HIT, OVER]);
    assert_eq!(scene.ask(99, 1), [MISS]);
}

/// A variable of the file beats the one that the daemon was started with, and a flag beats both.
#[test]
fn variables_of_a_file_are_read_again() {
    if !is_root("variables_of_a_file_are_read_again") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let directory = tempfile::tempdir().expect("a directory");
    let variables = directory.path().join("retry-endpoint");
    let write = |text: &str| fs::write(&variables, text).expect("a file");
    write("RL_SEQUENCE_WINDOW=10m\nRL_SEQUENCE_MAX=1\nSUPPRESS_MISS=true\n");
    // The file of settings says 0 to the limit.
    let name = variables.to_str().expect("UTF-8");
    let mut scene =
        Scene::start(&fabric, "native", &[], &[&UNICAST[..], &["-env-file", name, "-suppress-miss=false"]].concat());
    scene.publish(1);
    assert_eq!((scene.ask(1, 2), scene.ask(99, 1)), (vec![HIT, OVER], vec![MISS]));
    write("# none\nRL_SEQUENCE_WINDOW=10m\n\nRL_SEQUENCE_MAX='2'\n");
    scene.change(&[]);
    assert_eq!(scene.ask(1, 3), [HIT, HIT, OVER]);
    write("");
    scene.change(&[]);
    assert_eq!(scene.ask(1, 4), [HIT; 4], "the file of settings decides");
}

/// What is set at the same time is all in force afterwards, and the kernel program's settings are those that are told.
#[test]
fn changes_at_the_same_time_are_made_one_after_the_other() {
    if !is_root("changes_at_the_same_time_are_made_one_after_the_other") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let mut scene = Scene::start(&fabric, "native", &["rl-sequence-max = 90", "rl-ip-rate = 90"], &UNICAST);
    let held_down = |scene: &Scene<'_>| {
        let log = PinnedLog::open(scene.daemon.pins()).expect("pins");
        let at = offset_of!(abi::Settings, hold_down) + offset_of!(HoldDown, ours_ns);
        Duration::from_nanos(log.settings.word(at))
    };
    for round in 1..=5 {
        let bodies = [
            json!({ "rl-sequence-max": round }),
            json!({ "rl-ip-rate": round }),
            json!({ "repair-holddown": format!("{round}s") }),
        ];
        std::thread::scope(|scope| {
            for body in &bodies {
                let scene = &scene;
                scope.spawn(move || {
                    let (status, outcome) = scene.api("POST", &body.to_string());
                    assert_eq!(status, 200, "{outcome}");
                });
            }
        });
        for body in bodies {
            for (name, value) in body.as_object().expect("an object") {
                let told = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                assert_eq!(scene.setting(name)["value"], told, "{name} in round {round}");
            }
        }
        assert_eq!(held_down(&scene), Duration::from_secs(round));
    }
    // Several signals and an order to read at once: the file decides.
    let before = scene.reloads("ok");
    for _ in 0..5 {
        scene.daemon.child().signal(Signal::SIGHUP).expect("it is told");
        assert_eq!(scene.api("POST", "").0, 200);
    }
    eventually("the file's value", || scene.setting("rl-sequence-max")["set_by"] == "file");
    assert_eq!(scene.setting("repair-holddown")["value"], "10ms");
    assert_eq!(held_down(&scene), Duration::from_millis(10));
    assert_eq!((scene.reloads("ok"), scene.reloads("refused")), (before + 1, 0), "the others found nothing new");
}

/// Of a new daemon the command line and the files decide, whatever stands in the pins of the one before.
#[test]
fn a_restart_goes_by_flags_and_files() {
    if !is_root("a_restart_goes_by_flags_and_files") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let limit = ["rl-sequence-max = 3", "rl-sequence-window = '10m'"];
    let mut scene = Scene::start(&fabric, "native", &limit, &UNICAST);
    scene.publish(1);
    let (status, outcome) = scene.api("POST", r#"{"rl-sequence-max": 1}"#);
    assert_eq!(status, 200, "{outcome}");
    assert_eq!(scene.ask(1, 2), [HIT, OVER]);
    scene.daemon.leave();
    assert!(scene.daemon.end().expect("it ends").success());
    // The kernel program alone goes by what was set last.
    assert_eq!(scene.ask(1, 1), [OVER]);
    let file = scene.file.to_str().expect("UTF-8").to_owned();
    let mut flags = vec!["-xdp", "native", "-cache-memory", "16m", "-cache-memory-long", "16m", "-config", &file];
    flags.extend(["-admin-addr", ADMIN]);
    flags.extend(UNICAST);
    scene.daemon = Daemon::start(&binary(), &scene.endpoint.ns, &flags).expect("a daemon");
    let limit = scene.setting("rl-sequence-max");
    assert_eq!((&limit["value"], &limit["set_by"]), (&json!("3"), &json!("file")));
    scene.publish(2);
    assert_eq!(scene.ask(2, 4), [HIT, HIT, HIT, OVER]);
}

/// The service manager hears of a reading when it begins, and when it is over, also of one that is refused.
#[test]
fn the_service_manager_is_told_of_a_reading() {
    if !is_root("the_service_manager_is_told_of_a_reading") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, file) = (directory.path().join("notify"), directory.path().join("retry.toml"));
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut command = Command::new(binary());
    command.env("NOTIFY_SOCKET", &socket);
    fs::write(&file, "").expect("a file");
    let name = file.to_str().expect("UTF-8");
    let flags = flags("off", &["-config", name]);
    let mut daemon = Daemon::start_by(command, &binary(), &endpoint.ns, &flags).expect("a daemon");
    let heard = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).expect("it is told");
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    assert_eq!(heard(), "READY=1");
    for text in ["suppress-miss = true\n", "no = 1\n"] {
        fs::write(&file, text).expect("a file");
        daemon.child().signal(Signal::SIGHUP).expect("it is told");
        assert_eq!([heard(), heard()], ["RELOADING=1", "READY=1"], "{text}");
    }
}
