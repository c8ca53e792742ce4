//! The table of cases: what each is called, and how it is measured.

mod fill;
mod flood;
mod inside;
mod latency;
mod memory;
mod rates;
mod start;
mod suppression;
mod tables;

use anyhow::{Result, ensure};

use self::rates::Rate;
use super::{
    contenders::Contenders,
    model::{Case, Measurement},
    options::Settings,
    rig::ShortLists,
};

/// A case and how it is measured.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What the report says of it.
    pub(crate) case: Case,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Rate(&'static Rate),
    Own(fn(&str, &Settings, &mut Contenders) -> Result<Measurement>),
}

/// Every case, in the order in which they run.
static CASES: &[Entry] = &[
    entry("frame", "unicast frame only (suppress-ack), 400 B, scattered", Work::Rate(&rates::SCATTERED_FRAME)),
    entry("ack", "unicast frame and ACK, 400 B, scattered", Work::Rate(&rates::SCATTERED_FRAME_ACK)),
    entry(
        "ack-tuned",
        "the same with vm.percpu_pagelist_high_fraction at its most",
        Work::Rate(&rates::SCATTERED_FRAME_ACK_TUNED),
    ),
    entry("ack-1m", "the same as ack among 1 M frames", Work::Rate(&rates::SCATTERED_FRAME_ACK_LARGE)),
    entry("multicast", "multicast repair and ACK, 400 B, scattered", Work::Rate(&rates::SCATTERED_MULTICAST_ACK)),
    entry("miss", "MISS in place, scattered", Work::Rate(&rates::SCATTERED_MISS)),
    entry("hot-frame", "hot: unicast frame only, 400 B", Work::Rate(&rates::HOT_FRAME_400)),
    entry("hot-long", "hot: unicast frame only, 1400 B", Work::Rate(&rates::HOT_FRAME_1400)),
    entry("hot-ack", "hot: unicast frame and ACK, 400 B", Work::Rate(&rates::HOT_FRAME_ACK)),
    entry(
        "hot-multicast",
        "hot: multicast repair and ACK, a new frame each time, 400 B",
        Work::Rate(&rates::HOT_MULTICAST_ACK),
    ),
    entry("hot-both", "hot: multicast repair, unicast frame and ACK, 400 B", Work::Rate(&rates::HOT_BOTH_ACK)),
    entry("hot-held", "hot: within the hold-down, ACK only", Work::Rate(&rates::HOT_HELD)),
    entry("hot-miss", "hot: MISS in place", Work::Rate(&rates::HOT_MISS)),
    entry("limited", "over the limit of the address: dropped", Work::Rate(&rates::LIMITED)),
    entry("latency", "p50 and p99 of a hit at 1 k and 10 k NACK/s", Work::Own(latency::measure)),
    entry(
        "inside",
        "p50, p99 and p99.9 of a hit inside the kernel program, and its histograms' cost",
        Work::Own(inside::measure),
    ),
    entry("flood", "honest NACKs amid a flood from spoofed addresses", Work::Own(flood::measure)),
    entry("table-frames", "CPU time of a hit by frames in the cache", Work::Own(tables::frames)),
    entry("table-sources", "CPU time of a hit by addresses that ask", Work::Own(tables::sources)),
    entry("fill", "frames stored a second without loss, 400 B", Work::Own(fill::measure)),
    entry("suppression", "copies on the wire when 200 listeners miss one frame", Work::Own(suppression::measure)),
    entry("memory", "memory of a frame of 400 B", Work::Own(memory::measure)),
    entry("start", "from exec to the first answer, empty cache", Work::Own(start::measure)),
];

const fn entry(name: &'static str, about: &'static str, work: Work) -> Entry {
    Entry { case: Case { name, about }, work }
}

/// The cases whose names begin with one of `names`, in the table's order; all when there are none.
///
/// # Errors
/// A name that no case begins with.
pub(crate) fn choose(names: &[String]) -> Result<Vec<&'static Entry>> {
    for name in names {
        ensure!(
            CASES.iter().any(|entry| entry.case.name.starts_with(name.as_str())),
            "no case {name}; there are {}",
            CASES.iter().map(|entry| entry.case.name).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(CASES
        .iter()
        .filter(|entry| names.is_empty() || names.iter().any(|name| entry.case.name.starts_with(name.as_str())))
        .collect())
}

/// Names and meanings, one case a line.
pub(crate) fn list(entries: &[&Entry]) -> String {
    entries.iter().map(|Entry { case, .. }| format!("{:18} {}\n", case.name, case.about)).collect()
}

/// Runs one case.
///
/// # Errors
/// It cannot be run, or an answer is wrong.
pub(crate) fn measure(Entry { case, work }: &Entry, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    match work {
        Work::Rate(rate) => rates::measure(case.name, rate, settings, rigs),
        Work::Own(measure) => {
            let _lists = ShortLists::new()?;
            measure(case.name, settings, rigs)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{CASES, choose, list};

    fn chosen(names: &[&str]) -> Vec<&'static str> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        choose(&names).expect("known").iter().map(|entry| entry.case.name).collect()
    }

    #[test]
    fn names_are_unique_and_a_beginning_is_enough() {
        let names: HashSet<&str> = CASES.iter().map(|entry| entry.case.name).collect();
        assert_eq!(names.len(), CASES.len());
        assert_eq!(chosen(&[]).len(), CASES.len());
        assert_eq!(chosen(&["miss"]), ["miss"]);
        assert_eq!(chosen(&["miss", "hot-f"]), ["miss", "hot-frame"]);
        assert!(choose(&["nonsense".to_owned()]).is_err());
        let all: Vec<_> = CASES.iter().collect();
        assert_eq!(list(&all).lines().count(), CASES.len());
    }
}
