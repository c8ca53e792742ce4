//! Instances whose wall clocks differ by an hour: dedup between them works as if the clocks agreed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::group;
use retry_testbed::scene::{asker, binary, counted, eventually, flags, frame};

use super::site::{BY_MULTICAST, Site, answer, told};
use tempfile::TempDir;

const KEY: FrameKey = FrameKey::new(0xc10c, 1);
/// How far the clocks are apart, in seconds.
const HOUR_S: i64 = 3_600;

/// The daemon's binary under a wall clock that is shifted by some seconds.
struct Shifted {
    directory: TempDir,
}

impl Shifted {
    fn by(seconds: i64) -> Self {
        let directory = TempDir::new().expect("a directory");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shared/shifted_clock.c");
        let library = directory.path().join("shifted_clock.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .output()
            .expect("the C compiler `cc`, which Rust's own linking needs too");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let script = format!(
            "#!/bin/sh\nCLOCK_SHIFT_S={seconds} LD_PRELOAD={} exec {} \"$@\"\n",
            library.display(),
            binary().display()
        );
        let wrapper = directory.path().join("retry-endpoint");
        fs::write(&wrapper, script).expect("a script");
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("a mode");
        Self { directory }
    }

    fn binary(&self) -> PathBuf {
        self.directory.path().join("retry-endpoint")
    }
}

/// Starts an instance and waits until it is connected and hears frames.
fn instance<'a>(site: &'a Site, binary: &Path, name: &str, xdp: &str, redis: &str, mode: &str) -> Daemon<'a> {
    let more = [
        "-instance",
        name,
        "-log-format",
        "json",
        "-beacon-enabled=false",
        "-redis-addr",
        redis,
        "-dedup-mode",
        mode,
        "-dedup-repeat-after",
        "30s",
    ];
    let daemon = Daemon::start(binary, &site.host(name).ns, &flags(xdp, &more)).expect("a daemon");
    site.fabric.await_members(name, &[group(0)]).expect("a member");
    eventually("a connection", || told(&daemon, "connected to the shared store") == 1);
    daemon
}

/// How far the wall clock of a daemon is from ours, by the times in its log.
fn clock_difference(daemon: &Daemon<'_>) -> f64 {
    let last = daemon.log().lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["time_unix"].as_f64()
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    last.expect("a line with its time") - now
}

/// The instance `one` repairs a frame; then `two`, whose clock is shifted against it, is asked for the same frame; then `one`
/// again for another frame that `two` repaired. Each frame is repaired once, and both listeners get their ACK.
fn one_repair_between(xdp: &str, mode: &str, shift_s: i64) {
    let site = Site::new();
    let redis = site.redis();
    let shifted = Shifted::by(shift_s);
    let one = instance(&site, &binary(), "one", xdp, &redis.address(), mode);
    let two = instance(&site, &shifted.binary(), "two", xdp, &redis.address(), mode);
    let difference = clock_difference(&two);
    #[expect(clippy::cast_precision_loss, reason = "an hour")]
    let apart = (difference - shift_s as f64).abs();
    assert!(apart < 60.0, "the clock of `two` is {difference} s from ours: it is not shifted");
    assert!(clock_difference(&one).abs() < 60.0, "the clock of `one` is ours");

    let watch = site.watch(&[group(0)]);
    let publisher = site.publisher();
    let keys = [KEY, FrameKey::new(KEY.hash_key(), 2)];
    for (key, salt) in keys.iter().zip(0..) {
        publisher.send(group(0), &frame(*key, 500, salt)).expect("a frame leaves");
    }
    for daemon in [&one, &two] {
        counted(daemon, "bre_frames_cached_total", &[], 2);
    }
    let (client, other) = (asker(site.host("client")), asker(site.host("other")));
    for (key, [first, second]) in keys.iter().zip([[("one", &one), ("two", &two)], [("two", &two), ("one", &one)]]) {
        assert_eq!(answer(&client, site.host(first.0).nack_address(), *key), Some(BY_MULTICAST));
        if mode == "eventual" {
            counted(first.1, "bre_dedup_repairs_total", &[("event", "announced")], 1);
            // What is late is nothing that the clocks did.
            counted(second.1, "bre_dedup_repairs_total", &[("event", "heard")], 1);
        }
        assert_eq!(answer(&other, site.host(second.0).nack_address(), *key), Some(BY_MULTICAST));
        let repairs = watch.repairs(*key, 1);
        let sources: Vec<_> = repairs.iter().map(|repair| *repair.src.ip()).collect();
        assert_eq!(sources, [site.host(first.0).addr], "{key}: repaired once, by the instance asked first");
        counted(second.1, "bre_retransmit_dedup_total", &[], 1);
    }
    watch.end();
}

/// A claim ends its silence by its age: an instance whose clock is behind takes it over as early as any other.
fn an_old_claim_is_taken_over(xdp: &str, shift_s: i64) {
    const AGAIN: Duration = Duration::from_secs(2);
    let site = Site::new();
    let redis = site.redis();
    let shifted = Shifted::by(shift_s);
    let window = ["-dedup-mode", "strict", "-dedup-repeat-after", "2s", "-dedup-window", "1m"];
    let one = site.endpoint("one", xdp, &redis.address(), &window);
    let address = redis.address();
    let more = [&["-instance", "two", "-beacon-enabled=false", "-redis-addr", &address][..], &window].concat();
    let two = Daemon::start(&shifted.binary(), &site.host("two").ns, &flags(xdp, &more)).expect("a daemon");
    site.fabric.await_members("two", &[group(0)]).expect("a member");
    eventually("a connection", || told(&two, "connected to the shared store") == 1);
    let watch = site.watch(&[group(0)]);
    site.publisher().send(group(0), &frame(KEY, 500, 3)).expect("a frame leaves");
    for daemon in [&one, &two] {
        counted(daemon, "bre_frames_cached_total", &[], 1);
    }
    let socket = asker(site.host("client"));
    assert_eq!(answer(&socket, site.host("one").nack_address(), KEY), Some(BY_MULTICAST));
    std::thread::sleep(AGAIN + Duration::from_millis(200));
    assert_eq!(answer(&socket, site.host("two").nack_address(), KEY), Some(BY_MULTICAST));
    let sources: Vec<_> = watch.repairs(KEY, 2).iter().map(|repair| *repair.src.ip()).collect();
    assert_eq!(sources, ["one", "two"].map(|name| site.host(name).addr));
    watch.end();
}

fn strict_ahead(xdp: &str) {
    one_repair_between(xdp, "strict", HOUR_S);
}

fn strict_behind(xdp: &str) {
    one_repair_between(xdp, "strict", -HOUR_S);
}

fn eventual_ahead(xdp: &str) {
    one_repair_between(xdp, "eventual", HOUR_S);
}

fn eventual_behind(xdp: &str) {
    one_repair_between(xdp, "eventual", -HOUR_S);
}

fn taken_over_behind(xdp: &str) {
    an_old_claim_is_taken_over(xdp, -HOUR_S);
}

both_paths! {
    strict_ahead: strict_ahead_native, strict_ahead_off;
    strict_behind: strict_behind_native, strict_behind_off;
    eventual_ahead: eventual_ahead_native, eventual_ahead_off;
    eventual_behind: eventual_behind_native, eventual_behind_off;
    taken_over_behind: taken_over_behind_native, taken_over_behind_off;
}
