//! The prefixes that the rules come to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use retry_common::acl::{LENGTHS, Prefix};

use super::judge::{Judge, Nacks, named};
use super::ruleset::Ruleset;

/// What is made of a ruleset.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Imported {
    /// A file for `-acl-file`.
    pub(super) rules: String,
    /// What is not in it, a line for each rule.
    pub(super) warnings: Vec<String>,
}

/// Rules for `-acl-file` that refuse the sources whose NACKs the firewall drops or rejects.
///
/// The first rule that holds decides there, and the longest prefix here: so each prefix that a rule names is judged by all rules,
/// and is written where that differs from what holds for the prefixes that hold it.
pub(super) fn import(rules: &Ruleset, nacks: &Nacks) -> Imported {
    let mut judge = Judge::new(rules, nacks);
    let mut denied: BTreeMap<Prefix, bool> = BTreeMap::new();
    let mut written: Vec<(Prefix, bool)> = Vec::new();
    let lengths: BTreeSet<u8> = named(rules).iter().map(Prefix::length).collect();
    for prefix in named(rules) {
        let is_denied = judge.drops(&prefix);
        let shorter = lengths.iter().rev().filter(|length| **length < prefix.length());
        let above = shorter.map(|length| prefix.shortened(*length)).find_map(|one| denied.get(&one).copied());
        denied.insert(prefix, is_denied);
        if is_denied != above.unwrap_or(false) {
            written.push((prefix, is_denied));
        }
    }
    // Where there is an allow list, what it does not name is refused.
    let has_allow = written.iter().any(|(_, is_denied)| !is_denied);
    if has_allow && denied.get(&Prefix::ALL) == Some(&false) {
        written.insert(0, (Prefix::ALL, false));
    }
    let mut text =
        format!("# Made by retry-endpoint firewall import of the nftables rules for UDP port {}.\n", nacks.port);
    for (prefix, is_denied) in &written {
        let _ = writeln!(text, "{} {prefix}", if *is_denied { "deny" } else { "allow" });
    }
    let mut warnings: Vec<String> = judge
        .warnings
        .iter()
        .map(|(((family, table, chain), handle), what)| {
            format!(
                "table {family} {table}, chain {chain}, handle {handle}: not imported: {what}: NACKs that this rule decides on are \
                 answered as if it were not there"
            )
        })
        .collect();
    warnings.extend(rules.changing.iter().map(|(family, table, set)| {
        format!("table {family} {table}, set {set}: imported as it is now: its elements come and go by themselves")
    }));
    let count = written.iter().map(|(prefix, _)| prefix.length()).collect::<BTreeSet<_>>().len();
    if count > LENGTHS {
        warnings.push(format!("prefixes of {count} lengths: -acl-file takes at most {LENGTHS}"));
    }
    Imported { rules: text, warnings }
}
