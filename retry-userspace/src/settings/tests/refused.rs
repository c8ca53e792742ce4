//! What is refused, and what the one line says.

use super::*;

/// Setting, bad value, a part of what is accepted.
const BAD: &[(&str, &str, &str)] = &[
    ("mc-iface", "", "name of an interface"),
    ("listen-port", "0", "1 to 65535"),
    ("listen-port", "65536", "1 to 65535"),
    ("scope", "host", "link, site, org, global"),
    ("scope", "Site", "link, site, org, global"),
    ("mc-group-id", "0x10000", "0xFFFF"),
    ("mc-group-id", "-1", "0xFFFF"),
    ("mc-group-id", "0x", "0xFFFF"),
    ("mc-group-id", "B", "0xFFFF"),
    ("bind-source", "10.0.0.1", "IPv6"),
    ("bind-source", "ff05::1", "IPv6 unicast"),
    ("bind-source", "::", "IPv6 unicast"),
    ("shard-bits", "0", "1 to 12"),
    ("shard-bits", "13", "1 to 12"),
    ("subtree-data-enabled", "yes", "true or false"),
    ("beef-enabled", "2", "true or false"),
    ("beef-shard-bits", "13", "0 to 12"),
    ("cache-memory", "15m", "16m to 64g"),
    ("cache-memory", "256MB", "16m to 64g"),
    ("cache-memory", "65g", "16m to 64g"),
    ("cache-memory", "", "16m to 64g"),
    ("cache-memory-long", "15m", "16m to 64g"),
    ("cache-ttl", "0", "1ms to"),
    ("cache-ttl", "60", "duration"),
    ("cache-ttl", "-1s", "duration"),
    ("cache-ttl", "", "duration"),
    ("cache-ttl-tx", "0s", "1ms to"),
    ("cache-ttl-block", "0s", "1ms to"),
    ("cache-ttl-subtree", "0s", "1ms to"),
    ("cache-ttl-anchor", "0s", "1ms to"),
    ("cache-ttl-beef", "0s", "1ms to"),
    ("cache-ttl-block", "1177h", "1176h"),
    ("cache-max-keys", "-1", "0 to"),
    ("cache-max-keys", "4294967296", "0 to 4294967295"),
    ("nack-port", "0", "1 to 65535"),
    ("nack-port", "", "1 to 65535"),
    ("nack-port", "http", "1 to 65535"),
    ("nack-port", "9300\nretry-endpoint: all is well", "1 to 65535"),
    ("nack-addr", "fe80::1%eth0", "IPv6"),
    ("nack-addr", "ff05::1", "IPv6 unicast"),
    ("nack-addr", "host", "IPv6"),
    ("nack-workers", "0", "1 to 1024"),
    ("nack-workers", "1025", "1 to 1024"),
    ("suppress-ack", "on", "true or false"),
    ("suppress-miss", "", "true or false"),
    ("egress-iface", "", "interface names"),
    ("egress-iface", "a,,b", "interface names"),
    ("egress-iface", "a,b,a", "none twice"),
    ("egress-iface", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q", "1 to 16"),
    ("egress-port", "0", "1 to 65535"),
    ("egress-multicast-loop", "x", "true or false"),
    ("egress-hoplimit", "0", "1 to 255"),
    ("egress-hoplimit", "256", "1 to 255"),
    ("repair-holddown", "-1ms", "duration"),
    ("repair-holddown", "2h", "1h"),
    ("rl-ip-rate", "-5", "0 to 1000000000"),
    ("rl-ip-rate", "1000000001", "0 to 1000000000"),
    ("rl-ip-rate", "1e3", "whole number"),
    ("rl-ip-burst", "0", "1 to 1000000"),
    ("rl-chain-rate", "1000001", "0 to 1000000"),
    ("rl-chain-window", "0", "1ms to 1h"),
    ("rl-chain-window", "61m", "1ms to 1h"),
    ("rl-sequence-max", "1000001", "0 to 1000000"),
    ("rl-sequence-window", "999us", "1ms to 1h"),
    ("rl-group-rate", "-1", "0 to 1000000000"),
    ("rl-group-burst", "0", "1 to 1000000"),
    ("rl-throttle-response", "maybe", "true or false"),
    ("limit-table-entries", "1023", "1024 to 16777216"),
    ("limit-table-entries", "16777217", "1024 to 16777216"),
    ("beacon-enabled", "x", "true or false"),
    ("beacon-tier", "255", "0 to 254"),
    ("beacon-preference", "256", "0 to 255"),
    ("beacon-interval", "999ms", "1s to 18h"),
    ("beacon-interval", "19h", "1s to 18h"),
    ("beacon-scope", "link", "site, org, global, both"),
    ("beacon-flags-multicast", "x", "true or false"),
    ("beacon-flags-unicast", "x", "true or false"),
    ("beacon-flags-draining", "x", "true or false"),
    ("xdp", "generic", "auto, native, skb, off"),
    ("xdp-lease", "999ms", "1s to 1h"),
    ("bpffs", "", "absolute path"),
    ("bpffs", "bpf", "absolute path"),
    ("metrics-addr", "9400", "address:port"),
    ("metrics-addr", "", "address:port"),
    ("metrics-addr", "localhost:9400", "address:port"),
    ("log-format", "xml", "text, json"),
    ("log-level", "verbose", "trace, debug, info, warn, error"),
    ("log-level", "INFO", "trace, debug, info, warn, error"),
    ("debug", "x", "true or false"),
];

/// Settings that take any text.
const FREE: &[&str] = &["instance"];

#[test]
fn a_bad_value_is_one_line_with_setting_value_and_what_is_accepted() {
    for (name, bad, accepted) in BAD {
        let (code, line) = refusal(&[&format!("-{name}={bad}")], &[]);
        assert_eq!(code, 1, "{line}");
        let shown = if bad.is_empty() { "is not set" } else { bad.lines().next().expect("a line") };
        assert!(line.starts_with(&format!("-{name} {shown}")), "-{name}={bad}: {line}");
        assert!(line.contains(accepted) && line.contains("accepted"), "{line}");

        if !bad.is_empty() {
            let flag = FLAGS.iter().find(|flag| flag.name == *name).expect("the setting exists");
            let (code, line) = refusal(&[], &[(&flag.env(), bad)]);
            assert_eq!(code, 1, "{line}");
            assert!(line.starts_with(&format!("-{name} (from {}) {shown}", flag.env())), "{line}");
        }
    }
    for flag in FLAGS.iter().filter(|flag| !flag.later && !FREE.contains(&flag.name)) {
        assert!(BAD.iter().any(|(name, ..)| *name == flag.name), "-{} has a bad value in the table", flag.name);
    }
}

#[test]
fn a_bad_value_behind_an_alias_names_the_variable_that_set_it() {
    let (code, line) = refusal(&[], &[("RL_SENDER_RATE", "x")]);
    assert_eq!((code, line.starts_with("-rl-chain-rate (from RL_SENDER_RATE) x: ")), (1, true), "{line}");
}

#[test]
fn a_negative_number_is_a_value_and_not_a_flag() {
    for args in [&["-rl-ip-rate=-5"][..], &["-rl-ip-rate", "-5"]] {
        let (code, line) = refusal(args, &[]);
        assert_eq!((code, line.starts_with("-rl-ip-rate -5: ")), (1, true), "{line}");
    }
}

/// Setting, a value that needs what does not exist yet, other ways to write the default.
const LATER: &[(&str, &str, &[&str])] = &[
    ("source-mode", "ssm", &["asm"]),
    ("ssm-bootstrap-manifest", "fd10::1", &[""]),
    ("ssm-bootstrap-beacon", "fd10::1", &[""]),
    ("ssm-bootstrap-subtree-announce", "fd10::1", &[""]),
    ("ssm-publishers-static", "fd10::1", &[""]),
    ("ssm-bootstrap-refresh", "31s", &["30s", "30000ms", "0.5m"]),
    ("cache-backend", "redis", &["memory"]),
    ("redis-addr", "localhost:6379", &[""]),
    ("cache-dial-timeout", "2s", &["1s", "1000ms"]),
    ("cache-op-timeout", "2s", &["1s"]),
    ("dedup-window", "59s", &["60s", "1m", "1m0s"]),
    ("dedup-mode", "strict", &["eventual"]),
    ("dedup-repeat-after", "2s", &["1s"]),
    ("proxy-enabled", "true", &["false", "0", "F"]),
    ("upstream-retry-endpoints", "upstream:9300", &[""]),
    ("proxy-timeout", "1s", &["300ms", "0.3s"]),
    ("proxy-max-endpoints", "1", &["0"]),
    ("proxy-dedup-window", "1s", &["60s", "1m"]),
    ("proxy-workers", "5", &["4"]),
    ("proxy-queue", "1", &["1024"]),
    ("tee-listen", "[::1]:9999", &[""]),
    ("mc-join-enabled", "false", &["true", "1"]),
    ("drain-timeout", "5s", &["0s", "0", "0ms"]),
    ("otlp-endpoint", "collector:4317", &[""]),
    ("otlp-interval", "10s", &["30s"]),
    ("trace-sampling", "0.1", &["0", "0.0"]),
];

/// Charts write defaults out: those pass. Anything else would be silently without effect.
#[test]
fn what_is_not_built_yet_is_refused_unless_it_is_the_default() {
    for (name, other, defaults) in LATER {
        let flag = FLAGS.iter().find(|flag| flag.name == *name && flag.later);
        let flag = flag.unwrap_or_else(|| panic!("-{name} is for later"));
        let (code, line) = refusal(&[&format!("-{name}={other}")], &[]);
        assert_eq!(code, 1, "{line}");
        assert!(line.starts_with(&format!("-{name} {other}: not available yet")), "{line}");
        let (code, line) = refusal(&[], &[(&flag.env(), other)]);
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(&flag.env()) && line.contains("not available yet"), "{line}");
        for default in *defaults {
            of(&[&format!("-{name}={default}")]);
            parse(&[], &[(&flag.env(), default)]).unwrap_or_else(|stop| panic!("{stop}"));
        }
    }
    for flag in FLAGS.iter().filter(|flag| flag.later) {
        assert!(LATER.iter().any(|(name, ..)| *name == flag.name), "-{} stands in the table", flag.name);
    }
}

#[test]
fn settings_that_contradict_each_other() {
    let (code, line) = refusal(&["-beacon-flags-multicast=false"], &[]);
    assert_eq!(code, 1);
    assert!(line.contains("-beacon-flags-multicast false") && line.contains("-beacon-flags-unicast"), "{line}");
    let (code, line) = refusal(&["-beacon-flags-unicast=false"], &[("BEACON_FLAGS_MULTICAST", "0")]);
    assert!(code == 1 && line.contains("(from BEACON_FLAGS_MULTICAST) 0"), "{line}");
    let repair = of(&["-beacon-flags-multicast=false", "-beacon-flags-unicast"]).repair;
    assert_eq!((repair.multicast, repair.unicast), (false, true));
}
