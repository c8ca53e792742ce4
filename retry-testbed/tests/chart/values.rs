//! The chart's values and its schema, as cases.

use serde_json::Value;

use super::start::Case;

const VALUES: &str = include_str!("field/values.yaml");
const SCHEMA: &str = include_str!("field/values.schema.json");

/// The environment variable that a key of `config` is rendered to.
pub(crate) fn variable(key: &str) -> String {
    key.chars().fold(String::new(), |mut name, letter| {
        if letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
        name
    })
}

/// The variables of all keys of `config` in the chart's values. Nested keys follow their parent's name.
pub(crate) fn all() -> Vec<String> {
    let config = VALUES.lines().skip_while(|line| *line != "config:").skip(1);
    let config = config.take_while(|line| line.is_empty() || line.starts_with(' '));
    let (mut found, mut parent) = (Vec::new(), "");
    for line in config.filter(|line| !line.trim_start().starts_with('#')) {
        let Some((key, value)) = line.trim().split_once(':') else { continue };
        match line.len() - line.trim_start().len() {
            // A key without a value of its own has others below it.
            2 if value.is_empty() => parent = key,
            2 => found.push(variable(key)),
            _ => found.push(format!("{}_{}", variable(parent), variable(key))),
        }
    }
    assert!(found.len() > 60, "the values have been read: {found:?}");
    found
}

/// Every value of a setting that the schema names one by one or bounds.
pub(crate) fn of_the_schema() -> Vec<Case> {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let config = schema["properties"]["config"]["properties"].as_object().expect("the settings");
    let mut cases = Vec::new();
    for (key, rule) in config {
        let name = variable(key);
        cases.extend(allowed(rule).iter().flat_map(|value| with_what_it_needs(&name, value)));
    }
    cases
}

/// The values that one rule of the schema names; none where any text will do.
fn allowed(rule: &Value) -> Vec<String> {
    let kinds: Vec<&str> = match &rule["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    if let Some(words) = rule["enum"].as_array() {
        return words.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    let mut values = Vec::new();
    if kinds.contains(&"boolean") {
        values.extend(["true", "false"].map(str::to_owned));
    }
    values.extend(["minimum", "maximum"].iter().filter_map(|bound| rule[bound].as_number()).map(ToString::to_string));
    values
}

/// A value alone, and where it needs another setting, once without it and once with it.
fn with_what_it_needs(name: &str, value: &str) -> Vec<Case> {
    let case = || Case::of(name, value);
    match (name, value) {
        ("MC_SCOPE", "link" | "org") => {
            let refusal = format!("-scope (from MC_SCOPE) {value}: with -source-mode ssm, site or global is accepted");
            vec![case().refused(&refusal), case().with("SOURCE_MODE", "asm")]
        }
        ("CACHE_BACKEND", "redis") => {
            vec![case().refused("-redis-addr is not set: "), case().with("REDIS_ADDR", "[::1]:6379")]
        }
        ("CACHE_BACKEND", "aerospike") => {
            let stores = "redis is accepted in its place, for Redis, Valkey and Dragonfly";
            vec![case().refused("-cache-backend (from CACHE_BACKEND) aerospike: ").refused(stores)]
        }
        ("PROXY_ENABLED", "true") => vec![
            case().refused("-upstream-retry-endpoints is not set: "),
            case().with("UPSTREAM_RETRY_ENDPOINTS", "[fd10::9]:9300"),
        ],
        // The number of workers and their queue say something only with recovery on.
        ("PROXY_WORKERS" | "PROXY_QUEUE" | "PROXY_MAX_ENDPOINTS", _) => {
            vec![case().with("PROXY_ENABLED", "true").with("UPSTREAM_RETRY_ENDPOINTS", "[fd10::9]:9300")]
        }
        ("BEEF_SHARD_BITS", _) => vec![case(), case().with("BEEF_ENABLED", "true").with("SOURCE_MODE", "asm")],
        ("SHARD_BITS", _) => vec![case(), case().with("SOURCE_MODE", "asm")],
        _ => vec![case()],
    }
}
