//! What is wrong with a datagram has a name of its own; what is written stands at the offsets of the specification.
//!
//! Longer than most files: a table of sizes, magics, types, versions and lengths for each kind of datagram.

mod support;

use retry_common::crc32c;
use retry_common::group::{
    self, BEACON, BEEF_BASE, BLOCK, BeefBits, SUBTREE_DATA, Scope, ShardBits, Sharding, SourceMode,
};
use retry_common::key::FrameKey;
use retry_common::wire::advert::{ADVERT_LEN, Advert, AdvertError, instance_id};
use retry_common::wire::answer::{ANSWER_LEN, AckFlags, Answer, AnswerError};
use retry_common::wire::frame::{Bundle, Class, Fragment, Frame, FrameError, Head, Member, Version};
use retry_common::wire::manifest::{
    FLAG_AUTHORITATIVE, FLAG_SSM, Groups, MANIFEST_HEADER_LEN, Manifest, ManifestError, Successor,
};
use retry_common::wire::nack::{NACK_LEN, Nack, NackError};
use retry_common::wire::tee::{ENVELOPE_LEN, Tee, TeeError};
use retry_common::wire::{MAGIC, PROTO_VER};
use support::{VERSIONS, datagram, plain, seal, written};

/// A frame of a version with eight bytes of payload, valid.
fn plain_frame(version: Version) -> Vec<u8> {
    let fragment = Fragment { original_len: 100, index: 1, total: 2, original_version: 2 };
    let bundle = Bundle { group_index: 3, shard_bits: 2, tx_count: 2, has_tx_ids: false };
    let head = Head {
        proto: PROTO_VER,
        version,
        byte7: if matches!(version, Version::Block | Version::SubtreeData) { 1 } else { 0 },
        ident: [0xc0; 32],
        key: FrameKey::new(7, 8),
        scope: [0x40; 32],
        header_len: 0,
        payload_len: 0,
        fragment: (version == Version::Fragment).then_some(fragment),
        bundle: (version == Version::Bundle).then_some(bundle),
    };
    written(&head, &[0, 2, 0xaa, 0xbb, 0, 2, 0xcc, 0xdd])
}

/// `bytes` with one field overwritten.
fn with(bytes: &[u8], at: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + field.len()].copy_from_slice(field);
    bytes
}

fn frame_error(bytes: &[u8]) -> Option<FrameError> {
    Frame::parse(bytes).err()
}

#[test]
fn a_wrong_frame_is_refused_by_its_own_name() {
    for version in VERSIONS {
        let good = plain_frame(version);
        assert_eq!(frame_error(&good), None, "{version:?}");
        for len in 0..version.header_len() {
            assert_eq!(frame_error(&good[..len]), Some(FrameError::Short), "{len} bytes of {version:?}");
        }
        for len in version.header_len()..good.len() {
            assert_eq!(frame_error(&good[..len]), Some(FrameError::Length), "{len} bytes of {version:?}");
        }
        for at in 0..4 {
            assert_eq!(frame_error(&with(&good, at, &[0])), Some(FrameError::Magic), "{version:?}");
        }
        assert_eq!(frame_error(&with(&good, 4, &[0xff, 0xff])), None, "the protocol version is not judged");
        let length_at = match version {
            Version::Legacy => 40,
            Version::Bundle => 62,
            _ => 88,
        };
        for length in [9u32, 0x1_0000, 0x7fff_ffff, u32::MAX] {
            let wrong = with(&good, length_at, &length.to_be_bytes());
            assert_eq!(frame_error(&wrong), Some(FrameError::Length), "{version:?}, {length} bytes");
        }
        let longer = [&good[..], &[1, 2, 3]].concat();
        let frame = Frame::parse(&longer).expect("bytes behind the payload belong to the datagram");
        assert_eq!((frame.payload().len(), frame.bytes().len()), (8, good.len() + 3));
        for byte7 in 0..=u8::MAX {
            let bad = matches!(version, Version::Block | Version::SubtreeData) && !matches!(byte7, 1 | 2);
            if bad {
                assert_eq!(frame_error(&with(&good, 7, &[byte7])), Some(FrameError::MsgType), "{version:?}, {byte7}");
            } else if version != Version::Bundle {
                assert_eq!(frame_error(&with(&good, 7, &[byte7])), None, "{version:?}, {byte7}");
            }
        }
    }
    let good = plain_frame(Version::Transaction);
    let known = VERSIONS.map(|version| version as u8);
    for version in (0..=u8::MAX).filter(|version| !known.contains(version)) {
        assert_eq!(frame_error(&with(&good, 6, &[version])), Some(FrameError::Version), "version {version}");
    }
}

#[test]
fn a_fragment_has_a_place_and_an_original() {
    let good = plain_frame(Version::Fragment);
    let place = |index: u16, total: u16| with(&with(&good, 96, &index.to_be_bytes()), 98, &total.to_be_bytes());
    for (index, total, error) in [
        (0, 1, None),
        (65_534, 65_535, None),
        (0, 0, Some(FrameError::Fragment)),
        (1, 1, Some(FrameError::Fragment)),
        (2, 1, Some(FrameError::Fragment)),
        (65_535, 65_535, Some(FrameError::Fragment)),
    ] {
        assert_eq!(frame_error(&place(index, total)), error, "{index} of {total}");
    }
    let sharding = Sharding { shard: ShardBits::new(2).expect("2 bits"), beef: BeefBits::new(2).expect("2 bits") };
    for original in 0..=u8::MAX {
        let bytes = with(&good, 100, &[original]);
        let found = Frame::parse(&bytes).map(|frame| (frame.head().class(), frame.head().group_index(&sharding)));
        let expected = match original {
            0 | 2 => Ok((Some(Class::Tx), Some(3))),
            4 => Ok((Some(Class::Block), Some(BLOCK))),
            5 => Ok((Some(Class::Subtree), Some(SUBTREE_DATA))),
            6 => Ok((Some(Class::Anchor), Some(BLOCK))),
            9 => Ok((Some(Class::Beef), Some(BEEF_BASE + 1))),
            _ => Err(FrameError::OriginalVersion),
        };
        assert_eq!(found, expected, "a fragment of version {original}");
    }
    // A bare BRC-124 header is too short for a fragment, whatever its length field says.
    assert_eq!(frame_error(&good[..92]), Some(FrameError::Short));
}

#[test]
fn a_bundle_is_filled_exactly_by_its_members() {
    let good = plain_frame(Version::Bundle);
    let frame = Frame::parse(&good).expect("a bundle");
    let members: Vec<&[u8]> = frame.members().map(|member| member.transaction).collect();
    assert_eq!(members, [[0xaa, 0xbb], [0xcc, 0xdd]]);
    for (what, bytes) in [
        ("one more than told", with(&good, 60, &1u16.to_be_bytes())),
        ("one fewer than told", with(&good, 60, &3u16.to_be_bytes())),
        ("none told", with(&good, 60, &0u16.to_be_bytes())),
        ("a member beyond the section", with(&good, 70, &3u16.to_be_bytes())),
        ("a member that ends early", with(&good, 70, &1u16.to_be_bytes())),
        ("no room for TxIDs", with(&good, 7, &[1])),
        ("the section ends inside a member", with(&good, 62, &7u32.to_be_bytes())),
        ("the section ends inside a length", with(&good, 62, &5u32.to_be_bytes())),
    ] {
        assert_eq!(frame_error(&bytes), Some(FrameError::Bundle), "{what}");
    }
    let empty = with(&with(&good, 60, &0u16.to_be_bytes()), 62, &0u32.to_be_bytes());
    assert_eq!(frame_error(&empty), None, "no members in no bytes");
}

#[test]
fn a_head_that_does_not_fit_its_version_is_not_written() {
    let bytes = plain_frame(Version::Fragment);
    let head = *Frame::parse(&bytes).expect("a fragment").head();
    let mut out = [0; 256];
    assert_eq!(Head { fragment: None, ..head }.write(&mut out), None);
    assert_eq!(Head { version: Version::Transaction, ..head }.write(&mut out), None);
    assert_eq!(Head { version: Version::Bundle, fragment: None, ..head }.write(&mut out), None);
    assert_eq!(Member { tx_id: None, transaction: &[0; 0x1_0000] }.write(&mut vec![0; 0x2_0000]), None);
}

#[test]
fn a_class_is_found_by_its_number() {
    for class in Class::ALL {
        assert_eq!(Class::from_u8(class as u8), Some(class));
    }
    assert_eq!((5..=u8::MAX).filter_map(Class::from_u8).count(), 0);
    assert_eq!(Class::ALL.map(Class::name), ["tx", "block", "subtree", "anchor", "beef"]);
}

#[test]
fn a_wrong_nack_is_refused_by_its_own_name() {
    let good = Nack { flags: 0xfe, key: FrameKey::new(1, 0x0102_0304_0506_0708), subtree_id: [9; 32] }.to_bytes();
    assert_eq!(Nack::parse(&good).map(|nack| nack.proxied()), Ok(false), "other flags are ignored");
    for len in (0..200).filter(|len| *len != NACK_LEN) {
        let mut bytes = good.to_vec();
        bytes.resize(len, 0);
        assert_eq!(Nack::parse(&bytes), Err(NackError::Size), "{len} bytes");
    }
    for at in 0..4 {
        assert_eq!(Nack::parse(&with(&good, at, &[0])), Err(NackError::Magic));
    }
    for kind in (0..=u8::MAX).filter(|kind| *kind != 0x10) {
        assert_eq!(Nack::parse(&with(&good, 6, &[kind])), Err(NackError::Type));
    }
    for at in 16..32 {
        assert_eq!(Nack::parse(&with(&good, at, &[0xff])), Err(NackError::Range), "byte {at}");
    }
    assert!(Nack::parse(&with(&good, 4, &[0, 0])).is_ok(), "the protocol version is not judged");
}

#[test]
fn a_wrong_answer_is_refused_by_its_own_name() {
    let good = Answer::Ack { flags: AckFlags::UNICAST, seq_num: 7 }.to_bytes();
    for len in (0..40).filter(|len| *len != ANSWER_LEN) {
        let mut bytes = good.to_vec();
        bytes.resize(len, 0);
        assert_eq!(Answer::parse(&bytes), Err(AnswerError::Size), "{len} bytes");
    }
    for at in 0..4 {
        assert_eq!(Answer::parse(&with(&good, at, &[0])), Err(AnswerError::Magic));
    }
    for kind in (0..=u8::MAX).filter(|kind| !matches!(kind, 0x11..=0x13)) {
        assert_eq!(Answer::parse(&with(&good, 6, &[kind])), Err(AnswerError::Type));
    }
}

#[test]
fn answers_have_the_bytes_of_the_specification() {
    let head = [0xe3, 0xe1, 0xf3, 0xe8, 0x02, 0xbf];
    let both = AckFlags::from_bits(AckFlags::MULTICAST.bits() | AckFlags::UNICAST.bits());
    for (answer, tail) in [
        (Answer::Ack { flags: both, seq_num: 0x0102 }, [0x12, 3, 0, 0, 0, 0, 0, 0, 1, 2]),
        (Answer::Miss, [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Answer::Throttled { bucket: 4, seq_num: 5 }, [0x13, 4, 0, 0, 0, 0, 0, 0, 0, 5]),
        (Answer::Throttled { bucket: 0xf2, seq_num: 5 }, [0x13, 2, 0, 0, 0, 0, 0, 0, 0, 5]),
    ] {
        assert_eq!(answer.to_bytes().to_vec(), [&head[..], &tail].concat());
    }
}

#[test]
fn a_wrong_advert_is_refused_by_its_own_name() {
    let good = datagram("advert-1.hex");
    for len in (0..120).filter(|len| *len != ADVERT_LEN) {
        let mut bytes = good.clone();
        bytes.resize(len, 0);
        assert_eq!(Advert::parse(&bytes), Err(AdvertError::Size), "{len} bytes");
    }
    for at in 0..4 {
        assert_eq!(Advert::parse(&with(&good, at, &[0])), Err(AdvertError::Magic));
    }
    for kind in (0..=u8::MAX).filter(|kind| *kind != 0x20) {
        assert_eq!(Advert::parse(&with(&good, 6, &[kind])), Err(AdvertError::Type));
    }
    assert_eq!(instance_id("123456789"), 0xe306_9283);
    assert_eq!(instance_id(""), 1, "0 becomes 1");
}

/// The header and sections of a manifest with these counts, the CRC right.
fn counted(flags: u8, groups: u16, bitmap: u16, sources: u16, sections: usize) -> Vec<u8> {
    let mut bytes = vec![0; MANIFEST_HEADER_LEN + sections];
    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&[0x40, flags]);
    bytes[38..40].copy_from_slice(&groups.to_be_bytes());
    bytes[40..42].copy_from_slice(&bitmap.to_be_bytes());
    bytes[42..44].copy_from_slice(&sources.to_be_bytes());
    seal(&mut bytes);
    bytes
}

#[test]
fn a_wrong_manifest_is_refused_by_its_own_name() {
    let groups = Some(ManifestError::Groups);
    let sources = Some(ManifestError::Sources);
    let size = Some(ManifestError::Size);
    for (what, flags, counts, sections, error) in [
        ("nothing but who", 0x00, (0, 0, 0), 0, None),
        ("a list", 0x01, (2, 0, 0), 4, None),
        ("a bitmap", 0x01, (0, 3, 0), 3, None),
        ("both forms", 0x01, (2, 3, 0), 7, groups),
        ("neither form", 0x01, (0, 0, 0), 0, groups),
        ("a list without its flag", 0x00, (2, 0, 0), 4, groups),
        ("a bitmap without its flag", 0x00, (0, 3, 0), 3, groups),
        ("a short list", 0x01, (2, 0, 0), 3, size),
        ("a short bitmap", 0x01, (0, 3, 0), 2, size),
        ("sources", 0x10, (0, 0, 2), 32, None),
        ("the flag of the sources alone", 0x10, (0, 0, 0), 0, sources),
        ("sources without their flag", 0x00, (0, 0, 1), 16, sources),
        ("short sources", 0x10, (0, 0, 2), 31, size),
        ("a successor", 0x40, (0, 0, 0), 24, None),
        ("a short successor", 0x40, (0, 0, 0), 23, size),
        ("all counts at their highest", 0x11, (u16::MAX, 0, u16::MAX), 0, size),
        ("all sections and planes", 0xff, (1, 0, 1), 2 + 16 + 24 + 25, None),
    ] {
        let bytes = counted(flags, counts.0, counts.1, counts.2, sections);
        assert_eq!(Manifest::parse(&bytes).err(), error, "{what}");
    }
    let good = counted(0x11, 1, 0, 1, 18);
    for len in 0..MANIFEST_HEADER_LEN {
        assert_eq!(Manifest::parse(&good[..len]), Err(ManifestError::Size), "{len} bytes");
    }
    for at in 0..4 {
        assert_eq!(Manifest::parse(&with(&good, at, &[0])), Err(ManifestError::Magic));
    }
    for kind in (0..=u8::MAX).filter(|kind| *kind != 0x40) {
        assert_eq!(Manifest::parse(&with(&good, 6, &[kind])), Err(ManifestError::Type));
    }
    assert_eq!(Manifest::parse(&with(&good, 44, &[0, 0, 0, 0])), Err(ManifestError::Crc));
    let mut out = [0; 256];
    assert_eq!(Manifest { groups: Groups::List(&[]), ..plain() }.write(&mut out), None);
    assert_eq!(Manifest { groups: Groups::Bitmap(&[]), ..plain() }.write(&mut out), None);
    assert_eq!(Manifest { sources: &[[0; 16]; 0x1_0000], ..plain() }.write(&mut vec![0; 0x20_0000]), None);
}

#[test]
fn a_manifest_stands_at_the_offsets_of_the_specification() {
    let manifest = Manifest {
        flags: FLAG_AUTHORITATIVE | FLAG_SSM,
        source: [0x11; 16],
        instance_id: 0x2222_2222,
        epoch_s: 0x3333_3333,
        ttl_s: 0x4444,
        interval_s: 0x5555,
        shard_bits: 2,
        role: 3,
        generation_id: [0x66; 16],
        groups: Groups::List(&[[0, 1], [0, 3]]),
        sources: &[[0x77; 16]],
        successor: Some(Successor { generation_id: [0x88; 16], shard_bits: 3, flags: 1, transition_s: 0x9999_9999 }),
        rest: &[],
    };
    let mut out = [0; 256];
    let len = manifest.write(&mut out).expect("room");
    let expected = [
        &[0xe3, 0xe1, 0xf3, 0xe8, 0x02, 0xbf, 0x40, 0x01 | 0x02 | 0x08 | 0x10 | 0x40][..],
        &[0x11; 16],
        &[0x22; 4],
        &[0x33; 4],
        &[0x44, 0x44, 0x55, 0x55, 2, 3, 0, 2, 0, 0, 0, 1],
        &out[44..48],
        &[0x66; 16],
        &[0, 1, 0, 3],
        &[0x77; 16],
        &[0x88; 16],
        &[3, 1, 0, 0, 0x99, 0x99, 0x99, 0x99],
    ]
    .concat();
    assert_eq!(&out[..len], expected);
    let crc = u32::from_be_bytes([out[44], out[45], out[46], out[47]]);
    assert_eq!(crc, crc32c::of(&[&with(&expected, 44, &[0; 4])]));
}

#[test]
fn flags_of_sections_follow_from_the_sections() {
    let mut out = [0; MANIFEST_HEADER_LEN];
    assert_eq!(Manifest { flags: 0xff, ..plain() }.write(&mut out), Some(out.len()));
    assert_eq!(out[7], 0xae);
    assert_eq!(Manifest::parse(&out).map(|manifest| manifest.flags), Ok(out[7]));
}

#[test]
fn bits_beyond_the_shard_bits_are_no_groups() {
    for (shard_bits, count) in [(0u8, 1), (2, 4), (3, 8), (4, 16), (12, 24), (16, 24), (31, 24), (32, 24), (255, 24)] {
        let manifest = Manifest { shard_bits, groups: Groups::Bitmap(&[0xff; 3]), ..plain() };
        assert!(manifest.groups().eq(0..count), "{shard_bits} shard bits");
    }
    let all = vec![0xff; usize::from(u16::MAX)];
    let manifest = Manifest { shard_bits: 16, groups: Groups::Bitmap(&all), ..plain() };
    assert!(manifest.groups().eq(0..=u16::MAX), "no index is told twice");
}

#[test]
fn a_wrong_tee_envelope_is_refused_by_its_own_name() {
    let frame = datagram("v2-1.hex");
    assert_eq!(Tee::parse(&frame), Ok(Tee::Raw(&frame)));
    assert_eq!(Tee::parse(&[]), Ok(Tee::Raw(&[])));
    let mut out = vec![0; ENVELOPE_LEN + frame.len()];
    let tee = Tee::Encap { source: [0x11; 16], source_port: 0x2222, datagram: &frame };
    assert_eq!(tee.write(&mut out), Some(out.len()));
    assert_eq!(out, [b"TEE1\x01\0", &[0x11; 16][..], &[0x22, 0x22], &frame].concat());
    for len in 4..ENVELOPE_LEN {
        assert_eq!(Tee::parse(&out[..len]), Err(TeeError::Size), "{len} bytes");
    }
    for version in (0..=u8::MAX).filter(|version| *version != 1) {
        assert_eq!(Tee::parse(&with(&out, 4, &[version])), Err(TeeError::Version));
    }
    assert_eq!(Tee::parse(&with(&out, 5, &[0xff])), Ok(tee), "flags are not looked at");
}

#[test]
fn a_scope_has_its_prefix_in_both_modes() {
    for (scope, asm, ssm) in [
        (Scope::Link, 0xff02, None),
        (Scope::Site, 0xff05, Some(0xff35)),
        (Scope::Org, 0xff08, None),
        (Scope::Global, 0xff0e, Some(0xff3e)),
    ] {
        assert_eq!(group::prefix(scope, SourceMode::Asm), Some(asm));
        assert_eq!(group::prefix(scope, SourceMode::Ssm), ssm);
    }
    let special = [group::HEADER_EGRESS, SUBTREE_DATA, group::SUBTREE_GROUPS, BEACON, BLOCK];
    assert_eq!(special, [0xfffa, 0xfffb, 0xfffc, 0xfffd, 0xfffe]);
    assert_eq!((group::ANCHOR_FLOW, group::COINBASE_FLOW, BEEF_BASE), (0xfff9, 0xfff8, 0x1000));
}
