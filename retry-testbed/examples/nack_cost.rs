//! What one NACK costs in the program of an object file, by `BPF_PROG_TEST_RUN`, for several objects in turns. Needs root:
//!
//! ```text
//! cargo build --release -p retry-testbed --example nack_cost && sudo target/release/examples/nack_cost A.o B.o
//! ```
//!
//! The NACK is one for a frame that is not there, whose MISS is suppressed: the packet stays as it is, so one call runs the
//! whole way from the headers through the limits to the look-up as often as it likes. Everything is hot in the cache.
//!
//! With `--acl` instead of objects the one that the daemon would load runs with lists of who may ask, beside itself without:
//! the source is in none of their prefixes, so that each length is tried.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::{
    EbpfLoader, Pod,
    maps::Array,
    programs::{ProgramError, Xdp},
};
use retry_common::{
    abi::{self, LAYOUT, setting_flag},
    acl::Prefix,
    key::FrameKey,
    limits::{TokenBucket, Window},
};
use retry_testbed::{
    net::packet::PacketBuilder,
    peers::answer::nack,
    xdp::{
        fixture::{Interface, Loaded, NACK_ADDRESS, NACK_MAC, in_new_namespace},
        testrun::{self, Action},
    },
};
use retry_userspace::parts::acl::Rules;

const ROUNDS: usize = 15;
const REPEATS: u32 = 1_000_000;
/// Index of `lo`, which the kernel takes as the interface of a test run.
const LO: u32 = 1;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Settings(abi::Settings);
// SAFETY: integers and byte arrays without padding, as the kernel reads them.
unsafe impl Pod for Settings {}

#[expect(clippy::print_stdout, reason = "a command line tool")]
fn main() -> Result<()> {
    let objects: Vec<String> = std::env::args().skip(1).collect();
    if objects == ["--acl"] {
        return in_new_namespace(with_lists);
    }
    ensure!(!objects.is_empty(), "name the object files to compare");
    let mut loaded = objects.iter().map(|path| load(path)).collect::<Result<Vec<_>>>()?;
    let source = "[fd10::2]:40000".parse()?;
    let packet = PacketBuilder::udp(source, NACK_ADDRESS, &nack(FrameKey::new(1, 1))).build();
    let mut times = vec![Vec::new(); objects.len()];
    for _ in 0..ROUNDS {
        for (ebpf, times) in loaded.iter_mut().zip(&mut times) {
            let program: &Xdp = ebpf.program("retry_nack").context("no retry_nack")?.try_into()?;
            let outcome = testrun::run_repeated(program, &packet, None, REPEATS)?;
            ensure!(outcome.action == Action::Drop, "{:?} and not silence", outcome.action);
            times.push(outcome.duration);
        }
    }
    for (object, times) in objects.iter().zip(&mut times) {
        times.sort_unstable();
        let [least, median, most] = [0, ROUNDS / 2, ROUNDS - 1].map(|at| times[at].as_nanos());
        println!("{object}: {median} ns a NACK, {least} to {most}");
    }
    ensure!(times.iter().flatten().all(|time| *time > Duration::ZERO), "the kernel measured nothing");
    Ok(())
}

/// Lists of who may ask, each in turns with none.
#[expect(clippy::print_stdout, reason = "a command line tool")]
fn with_lists() -> Result<()> {
    let mut loaded = Loaded::open(&Interface::veth("rt0")?, &[], true)?;
    let base = loaded.settings();
    let limits = Settings(all_limits()).0.limits;
    loaded.set(abi::Settings { limits, flags: base.flags | setting_flag::SUPPRESS_MISS, ..base });
    let source = "[fd10::2]:40000".parse()?;
    let packet = PacketBuilder::udp(source, NACK_ADDRESS, &nack(FrameKey::new(1, 1))).build();
    let four = &[128u8, 64, 56, 48][..];
    let many: Vec<u8> = (113..=128).rev().collect();
    for (name, count, lengths, is_listed) in [
        ("1 prefix", 1, &[64][..], false),
        ("16 prefixes of 1 length", 16, &[64], false),
        ("16 prefixes of 4 lengths", 16, four, false),
        ("16 prefixes of 16 lengths", 16, &many, false),
        ("1,000 prefixes of 4 lengths", 1_000, four, false),
        ("100,000 prefixes of 1 length", 100_000, &[128], false),
        ("100,000 prefixes of 4 lengths", 100_000, four, false),
        ("100,000 prefixes of 4 lengths, allowed by the shortest", 100_000, four, true),
        ("100,000 prefixes of 16 lengths", 100_000, &many, false),
    ] {
        // Elsewhere than the source, and all apart.
        let prefix = |number: usize| {
            let number = u128::try_from(number).unwrap_or(0);
            let bits = (0xFD11 << 112) | (number << 80) | (number << 15);
            Prefix::of(bits.into(), lengths[usize::try_from(number).unwrap_or(0) % lengths.len()])
        };
        let deny: BTreeSet<Prefix> = (0..count).map(prefix).collect();
        ensure!(deny.len() == count, "{name}: {} prefixes", deny.len());
        let source = Prefix::of("fd10::".parse()?, *lengths.iter().min().unwrap_or(&128));
        let allow = is_listed.then_some(source).into_iter().collect();
        let rules = Rules { allow, deny, peers: None, publishers: None };
        loaded.set_acl(&rules)?;
        let with = loaded.settings().acl;
        let (mut without, mut looked) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (acl, times) in [(0, &mut without), (with, &mut looked)] {
                loaded.set(abi::Settings { acl, ..loaded.settings() });
                let outcome = testrun::run_repeated(loaded.program(), &packet, Some(base.nack_ifindex), REPEATS)?;
                ensure!(outcome.action == Action::Drop, "{:?} and not silence", outcome.action);
                times.push(outcome.duration);
            }
        }
        without.sort_unstable();
        looked.sort_unstable();
        let median = |times: &[Duration]| times[ROUNDS / 2].as_nanos();
        let (without, looked) = (median(&without), median(&looked));
        println!("{name}: {looked} ns a NACK, {without} without: {} ns", looked.saturating_sub(without));
    }
    Ok(())
}

fn load(path: &str) -> Result<aya::Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("RING", 2).map_max_entries("INDEX", 1 << 14).map_max_entries("HOLD_DOWN", 1 << 14);
    for name in ["ADDRESS_LIMIT", "SEQUENCE_LIMIT", "CHAIN_LIMIT", "GROUP_LIMIT"] {
        loader.map_max_entries(name, 1 << 12);
    }
    let mut ebpf = loader.load_file(path).with_context(|| format!("load {path}"))?;
    let mut settings: Array<_, Settings> = ebpf.map_mut("SETTINGS").context("no SETTINGS")?.try_into()?;
    settings.set(0, Settings(all_limits()), 0)?;
    let program: &mut Xdp = ebpf.program_mut("retry_nack").context("no retry_nack")?.try_into()?;
    let loaded: Result<(), ProgramError> = program.load();
    loaded.with_context(|| format!("verify {path}"))?;
    Ok(ebpf)
}

/// Every limit is looked at and none is reached.
fn all_limits() -> abi::Settings {
    abi::Settings {
        generation: 1,
        lease_until_ns: u64::MAX,
        daemon_until_ns: u64::MAX >> 1,
        hash_seed: 0x5EED,
        limits: abi::Limits {
            address: TokenBucket::new(u32::MAX, u32::MAX),
            group: TokenBucket::new(u32::MAX, u32::MAX),
            sequence: Window::new(u32::MAX, 1 << 58),
            chain: Window::new(u32::MAX, 1 << 58),
        },
        layout: LAYOUT,
        flags: setting_flag::UNICAST | setting_flag::SUPPRESS_MISS,
        nack_ifindex: LO,
        bucket_mask: (1 << 14) - 1,
        hold_down_mask: (1 << 14) - 1,
        limit_mask: (1 << 12) - 1,
        max_frame: 1_400,
        nack_addr: NACK_ADDRESS.ip().octets(),
        nack_port: NACK_ADDRESS.port().to_be_bytes(),
        nack_mac: NACK_MAC,
        ..abi::Settings::default()
    }
}
