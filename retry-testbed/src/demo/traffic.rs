//! What the demo publishes, made frames of every version or the datagrams of a capture, and what it asks for besides.

use std::{
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    path::Path,
    sync::atomic::AtomicBool,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use retry_common::{
    group::{BeefBits, ShardBits, Sharding},
    key::FrameKey,
    wire::frame::Frame,
};
use retry_testbed::{
    net::{
        fabric::group,
        netns::Netns,
        replay::{self, Datagram},
    },
    peers::{
        answer::nack,
        frames::{BEEF_GROUP, BLOCK_GROUP, Flow, Kind, SUBTREE_GROUP},
        publish::Publisher,
    },
};

const SHARD_BITS: u8 = 2;
/// One frame of so many is above the MTU: it leaves in IPv6 fragments, and only the daemon can repair it.
const LARGE: u64 = 500;

pub(crate) enum Traffic {
    /// Transactions first, then one flow of each other kind, then the large anchors.
    Made { flows: Vec<Flow>, transactions: usize },
    /// A capture's datagrams in order.
    Replayed { datagrams: Vec<Datagram>, sharding: Sharding },
}

/// Asks for frames that are there, four a millisecond; for as many at most as are published in half a second.
pub(crate) fn ask(ns: &Netns, endpoint: SocketAddrV6, keys: &[FrameKey], rate: u32) -> Result<()> {
    let socket = ns.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
    for some in keys[..keys.len().min(usize::try_from(rate / 2)?)].chunks(4) {
        for key in some {
            socket.send_to(&nack(*key), endpoint).context("a NACK leaves")?;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Traffic {
    pub(crate) fn new(file: Option<&Path>) -> Result<Self> {
        match file {
            Some(file) => Self::replayed(file),
            None => Ok(Self::made()),
        }
    }

    fn made() -> Self {
        let shards = 1u16 << SHARD_BITS;
        let mut flows: Vec<Flow> =
            (0..2 * shards).map(|number| Flow::new(Kind::Tx, number % shards, SHARD_BITS, 150..=1200)).collect();
        let transactions = flows.len();
        flows.extend(Kind::CACHED.into_iter().filter(|kind| *kind != Kind::Tx).map(|kind| {
            let payload = if kind.header_length() == 104 { 1348..=1348 } else { 200..=1200 };
            Flow::new(kind, 1, SHARD_BITS, payload)
        }));
        flows.push(Flow::new(Kind::Anchor, 0, SHARD_BITS, 2000..=4000));
        Self::Made { flows, transactions }
    }

    fn replayed(file: &Path) -> Result<Self> {
        let datagrams = replay::frames(file)?;
        for datagram in &datagrams {
            ensure!(
                *datagram.dst.ip() == group(index_of(datagram)),
                "{}: group {}, accepted are site-local groups of group id 0x000B (ff05::b:*)",
                file.display(),
                datagram.dst.ip()
            );
        }
        Ok(Self::Replayed { sharding: sharding_of(&datagrams), datagrams })
    }

    fn sharding(&self) -> Sharding {
        match self {
            Self::Made { .. } => usual(),
            Self::Replayed { sharding, .. } => *sharding,
        }
    }

    /// Flags that make the endpoint take in all of this.
    pub(crate) fn flags(&self) -> Vec<String> {
        let sharding = self.sharding();
        vec![
            format!("-shard-bits={}", sharding.shard.get()),
            "-subtree-data-enabled=true".to_owned(),
            "-beef-enabled=true".to_owned(),
            format!("-beef-shard-bits={}", sharding.beef.get()),
        ]
    }

    /// Every group that the endpoint joins with these flags.
    pub(crate) fn groups(&self) -> Vec<Ipv6Addr> {
        let sharding = self.sharding();
        let shards = 0..1u16 << sharding.shard.get();
        let beef = (0..1u16 << sharding.beef.get()).map(|index| BEEF_GROUP + index);
        shards.chain(beef).chain([SUBTREE_GROUP, BLOCK_GROUP]).map(group).collect()
    }

    /// Some frames without loss, to learn what a frame costs that no listener asks for. A capture has none to spare.
    pub(crate) fn warm_up(
        &mut self,
        publisher: &Publisher,
        rate: u32,
        length: Duration,
        stop: &AtomicBool,
    ) -> Result<()> {
        match self {
            Self::Made { .. } => self.publish(publisher, rate, length, stop),
            Self::Replayed { .. } => Ok(()),
        }
    }

    /// The frames themselves.
    pub(crate) fn publish(
        &mut self,
        publisher: &Publisher,
        rate: u32,
        length: Duration,
        stop: &AtomicBool,
    ) -> Result<()> {
        match self {
            Self::Made { flows, transactions } => {
                let (all, transactions) = (flows.len(), *transactions);
                publisher.run(flows, rate, length, stop, |number| choose(number, transactions, all))?;
            }
            Self::Replayed { datagrams, .. } => {
                let mut rest = datagrams.iter();
                publisher.pace(rate, length, stop, |_| {
                    let Some(datagram) = rest.next() else {
                        return Ok(false);
                    };
                    publisher.set_hop_limit(datagram.hop_limit)?;
                    publisher.send(*datagram.dst.ip(), &datagram.payload)?;
                    Ok(true)
                })?;
            }
        }
        Ok(())
    }

    /// Two more frames of each flow, on links that lose no more: they show the gaps at the end.
    pub(crate) fn trail(&mut self, publisher: &Publisher) -> Result<()> {
        if let Self::Made { flows, .. } = self {
            for flow in flows {
                publisher.publish(flow)?;
                publisher.publish(flow)?;
            }
        }
        Ok(())
    }
}

/// Four of five frames are transactions; the others take turns; one of [`LARGE`] is a large anchor.
fn choose(number: u64, transactions: usize, all: usize) -> usize {
    let turn = |number: u64, of: usize| {
        let of = u64::try_from(of.max(1)).unwrap_or(1);
        usize::try_from(number % of).unwrap_or(0)
    };
    if number % LARGE == LARGE - 1 {
        all - 1
    } else if number % 5 == 4 {
        transactions + turn(number / 5, all - 1 - transactions)
    } else {
        turn(number, transactions)
    }
}

fn index_of(datagram: &Datagram) -> u16 {
    datagram.dst.ip().segments()[7]
}

fn usual() -> Sharding {
    Sharding { shard: ShardBits::new(SHARD_BITS).expect("in range"), beef: BeefBits::new(0).expect("in range") }
}

/// The shard bits under which every frame of a capture went to the group that it belongs to: the usual ones if they fit, else the fewest.
fn sharding_of(datagrams: &[Datagram]) -> Sharding {
    let frames: Vec<(Frame<'_>, u16)> = datagrams
        .iter()
        .filter_map(|datagram| Some((Frame::parse(&datagram.payload).ok()?, index_of(datagram))))
        .collect();
    let misplaced = |sharding: &Sharding| {
        frames
            .iter()
            .filter(|(frame, index)| {
                let wanted = frame.head().group_index(sharding);
                wanted.is_some_and(|wanted| wanted != *index)
            })
            .count()
    };
    let mut best = usual();
    for bits in 1..=12 {
        if let Some(shard) = ShardBits::new(bits) {
            let other = Sharding { shard, ..best };
            if misplaced(&other) < misplaced(&best) {
                best = other;
            }
        }
    }
    for bits in 0..=12 {
        if let Some(beef) = BeefBits::new(bits) {
            let other = Sharding { beef, ..best };
            if misplaced(&other) < misplaced(&best) {
                best = other;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use retry_testbed::{
        net::{fabric::group, replay::Datagram},
        peers::frames::{Flow, Kind},
    };

    use super::{LARGE, Traffic, choose, sharding_of};

    fn datagrams(bits: u8, beef: u8) -> Vec<Datagram> {
        let mut all = Vec::new();
        for shard in 0..1 << bits.max(beef) {
            for kind in [Kind::Tx, Kind::Beef, Kind::Block] {
                let mut flow =
                    Flow::new(kind, shard, if kind == Kind::Tx { bits } else { 12 }, 9..=9).beef_shard_bits(beef);
                let index = flow.group_index();
                all.push(Datagram {
                    src: "[fd10::2]:1".parse().expect("an address"),
                    dst: std::net::SocketAddrV6::new(group(index), 9001, 0, 0),
                    hop_limit: 1,
                    payload: flow.next_frame(),
                });
            }
        }
        all
    }

    #[test]
    fn the_shard_bits_of_a_capture_are_found() {
        for (bits, beef) in [(2, 0), (4, 0), (1, 3), (6, 5)] {
            let found = sharding_of(&datagrams(bits, beef));
            assert_eq!((found.shard.get(), found.beef.get()), (bits, beef));
        }
    }

    #[test]
    fn every_golden_capture_with_a_frame_replays() {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../retry-common/tests/golden");
        let mut replayed = 0;
        for entry in std::fs::read_dir(golden).expect("golden files") {
            let path = entry.expect("readable").path();
            let name = path.to_string_lossy().into_owned();
            if !name.ends_with(".pcap") || name.contains("miss") {
                continue;
            }
            let traffic = Traffic::new(Some(&path)).expect("a frame in it");
            let Traffic::Replayed { datagrams, .. } = &traffic else {
                panic!("{name} is not replayed");
            };
            let groups = traffic.groups();
            assert!(datagrams.iter().all(|one| groups.contains(one.dst.ip())), "{name}");
            replayed += 1;
        }
        assert!(replayed >= 8, "{replayed} captures");
    }

    #[test]
    fn every_flow_gets_its_turn() {
        let mut count = [0u32; 19];
        for number in 0..LARGE * 20 {
            count[choose(number, 8, 19)] += 1;
        }
        assert_eq!(count[18], 20);
        assert!(count.iter().all(|times| *times > 0), "{count:?}");
        let transactions: u32 = count[..8].iter().sum();
        assert!((7_900..=8_000).contains(&transactions));
    }
}
