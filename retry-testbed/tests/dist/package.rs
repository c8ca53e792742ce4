//! The Debian package as docs/install.md has it: installed, started, restarted, upgraded, removed, and answering from the kernel
//! all the while.

use std::path::PathBuf;
use std::sync::Arc;

use retry_common::key::FrameKey;
use retry_testbed::daemon::http;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, eventually, is_root, two_hosts};

use crate::artifacts::{file, said};
use crate::document;
use crate::guest::Guest;

/// The same package in a later version.
fn upgrade(directory: &std::path::Path) -> PathBuf {
    let package = file("_amd64.deb").display().to_string();
    let tree = directory.join("tree").display().to_string();
    said("dpkg-deb", &["--raw-extract", &package, &tree], directory);
    let control = PathBuf::from(&tree).join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).expect("a control file");
    let version = text.lines().find_map(|line| line.strip_prefix("Version: ")).expect("a version");
    std::fs::write(&control, text.replace(&format!("Version: {version}\n"), "Version: 99.0\n")).expect("written");
    said("dpkg-deb", &["--root-owner-group", "-Znone", "--build", &tree, "retry-endpoint_99.0_amd64.deb"], directory);
    directory.join("retry-endpoint_99.0_amd64.deb")
}

fn metric(host: &Host, name: &str) -> u64 {
    let address = "[::1]:9400".parse().expect("an address");
    let (_, text) = http::get(&host.ns, address, "/metrics").expect("a scrape");
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("no {name}"));
    line.trim().parse().expect("a number")
}

#[test]
fn the_package_is_a_service_until_it_is_removed() {
    if !is_root("the_package_is_a_service_until_it_is_removed") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let guest = Guest::boot(&endpoint.ns, &[file("_amd64.deb"), upgrade(directory.path())]);
    let blocks = document::blocks("Debian and Ubuntu");
    let [install, upgraded, remove] = &blocks[..] else { panic!("install, upgrade, remove: {blocks:?}") };

    // Before it is configured it does not run.
    let [add, start] = install.split_once("\n\n").map(|(add, start)| [add, start]).expect("two steps");
    guest.run(add);
    assert_eq!(guest.value("ActiveState"), "inactive");
    guest.run("printf 'CACHE_MEMORY=16m\\nCACHE_MEMORY_LONG=16m\\n' >> /etc/default/retry-endpoint");
    guest.run(start);
    let pid = guest.value("MainPID");
    let status = guest.run(&format!("cat /proc/{pid}/status"));
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim().to_owned();
    assert!(!field("Uid:").starts_with('0'), "it runs as root: {status}");
    let names = guest.run(&format!("capsh --decode={}", field("CapEff:")));
    assert!(names.trim().ends_with("=cap_net_admin,cap_net_raw,cap_perfmon,cap_bpf"), "{names}");
    assert_eq!(field("CapEff:"), field("CapBnd:"));

    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let mut flow = Flow::new(Kind::Tx, 0, 2, 400..=400);
    let key: FrameKey = publish.publish(&mut flow).expect("a frame leaves").expect("a key");
    eventually("the frame is cached", || metric(endpoint, "bre_cache_size") > 0);
    let socket = asker(client);
    let is_answered = || {
        let answers = ask(&socket, endpoint.nack_address(), &nack(key), 1);
        answers.iter().any(|bytes| matches!(Answer::parse(bytes, key.seq_num()), Ok(Answer::Ack { .. })))
    };
    assert!(is_answered(), "{}", guest.journal());
    assert!(guest.succeeds("retry-endpoint status eth0"));

    guest.run("systemctl restart retry-endpoint");
    assert_eq!(metric(endpoint, "bre_start_mode{mode=\"adopted\"}"), 1);
    assert!(is_answered());

    let pid = guest.value("MainPID");
    guest.run(upgraded);
    assert_ne!(guest.value("MainPID"), pid, "the new version runs");
    assert_eq!(metric(endpoint, "bre_start_mode{mode=\"adopted\"}"), 1);
    assert!(is_answered());
    assert!(guest.succeeds("grep -q '^CACHE_MEMORY=16m' /etc/default/retry-endpoint"));

    guest.run("systemctl stop retry-endpoint");
    assert!(is_answered(), "the kernel answers until its lease ends");
    guest.run("systemctl start retry-endpoint");
    guest.run(remove);
    assert!(!guest.succeeds("test -e /sys/fs/bpf/retry-endpoint"));
    let link = endpoint.ns.run(&["ip", "link", "show", "eth0"]).expect("a link");
    assert!(!link.contains("xdp"), "{link}");
    assert!(!is_answered());
}
