//! `retry-endpoint verify-log` beside a daemon that runs: what it says of a log that is right, of one that is damaged, and of
//! none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::sync::Arc;

use aya::maps::{Array, Map, MapData};
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, group};
use retry_testbed::net::netns::Netns;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{await_count, binary, flags, frame, is_root, two_hosts};
use retry_userspace::parts::datapath::pinned::{PinnedLog, Words as _};

const FRAMES: u64 = 20;

fn verify(ns: &Netns, args: &[&str]) -> Output {
    let mut command: Command = ns.command(binary()).expect("a command");
    command.arg("verify-log").args(args).output().expect("it runs")
}

/// Puts `entry` into the first empty entry of a bucket, or takes it out again.
fn damage(daemon: &Daemon<'_>, bucket: u32, entry: u64, put: bool) {
    let map = MapData::from_pin(daemon.pins().join("INDEX")).expect("a pin");
    let mut index: Array<_, [u64; 8]> = Map::Array(map).try_into().expect("an array");
    let mut entries = index.get(&bucket, 0).expect("a bucket");
    let (from, to) = if put { (0, entry) } else { (entry, 0) };
    let at = entries.iter().rposition(|there| *there == from).expect("a place");
    entries[at] = to;
    index.set(bucket, entries, 0).expect("the kernel takes it");
}

/// A damaged log is found by the verb, and a daemon of the testbed that ends with one is a failure.
#[test]
fn a_damaged_log_is_found() {
    if !is_root("a_damaged_log_is_found") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let nothing = verify(&endpoint.ns, &[]);
    assert_eq!(nothing.status.code(), Some(2));
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(said.contains("no pins of this network namespace"), "{said}");

    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    for seq_num in 1..=FRAMES {
        publish.send(group(0), &frame(FrameKey::new(0xF113, seq_num), 300, 1)).expect("a frame leaves");
    }
    await_count(&daemon, "bre_frames_cached_total", &[], FRAMES);
    for args in [&[][..], &["eth0"], &["-sums"], &["-bpffs", "/sys/fs/bpf/retry-endpoint", "--json"]] {
        let output = verify(&endpoint.ns, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    }
    let report = daemon.verify_log(true).expect("a right log").expect("pins");
    assert_eq!((report.entries, report.lanes[0].sums), (FRAMES, FRAMES), "{report}");

    let log = PinnedLog::open(daemon.pins()).expect("pins");
    let at = (0..log.index.len()).step_by(8).find(|at| log.index.word(*at) != 0).expect("an entry");
    let (bucket, entry) = (u32::try_from(at / 64).expect("small"), log.index.word(at));
    damage(&daemon, bucket, entry, true);
    let output = verify(&endpoint.ns, &["-json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(r#""doubled_tag":1"#) && said.contains(r#""ok":false"#), "{said}");
    damage(&daemon, bucket, entry, false);
    daemon.verify_log(true).expect("a right log");

    damage(&daemon, bucket, entry, true);
    let ended = catch_unwind(AssertUnwindSafe(|| drop(daemon)));
    assert!(ended.is_err(), "a daemon with a damaged log ends, and no test fails");
}
