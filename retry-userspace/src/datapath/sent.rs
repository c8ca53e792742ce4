//! What devices took of what was redirected to them: the counts by interface, and probes.

use std::fs;

use aya::Ebpf;
use aya::maps::{DevMap, HashMap, MapData, MapError};
use aya::programs::links::FdLink;
use aya::programs::{RawTracePoint, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use retry_common::abi::{PROBE_ETHERTYPE, PROBE_INDEX, Sent};

use super::pins::Pins;
use super::{DatapathError, chain, map, pin_name, program, taken};

/// The program that counts.
const PROGRAM: &str = "retry_sent";
/// The tracepoint that it is attached to.
const TRACEPOINT: &str = "xdp_devmap_xmit";
/// The program that sends probes.
pub(super) const PROBE: &str = "retry_probe";
/// Shortest Ethernet frame, without its checksum. Bytes.
const SHORTEST: usize = 60;

/// What an interface was given since the start: its name, and the counts.
pub(crate) type Delivered = (String, Sent);

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct SentValue(Sent);
// SAFETY: integers without padding.
unsafe impl aya::Pod for SentValue {}

/// The counts.
pub(super) struct SentTable {
    map: HashMap<MapData, u32, SentValue>,
    lost: HashMap<MapData, u32, u64>,
    rows: Vec<Row>,
    /// None where the kernel does not tell: then nothing is counted.
    link: Option<FdLink>,
}

/// One interface, under whatever index.
struct Row {
    name: String,
    ifindex: u32,
}

impl SentTable {
    /// Attaches the program that counts. Without it everything else works, and a log line says so.
    ///
    /// Two links count as one: what one has counted, the other finds gone from [`map::BULK`]. So the new one comes before the
    /// one that is pinned goes.
    pub(super) fn open(ebpf: &mut Ebpf, pins: &Pins, waits: bool) -> Result<Self, DatapathError> {
        let link = match count(ebpf, pins, waits) {
            Ok(link) => Some(link),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "packets that a device does not take from the kernel program are not counted: it needs CAP_PERFMON \
                     and a kernel with CONFIG_BPF_EVENTS"
                );
                None
            }
        };
        let map = HashMap::try_from(taken(ebpf, map::SENT)?).map_err(|_| DatapathError::Map(map::SENT))?;
        let lost = HashMap::try_from(taken(ebpf, map::LOST)?).map_err(|_| DatapathError::Map(map::LOST))?;
        Ok(Self { map, lost, rows: Vec::new(), link })
    }

    /// Counts for these interfaces from now on; what was counted for one under another index is kept.
    pub(super) fn adapt(&mut self, interfaces: &[(String, u32)]) -> Result<(), DatapathError> {
        let refused = |error: MapError| DatapathError::Fill { map: map::SENT, why: chain(&error) };
        if self.rows.is_empty() {
            // Interfaces of earlier daemons that are gone, or have come back under another index, would fill the tables.
            forget_others(&mut self.map, interfaces).map_err(refused)?;
            forget_others(&mut self.lost, interfaces).map_err(refused)?;
        }
        for (name, ifindex) in interfaces {
            let place = match self.rows.iter().position(|row| row.name == *name) {
                Some(place) if self.rows[place].ifindex == *ifindex => continue,
                Some(place) => place,
                None => {
                    self.rows.push(Row { name: name.clone(), ifindex: 0 });
                    self.rows.len() - 1
                }
            };
            let row = &mut self.rows[place];
            let before = match self.map.get(&row.ifindex, 0) {
                Ok(last) => {
                    self.map.remove(&row.ifindex).map_err(refused)?;
                    last
                }
                Err(_) => SentValue(Sent::default()),
            };
            // An earlier daemon's count of this very interface goes on.
            if self.map.get(ifindex, 0).is_err() {
                self.map.insert(ifindex, before, 0).map_err(refused)?;
            }
            if let Ok(lost) = self.lost.get(&row.ifindex, 0) {
                self.lost.remove(&row.ifindex).map_err(refused)?;
                self.lost.insert(ifindex, lost, 0).map_err(refused)?;
            }
            row.ifindex = *ifindex;
        }
        Ok(())
    }

    /// What was kept of each interface.
    pub(super) fn lost(&self) -> Vec<(String, u64)> {
        self.rows.iter().map(|row| (row.name.clone(), self.lost.get(&row.ifindex, 0).unwrap_or(0))).collect()
    }

    /// Keeps what was lost on the way to the driver of an interface.
    pub(super) fn keep_lost(&mut self, interface: &str, lost: u64) -> Result<(), DatapathError> {
        let Some(row) = self.rows.iter().find(|row| row.name == interface) else { return Ok(()) };
        let refused = |error: MapError| DatapathError::Fill { map: map::LOST, why: chain(&error) };
        self.lost.insert(row.ifindex, lost, 0).map_err(refused)
    }

    /// What each interface was given; nothing where the kernel does not tell.
    pub(super) fn delivered(&self) -> Vec<Delivered> {
        if self.link.is_none() {
            return Vec::new();
        }
        let of = |row: &Row| {
            let now = self.map.get(&row.ifindex, 0).map_or_else(|_| Sent::default(), |value| value.0);
            (row.name.clone(), now)
        };
        self.rows.iter().map(of).collect()
    }
}

/// Removes the entries of all interfaces but these.
fn forget_others<V: aya::Pod>(
    map: &mut HashMap<MapData, u32, V>,
    interfaces: &[(String, u32)],
) -> Result<(), MapError> {
    let there: Vec<u32> = map.keys().collect::<Result<_, _>>()?;
    let is_other = |index: &&u32| !interfaces.iter().any(|(_, ifindex)| ifindex == *index);
    there.iter().filter(is_other).try_for_each(|index| map.remove(index))
}

fn count(ebpf: &mut Ebpf, pins: &Pins, waits: bool) -> Result<FdLink, DatapathError> {
    let refused = |error: &dyn std::error::Error| DatapathError::Load(format!("{PROGRAM}: {}", chain(error)));
    let program: &mut RawTracePoint = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| DatapathError::Load(format!("no program {PROGRAM} in the object")))?;
    program.load().map_err(|error| refused(&error))?;
    let id = program.attach(TRACEPOINT).map_err(|error| refused(&error))?;
    let link: FdLink = program.take_link(id).map_err(|error| refused(&error))?.into();
    let pin = pin_name(PROGRAM, waits);
    let pinned = link.pin(pins.path(&pin)).map_err(|error| pins.error(&pin, &error))?;
    Ok(pinned.into())
}

/// Sends frames that no host does anything with, to find out whether a device takes any.
pub(super) struct Prober(Xdp);

impl Prober {
    /// A handle of its own on the loaded program.
    pub(super) fn open(ebpf: &mut Ebpf, pins: &Pins) -> Result<Self, DatapathError> {
        let refused = |error: &dyn std::error::Error| DatapathError::Load(format!("{PROBE}: {}", chain(error)));
        let path = pins.path(PROBE);
        // A daemon that was killed right here has left it.
        let _ = fs::remove_file(&path);
        program(ebpf, PROBE)?.pin(&path).map_err(|error| refused(&error))?;
        let program = Xdp::from_pin(&path, XdpAttachType::Interface).map_err(|error| refused(&error));
        // It was needed for the handle alone.
        fs::remove_file(&path).map_err(|error| refused(&error))?;
        Ok(Self(program?))
    }

    /// Sends one frame by the interface at this place of the last `adapt`.
    pub(super) fn send(&self, place: u8, ifindex: u32, mac: [u8; 6]) -> Result<(), DatapathError> {
        let frame = frame(place, mac);
        let context = context(ifindex);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::default()
        };
        self.0.test_run(options).map_err(|error| DatapathError::Load(format!("{PROBE}: {}", chain(&error))))?;
        Ok(())
    }
}

/// From the interface to itself: a switch keeps it, and a host at the other end takes it for another's.
fn frame(place: u8, mac: [u8; 6]) -> [u8; SHORTEST] {
    let mut frame = [0; SHORTEST];
    frame[..6].copy_from_slice(&mac);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&PROBE_ETHERTYPE);
    frame[PROBE_INDEX] = place;
    frame
}

/// `struct xdp_md` (linux/bpf.h): data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(ifindex: u32) -> [u8; 24] {
    let mut context = [0; 24];
    // SHORTEST, as the kernel wants it: the end of the data.
    context[4..8].copy_from_slice(&60_u32.to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// Makes the map of probes say what the interfaces are now.
pub(super) fn fill_probes(ebpf: &mut Ebpf, interfaces: &[(String, u32)]) -> Result<(), DatapathError> {
    let role = program(ebpf, "retry_role")?
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(|error| DatapathError::Load(chain(&error)))?;
    let map = ebpf.map_mut(map::PROBE).ok_or(DatapathError::Map(map::PROBE))?;
    let mut devmap = DevMap::try_from(map).map_err(|_| DatapathError::Map(map::PROBE))?;
    for (place, (_, ifindex)) in (0u32..).zip(interfaces) {
        devmap
            .set(place, *ifindex, Some(&role), 0)
            .map_err(|error| DatapathError::Fill { map: map::PROBE, why: chain(&error) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_from_the_interface_to_itself() {
        let mac = [2, 0, 0, 0, 0, 9];
        let frame = frame(3, mac);
        assert_eq!((&frame[..6], &frame[6..12]), (&mac[..], &mac[..]));
        assert_eq!((&frame[12..14], frame[14]), (&[0x88, 0xb5][..], 3));
        assert_eq!(context(7)[4..8], u32::try_from(frame.len()).expect("short").to_ne_bytes());
    }
}
