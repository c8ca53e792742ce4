//! What an operator reads with bpftool: the commands are taken out of docs/bpftool.md and run. Needs root and bpftool.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    process::Command,
    time::Duration,
};

use retry_common::{
    abi::{Limits, Settings},
    key::FrameKey,
    limits::TokenBucket,
};
use retry_testbed::{
    net::packet::PacketBuilder,
    peers::answer::nack,
    scene::is_root,
    xdp::fixture::{Interface, Loaded, NACK_ADDRESS, in_new_namespace, monotonic_ns},
};
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../docs/bpftool.md");

/// The lines of the document's shell blocks.
fn commands() -> Vec<&'static str> {
    let blocks = DOCUMENT.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.flat_map(str::lines).collect()
}

/// Runs a command of the document against our pins, as JSON where bpftool prints it.
fn run(loaded: &Loaded, command: &str, json: bool) -> String {
    let mut command = command.replace("$PINS", &loaded.pins().display().to_string());
    if json {
        command = command.replacen("bpftool ", "bpftool -j ", 1);
    }
    let output = Command::new("sh").args(["-c", &command]).output().expect("sh starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The command of the document that reads a map.
fn command_of(map: &str) -> &'static str {
    let place = format!("$PINS/{map}");
    let reads = |line: &&str| line.split(' ').any(|word| word == place);
    commands().into_iter().find(reads).expect("the document shows this map")
}

/// The decoded entries of the dump of one map, by the command that the document gives for it.
fn dump(loaded: &Loaded, map: &str) -> Vec<Value> {
    let text = run(loaded, command_of(map), true);
    let entries: Vec<Value> = serde_json::from_str(&text).expect("a list");
    entries.into_iter().map(|entry| entry["formatted"].clone()).collect()
}

/// A program with two NACKs answered: one hit, one miss.
fn with_traffic(name: &str, work: impl FnOnce(&Loaded) + Send) {
    if !is_root(name) {
        return;
    }
    in_new_namespace(|| {
        let here = Interface::veth("rt0").expect("ip link works");
        let mut loaded = Loaded::open(&here, &[], true).expect("the kernel takes the program");
        let limits = Limits { address: TokenBucket::new(10, 20), ..Limits::default() };
        loaded.set(Settings { limits, ..loaded.settings() });
        let key = FrameKey::new(0xB0F, 1);
        loaded.put(key, 3, &[7; 400], Duration::from_secs(60), false);
        for (listener, key) in [(0xA, key), (0xB, FrameKey::new(0xB0F, 2)), (0xB, FrameKey::new(0xB0F, 3))] {
            let source = SocketAddrV6::new(Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, listener), 40_000, 0, 0);
            let packet = PacketBuilder::udp(source, NACK_ADDRESS, &nack(key)).build();
            loaded.run(&packet).expect("a legal length");
        }
        work(&loaded);
    });
}

/// The bytes of a field: bpftool prints them as `0xfd` or, where they are letters, as they are.
fn bytes(field: &Value) -> Vec<u8> {
    let list = field.as_array().expect("a list of bytes");
    let byte = |value: &Value| match value {
        Value::Number(number) => u8::try_from(number.as_u64()?).ok(),
        Value::String(text) => u8::from_str_radix(text.strip_prefix("0x")?, 16).ok(),
        _ => None,
    };
    list.iter().map(|value| byte(value).expect("a byte")).collect()
}

#[test]
fn the_document_shows_three_maps() {
    let dumps = commands().iter().filter(|line| line.contains(" map dump pinned $PINS/")).count();
    assert_eq!((dumps, commands().len()), (3, 4));
}

#[test]
fn every_command_of_the_document_runs_as_it_stands() {
    with_traffic("every_command_of_the_document_runs_as_it_stands", |loaded| {
        for command in commands() {
            let text = run(loaded, command, false);
            assert!(command.starts_with("PINS=") || text.len() > 100, "{command}: {text}");
        }
        let line = commands().into_iter().find_map(|line| line.strip_prefix("PINS=")).expect("the directory");
        let directory = run(loaded, &format!("echo {line}"), false);
        let name = loaded.pins().file_name().expect("a name").to_string_lossy().replace("rt0", "eth0");
        assert_eq!(directory.trim(), format!("/sys/fs/bpf/retry-endpoint/{name}"));
    });
}

#[test]
fn counters_have_names_and_the_right_values() {
    with_traffic("counters_have_names_and_the_right_values", |loaded| {
        let entries = dump(loaded, "COUNTERS");
        let cpus = entries[0]["values"].as_array().expect("one block a CPU");
        let sum = |field: &str| -> u64 {
            let of = |cpu: &Value| cpu["value"][field].as_u64();
            cpus.iter().map(|cpu| of(cpu).unwrap_or_else(|| panic!("no {field} in {cpu}"))).sum()
        };
        for (field, value) in [
            ("nack_requests", 3),
            ("cache_hits", 1),
            ("cache_misses", 2),
            ("acks_sent", 1),
            ("unicast_retransmits", 1),
            ("misses_sent", 2),
            ("limited_address", 0),
            ("passed_lease", 0),
            ("handed_over", 0),
        ] {
            assert_eq!(sum(field), value, "{field}");
        }
        let counters = loaded.counters().expect("readable");
        assert_eq!(sum("nack_requests"), counters.nack_requests);
    });
}

#[test]
fn settings_have_names_and_the_right_values() {
    with_traffic("settings_have_names_and_the_right_values", |loaded| {
        let entries = dump(loaded, "SETTINGS");
        let value = &entries[0]["value"];
        let settings = loaded.settings();
        assert_eq!(value["generation"], 1);
        assert_eq!(value["lease_until_ns"], settings.lease_until_ns);
        assert_eq!(value["flags"], settings.flags);
        assert_eq!(value["nack_ifindex"], settings.nack_ifindex);
        assert_eq!(value["max_frame"], settings.max_frame);
        assert_eq!(value["limits"]["address"]["interval_ns"], 100_000_000);
        assert_eq!(bytes(&value["nack_addr"]), NACK_ADDRESS.ip().octets());
        assert_eq!(bytes(&value["nack_port"]), NACK_ADDRESS.port().to_be_bytes());
    });
}

#[test]
fn the_address_limit_shows_who_asked() {
    with_traffic("the_address_limit_shows_who_asked", |loaded| {
        let lines = run(loaded, command_of("ADDRESS_LIMIT"), false);
        let now = monotonic_ns();
        let mut seen: Vec<(u8, u64)> = Vec::new();
        for line in lines.lines() {
            let entry: Value = serde_json::from_str(line).expect("JSON");
            let address = bytes(&entry["address"]);
            assert_eq!(address[..15], [0xFD, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let state = entry["state"].as_u64().expect("a time");
            assert!(state < now + 200_000_000 && state > now - 60_000_000_000, "{state} at {now}");
            seen.push((address[15], state));
        }
        seen.sort_unstable();
        let [(0xA, once), (0xB, twice)] = seen[..] else { panic!("others asked: {seen:?}") };
        // The second took another token, which comes back a tenth of a second later.
        assert!(twice > once + 90_000_000, "{once} and {twice}");
    });
}

#[test]
fn the_program_shows_its_source_lines() {
    with_traffic("the_program_shows_its_source_lines", |loaded| {
        let shown = run(loaded, "bpftool prog show pinned $PINS/retry_nack", true);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!((&shown["type"], &shown["name"]), (&"xdp".into(), &"retry_nack".into()));
        let lines = run(loaded, "bpftool prog dump xlated pinned $PINS/retry_nack linum", false);
        assert!(lines.contains("classify.rs") && lines.contains("reply.rs"), "no lines of the source");
        for command in ["bpftool prog show pinned $PINS", "bpftool prog dump xlated pinned"] {
            assert!(DOCUMENT.contains(command), "{command} is not in the document");
        }
    });
}
