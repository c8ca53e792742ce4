//! What the rules do to NACKs of a source.
//!
//! A source stands for all addresses of a prefix that no longer prefix of any rule holds, so each rule holds all of them or none.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv6Addr;

use retry_common::acl::Prefix;
use serde_json::Value;

use super::ruleset::{Chain, Name, Rule, Ruleset, prefixes};

/// Chains that jump to chains, at most; the kernel takes 16.
const DEEPEST: usize = 16;

/// The NACKs that are meant.
#[derive(Clone, Debug)]
pub(super) struct Nacks {
    /// Their destination port.
    pub(super) port: u16,
    /// Their destination address, where it is known.
    pub(super) address: Option<Ipv6Addr>,
    /// The interface that they come in by, where it is known.
    pub(super) interface: Option<String>,
}

/// What a chain does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Accept,
    Drop,
    /// The chain that jumped here goes on.
    Return,
}

/// Rules that cannot be expressed: the chain, the rule's number, and what is in the way.
pub(super) type Warnings = BTreeMap<(Name, u64), String>;

/// The rules, for NACKs.
pub(super) struct Judge<'a> {
    rules: &'a Ruleset,
    nacks: &'a Nacks,
    pub(super) warnings: Warnings,
    /// What sources are compared with, by the place of the text: sets are long.
    sources: HashMap<*const Value, Sources>,
}

/// Prefixes of a match of sources.
#[derive(Debug, Default)]
struct Sources {
    all: HashSet<Prefix>,
    lengths: BTreeSet<u8>,
    /// True when something is no prefix.
    is_open: bool,
}

impl Sources {
    fn of(all: &[Value]) -> Self {
        let mut found = Self::default();
        for one in all {
            match prefixes(one) {
                Some(prefixes) => {
                    found.lengths.extend(prefixes.iter().map(Prefix::length));
                    found.all.extend(prefixes);
                }
                None => found.is_open = true,
            }
        }
        found
    }

    /// Whether one of them holds all of a prefix.
    fn holds(&self, source: &Prefix) -> Option<bool> {
        let mut lengths = self.lengths.iter().filter(|length| **length <= source.length());
        if lengths.any(|length| self.all.contains(&source.shortened(*length))) {
            return Some(true);
        }
        (!self.is_open).then_some(false)
    }
}

impl<'a> Judge<'a> {
    pub(super) fn new(rules: &'a Ruleset, nacks: &'a Nacks) -> Self {
        Self { rules, nacks, warnings: Warnings::new(), sources: HashMap::new() }
    }

    /// True when a chain that NACKs enter drops or rejects those of a source.
    pub(super) fn drops(&mut self, source: &Prefix) -> bool {
        let rules = self.rules;
        let mut drops = false;
        for (name, chain) in &rules.chains {
            if self.is_entered(name, chain) {
                let outcome = self.run(name, chain, source, 0);
                drops |= outcome == Outcome::Drop || (outcome == Outcome::Return && chain.drops);
            }
        }
        drops
    }

    fn is_entered(&mut self, (family, ..): &Name, chain: &Chain) -> bool {
        let is_here = match (&chain.device, &self.nacks.interface) {
            (Some(device), Some(interface)) => device == interface,
            _ => true,
        };
        let hook = chain.hook.as_deref();
        chain.kind == "filter"
            && is_here
            && match family.as_str() {
                "ip6" | "inet" => matches!(hook, Some("input" | "prerouting" | "ingress")),
                "netdev" => hook == Some("ingress"),
                _ => false,
            }
    }

    fn run(&mut self, name: &Name, chain: &'a Chain, source: &Prefix, depth: usize) -> Outcome {
        for rule in &chain.rules {
            if let Some(outcome) = self.apply(name, rule, source, depth) {
                return outcome;
            }
        }
        Outcome::Return
    }

    /// What a rule does, if it ends the chain.
    fn apply(&mut self, name: &Name, rule: &'a Rule, source: &Prefix, depth: usize) -> Option<Outcome> {
        let mut unknown = None;
        for (kind, value) in &rule.statements {
            match self.holds(name, kind, value, source) {
                Some(true) => {}
                Some(false) => return None,
                None => unknown = unknown.or(Some((kind, value))),
            }
        }
        let (verdict, value) = rule.statements.iter().find(|(kind, _)| is_verdict(kind))?;
        if let Some((kind, value)) = unknown {
            self.warn(name, rule, kind, value);
            return None;
        }
        match verdict.as_str() {
            "accept" => Some(Outcome::Accept),
            "drop" | "reject" => Some(Outcome::Drop),
            "return" => Some(Outcome::Return),
            "jump" | "goto" => {
                let target = value.get("target").and_then(Value::as_str).unwrap_or_default().to_owned();
                let target = (name.0.clone(), name.1.clone(), target);
                let rules = self.rules;
                let Some(chain) = rules.chain(&target).filter(|_| depth < DEEPEST) else {
                    self.warn(name, rule, verdict, value);
                    return None;
                };
                match self.run(&target, chain, source, depth + 1) {
                    Outcome::Return if verdict == "jump" => None,
                    outcome => Some(outcome),
                }
            }
            _ => {
                self.warn(name, rule, verdict, value);
                None
            }
        }
    }

    fn warn(&mut self, name: &Name, rule: &Rule, kind: &str, value: &Value) {
        let text: String = format!("{{\"{kind}\":{value}}}").chars().take(300).collect();
        self.warnings.entry((name.clone(), rule.handle)).or_insert(text);
    }

    /// Whether a statement lets NACKs of a source go on in the rule; `None` when that is not known.
    fn holds(&mut self, name: &Name, kind: &str, value: &'a Value, source: &Prefix) -> Option<bool> {
        match kind {
            "match" => self.matches(name, value, source),
            "counter" | "log" | "mangle" | "notrack" | "comment" => Some(true),
            kind if is_verdict(kind) => Some(true),
            _ => None,
        }
    }

    fn matches(&mut self, name: &Name, value: &'a Value, source: &Prefix) -> Option<bool> {
        let (left, right) = (value.get("left")?, value.get("right")?);
        let is_inverted = match value.get("op").and_then(Value::as_str).unwrap_or("==") {
            "==" | "in" => false,
            "!=" => true,
            _ => return None,
        };
        let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).map(str::to_owned);
        let found = if let Some(payload) = left.get("payload") {
            let (protocol, field) = (text(payload, "protocol")?, text(payload, "field")?);
            match (protocol.as_str(), field.as_str()) {
                ("udp" | "th", "dport") => self.any(name, right, &|one| number(one, self.nacks.port)),
                ("ip6", "saddr") => {
                    let all = self.all(name, right)?;
                    self.sources.entry(std::ptr::from_ref(right)).or_insert_with(|| Sources::of(all)).holds(source)
                }
                ("ip6", "daddr") => self.any(name, right, &|one| self.is_destination(one)),
                ("ip6", "nexthdr") => self.any(name, right, &is_udp),
                ("ether", "type") => self.any(name, right, &|one| Some(one.as_str()? == "ip6")),
                ("udp" | "th" | "ip6" | "ether" | "vlan", _) => None,
                // Headers that no NACK has.
                _ => return Some(false),
            }
        } else if let Some(key) = left.get("meta").and_then(|meta| text(meta, "key")) {
            match key.as_str() {
                "l4proto" => self.any(name, right, &is_udp),
                "nfproto" => self.any(name, right, &|one| Some(one.as_str()? == "ipv6")),
                "protocol" => self.any(name, right, &|one| Some(one.as_str()? == "ip6")),
                "iif" | "iifname" => self.any(name, right, &|one| self.is_interface(one)),
                _ => None,
            }
        } else {
            None
        };
        found.map(|found| found != is_inverted)
    }

    /// True when `is` says so of a value, or of one of a set's; a value that it does not know leaves open what none has answered.
    fn any(&self, name: &Name, right: &'a Value, is: &dyn Fn(&Value) -> Option<bool>) -> Option<bool> {
        let answers: BTreeSet<Option<bool>> = self.all(name, right)?.iter().map(is).collect();
        if answers.contains(&Some(true)) {
            Some(true)
        } else if answers.contains(&None) {
            None
        } else {
            Some(false)
        }
    }

    /// A value, or the values of a set.
    fn all(&self, name: &Name, right: &'a Value) -> Option<&'a [Value]> {
        if let Some(set) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            self.rules.sets.get(&(name.0.clone(), name.1.clone(), set.to_owned())).map(Vec::as_slice)
        } else if let Some(set) = right.get("set") {
            set.as_array().map(Vec::as_slice)
        } else {
            Some(std::slice::from_ref(right))
        }
    }

    fn is_destination(&self, one: &Value) -> Option<bool> {
        let all = prefixes(one)?;
        match self.nacks.address {
            Some(address) => Some(all.iter().any(|one| one.covers(&Prefix::of(address, 128)))),
            // NACKs go to no group.
            None => all.iter().all(|one| one.length() >= 8 && one.bits() >> 120 == 0xff).then_some(false),
        }
    }

    fn is_interface(&self, one: &Value) -> Option<bool> {
        let name = one.as_str()?;
        // The kernel program answers nothing there.
        if name == "lo" {
            return Some(false);
        }
        let interface = self.nacks.interface.as_deref()?;
        Some(name.strip_suffix('*').map_or(name == interface, |start| interface.starts_with(start)))
    }
}

fn is_verdict(kind: &str) -> bool {
    matches!(kind, "accept" | "drop" | "reject" | "return" | "jump" | "goto" | "vmap" | "queue" | "fwd" | "dup" | "xt")
}

fn is_udp(one: &Value) -> Option<bool> {
    Some(one.as_str().map_or_else(|| one.as_u64() == Some(17), |text| text == "udp"))
}

/// Whether a port or a range of ports holds `port`; a name is one of another service.
fn number(one: &Value, port: u16) -> Option<bool> {
    let of = |value: &Value| value.as_u64();
    if let Some([first, last]) = one.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some((of(first)?..=of(last)?).contains(&u64::from(port)));
    }
    if let Some(inner) = one.get("elem").and_then(|elem| elem.get("val")) {
        return number(inner, port);
    }
    of(one).map(|one| one == u64::from(port))
}

/// The prefixes that rules name as sources, in sets too.
pub(super) fn named(rules: &Ruleset) -> BTreeSet<Prefix> {
    let mut found = BTreeSet::from([Prefix::ALL]);
    let mut take = |one: &Value| found.extend(prefixes(one).into_iter().flatten());
    for ((family, table, _), chain) in &rules.chains {
        for (_, value) in chain.rules.iter().flat_map(|rule| &rule.statements).filter(|(kind, _)| kind == "match") {
            let is_source = value.pointer("/left/payload/field").and_then(Value::as_str) == Some("saddr");
            let Some(right) = value.get("right").filter(|_| is_source) else { continue };
            if let Some(set) = right.as_str().and_then(|text| text.strip_prefix('@')) {
                let name = (family.clone(), table.clone(), set.to_owned());
                rules.sets.get(&name).into_iter().flatten().for_each(&mut take);
            } else if let Some(set) = right.get("set").and_then(Value::as_array) {
                set.iter().for_each(&mut take);
            } else {
                take(right);
            }
        }
    }
    found
}
