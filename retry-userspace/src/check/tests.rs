use super::finding::{Level, anchor};
use super::*;

/// Every section that a line may lead to.
const SECTIONS: [&str; 11] = [
    "XDP fell back",
    "The cache is shorter than the TTL",
    "The receive buffer overflows",
    "A source is not heard",
    "Before you begin",
    "The daemon is not ready",
    "Answers are lost at an interface",
    "Another program has the NACK port",
    "A beacon is not heard",
    "Redis is dead or refuses us",
    "An upstream is lost",
];

#[test]
fn sections_are_headings_of_the_runbook() {
    let runbook = include_str!("../../../docs/operations.md");
    let sources = [include_str!("host.rs"), include_str!("links.rs"), include_str!("peers.rs")].concat();
    let named: std::collections::BTreeSet<&str> =
        sources.split(".see(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(named, SECTIONS.into_iter().collect());
    for section in SECTIONS {
        assert!(runbook.lines().any(|line| line == format!("## {section}")), "{section}");
    }
    assert_eq!(anchor("XDP fell back"), "docs/operations.md#xdp-fell-back");
}

#[test]
fn the_worst_line_is_the_exit_code() {
    let of = |levels: &[Level]| {
        let findings = levels.iter().map(|level| Finding { level: *level, ..Finding::green("x", "y") }).collect();
        Findings(findings).code()
    };
    assert_eq!(of(&[]), 0);
    assert_eq!(of(&[Level::Green, Level::Unknown]), 0);
    assert_eq!(of(&[Level::Unknown, Level::Yellow, Level::Green]), 1);
    assert_eq!(of(&[Level::Red, Level::Yellow]), 2);
}

#[test]
fn own_options_are_taken_out_of_the_daemons() {
    let read = |args: &[&str]| options(args.iter().map(Into::into));
    let found = read(&["-xdp", "off", "--json", "-listen", "3s", "-mc-iface=eth1"]).expect("it is read");
    assert_eq!(found.rest, ["-xdp", "off", "-mc-iface=eth1"]);
    assert_eq!((found.is_json, found.is_help, found.listen), (true, false, Some(Duration::from_secs(3))));
    assert_eq!(read(&["-listen=2m"]).expect("it is read").listen, Some(Duration::from_secs(120)));
    assert_eq!(read(&["-listen-port", "9001"]).expect("it is read").rest, ["-listen-port", "9001"]);
    assert!(read(&["-listen"]).is_err() && read(&["-listen", "soon"]).is_err());
}
