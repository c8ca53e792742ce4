//! Parsers survive any bytes and read back what was written; groups and keys are made of their parts.
//!
//! Longer than most files: a strategy and a round trip for each kind of datagram.

mod support;

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use retry_common::group::{self, BEEF_BASE, BLOCK, BeefBits, SUBTREE_DATA, ShardBits, Sharding};
use retry_common::key::FrameKey;
use retry_common::wire::MAGIC;
use retry_common::wire::advert::Advert;
use retry_common::wire::answer::{AckFlags, Answer};
use retry_common::wire::frame::{Bundle, Fragment, Frame, FrameError, HEAD_LEN, Head, Member, Version};
use retry_common::wire::manifest::{
    FLAG_AUTHORITATIVE, FLAG_DOMAINS, FLAG_PILOT, FLAG_SHUTDOWN, FLAG_SSM, Groups, MANIFEST_HEADER_LEN, Manifest,
    ManifestError, SUCCESSOR_LEN, Successor,
};
use retry_common::wire::nack::{NACK_LEN, Nack};
use retry_common::wire::tee::{ENVELOPE_LEN, Tee};
use support::{VERSIONS, datagram, names, plain, seal, written};

fn sharding() -> impl Strategy<Value = Sharding> {
    (1u8..=12, 0u8..=12).prop_map(|(shard, beef)| Sharding {
        shard: ShardBits::new(shard).expect("in range"),
        beef: BeefBits::new(beef).expect("in range"),
    })
}

/// A valid head and its payload.
fn frame() -> impl Strategy<Value = (Head, Vec<u8>)> {
    let whole =
        (select(&VERSIONS[..]), any::<u16>(), any::<u8>(), any::<[u8; 32]>(), any::<(u64, u64)>(), any::<[u8; 32]>());
    let place = (any::<u32>(), any::<(u16, u16)>(), select(&[0u8, 2, 4, 5, 6, 9][..]));
    let bundle = (any::<u16>(), any::<u8>(), vec((any::<[u8; 32]>(), vec(any::<u8>(), 0..80)), 0..6));
    (whole, place, bundle, vec(any::<u8>(), 0..400)).prop_map(
        |(whole, place, (group_index, shard_bits, members), bytes)| {
            let (version, proto, byte7, ident, key, scope) = whole;
            let (original_len, (a, b), original_version) = place;
            let byte7 = if matches!(version, Version::Block | Version::SubtreeData) { 1 + byte7 % 2 } else { byte7 };
            let has_tx_ids = byte7 & 1 != 0;
            let mut payload = bytes;
            if version == Version::Bundle {
                payload = vec![0; 6 * (2 + 32 + 80)];
                let mut len = 0;
                for (tx_id, transaction) in &members {
                    let member = Member { tx_id: has_tx_ids.then_some(tx_id), transaction };
                    len += member.write(&mut payload[len..]).expect("room for six members");
                }
                payload.truncate(len);
            }
            let bare = matches!(version, Version::Legacy | Version::Bundle);
            let head = Head {
                proto,
                version,
                byte7,
                ident,
                key: if version == Version::Legacy { FrameKey::default() } else { FrameKey::new(key.0, key.1) },
                scope: if bare { [0; 32] } else { scope },
                header_len: version.header_len(),
                payload_len: payload.len(),
                fragment: (version == Version::Fragment).then_some(Fragment {
                    original_len,
                    index: a.min(b).min(u16::MAX - 1),
                    total: a.max(b).max(a.min(b).saturating_add(1)),
                    original_version,
                }),
                bundle: (version == Version::Bundle).then(|| Bundle {
                    group_index,
                    shard_bits,
                    tx_count: u16::try_from(members.len()).expect("at most five"),
                    has_tx_ids,
                }),
            };
            (head, payload)
        },
    )
}

/// What a manifest is made of; [`Parts::manifest`] lends it out.
#[derive(Clone, Debug)]
struct Parts {
    flags: u8,
    numbers: (u32, u32, u16, u16, u8, u8),
    ids: ([u8; 16], [u8; 16]),
    groups: u8,
    list: Vec<[u8; 2]>,
    bitmap: Vec<u8>,
    sources: Vec<[u8; 16]>,
    successor: Option<([u8; 16], u8, u8, u32)>,
    rest: Vec<u8>,
}

impl Parts {
    fn manifest(&self) -> Manifest<'_> {
        let (instance_id, epoch_s, ttl_s, interval_s, shard_bits, role) = self.numbers;
        Manifest {
            flags: self.flags,
            source: self.ids.0,
            instance_id,
            epoch_s,
            ttl_s,
            interval_s,
            shard_bits,
            role,
            generation_id: self.ids.1,
            groups: match self.groups {
                0 => Groups::None,
                1 => Groups::List(&self.list),
                _ => Groups::Bitmap(&self.bitmap),
            },
            sources: &self.sources,
            successor: self.successor.map(|(generation_id, shard_bits, flags, transition_s)| Successor {
                generation_id,
                shard_bits,
                flags,
                transition_s,
            }),
            rest: &self.rest,
        }
    }

    fn written(&self) -> Vec<u8> {
        let mut out = vec![0xaa; 4096];
        let len = self.manifest().write(&mut out).expect("room for the manifest");
        out.truncate(len);
        out
    }
}

fn manifest() -> impl Strategy<Value = Parts> {
    let known = FLAG_AUTHORITATIVE | FLAG_SHUTDOWN | FLAG_SSM | FLAG_PILOT | FLAG_DOMAINS;
    let sections = (0u8..3, vec(any::<[u8; 2]>(), 1..40), vec(any::<u8>(), 1..80), vec(any::<[u8; 16]>(), 0..5));
    let tail = (proptest::option::of(any::<([u8; 16], u8, u8, u32)>()), vec(any::<u8>(), 0..50));
    (any::<u8>(), any::<(u32, u32, u16, u16, u8, u8)>(), any::<([u8; 16], [u8; 16])>(), sections, tail).prop_map(
        move |(flags, numbers, ids, (groups, list, bitmap, sources), (successor, rest))| Parts {
            flags: flags & known,
            numbers,
            ids,
            groups,
            list,
            bitmap,
            sources,
            successor,
            rest,
        },
    )
}

fn advert() -> impl Strategy<Value = Advert> {
    (any::<u8>(), any::<[u8; 16]>(), any::<u16>(), any::<(u8, u8)>(), any::<(u16, u16)>(), any::<u32>()).prop_map(
        |(scope, nack_addr, nack_port, (tier, preference), (interval_s, flags), instance_id)| Advert {
            scope,
            nack_addr,
            nack_port,
            tier,
            preference,
            interval_s,
            flags,
            instance_id,
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        any::<(u8, u64)>().prop_map(|(flags, seq_num)| Answer::Ack { flags: AckFlags::from_bits(flags), seq_num }),
        Just(Answer::Miss),
        (0u8..16, any::<u64>()).prop_map(|(bucket, seq_num)| Answer::Throttled { bucket, seq_num }),
    ]
}

/// Hands `bytes` to every parser, and looks at everything that comes out.
fn read_all(bytes: &[u8], claimed_len: usize, sharding: &Sharding) {
    for head in [Head::parse(bytes, claimed_len), Head::parse(bytes, bytes.len())].into_iter().flatten() {
        assert_eq!(head.header_len, head.version.header_len());
        // A frame that is cached has a life and a group.
        if head.cache_key().is_some() {
            assert!(head.class().is_some() && head.group_index(sharding).is_some());
        }
    }
    if let Ok(frame) = Frame::parse(bytes) {
        let head = frame.head();
        assert_eq!(frame.bytes(), bytes);
        assert_eq!(frame.payload().len(), head.payload_len);
        assert!(head.header_len + head.payload_len <= bytes.len());
        assert_eq!(frame.members().count(), usize::from(head.bundle.map_or(0, |bundle| bundle.tx_count)));
        // What stands in the head is all that the header says, reserved bytes apart.
        let again = written(head, frame.payload());
        assert_eq!(Frame::parse(&again).map(|frame| *frame.head()), Ok(*head));
    }
    // The first bytes and the length decide, but for a bundle's members.
    let of_head = Head::parse(&bytes[..bytes.len().min(HEAD_LEN)], bytes.len());
    match Frame::parse(bytes) {
        Err(FrameError::Bundle) => assert_eq!(of_head.map(|head| head.version), Ok(Version::Bundle)),
        of_frame => assert_eq!(of_frame.map(|frame| *frame.head()), of_head),
    }
    if let Ok(nack) = Nack::parse(bytes) {
        assert_eq!(Nack::parse(&nack.to_bytes()), Ok(nack));
    }
    if let Ok(answer) = Answer::parse(bytes) {
        assert_eq!(Answer::parse(&answer.to_bytes()), Ok(answer));
    }
    if let Ok(advert) = Advert::parse(bytes) {
        assert_eq!(Advert::parse(&advert.to_bytes()), Ok(advert));
    }
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert!(manifest.groups().count() <= 0x1_0000);
        let mut out = vec![0xaa; bytes.len()];
        let len = manifest.write(&mut out).expect("no longer than it was");
        assert_eq!(len, bytes.len());
        assert_eq!(Manifest::parse(&out), Ok(manifest));
    }
    if let Ok(tee) = Tee::parse(bytes) {
        let mut out = vec![0xaa; bytes.len()];
        assert_eq!(tee.write(&mut out), Some(bytes.len()));
        assert_eq!(Tee::parse(&out), Ok(tee));
    }
}

/// Changes some bytes, and then the length.
fn mutate(bytes: &mut Vec<u8>, changes: &[(Index, u8)], len: Option<Index>, more: &[u8]) {
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(len) = len {
        bytes.truncate(len.index(bytes.len() + 1));
    }
    bytes.extend_from_slice(more);
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    vec((any::<Index>(), any::<u8>()), 0..4)
}

/// Header bytes only: there most changes matter.
fn header_changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    vec((6usize..HEAD_LEN, prop_oneof![any::<u8>(), 0u8..12]), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..200), claimed: usize, sharding in sharding()) {
        read_all(&bytes, claimed, &sharding);
    }

    #[test]
    fn any_bytes_after_the_magic_are_survived(kind in 0u8..0x42, rest in vec(any::<u8>(), 0..200), claimed: usize, sharding in sharding()) {
        let mut bytes = MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[2, 0xbf, kind]);
        bytes.extend_from_slice(&rest);
        read_all(&bytes, claimed, &sharding);
        bytes.resize(NACK_LEN, 0);
        read_all(&bytes, claimed, &sharding);
    }

    #[test]
    fn mutated_golden_datagrams_are_survived(
        name in select(names().into_iter().filter(|name| name.ends_with(".hex")).collect::<Vec<_>>()),
        changes in changes(), header in header_changes(), len: Option<Index>, more in vec(any::<u8>(), 0..40), claimed: usize,
        sharding in sharding(),
    ) {
        let mut bytes = datagram(&name);
        for (at, value) in header {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        mutate(&mut bytes, &changes, len, &more);
        read_all(&bytes, claimed, &sharding);
    }

    #[test]
    fn mutated_manifests_with_a_right_crc_are_survived(
        parts in manifest(), changes in changes(), header in vec((7usize..MANIFEST_HEADER_LEN, prop_oneof![any::<u8>(), 0u8..4]), 0..4),
        len: Option<Index>, more in vec(any::<u8>(), 0..40), sharding in sharding(),
    ) {
        let mut bytes = parts.written();
        for (at, value) in header {
            bytes[at] = value;
        }
        mutate(&mut bytes, &changes, len, &more);
        seal(&mut bytes);
        read_all(&bytes, bytes.len(), &sharding);
    }

    #[test]
    fn mutated_tee_envelopes_are_survived(
        source: [u8; 16], source_port: u16, datagram in vec(any::<u8>(), 0..60), changes in changes(), len: Option<Index>, sharding in sharding(),
    ) {
        let mut bytes = vec![0; ENVELOPE_LEN + datagram.len()];
        let tee = Tee::Encap { source, source_port, datagram: &datagram };
        prop_assert_eq!(tee.write(&mut bytes), Some(bytes.len()));
        mutate(&mut bytes, &changes, len, &[]);
        // Flags are not kept: nothing is defined for them.
        if let Some(flags) = bytes.get_mut(5) {
            *flags = 0;
        }
        read_all(&bytes, bytes.len(), &sharding);
    }

    #[test]
    fn frames_are_read_back((head, payload) in frame(), trailer in vec(any::<u8>(), 0..20)) {
        let mut bytes = written(&head, &payload);
        bytes.extend_from_slice(&trailer);
        let frame = Frame::parse(&bytes).expect("what was written");
        prop_assert_eq!(*frame.head(), head);
        prop_assert_eq!(frame.payload(), payload);
        prop_assert_eq!(frame.bytes(), &bytes[..]);
    }

    #[test]
    fn a_frame_needs_room((head, payload) in frame(), short: Index) {
        let mut room = vec![0; head.header_len + payload.len()];
        let cut = short.index(room.len());
        prop_assert_eq!(head.write_frame(&payload, &mut room[..cut]), None);
        prop_assert_eq!(head.write_frame(&payload, &mut room), Some(room.len()));
    }

    #[test]
    fn a_cut_frame_is_none((head, payload) in frame(), cut: Index) {
        let bytes = written(&head, &payload);
        prop_assert!(Frame::parse(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn a_frame_goes_to_a_joined_group((head, _) in frame(), sharding in sharding()) {
        prop_assume!(head.bundle.is_none());
        if let Some(index) = head.group_index(&sharding) {
            prop_assert!(group::joined(sharding.shard, true, Some(sharding.beef)).any(|joined| joined == index));
        } else {
            prop_assert_eq!(head.version, Version::Legacy);
        }
    }

    #[test]
    fn only_stamped_frames_are_cached((head, _) in frame()) {
        let stamped = head.version != Version::Legacy && head.key.seq_num() > 0;
        prop_assert_eq!(head.cache_key(), stamped.then_some(head.key));
        prop_assert_eq!(Head { key: FrameKey::new(head.key.hash_key(), 0), ..head }.cache_key(), None);
    }

    #[test]
    fn nacks_are_read_back(flags: u8, hash_key: u64, seq_num: u64, subtree_id: [u8; 32]) {
        // The highest bit is a mark that no datagram carries.
        let nack = Nack { flags: flags & 0x7F, key: FrameKey::new(hash_key, seq_num), subtree_id };
        let bytes = nack.to_bytes();
        prop_assert_eq!(Nack::parse(&bytes), Ok(nack));
        prop_assert_eq!(Nack::from_array(&bytes), Ok(nack));
        prop_assert_eq!((nack.proxied(), nack.is_peers()), (flags % 2 == 1, flags % 2 == 1));
        let marked = nack.of_no_peer();
        prop_assert_eq!((marked.proxied(), marked.is_peers()), (flags % 2 == 1, false));
        prop_assert_eq!(marked.to_bytes(), bytes);
        let mut sent = bytes;
        sent[7] |= 0x80;
        prop_assert_eq!(Nack::parse(&sent), Ok(nack));
    }

    #[test]
    fn answers_are_read_back(answer in answer()) {
        prop_assert_eq!(Answer::parse(&answer.to_bytes()), Ok(answer));
    }

    #[test]
    fn adverts_are_read_back(advert in advert()) {
        let bytes = advert.to_bytes();
        prop_assert_eq!(Advert::parse(&bytes), Ok(advert));
        prop_assert!(bytes[36..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn manifests_are_read_back(parts in manifest()) {
        let bytes = parts.written();
        let manifest = parts.manifest();
        let sections = match manifest.groups {
            Groups::None => 0,
            Groups::List(list) => 2 * list.len(),
            Groups::Bitmap(bitmap) => bitmap.len(),
        } + 16 * manifest.sources.len() + manifest.successor.map_or(0, |_| SUCCESSOR_LEN) + manifest.rest.len();
        prop_assert_eq!(bytes.len(), MANIFEST_HEADER_LEN + sections);
        prop_assert_eq!(Manifest::parse(&bytes), Ok(manifest));
        prop_assert_eq!(manifest.write(&mut vec![0; bytes.len() - 1]), None);
    }

    #[test]
    fn one_wrong_byte_breaks_a_manifests_crc(parts in manifest(), at: Index, change in 1u8..) {
        let mut bytes = parts.written();
        let at = 7 + at.index(bytes.len() - 7);
        bytes[at] ^= change;
        prop_assert_eq!(Manifest::parse(&bytes), Err(ManifestError::Crc));
    }

    #[test]
    fn list_and_bitmap_tell_the_same_groups(indices in proptest::collection::btree_set(0u16..4096, 1..60)) {
        let list: Vec<[u8; 2]> = indices.iter().map(|index| index.to_be_bytes()).collect();
        let mut bitmap = [0u8; 512];
        for index in &indices {
            bitmap[usize::from(index / 8)] |= 1 << (index % 8);
        }
        let with = |groups| Manifest { groups, ..plain() };
        prop_assert!(with(Groups::List(&list)).groups().eq(indices.iter().copied()));
        prop_assert!(with(Groups::Bitmap(&bitmap)).groups().eq(indices.iter().copied()));
    }

    #[test]
    fn tee_datagrams_are_read_back(source: [u8; 16], source_port: u16, datagram in vec(any::<u8>(), 0..60)) {
        let tee = Tee::Encap { source, source_port, datagram: &datagram };
        let mut out = vec![0xaa; ENVELOPE_LEN + datagram.len()];
        prop_assert_eq!(tee.write(&mut out[..ENVELOPE_LEN + datagram.len() - 1]), None);
        prop_assert_eq!(tee.write(&mut out), Some(out.len()));
        prop_assert_eq!(Tee::parse(&out), Ok(tee));
        prop_assert_eq!(&out[..6], b"TEE1\x01\0");
        prop_assert_eq!(tee.datagram(), &datagram[..]);
    }

    #[test]
    fn keys_are_their_bytes(hash_key: u64, seq_num: u64) {
        let key = FrameKey::new(hash_key, seq_num);
        prop_assert_eq!((key.hash_key(), key.seq_num()), (hash_key, seq_num));
        let bytes = key.to_bytes();
        prop_assert_eq!((&bytes[..8], &bytes[8..]), (&hash_key.to_be_bytes()[..], &seq_num.to_be_bytes()[..]));
        prop_assert_eq!(FrameKey::from_bytes(bytes), key);
        prop_assert_eq!(key.to_string(), format!("{hash_key:016x}:{seq_num}"));
    }

    #[test]
    fn an_endpoint_joins_each_group_once(sharding in sharding(), subtree_data: bool, beef: bool) {
        let joined: Vec<u16> = group::joined(sharding.shard, subtree_data, beef.then_some(sharding.beef)).collect();
        let set: BTreeSet<u16> = joined.iter().copied().collect();
        prop_assert_eq!(set.len(), joined.len());
        prop_assert!(set.contains(&BLOCK));
        prop_assert_eq!(set.contains(&SUBTREE_DATA), subtree_data);
        prop_assert_eq!(set.contains(&BEEF_BASE), beef);
        let beef_groups = if beef { 1 << sharding.beef.get() } else { 0 };
        prop_assert_eq!(set.len(), (1 << sharding.shard.get()) + 1 + usize::from(subtree_data) + beef_groups);
    }

    #[test]
    fn a_group_address_holds_its_parts(prefix: u16, group_id: u16, index: u16) {
        let address = group::address(prefix, group_id, index);
        let segments = std::net::Ipv6Addr::from(address).segments();
        prop_assert_eq!(segments, [prefix, 0, 0, 0, 0, 0, group_id, index]);
        let mac = group::multicast_mac(&address);
        prop_assert_eq!((&mac[..2], &mac[2..]), (&[0x33, 0x33][..], &address[12..]));
    }
}
