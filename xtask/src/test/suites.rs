//! The suites, in the order in which they run: cheap ones first.

use crate::tools::Use;

/// A part of the test command.
#[derive(Debug)]
pub(crate) struct Suite {
    /// As the command line names it.
    pub(crate) name: &'static str,
    /// What runs.
    pub(crate) kind: Kind,
    /// What has to be there beside a compiler.
    pub(crate) uses: &'static [Use],
}

/// What a suite consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The parts of the check verb.
    Check,
    /// Unit and property tests of all packages, as the user.
    Unit,
    /// An integration test of retry-testbed, by its file's name, as root.
    Testbed(&'static str),
    /// An integration test of retry-testbed on other kernels, under qemu.
    Kernels(&'static str),
}

/// Every suite.
pub(crate) const SUITES: &[Suite] = &[
    Suite { name: "check", kind: Kind::Check, uses: &[Use::Check] },
    Suite { name: "unit", kind: Kind::Unit, uses: &[Use::Ebpf, Use::Wireshark] },
    Suite { name: "testbed", kind: Kind::Testbed("testbed"), uses: FABRIC },
    Suite { name: "packets", kind: Kind::Testbed("packets"), uses: &[Use::Ebpf] },
    Suite { name: "differential", kind: Kind::Testbed("differential"), uses: FABRIC },
    Suite { name: "maps", kind: Kind::Testbed("maps"), uses: &[Use::Ebpf, Use::Fabric, Use::Maps] },
    Suite { name: "e2e", kind: Kind::Testbed("e2e"), uses: E2E },
    Suite { name: "handover", kind: Kind::Testbed("handover"), uses: FABRIC },
    Suite { name: "runbook", kind: Kind::Testbed("runbook"), uses: RUNBOOK },
    Suite { name: "page", kind: Kind::Testbed("page"), uses: PAGE },
    Suite { name: "chart", kind: Kind::Testbed("chart"), uses: CHART },
    Suite { name: "alerts", kind: Kind::Testbed("alerts"), uses: ALERTS },
    Suite { name: "dist", kind: Kind::Testbed("dist"), uses: DIST },
    Suite { name: "redis", kind: Kind::Testbed("redis"), uses: &[Use::Ebpf, Use::Fabric, Use::Redis] },
    Suite { name: "shared", kind: Kind::Testbed("shared"), uses: &[Use::Ebpf, Use::Fabric, Use::Redis] },
    Suite { name: "stress", kind: Kind::Testbed("stress"), uses: FABRIC },
    Suite { name: "kernels", kind: Kind::Kernels("packets"), uses: &[Use::Ebpf, Use::Fabric, Use::Kernels] },
];

/// The tests that run while no other does, because they measure what the host has only once: processor time, rates, memory, or
/// how long something takes. Each by its suite and how its name begins; nothing is the whole suite.
const ALONE: &[(&str, &str)] = &[
    ("testbed", ""),
    ("e2e", "suppression::two_hundred_at_once"),
    ("handover", "restarts::"),
    ("runbook", "limits::the_event_ring_is_full"),
    ("redis", "trouble::a_stopped_one_delays_no_caller"),
    ("stress", ""),
];

const FABRIC: &[Use] = &[Use::Ebpf, Use::Fabric];
const E2E: &[Use] = &[Use::Ebpf, Use::Fabric, Use::Wireshark];
const ALERTS: &[Use] = &[Use::Ebpf, Use::Fabric, Use::Redis, Use::Prometheus];
const CHART: &[Use] = &[Use::Ebpf, Use::Fabric, Use::Chart];
const DIST: &[Use] = &[Use::Ebpf, Use::Fabric, Use::Operator, Use::Dist, Use::Install];
const PAGE: &[Use] = &[Use::Ebpf, Use::Fabric, Use::Redis, Use::Browser];
const RUNBOOK: &[Use] = &[Use::Ebpf, Use::Fabric, Use::Maps, Use::Redis, Use::Operator];

impl Suite {
    /// Whether it runs as root.
    pub(crate) fn privileged(&self) -> bool {
        matches!(self.kind, Kind::Testbed(_))
    }

    /// Whether this test runs while no other does.
    pub(crate) fn is_alone(&self, test: &str) -> bool {
        ALONE.iter().any(|(suite, start)| *suite == self.name && test.starts_with(start))
    }

    /// Whether it installs what operators install.
    pub(crate) fn needs_dist(&self) -> bool {
        self.uses.contains(&Use::Dist)
    }

    /// Whether it starts the daemon.
    pub(crate) fn needs_daemon(&self) -> bool {
        self.privileged() && self.uses.contains(&Use::Fabric) && !self.needs_dist()
    }
}

/// Every name, for the command line.
pub(crate) fn names() -> Vec<&'static str> {
    SUITES.iter().map(|suite| suite.name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn check_is_first_and_names_are_unique() {
        assert_eq!(SUITES.first().map(|suite| suite.name), Some("check"));
        assert_eq!(names().iter().collect::<BTreeSet<_>>().len(), SUITES.len());
    }

    #[test]
    fn what_runs_alone_is_listed_by_suite_and_name() {
        for (name, _) in ALONE {
            assert!(names().contains(name), "no suite {name}");
        }
        let suite = |name| SUITES.iter().find(|suite| suite.name == name).expect("a suite");
        assert!(suite("stress").is_alone("scenes::one") && !suite("e2e").is_alone("scenes::one"));
    }

    #[test]
    fn only_what_touches_the_kernel_needs_root() {
        for suite in SUITES {
            assert_eq!(suite.privileged(), !["check", "unit", "kernels"].contains(&suite.name), "{}", suite.name);
        }
    }
}
