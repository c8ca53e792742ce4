//! What an earlier daemon left pinned, and what of it the next one goes on with.
//!
//! Maps in [`KEPT`] hold what outlives a daemon: frames, limits, counters, NACKs that wait. The next daemon opens them again.
//! All other maps, and the programs, are its own: they are pinned as `NAME_NEXT` until the links run the new program, and
//! are then renamed over those of the old one. So settings, program and fill change in one step, and the old program
//! answers until then.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;

use aya::maps::{MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp};
use aya_obj::Object;
use aya_obj::programs::XdpAttachType;
use retry_common::abi::{self, setting_flag};
use retry_common::index;

use super::pins::{Pins, attached_to};
use super::{Config, DatapathError, chain, map};
use crate::framelog::{Memory, Pages, Sizes};

/// What ends the names of pins that are not in force yet.
pub(super) const NEXT: &str = "_NEXT";
/// The pin of the main program.
pub(super) const PROGRAM: &str = "retry_nack";

/// The maps of the frame log, which fit together or not at all.
const LOG: [&str; 3] = [map::RING, map::INDEX, map::LANES];
/// The other maps that outlive a daemon, but for those of the limits.
const KEPT: [&str; 16] = [
    map::KNOWN,
    map::TOTAL_BYTES,
    map::HOLD_DOWN,
    map::EVENTS,
    map::COUNTERS,
    map::USER_COUNTERS,
    map::WATCH,
    map::LATENCY,
    map::BEGAN,
    map::USER_LATENCY,
    map::STORED,
    map::USER_STORED,
    map::ROLE_STATE,
    map::SENT,
    map::LOST,
    map::BULK,
];

/// What stands in the pages of the frame log.
#[derive(Debug)]
pub enum Found {
    /// Nothing: no daemon was here before.
    Nothing,
    /// Nothing: what an earlier daemon left does not fit this one.
    Unfit,
    /// The log of the daemon before, to be repaired and gone on with.
    Log,
    /// Nothing, but the daemon before left a log of other sizes, to be read over.
    OldLog(Box<Pages>),
}

/// What an earlier daemon left.
pub(super) struct Left {
    /// Its settings.
    pub(super) settings: abi::Settings,
    /// The maps that the next daemon goes on with.
    pub(super) kept: Vec<&'static str>,
    /// Its frame log, where it has other sizes.
    pub(super) old_log: Option<Pages>,
}

impl Left {
    /// What stands in the pins, if the daemon of `config` can go on with it. What it cannot is removed, and a line says why.
    ///
    /// The second value is true when something was there.
    pub(super) fn find(pins: &Pins, config: &Config, object: &[u8]) -> Result<(Option<Self>, bool), DatapathError> {
        let refused = |error: io::Error| pins.error("", &error);
        settle(pins).map_err(refused)?;
        if !config.handover || pins.names().map_err(refused)?.is_empty() {
            pins.clear().map_err(refused)?;
            return Ok((None, false));
        }
        match Self::judge(pins, config, object) {
            Ok(left) => Ok((Some(left), true)),
            Err(why) => {
                tracing::warn!(reason = why, "what an earlier daemon left is of no use: a fresh start");
                pins.clear().map_err(refused)?;
                Ok((None, true))
            }
        }
    }

    /// True when the maps hold the log that the next daemon writes on.
    pub(super) fn has_log(&self) -> bool {
        self.old_log.is_none()
    }

    /// True when the links can change to a program of this mode.
    pub(super) fn is_mode(&self, mode: super::Mode) -> bool {
        (self.settings.flags & setting_flag::DAEMON_FRAMES != 0) == (mode == super::Mode::Skb)
    }

    fn judge(pins: &Pins, config: &Config, object: &[u8]) -> Result<Self, String> {
        let memory = |name: &'static str, len: usize| {
            let map = MapData::from_pin(pins.path(name)).map_err(|error| format!("{name}: {}", chain(&error)))?;
            Memory::of_map(map.fd().as_fd(), len).map_err(|error| format!("{name}: {error}"))
        };
        let there: abi::Settings = memory(map::SETTINGS, size_of::<abi::Settings>())?.read(0);
        if there.layout != abi::LAYOUT || there.generation == 0 {
            return Err(format!("its layout is {}, and this build's is {}", there.layout, abi::LAYOUT));
        }
        let wanted = &config.settings;
        if (there.shard_bits, there.beef_bits) != (wanted.shard_bits, wanted.beef_bits) {
            return Err("the groups of its frames follow from other shard bits".to_owned());
        }
        let definitions = definitions(config, object).map_err(|error| error.to_string())?;
        let fits = |name: &'static str| {
            let pinned = MapData::from_pin(pins.path(name)).and_then(|map| map.info());
            let pinned = pinned.map_err(|error| format!("{name}: {}", chain(&error)))?;
            let wanted = definitions.get(name).ok_or_else(|| format!("this build has no map {name}"))?;
            Ok::<bool, String>(*wanted == Definition::from(&pinned))
        };
        let mut kept = Vec::new();
        for name in KEPT {
            if !fits(name)? {
                return Err(format!("its map {name} has another shape"));
            }
            kept.push(name);
        }
        for name in map::LIMITS.into_iter().chain([map::SOURCE_BYTES]) {
            if fits(name)? {
                kept.push(name);
            } else {
                tracing::info!(map = name, "its table has another size: this limit starts anew");
            }
        }
        let has_log = LOG.into_iter().try_fold(true, |all, name| Ok::<bool, String>(all && fits(name)?))?
            && lanes_fit(&memory(map::LANES, config.sizes.lanes_len())?, &config.sizes);
        if has_log {
            kept.extend(LOG);
            return Ok(Self { settings: there, kept, old_log: None });
        }
        let sizes = old_sizes(pins, &memory)?;
        let pages = Pages {
            ring: memory(map::RING, sizes.ring_len())?,
            index: memory(map::INDEX, sizes.index_len())?,
            hold_down: memory(map::HOLD_DOWN, sizes.hold_down_len())?,
            lanes: memory(map::LANES, sizes.lanes_len())?,
            sizes,
        };
        Ok(Self { settings: there, kept, old_log: Some(pages) })
    }
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Definition {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

impl From<&MapInfo> for Definition {
    fn from(info: &MapInfo) -> Self {
        Self {
            // A type that the library does not know is none of ours.
            kind: info.map_type().map_or(u32::MAX, |kind| kind as u32),
            key_size: info.key_size(),
            value_size: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        }
    }
}

/// The maps of this build, in the sizes of `config`.
fn definitions(config: &Config, object: &[u8]) -> Result<HashMap<String, Definition>, DatapathError> {
    let object = Object::parse(object).map_err(|error| DatapathError::Load(chain(&error)))?;
    let sizes: HashMap<&str, u32> = super::map_entries(config).into_iter().collect();
    let of = |(name, map): (&String, &aya_obj::Map)| {
        let definition = Definition {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            entries: sizes.get(name.as_str()).copied().unwrap_or_else(|| map.max_entries()),
            flags: map.map_flags(),
        };
        (name.clone(), definition)
    };
    Ok(object.maps.iter().map(of).collect())
}

/// True when the lane table divides the ring as `sizes` do.
fn lanes_fit(lanes: &Memory, sizes: &Sizes) -> bool {
    (0..).zip(sizes.lanes()).all(|(number, (first_slot, slots))| {
        let lane: abi::Lane = lanes.read(number * size_of::<abi::Lane>());
        (lane.first_slot, lane.slots) == (first_slot, slots)
    })
}

/// The sizes of the log that is pinned.
fn old_sizes(pins: &Pins, memory: &impl Fn(&'static str, usize) -> Result<Memory, String>) -> Result<Sizes, String> {
    let entries = |name: &'static str, value_size: usize| {
        let info = MapData::from_pin(pins.path(name)).and_then(|map| map.info());
        let info = info.map_err(|error| format!("{name}: {}", chain(&error)))?;
        if usize::try_from(info.value_size()) != Ok(value_size) {
            return Err(format!("its map {name} has another shape"));
        }
        Ok(info.max_entries())
    };
    let segments = entries(map::RING, abi::SEGMENT_LEN)?;
    let lanes = memory(map::LANES, 2 * size_of::<abi::Lane>())?;
    let slots = |number: usize| lanes.read::<abi::Lane>(number * size_of::<abi::Lane>()).slots;
    let (short_segments, long_segments) = (slots(0) / abi::SEGMENT_SLOTS, slots(1) / abi::SEGMENT_SLOTS);
    let sizes = Sizes {
        short_segments,
        long_segments,
        buckets: entries(map::INDEX, size_of::<abi::Bucket>())?.saturating_sub(index::OVERFLOW_BUCKETS),
        hold_down_words: entries(map::HOLD_DOWN, size_of::<u64>())?,
    };
    if sizes.segments() != segments || !sizes.buckets.is_power_of_two() || !lanes_fit(&lanes, &sizes) {
        return Err("its lanes do not divide its ring".to_owned());
    }
    Ok(sizes)
}

/// Ends the step in which an earlier daemon may have died: that from its predecessor's pins to its own.
///
/// The program's pin is renamed last, and no link runs it before all pins that wait are there. So where none of the program
/// waits, no link runs that of the others.
pub(super) fn settle(pins: &Pins) -> io::Result<()> {
    let names = pins.names()?;
    let mut waiting = names.iter().filter_map(|name| name.strip_suffix(NEXT));
    if runs_next(pins, &names) {
        return rename(pins);
    }
    waiting.try_for_each(|name| fs::remove_file(pins.path(&format!("{name}{NEXT}"))))
}

/// True when a link runs the program that waits.
fn runs_next(pins: &Pins, names: &[String]) -> bool {
    let waiting = format!("{PROGRAM}{NEXT}");
    if !names.contains(&waiting) {
        return false;
    }
    let id = Xdp::from_pin(pins.path(&waiting), XdpAttachType::Interface).and_then(|program| Ok(program.info()?.id()));
    let Ok(id) = id else { return false };
    let runs = |name: &String| {
        let link = PinnedLink::from_pin(pins.path(name)).and_then(|link| FdLink::from(link).info());
        link.is_ok_and(|link| link.program_id() == id)
    };
    names.iter().filter(|name| Pins::is_link(name)).any(runs)
}

/// Puts the pins that wait in force, the program's last.
pub(super) fn rename(pins: &Pins) -> io::Result<()> {
    let mut waiting: Vec<String> =
        pins.names()?.iter().filter_map(|name| name.strip_suffix(NEXT)).map(str::to_owned).collect();
    waiting.sort_by_key(|name| name == PROGRAM);
    waiting.iter().try_for_each(|name| fs::rename(pins.path(&format!("{name}{NEXT}")), pins.path(name)))
}

/// Changes the link of an interface to `program`; `None` when there is no such link, or it is attached to no interface of
/// this index: then the program has to be attached anew.
pub(super) fn change_link(
    program: &mut Xdp,
    pins: &Pins,
    pin: &str,
    ifindex: u32,
) -> Result<Option<FdLink>, ProgramError> {
    let path = pins.path(pin);
    if !attached_to(&path).is_ok_and(|there| there == Some(ifindex)) {
        return Ok(None);
    }
    let Ok(link) = PinnedLink::from_pin(&path) else { return Ok(None) };
    let Ok(link) = XdpLink::try_from(FdLink::from(link)) else { return Ok(None) };
    let id = program.attach_to_link(link)?;
    Ok(FdLink::try_from(program.take_link(id)?).ok())
}
