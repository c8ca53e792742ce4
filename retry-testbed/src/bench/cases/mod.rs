//! The table of cases.

mod fill;
mod flood;
mod latency;
mod memory;
mod rates;
mod start;
mod suppression;
mod tables;

use anyhow::{Result, ensure};

use self::rates::Rate;
use super::{Settings, contenders::Contenders, report::Curve, row::Row};

/// One case: what it is called, what it measures, and how.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it measures.
    pub(crate) about: &'static str,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Rate(&'static Rate),
    Own(fn(&str, &Settings, &mut Contenders) -> Result<Measurement>),
}

/// What a case found.
#[derive(Debug, Default)]
pub(crate) struct Measurement {
    /// Its lines.
    pub(crate) rows: Vec<Row>,
    /// Its curves.
    pub(crate) curves: Vec<Curve>,
    /// What a reader has to know besides.
    pub(crate) notes: Vec<String>,
}

/// Every case, in the order in which they run.
static CASES: &[Case] = &[
    Case {
        name: "hit-frame-400",
        about: "unicast frame only (suppress-ack), 400 B",
        work: Work::Rate(&rates::FRAME_400),
    },
    Case { name: "hit-frame-1400", about: "unicast frame only, 1400 B", work: Work::Rate(&rates::FRAME_1400) },
    Case { name: "hit-frame-ack", about: "unicast frame and ACK, 400 B", work: Work::Rate(&rates::FRAME_ACK) },
    Case {
        name: "hit-multicast-ack",
        about: "multicast repair and ACK, a new frame each time, 400 B",
        work: Work::Rate(&rates::MULTICAST_ACK),
    },
    Case {
        name: "hit-both-ack",
        about: "multicast repair, unicast frame and ACK, 400 B",
        work: Work::Rate(&rates::BOTH_ACK),
    },
    Case { name: "hit-held", about: "hit within the hold-down: ACK only", work: Work::Rate(&rates::HELD) },
    Case { name: "miss", about: "MISS in place", work: Work::Rate(&rates::MISS) },
    Case { name: "limited", about: "over the limit of the address: dropped", work: Work::Rate(&rates::LIMITED) },
    Case { name: "latency", about: "p50 and p99 of a hit at 1 k and 10 k NACK/s", work: Work::Own(latency::measure) },
    Case { name: "flood", about: "honest NACKs amid a flood from spoofed addresses", work: Work::Own(flood::measure) },
    Case { name: "table-frames", about: "CPU time of a hit by frames in the cache", work: Work::Own(tables::frames) },
    Case { name: "table-sources", about: "CPU time of a hit by addresses that ask", work: Work::Own(tables::sources) },
    Case { name: "fill", about: "frames stored a second without loss, 400 B", work: Work::Own(fill::measure) },
    Case {
        name: "suppression",
        about: "copies on the wire when 200 listeners miss one frame",
        work: Work::Own(suppression::measure),
    },
    Case { name: "memory", about: "memory of a frame of 400 B", work: Work::Own(memory::measure) },
    Case { name: "start", about: "from exec to the first answer, empty cache", work: Work::Own(start::measure) },
];

/// The cases whose names begin with one of `names`, in the table's order; all when there are none.
///
/// # Errors
/// A name that no case begins with.
pub(crate) fn choose(names: &[String]) -> Result<Vec<&'static Case>> {
    for name in names {
        ensure!(
            CASES.iter().any(|case| case.name.starts_with(name.as_str())),
            "no case {name}; there are {}",
            CASES.iter().map(|case| case.name).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(CASES
        .iter()
        .filter(|case| names.is_empty() || names.iter().any(|name| case.name.starts_with(name.as_str())))
        .collect())
}

/// Names and meanings, one case a line.
pub(crate) fn list(cases: &[&Case]) -> String {
    cases.iter().map(|case| format!("{:18} {}\n", case.name, case.about)).collect()
}

/// Runs one case.
///
/// # Errors
/// It cannot be run, or an answer is wrong.
pub(crate) fn measure(case: &Case, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    match case.work {
        Work::Rate(rate) => rates::measure(case.name, rate, settings, rigs),
        Work::Own(measure) => measure(case.name, settings, rigs),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{CASES, choose, list};

    fn chosen(names: &[&str]) -> Vec<&'static str> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        choose(&names).expect("known").iter().map(|case| case.name).collect()
    }

    #[test]
    fn names_are_unique_and_a_beginning_is_enough() {
        let names: HashSet<&str> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
        assert_eq!(chosen(&[]).len(), CASES.len());
        assert_eq!(chosen(&["miss"]), ["miss"]);
        assert_eq!(chosen(&["miss", "hit-frame-4"]), ["hit-frame-400", "miss"]);
        assert!(choose(&["nonsense".to_owned()]).is_err());
        let all: Vec<_> = CASES.iter().collect();
        assert_eq!(list(&all).lines().count(), CASES.len());
    }
}
