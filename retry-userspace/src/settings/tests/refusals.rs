//! The one line that an operator acts on.

use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;

const DURATION: &str = "a duration such as 300ms, 10s, 1m30s or 1.5h is accepted";
const SEVENTEEN: &str = "fd10::1,fd10::2,fd10::3,fd10::4,fd10::5,fd10::6,fd10::7,fd10::8,fd10::9,fd10::a,fd10::b,fd10::c,\
     fd10::d,fd10::e,fd10::f,fd10::10,fd10::11";

#[test]
fn a_value_out_of_bounds() {
    let number = |least: u64, most: u64| format!("a whole number from {least} to {most} is accepted");
    let port = number(1, 65_535);
    let rate = "0, or a number from 0.000001 to 1000000000, is accepted";
    let burst = number(0, u32::MAX.into());
    let budget = "0, or 1024 to 100000000000, is accepted";
    let listen = ":port, address:port or name:port is accepted, IPv6 addresses in brackets";
    let ring = "16m to 64g is accepted (k, m, g, or bytes)";
    let prefixes =
        "an IPv6 address, or address/length with no bit set behind the length, such as fd10::/64, is accepted";
    let truth = "true or false is accepted";
    let unicast = "an IPv6 unicast address such as fd10::20 is accepted";
    let hosts = "IPv6 unicast addresses and DNS names, comma separated, are accepted";
    let interfaces = "1 to 16 interface names, comma separated, none twice, are accepted";
    let life = "1ms to 1176h is accepted";
    let redis = "host:port, redis://host or rediss://host, a comma list of a cluster, or \
                 redis+sentinel://host:port,…/name is accepted";
    for (name, value, accepted) in [
        ("mc-iface", "", "the name of an interface is accepted"),
        ("listen-port", "0", &port),
        ("listen-port", "65536", &port),
        ("scope", "world", "link, site, org, global is accepted"),
        ("mc-group-id", "0x10000", "0x0000 to 0xFFFF, or the same in decimal, is accepted"),
        ("source-mode", "any", "asm, ssm is accepted"),
        ("bind-source", "10.0.0.1", unicast),
        ("shard-bits", "0", &number(1, 12)),
        ("shard-bits", "13", &number(1, 12)),
        ("subtree-data-enabled", "yes", truth),
        ("beef-enabled", "", truth),
        ("beef-shard-bits", "13", &number(0, 12)),
        ("tee-listen", "[fd10::1]:9001", "a loopback address and port such as [::1]:9002 is accepted"),
        ("tee-listen", ":9001", "a loopback address and port such as [::1]:9002 is accepted"),
        ("mc-join-enabled", "2", truth),
        ("ingress-workers", "65", &number(0, 64)),
        ("mc-rejoin-interval", "2h", "0 to 1h is accepted"),
        ("ssm-bootstrap-manifest", "ff05::1", hosts),
        ("ssm-bootstrap-beacon", "a b", hosts),
        ("ssm-bootstrap-subtree-announce", "a,-,b", hosts),
        ("ssm-publishers-static", "10.0.0.1", hosts),
        ("ssm-bootstrap-refresh", "999us", "1ms to 8760h is accepted"),
        ("cache-memory", "15m", ring),
        ("cache-memory", "65g", ring),
        ("cache-memory-long", "0", ring),
        ("cache-max-keys", "1.5", "a whole number is accepted"),
        ("cache-ttl", "0", life),
        ("cache-ttl-tx", "0s", life),
        ("cache-ttl-block", "1177h", life),
        ("cache-ttl-subtree", "10", DURATION),
        ("cache-ttl-anchor", "-1s", DURATION),
        ("cache-ttl-beef", "0", life),
        ("replace-after", "1177h", "0 to 1176h is accepted"),
        ("cache-backend", "disk", "memory, redis is accepted"),
        (
            "cache-backend",
            "aerospike",
            "this program has no client for Aerospike; redis is accepted in its place, for Redis, Valkey and Dragonfly",
        ),
        ("redis-addr", "r", redis),
        ("cache-dial-timeout", "0", "1ms to 8760h is accepted"),
        ("cache-op-timeout", "8761h", "1ms to 8760h is accepted"),
        ("nack-port", "x", &port),
        ("nack-addr", "ff05::1", unicast),
        ("nack-workers", "1025", &number(0, 1024)),
        ("nack-port-shared", "some", truth),
        ("suppress-ack", "on", truth),
        ("suppress-miss", "off", truth),
        ("acl-allow", "fd10::/129", prefixes),
        ("acl-deny", "fd10::/16,10.0.0.1", prefixes),
        ("acl-deny", "fd10::1/16", &format!("{prefixes}; perhaps fd10::/16 is meant")),
        ("acl-file", "a\tb", "the path of a file is accepted"),
        ("proxied-from", "host", prefixes),
        ("publishers", "fd10::1/16", &format!("{prefixes}; perhaps fd10::/16 is meant")),
        ("hop-limit-min", "256", &number(0, 255)),
        ("egress-iface", "", interfaces),
        ("egress-iface", "eth0,eth1,eth0", interfaces),
        ("egress-port", "0", &port),
        ("egress-multicast-loop", "x", truth),
        ("egress-hoplimit", "-1", &number(0, 255)),
        ("egress-hoplimit", "256", &number(0, 255)),
        ("repair-holddown", "61m", "0 to 1h is accepted"),
        ("rl-ip-rate", "1000000001", rate),
        ("rl-ip-burst", "4294967296", &burst),
        ("rl-chain-rate", "1000000001", rate),
        ("rl-chain-window", "999us", "1ms to 8760h is accepted"),
        ("rl-sequence-max", "-0.5", rate),
        ("rl-sequence-window", "8760h1s", "1ms to 8760h is accepted"),
        ("rl-group-rate", "4294967296", rate),
        ("rl-group-burst", "1.5", &burst),
        ("rl-source-bytes", "1023", budget),
        ("rl-total-bytes", "1e+12", budget),
        ("unproven-factor", "1001", &number(0, 1_000)),
        ("rl-throttle-response", "y", truth),
        ("known-listeners", "65537", &number(0, 65_536)),
        ("limit-table-entries", "1023", &number(1024, 16_777_216)),
        ("dedup-window", "8761h", "0 to 8760h is accepted"),
        ("dedup-mode", "sometimes", "eventual, strict is accepted"),
        ("dedup-repeat-after", "1", DURATION),
        ("proxy-enabled", "x", truth),
        ("upstream-retry-endpoints", "up", "host:port, comma separated, IPv6 addresses in brackets, is accepted"),
        ("proxy-timeout", "0", "1ms to 8760h is accepted"),
        ("proxy-max-endpoints", "4294967296", &number(0, u32::MAX.into())),
        ("proxy-dedup-window", "0", "1ms to 8760h is accepted"),
        ("proxy-workers", "1025", &number(0, 1024)),
        ("proxy-queue", "0", &number(1, 100_000_000)),
        ("beacon-enabled", "x", truth),
        ("beacon-tier", "255", &number(0, 254)),
        ("beacon-preference", "256", &number(0, 255)),
        ("beacon-interval", "999ms", "1s to 18h is accepted"),
        ("beacon-interval", "18h1s", "1s to 18h is accepted"),
        ("beacon-scope", "link", "site, org, global, both, all is accepted"),
        ("control-group-compat", "ssm", "asm-only, both, derived is accepted"),
        ("beacon-flags-multicast", "x", truth),
        ("beacon-flags-unicast", "x", truth),
        ("beacon-flags-draining", "x", truth),
        ("xdp", "generic", "auto, native, skb, off is accepted"),
        ("fill", "xdp", "auto, kernel, daemon is accepted"),
        ("bpf-handover", "x", truth),
        ("daemon-lease", "99ms", "100ms to 1h is accepted"),
        ("bpf-lease", "999ms", "1s to 1h is accepted"),
        ("bpffs", "bpf", "an absolute path is accepted"),
        ("bpf-object", "a\tb", "the path of a file is accepted"),
        ("metrics-addr", "9400", listen),
        ("redis-tls-ca", "a\tb", "the path of a file is accepted"),
        ("redis-tls-cert", "a\tb", "the path of a file is accepted"),
        ("redis-tls-key", "a\tb", "the path of a file is accepted"),
        ("redis-retry-policy", "x", "none, exponential is accepted"),
        ("redis-retry-attempts", "0", &number(1, 100)),
        ("redis-retry-delay", "0", "1ms to 1h is accepted"),
        ("redis-retry-factor", "0.9", "a number from 1 to 10 is accepted"),
        ("redis-retry-max-delay", "0", "1ms to 1h is accepted"),
        ("redis-retry-jitter", "x", truth),
        ("redis-retry-breaker", "1001", &number(0, 1000)),
        ("redis-retry-breaker-open", "0", "1ms to 1h is accepted"),
        ("proxy-retry-policy", "x", "none, exponential is accepted"),
        ("proxy-retry-attempts", "0", &number(1, 100)),
        ("proxy-retry-delay", "0", "1ms to 1h is accepted"),
        ("proxy-retry-factor", "0.9", "a number from 1 to 10 is accepted"),
        ("proxy-retry-max-delay", "0", "1ms to 1h is accepted"),
        ("proxy-retry-jitter", "x", truth),
        ("proxy-retry-breaker", "1001", &number(0, 1000)),
        ("proxy-retry-breaker-open", "0", "1ms to 1h is accepted"),
        ("proxy-discover", "x", truth),
        ("proxy-select", "x", "order, hash, rtt is accepted"),
        ("state-dir", "x", "an absolute path is accepted"),
        ("admin-addr", "9401", listen),
        ("admin-token-file", "a\tb", "the path of a file is accepted"),
        ("admin-tls-cert", "a\tb", "the path of a file is accepted"),
        ("admin-tls-key", "a\tb", "the path of a file is accepted"),
        ("admin-tls-client-ca", "a\tb", "the path of a file is accepted"),
        ("drain-timeout", "8761h", "0 to 8760h is accepted"),
        ("shutdown-grace", "8761h", "0 to 8760h is accepted"),
        ("instance", "a\tb", "a name is accepted"),
        ("log-format", "xml", "text, json is accepted"),
        ("log-level", "INFO", "trace, debug, info, warn, error is accepted"),
        ("debug", "x", truth),
        ("latency-histograms", "x", truth),
        ("top-talkers", "101", &number(0, 100)),
        ("otlp-endpoint", "collector", "host:port, http://host:port or https://host:port is accepted"),
        ("otlp-interval", "0", "1ms to 8760h is accepted"),
        ("trace-sampling", "1.1", "a number from 0 to 1 is accepted"),
        ("seccomp", "kill", "on, log, off is accepted"),
        ("config", "a\tb", "the path of a file is accepted"),
        ("env-file", "a\tb", "the path of a file is accepted"),
    ] {
        let shown = if value.is_empty() { "is not set" } else { &value.replace('\t', "\\t") };
        let written = format!("-{name}={value}");
        assert_eq!(refused(&[&written], &[]), (format!("-{name} {shown}: {accepted}"), 1));
        if !value.is_empty() {
            let env = rows::find(name).expect("a setting").env;
            let line = format!("-{name} (from {env}) {shown}: {accepted}");
            assert_eq!(refused(&[], &[(env, value)]), (line, 1));
        }
    }
}

#[test]
fn every_setting_that_can_be_wrong_is_in_the_table_above() {
    let table = include_str!("refusals.rs");
    for flag in all().filter(|flag| !flag.name.starts_with("aerospike-")) {
        assert!(table.contains(&format!("(\"{}\", \"", flag.name)), "{}", flag.name);
    }
}

#[test]
fn settings_that_do_not_fit_together() {
    for (args, expected) in [
        (
            &["-source-mode=ssm", "-scope=link"][..],
            "-scope link: with -source-mode ssm, site or global is accepted".to_owned(),
        ),
        (
            &["-source-mode=ssm", "-scope=org"],
            "-scope org: with -source-mode ssm, site or global is accepted".to_owned(),
        ),
        (
            &["-source-mode=ssm"],
            "-ssm-publishers-static is not set: -source-mode ssm needs it, or one of -ssm-bootstrap-manifest, \
             -ssm-bootstrap-beacon and -ssm-bootstrap-subtree-announce: IPv6 addresses and DNS names, comma separated, are \
             accepted"
                .to_owned(),
        ),
        (
            &["-ssm-publishers-static", SEVENTEEN],
            format!("-ssm-publishers-static {SEVENTEEN}: at most 16 are accepted without -ssm-bootstrap-manifest, not 17"),
        ),
        (
            &["-mc-join-enabled=false"],
            "-tee-listen is not set: -mc-join-enabled=false needs it: a loopback address and port is accepted".to_owned(),
        ),
        (
            &["-cache-backend=redis"],
            "-redis-addr is not set: -cache-backend redis needs it: host:port, redis:// or rediss:// is accepted".to_owned(),
        ),
        (&["-rl-ip-burst=0"], "-rl-ip-burst 0: at least 1 is accepted while -rl-ip-rate is above 0".to_owned()),
        (&["-rl-group-burst=0"], "-rl-group-burst 0: at least 1 is accepted while -rl-group-rate is above 0".to_owned()),
        (
            &["-rl-ip-rate=0.001", "-rl-ip-burst=2e+06"],
            "-rl-ip-burst 2e+06: 1 to 1152922 is accepted at this -rl-ip-rate: more take 36 years to come back".to_owned(),
        ),
        (
            &["-unproven-factor=3", "-known-listeners=0"],
            "-unproven-factor 3: 0 is accepted without known listeners (-known-listeners and -rl-ip-rate above 0) and without \
             an allow list: no address could show that it hears"
                .to_owned(),
        ),
        (
            &["-unproven-factor=3", "-rl-ip-rate=0"],
            "-unproven-factor 3: 0 is accepted without known listeners (-known-listeners and -rl-ip-rate above 0) and without \
             an allow list: no address could show that it hears"
                .to_owned(),
        ),
        (
            &["-proxy-enabled"],
            "-upstream-retry-endpoints is not set: -proxy-enabled needs it, or -proxy-discover: host:port, comma separated, is accepted".to_owned(),
        ),
        (
            &["-upstream-retry-endpoints=up:9300"],
            "-proxy-enabled false: true is accepted with -upstream-retry-endpoints".to_owned(),
        ),
        (&["-proxy-discover"], "-proxy-enabled false: true is accepted with -proxy-discover".to_owned()),
        (
            &["-redis-tls-ca=/ca.pem", "-redis-addr=redis://r"],
            "-redis-tls-ca /ca.pem: it is accepted with rediss:// in -redis-addr".to_owned(),
        ),
        (
            &["-redis-tls-cert=/c.pem", "-redis-tls-key=/k.pem"],
            "-redis-tls-cert /c.pem: it is accepted with rediss:// in -redis-addr".to_owned(),
        ),
        (
            &["-redis-tls-cert=/c.pem"],
            "-redis-tls-key is not set: -redis-tls-cert needs it: a file is accepted".to_owned(),
        ),
        (
            &["-admin-addr=[::1]:9401", "-admin-tls-cert=/c.pem"],
            "-admin-tls-key is not set: -admin-tls-cert needs it: a file is accepted".to_owned(),
        ),
        (
            &["-admin-addr=[::1]:9401", "-admin-tls-key=/k.pem"],
            "-admin-tls-cert is not set: -admin-tls-key needs it: a file is accepted".to_owned(),
        ),
        (
            &["-admin-addr=[::1]:9401", "-admin-tls-client-ca=/ca.pem"],
            "-admin-tls-cert is not set: -admin-tls-client-ca needs it: a file is accepted".to_owned(),
        ),
        (
            &["-admin-tls-cert=/c.pem", "-admin-tls-key=/k.pem"],
            "-admin-addr is not set: -admin-tls-cert needs it: address:port, name:port or :port is accepted".to_owned(),
        ),
        (
            &["-admin-addr=:9401", "-admin-tls-cert=/c.pem", "-admin-tls-key=/k.pem"],
            "-admin-addr :9401: a loopback address is accepted, or any with -admin-token-file, ADMIN_TOKEN or \
             -admin-tls-client-ca"
                .to_owned(),
        ),
        (
            &["-redis-tls-key=/k.pem"],
            "-redis-tls-cert is not set: -redis-tls-key needs it: a file is accepted".to_owned(),
        ),
        (
            &["-admin-addr=:9401"],
            "-admin-addr :9401: a loopback address is accepted, or any with -admin-token-file, ADMIN_TOKEN or \
             -admin-tls-client-ca"
                .to_owned(),
        ),
        (
            &["-dedup-repeat-after=61s"],
            "-dedup-repeat-after 61s: 0 to 60s, the -dedup-window, is accepted".to_owned(),
        ),
        (
            &["-dedup-window=1s", "-dedup-repeat-after=1001ms"],
            "-dedup-repeat-after 1001ms: 0 to 1s, the -dedup-window, is accepted".to_owned(),
        ),
    ] {
        assert_eq!(refused(args, &[]), (expected, 1));
    }
    started(&["-rl-group-rate=0", "-rl-group-burst=0", "-dedup-window=1s", "-dedup-repeat-after=1s"], &[]);
    started(&["-beacon-flags-multicast=false", "-beacon-flags-unicast"], &[]);
}

#[test]
fn a_command_line_that_is_none() {
    for (args, expected) in [
        (&["-qqq"][..], "-qqq: there is no such setting"),
        (&["--qqq=1"], "-qqq: there is no such setting"),
        (&["-nack-prot", "1"], "-nack-prot: there is no such setting; did you mean -nack-port?"),
        (&["-nack-port"], "-nack-port: a value is missing"),
        (&["-debug", "--shard-bits"], "-shard-bits: a value is missing"),
        (&["-debug", "false"], "false: settings begin with a dash, and a switch takes its value as -name=value"),
        (&["start"], "start: settings begin with a dash, and a switch takes its value as -name=value"),
        (&["--", "-debug"], "unexpected argument '-debug' found"),
        (&["-x"], "-x: there is no such setting"),
    ] {
        assert_eq!(refused(args, &[]), (format!("{expected} (-help lists all settings)"), 2), "{args:?}");
    }
    let raw = OsString::from_vec(b"-instance=\xff".to_vec());
    let stop = Settings::from_args_and_env(["p".into(), raw].into_iter(), |_| None::<String>).expect_err("not UTF-8");
    assert_eq!(
        (stop.to_string().as_str(), stop.code()),
        ("--instance=\u{fffd}: UTF-8 is accepted (-help lists all settings)", 2)
    );
}

#[test]
fn a_variable_that_is_not_utf_8() {
    let env = |name: &str| (name == "MC_IFACE").then(|| OsString::from_vec(b"eth\xff".to_vec()));
    let stop = Settings::from_args_and_env(words(&[]), env).expect_err("not UTF-8");
    assert_eq!(
        (stop.to_string().as_str(), stop.code()),
        ("-mc-iface (from MC_IFACE) eth\u{fffd}: UTF-8 is accepted", 1)
    );
}

#[test]
fn a_password_is_never_shown() {
    let settings = started(&[], &[("REDIS_ADDR", "redis://me:secret@r:6379"), ("ADMIN_TOKEN", "keep-this")]);
    assert_eq!(in_force(&settings, "redis-addr").0, "redis://***@r:6379");
    assert_eq!(settings.admin.token.as_ref().map(|token| token.0.as_str()), Some("keep-this"));
    let shown = format!("{settings:?}");
    assert!(!shown.contains("secret") && !shown.contains("keep-this"), "{shown}");
    let (line, _) = refused(&["-redis-addr=redis://me:secret@r:x"], &[]);
    assert!(!line.contains("secret"), "{line}");
}

#[test]
fn a_token_is_one_word_of_a_file_or_a_variable() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    let path = file.to_str().expect("UTF-8");
    let arg = format!("-admin-token-file={path}");
    for (text, token) in
        [("word", Some("word")), ("word\n", Some("word")), ("", None), ("\n", None), ("two words", None)]
    {
        std::fs::write(&file, text).expect("written");
        match token {
            // The file counts, not the variable.
            Some(token) => {
                let settings = started(&[&arg, "-admin-addr=:9401"], &[("ADMIN_TOKEN", "another")]);
                assert_eq!(settings.admin.token, Some(AdminToken(token.to_owned())));
            }
            None => {
                let expected =
                    format!("-admin-token-file {path}: a file with one line, the token, without spaces is accepted");
                assert_eq!(refused(&[&arg], &[]), (expected, 1));
            }
        }
    }
    std::fs::remove_file(&file).expect("removed");
    assert!(refused(&[&arg], &[]).0.starts_with(&format!("-admin-token-file {path}: a readable file is accepted: ")));
    assert_eq!(
        refused(&[], &[("ADMIN_TOKEN", "a b")]),
        ("ADMIN_TOKEN ***: a token without spaces is accepted".to_owned(), 1)
    );
    assert!(started(&["-admin-addr=[::]:9401"], &[("ADMIN_TOKEN", "word")]).admin.token.is_some());
}

proptest! {
    #[test]
    fn whatever_is_written_the_refusal_is_one_line(
        args in prop::collection::vec(prop_oneof!["-{1,2}(nack-port|debug|egress-iface|cache-ttl|x)(=\\PC{0,9})?", "[\\PC\\n]{0,9}"], 0..4),
        value in "[\\PC\\n\\x00]{0,12}",
        which in 0..SAMPLES.len(),
    ) {
        let env = rows::find(SAMPLES[which].0).expect("a setting").env;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if let Err(stop) = start(&args, &[(env, &value)])
            && stop.code() != 0
        {
            let line = stop.to_string();
            prop_assert!(!line.contains(char::is_control) && !line.is_empty(), "{:?}", line);
        }
    }
}
