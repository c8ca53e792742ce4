//! `deploy/wireshark/retry-endpoint.lua` reads every datagram as this crate does: each field of each golden and made datagram
//! is compared, and each refusal of cut and changed ones, by the words. tshark loads it; a Lua error fails the test.
//!
//! Longer than most files: what each kind of datagram has to show stands beside how tshark is asked for it.
#![expect(clippy::print_stdout, reason = "a test that cannot run says so")]

mod support;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use retry_common::checksum;
use retry_common::group::{self, BeefBits, ShardBits, Sharding};
use retry_common::key::FrameKey;
use retry_common::wire::advert::{self, Advert};
use retry_common::wire::answer::{AckFlags, Answer};
use retry_common::wire::frame::{Bundle, Class, Fragment, Frame, Head, Member, Version};
use retry_common::wire::manifest::{self, Groups, Manifest, Successor};
use retry_common::wire::nack::Nack;
use retry_common::wire::tee::Tee;
use retry_common::wire::{DATA_PORT, NACK_PORT, PROTO_VER};
use serde_json::Value;
use support::{VERSIONS, datagram, names, path, plain, seal, written};

/// A port that the dissector finds by the magic alone.
const TEE_PORT: u16 = 9_401;
/// A port that no dissector of Wireshark claims.
const SOURCE_PORT: u16 = 55_555;
/// Addresses of the packets that carry the datagrams.
const FROM: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x11);
const TO: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x0b, 0xfffd);
/// Fields that hold an IPv6 address.
const ADDRESSES: [&str; 4] = ["bre.advert.nack_addr", "bre.manifest.from", "bre.manifest.source", "bre.tee.source"];
/// What tshark adds itself, or finds in packets before.
const NOT_OF_THE_DATAGRAM: [&str; 4] = ["bre.group", "bre.answer.to", "bre.answer.time_ms", "bre.nack.answered_in"];

/// Fields of a datagram by their filter names, each with its values in order.
type Fields = BTreeMap<String, Vec<String>>;

/// The dissector's settings: those that it comes with.
fn sharding() -> Sharding {
    Sharding { shard: ShardBits::new(2).expect("in range"), beef: BeefBits::new(0).expect("in range") }
}

/// False where tshark is not installed, once that has been said.
fn has_tshark(test: &str) -> bool {
    let there = Command::new("tshark").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        println!("SKIP {test}: tshark is missing");
    }
    there
}

/// A directory of this test, removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let directory = env::temp_dir().join(format!("retry-wireshark-{test}-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        Self(directory)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is in the directory of temporary files.
        let _: io::Result<()> = fs::remove_dir_all(&self.0);
    }
}

/// A capture of raw IPv6 packets (libpcap's link type 101), one per datagram, to these ports.
fn capture(datagrams: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_be_bytes());
    for word in [0x0002_0004_u32, 0, 0, 0x0004_0000, 101] {
        file.extend(word.to_be_bytes());
    }
    for (number, (port, payload)) in (1_u32..).zip(datagrams) {
        let length = u16::try_from(payload.len() + 8).expect("a datagram");
        let (from, to) = (FROM.octets(), TO.octets());
        let sum = checksum::udp_ipv6(&from, &to, SOURCE_PORT, *port, length - 8, checksum::partial(payload));
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([17, 1]);
        packet.extend(from);
        packet.extend(to);
        for field in [SOURCE_PORT, *port, length, sum] {
            packet.extend(field.to_be_bytes());
        }
        packet.extend(payload);
        let length = u32::try_from(packet.len()).expect("a packet");
        for word in [number, 0, length, length] {
            file.extend(word.to_be_bytes());
        }
        file.extend(packet);
    }
    file
}

/// What tshark reads in a capture, packet by packet.
fn dissected(scratch: &Scratch, file: &Path) -> Vec<Fields> {
    let script: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "deploy", "wireshark", "retry-endpoint.lua"].iter().collect();
    let mut command = Command::new("tshark");
    // Without the settings and plugins of the user who runs the test.
    command.env("HOME", &scratch.0).env("XDG_CONFIG_HOME", &scratch.0).env("LC_ALL", "C.UTF-8");
    command.arg("-X").arg(format!("lua_script:{}", script.display())).arg("-n").arg("-r").arg(file);
    command.args(["-T", "json", "--no-duplicate-keys", "-J", "bre"]);
    let output = command.output().expect("tshark runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    for text in [&out, &err] {
        let line =
            text.lines().find(|line| line.contains("Lua Error") || line.contains("Lua:") || line.contains(".lua:"));
        assert_eq!(line, None, "{err}");
    }
    let packets: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    packets.iter().map(|packet| fields_of(&packet["_source"]["layers"]["bre"])).collect()
}

fn fields_of(layer: &Value) -> Fields {
    let mut fields = Fields::new();
    flatten(layer, &mut fields);
    fields
}

/// Adds the values below `tree`, by their names.
fn flatten(tree: &Value, fields: &mut Fields) {
    let Some(object) = tree.as_object() else { return };
    for (name, value) in object {
        for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
            match value {
                Value::Object(_) => flatten(value, fields),
                // An item that is only a heading has an empty value, or none.
                Value::String(text) if name.starts_with("bre.") => {
                    let text = normal(name, text);
                    fields.entry(name.clone()).or_default().push(text);
                }
                _ => {}
            }
        }
    }
}

/// One form of a value that versions of Wireshark, or of an address, write in several.
fn normal(name: &str, text: &str) -> String {
    match text {
        "True" => "1".to_owned(),
        "False" => "0".to_owned(),
        address if ADDRESSES.contains(&name) => {
            address.parse::<Ipv6Addr>().map_or_else(|_| address.to_owned(), |address| address.to_string())
        }
        other => other.to_owned(),
    }
}

/// Values as Wireshark writes them.
struct Expected(Fields);

impl Expected {
    fn put(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.0.entry(format!("bre.{name}")).or_default().push(value.to_string());
        self
    }

    fn hex8(&mut self, name: &str, value: u8) -> &mut Self {
        self.put(name, format!("{value:#04x}"))
    }

    fn hex16(&mut self, name: &str, value: u16) -> &mut Self {
        self.put(name, format!("{value:#06x}"))
    }

    fn hex32(&mut self, name: &str, value: u32) -> &mut Self {
        self.put(name, format!("{value:#010x}"))
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        if bytes.is_empty() {
            return self;
        }
        self.put(name, bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
    }

    fn bit(&mut self, name: &str, is_set: bool) -> &mut Self {
        self.put(name, u8::from(is_set))
    }

    fn head(&mut self, bytes: &[u8]) -> &mut Self {
        self.put("magic", "0xe3e1f3e8").hex16("proto", u16::from_be_bytes([bytes[4], bytes[5]])).hex8("type", bytes[6])
    }

    fn key(&mut self, key: FrameKey) -> &mut Self {
        self.put("hash_key", format!("{:#018x}", key.hash_key())).put("seq_num", key.seq_num())
    }

    fn frame(&mut self, bytes: &[u8], frame: &Frame<'_>) {
        let Head { version, byte7, ident, key, scope, header_len, payload_len, fragment, bundle, .. } = frame.head();
        self.head(bytes).put("frame.byte7", byte7).bytes("frame.ident", ident);
        self.put("frame.payload_len", payload_len).put("frame.header_len", header_len);
        if *version != Version::Legacy {
            self.key(*key);
        }
        if !matches!(version, Version::Legacy | Version::Bundle) {
            self.bytes("frame.scope", scope);
        }
        if let Some(class) = frame.head().class() {
            self.put("frame.class", Class::name(class));
        }
        if let Some(index) = frame.head().group_index(&sharding()) {
            self.hex16("frame.group_index", index);
        }
        if let Some(Fragment { original_len, index, total, original_version }) = fragment {
            self.put("fragment.original_len", original_len).put("fragment.index", index);
            self.put("fragment.total", total).put("fragment.original_version", original_version);
        }
        match bundle {
            Some(Bundle { group_index, shard_bits, tx_count, has_tx_ids }) => {
                self.hex16("bundle.group_index", *group_index).put("bundle.shard_bits", shard_bits);
                self.put("bundle.tx_count", tx_count).bit("bundle.has_tx_ids", *has_tx_ids);
                for Member { tx_id, transaction } in frame.members() {
                    self.put("bundle.member.length", transaction.len());
                    self.bytes("bundle.member.tx_id", tx_id.map_or(&[], |id| id));
                    self.bytes("bundle.member.transaction", transaction);
                }
            }
            None => {
                self.bytes("frame.payload", frame.payload());
            }
        }
        self.bytes("frame.trailer", &bytes[header_len + payload_len..]);
    }

    fn nack(&mut self, bytes: &[u8], nack: &Nack) {
        self.head(bytes).hex8("nack.flags", nack.flags).bit("nack.proxied", nack.proxied()).key(nack.key);
        self.put("nack.end_seq", nack.key.seq_num()).bytes("nack.subtree_id", &nack.subtree_id);
    }

    fn answer(&mut self, bytes: &[u8], answer: Answer) {
        self.head(bytes).hex8("answer.flags", bytes[7]);
        let has = |flags: AckFlags, flag: AckFlags| flags.bits() & flag.bits() != 0;
        match answer {
            Answer::Ack { flags, seq_num } => {
                self.put("seq_num", seq_num).bit("ack.multicast", has(flags, AckFlags::MULTICAST));
                self.bit("ack.unicast", has(flags, AckFlags::UNICAST));
            }
            Answer::Miss => {
                self.put("seq_num", 0);
            }
            Answer::Throttled { bucket, seq_num } => {
                self.put("seq_num", seq_num).put("throttled.bucket", bucket);
                self.put("throttled.hold_ms", 125_u32 << bucket);
            }
        }
    }

    fn advert(&mut self, bytes: &[u8], advert: &Advert) {
        self.head(bytes).hex8("advert.scope", advert.scope);
        self.put("advert.nack_addr", Ipv6Addr::from(advert.nack_addr)).put("advert.nack_port", advert.nack_port);
        self.put("advert.tier", advert.tier).put("advert.preference", advert.preference);
        self.put("advert.interval_s", advert.interval_s).hex16("advert.flags", advert.flags);
        for (name, flag) in [
            ("has_parent", advert::FLAG_HAS_PARENT),
            ("draining", advert::FLAG_DRAINING),
            ("unicast", advert::FLAG_UNICAST),
            ("multicast", advert::FLAG_MULTICAST),
        ] {
            self.bit(&format!("advert.{name}"), advert.flags & flag != 0);
        }
        self.hex32("advert.instance_id", advert.instance_id).bytes("advert.reserved", &bytes[36..]);
    }

    fn manifest(&mut self, bytes: &[u8], manifest: &Manifest<'_>) {
        self.head(bytes).hex8("manifest.flags", bytes[7]);
        let (list, bitmap) = match manifest.groups {
            Groups::None => (0, 0),
            Groups::List(list) => (list.len(), 0),
            Groups::Bitmap(bitmap) => (0, bitmap.len()),
        };
        let flag = |flag: u8| manifest.flags & flag != 0;
        for (name, is_set) in [
            ("groups", list + bitmap > 0),
            ("authoritative", flag(manifest::FLAG_AUTHORITATIVE)),
            ("shutdown", flag(manifest::FLAG_SHUTDOWN)),
            ("ssm", flag(manifest::FLAG_SSM)),
            ("sources", !manifest.sources.is_empty()),
            ("pilot", flag(manifest::FLAG_PILOT)),
            ("successor", manifest.successor.is_some()),
            ("domains", flag(manifest::FLAG_DOMAINS)),
        ] {
            self.bit(&format!("manifest.flag.{name}"), is_set);
        }
        self.put("manifest.from", Ipv6Addr::from(manifest.source)).hex32("manifest.instance_id", manifest.instance_id);
        self.put("manifest.epoch_s", manifest.epoch_s).put("manifest.ttl_s", manifest.ttl_s);
        self.put("manifest.interval_s", manifest.interval_s).put("manifest.shard_bits", manifest.shard_bits);
        self.put("manifest.role", manifest.role).put("manifest.group_count", list);
        self.put("manifest.bitmap_len", bitmap).put("manifest.source_count", manifest.sources.len());
        let crc = u32::from_be_bytes(bytes[44..48].try_into().expect("four bytes"));
        self.hex32("manifest.crc", crc).bytes("manifest.generation_id", &manifest.generation_id);
        for group in manifest.groups() {
            self.hex16("manifest.group", group);
        }
        for source in manifest.sources {
            self.put("manifest.source", Ipv6Addr::from(*source));
        }
        if let Some(Successor { generation_id, shard_bits, flags, transition_s }) = &manifest.successor {
            self.bytes("manifest.successor.generation_id", generation_id);
            self.put("manifest.successor.shard_bits", shard_bits).hex8("manifest.successor.flags", *flags);
            self.put("manifest.successor.transition_s", transition_s);
        }
        self.bytes("manifest.rest", manifest.rest);
    }
}

/// What the endpoint reads in a datagram, or why it refuses it.
fn expected(bytes: &[u8]) -> Result<Fields, String> {
    let mut fields = Expected(Fields::new());
    if bytes.starts_with(b"TEE1") {
        let Tee::Encap { source, source_port, datagram } = Tee::parse(bytes).map_err(|error| error.to_string())? else {
            return Err("no envelope".to_owned());
        };
        let frame = Frame::parse(datagram).map_err(|error| error.to_string())?;
        fields.put("tee.magic", "0x54454531");
        fields.put("tee.version", bytes[4]).hex8("tee.flags", bytes[5]);
        fields.put("tee.source", Ipv6Addr::from(source)).put("tee.source_port", source_port);
        fields.frame(datagram, &frame);
        return Ok(fields.0);
    }
    let is_ours = bytes.starts_with(&[0xE3, 0xE1, 0xF3, 0xE8]);
    match bytes.get(6).filter(|_| is_ours) {
        Some(0x10) => fields.nack(bytes, &Nack::parse(bytes).map_err(|error| error.to_string())?),
        Some(0x11..=0x13) => fields.answer(bytes, Answer::parse(bytes).map_err(|error| error.to_string())?),
        Some(0x20) => fields.advert(bytes, &Advert::parse(bytes).map_err(|error| error.to_string())?),
        Some(0x40) => fields.manifest(bytes, &Manifest::parse(bytes).map_err(|error| error.to_string())?),
        _ => fields.frame(bytes, &Frame::parse(bytes).map_err(|error| error.to_string())?),
    }
    Ok(fields.0)
}

fn port_of(bytes: &[u8]) -> u16 {
    match bytes.get(6) {
        _ if bytes.starts_with(b"TEE1") => TEE_PORT,
        Some(0x10..) => NACK_PORT,
        _ => DATA_PORT,
    }
}

/// The golden datagrams.
fn golden() -> Vec<Vec<u8>> {
    names().iter().filter(|name| name.ends_with(".hex")).map(|name| datagram(name)).collect()
}

fn enveloped(datagram: &[u8]) -> Vec<u8> {
    let mut out = vec![0; datagram.len() + 24];
    let tee = Tee::Encap { source: FROM.octets(), source_port: 9_001, datagram };
    assert_eq!(tee.write(&mut out), Some(out.len()));
    out
}

/// A frame of this version with every field at a value of its own.
fn made(version: Version) -> Vec<u8> {
    let mut payload = Vec::new();
    if version == Version::Bundle {
        for length in [0, 3, 70] {
            let tx_id = [0x77; 32];
            let transaction = vec![9; length];
            let mut out = vec![0; length + 34];
            assert_eq!(Member { tx_id: Some(&tx_id), transaction: &transaction }.write(&mut out), Some(out.len()));
            payload.extend(out);
        }
    } else {
        payload.extend(1..=40_u8);
    }
    let head = Head {
        proto: PROTO_VER,
        version,
        byte7: 1,
        ident: std::array::from_fn(|at| 0xF0 - u8::try_from(at).expect("small")),
        key: FrameKey::new(0x0102_0304_0506_0708, u64::MAX - 1),
        scope: [0xC5; 32],
        header_len: version.header_len(),
        payload_len: payload.len(),
        fragment: (version == Version::Fragment).then_some(Fragment {
            original_len: 70_000,
            index: 2,
            total: 700,
            original_version: 6,
        }),
        bundle: (version == Version::Bundle).then_some(Bundle {
            group_index: 0x0abc,
            shard_bits: 11,
            tx_count: 3,
            has_tx_ids: true,
        }),
    };
    let mut bytes = written(&head, &payload);
    // Bytes after the payload belong to the datagram.
    bytes.extend([0xEE; 5]);
    bytes
}

fn manifests() -> Vec<Vec<u8>> {
    let list = [[0, 1], [0x10, 2], [0xFF, 0xFE]];
    let sources = [FROM.octets(), [0xfd; 16]];
    let successor = Successor { generation_id: [8; 16], shard_bits: 9, flags: 1, transition_s: 1_800_000_000 };
    let with =
        |flags, groups, sources, successor, rest| Manifest { flags, groups, sources, successor, rest, ..plain() };
    let all = [
        plain(),
        with(manifest::FLAG_SHUTDOWN, Groups::List(&list), &[][..], None, &[][..]),
        with(manifest::FLAG_SSM, Groups::Bitmap(&[0b1010, 0xFF, 1]), &sources, None, &[]),
        with(!0x51, Groups::List(&list), &sources, Some(successor), b"planes"),
        Manifest { shard_bits: 3, ..with(0, Groups::Bitmap(&[0xFF, 0xFF]), &[], Some(successor), &[]) },
        Manifest { shard_bits: 200, ..with(0, Groups::Bitmap(&[0, 0x80]), &[], None, b"x") },
    ];
    let written = all.iter().map(|manifest| {
        let mut out = vec![0; 256];
        let length = manifest.write(&mut out).expect("room");
        out.truncate(length);
        out
    });
    written.collect()
}

/// Datagrams that no golden file has.
fn all_made() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = VERSIONS.iter().map(|version| made(*version)).collect();
    let key = FrameKey::new(u64::MAX, 1 << 40);
    all.push(Nack { flags: 0xFF, key, subtree_id: [0xAB; 32] }.to_bytes().to_vec());
    all.push(Answer::Miss.to_bytes().to_vec());
    all.extend(
        (0..=3).map(|bits| Answer::Ack { flags: AckFlags::from_bits(bits), seq_num: 1 << 40 }.to_bytes().to_vec()),
    );
    all.extend((0..=15).map(|bucket| Answer::Throttled { bucket, seq_num: u64::MAX }.to_bytes().to_vec()));
    let advert = Advert {
        scope: 0xFF,
        nack_addr: FROM.octets(),
        nack_port: 65_535,
        tier: 254,
        preference: 1,
        interval_s: 65_000,
        flags: advert::FLAG_DRAINING | advert::FLAG_UNICAST,
        instance_id: u32::MAX,
    };
    all.push(advert.to_bytes().to_vec());
    all.push(Advert { flags: advert::FLAG_HAS_PARENT | advert::FLAG_MULTICAST, ..advert }.to_bytes().to_vec());
    all.extend(manifests());
    all.push(enveloped(&made(Version::Transaction)));
    all
}

/// Dissects these and compares each with what the endpoint reads. Returns how many were taken and how many refused.
fn compare(test: &str, datagrams: Vec<Vec<u8>>) -> (usize, usize) {
    let scratch = Scratch::new(test);
    let file = scratch.0.join("made.pcap");
    let with_ports: Vec<_> = datagrams.into_iter().map(|bytes| (port_of(&bytes), bytes)).collect();
    fs::write(&file, capture(&with_ports)).expect("written");
    let found = dissected(&scratch, &file);
    assert_eq!(found.len(), with_ports.len());
    let (mut taken, mut refused) = (0, 0);
    for (mut fields, (port, bytes)) in found.into_iter().zip(&with_ports) {
        assert_eq!(fields.remove("bre.group"), Some(vec!["0xfffd".to_owned()]), "port {port}: {bytes:02x?}");
        fields.retain(|name, _| !NOT_OF_THE_DATAGRAM.contains(&name.as_str()));
        match expected(bytes) {
            Ok(wanted) => {
                taken += 1;
                assert_eq!(fields, wanted, "{bytes:02x?}");
            }
            Err(why) => {
                refused += 1;
                assert_eq!(fields.get("bre.error"), Some(&vec![why]), "{bytes:02x?}");
            }
        }
    }
    (taken, refused)
}

#[test]
fn every_field_is_what_the_endpoint_reads() {
    if has_tshark("every_field_is_what_the_endpoint_reads") {
        let datagrams: Vec<_> = golden().into_iter().chain(all_made()).collect();
        let count = datagrams.len();
        assert_eq!(compare("fields", datagrams), (count, 0));
    }
}

/// Every length that cuts a field, and values that the endpoint does not take.
#[test]
fn what_the_endpoint_refuses_is_refused_in_its_words() {
    if !has_tshark("what_the_endpoint_refuses_is_refused_in_its_words") {
        return;
    }
    let mut broken = Vec::new();
    for whole in all_made() {
        // The tee port is found by the first four bytes; a datagram without a byte is none of ours.
        for length in if whole.starts_with(b"TEE1") { 4 } else { 1 }..whole.len() {
            let mut cut = whole[..length].to_vec();
            broken.push(cut.clone());
            if cut.get(6) == Some(&0x40) {
                seal(&mut cut);
                broken.push(cut);
            }
        }
    }
    for whole in VERSIONS.iter().map(|version| made(*version)).chain(manifests()) {
        for at in 0..whole.len().min(112) {
            for value in [0, 0x7F, 0xFF] {
                let mut changed = whole.clone();
                changed[at] = value;
                if whole[6] == 0x40 && !(44..48).contains(&at) {
                    seal(&mut changed);
                }
                broken.push(changed);
            }
        }
    }
    let mut ranged = Nack { flags: 0, key: FrameKey::new(1, 2), subtree_id: [0; 32] }.to_bytes();
    ranged[31] = 3;
    broken.push(ranged.to_vec());
    broken.push(enveloped(&[]));
    let mut other = enveloped(&made(Version::Anchor));
    other[4] = 2;
    broken.push(other);
    let (taken, refused) = compare("refusals", broken);
    assert!(taken > 500 && refused > 2_000, "{taken} taken, {refused} refused");
}

/// Captures of the field: an answer leads to its NACK, and IPv6 fragments to one frame.
#[test]
fn exchanges_and_fragments_are_put_together() {
    if !has_tshark("exchanges_and_fragments_are_put_together") {
        return;
    }
    let scratch = Scratch::new("exchanges");
    for name in names().iter().filter(|name| name.starts_with("exchange-")) {
        let packets = dissected(&scratch, &path(name));
        let answer = packets.last().expect("an answer");
        assert_eq!(answer["bre.answer.to"], ["1"], "{name}");
        let time: f64 = answer["bre.answer.time_ms"][0].parse().expect("a time");
        assert!(0.0 < time && time < 300.0, "{name}: {time}");
        if packets.len() == 3 {
            assert_eq!(packets[1]["bre.hash_key"], packets[0]["bre.hash_key"], "{name}");
            assert_eq!(packets[1]["bre.frame.group_index"], packets[1]["bre.group"], "{name}");
        }
    }
    let pieces = dissected(&scratch, &path("v6-anchor-in-ipv6-fragments.pcap"));
    let whole: Vec<_> = pieces.iter().filter(|fields| !fields.is_empty()).collect();
    assert_eq!(whole.len(), 1);
    assert_eq!(
        (&whole[0]["bre.type"][0], &whole[0]["bre.group"][0]),
        (&"0x06".to_owned(), &format!("{:#06x}", group::BLOCK))
    );
    assert_eq!(whole[0].get("bre.error"), None);
}
