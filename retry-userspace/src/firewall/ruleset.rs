//! What `nft -j list ruleset` prints (libnftables-json(5)), as far as it may concern NACKs.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv6Addr;

use retry_common::acl::Prefix;
use serde_json::Value;

/// The name of a chain or set: its family, its table and its own.
pub(super) type Name = (String, String, String);

/// One rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Its number in nft's lists.
    pub(super) handle: u64,
    /// Its statements, in their order.
    pub(super) statements: Vec<(String, Value)>,
}

/// One chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Where packets enter it; `None`: from other chains alone.
    pub(super) hook: Option<String>,
    /// `filter`, `nat` or `route`.
    pub(super) kind: String,
    /// The interface of an ingress chain.
    pub(super) device: Option<String>,
    /// True when it drops what no rule decides.
    pub(super) drops: bool,
    /// Its rules, in their order.
    pub(super) rules: Vec<Rule>,
}

/// All that is listed.
#[derive(Clone, Debug, Default)]
pub(super) struct Ruleset {
    /// Chains, in their order.
    pub(super) chains: Vec<(Name, Chain)>,
    /// Elements of named sets.
    pub(super) sets: HashMap<Name, Vec<Value>>,
    /// Sets whose elements come and go by themselves.
    pub(super) changing: BTreeSet<Name>,
}

impl Ruleset {
    /// What was printed.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|error| format!("the rules are no JSON: {error}"))?;
        let list = whole
            .get("nftables")
            .and_then(Value::as_array)
            .ok_or("the rules are not those of `nft -j list ruleset`")?;
        let mut found = Self::default();
        for object in list.iter().filter_map(Value::as_object) {
            for (kind, object) in object {
                match kind.as_str() {
                    "chain" => found.chains.push((name(object, "name"), chain(object))),
                    "set" | "map" => {
                        let elements = object.get("elem").and_then(Value::as_array).cloned().unwrap_or_default();
                        let flags = object.get("flags").map(Value::to_string).unwrap_or_default();
                        if flags.contains("dynamic") || flags.contains("timeout") {
                            found.changing.insert(name(object, "name"));
                        }
                        found.sets.insert(name(object, "name"), elements);
                    }
                    "rule" => {
                        let of = name(object, "chain");
                        if let Some((_, chain)) = found.chains.iter_mut().find(|(name, _)| *name == of) {
                            chain.rules.push(rule(object));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// The chain of a name.
    pub(super) fn chain(&self, wanted: &Name) -> Option<&Chain> {
        self.chains.iter().find(|(name, _)| name == wanted).map(|(_, chain)| chain)
    }
}

fn text(of: &Value, key: &str) -> Option<String> {
    of.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn name(of: &Value, key: &str) -> Name {
    let text = |key| text(of, key).unwrap_or_default();
    (text("family"), text("table"), text(key))
}

fn chain(of: &Value) -> Chain {
    Chain {
        hook: text(of, "hook"),
        kind: text(of, "type").unwrap_or_default(),
        device: text(of, "dev"),
        drops: text(of, "policy").as_deref() == Some("drop"),
        rules: Vec::new(),
    }
}

fn rule(of: &Value) -> Rule {
    let statements = of.get("expr").and_then(Value::as_array).into_iter().flatten();
    let statements = statements.filter_map(Value::as_object).flatten();
    Rule {
        handle: of.get("handle").and_then(Value::as_u64).unwrap_or(0),
        statements: statements.map(|(kind, value)| (kind.clone(), value.clone())).collect(),
    }
}

/// The prefixes of an element: an address, a prefix, or a range.
pub(super) fn prefixes(element: &Value) -> Option<Vec<Prefix>> {
    if let Some(text) = element.as_str() {
        return Some(vec![Prefix::of(text.parse().ok()?, 128)]);
    }
    if let Some(prefix) = element.get("prefix") {
        let length =
            prefix.get("len")?.as_u64().and_then(|length| u8::try_from(length).ok()).filter(|length| *length <= 128)?;
        return Some(vec![Prefix::of(prefix.get("addr")?.as_str()?.parse().ok()?, length)]);
    }
    if let Some([first, last]) = element.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        let address = |value: &Value| value.as_str()?.parse::<Ipv6Addr>().ok().map(Ipv6Addr::to_bits);
        return Some(range(address(first)?, address(last)?));
    }
    // With a timeout, a counter or a comment of its own.
    prefixes(element.get("elem")?.get("val")?)
}

/// The fewest prefixes that hold the addresses from `first` to `last`.
pub(super) fn range(mut first: u128, last: u128) -> Vec<Prefix> {
    let mut found = Vec::new();
    while first <= last {
        // As many addresses as begin there and do not go beyond the end.
        let free = (0..=128u32).rev().find(|bits| {
            let block = 1u128.checked_shl(*bits).map_or(u128::MAX, |size| size - 1);
            first & block == 0 && first.checked_add(block).is_some_and(|end| end <= last)
        });
        let free = free.unwrap_or(0);
        found.push(Prefix::of(first.into(), u8::try_from(128 - free).unwrap_or(128)));
        let Some(next) = 1u128.checked_shl(free).and_then(|size| first.checked_add(size)) else { break };
        first = next;
    }
    found
}
