//! How a setting may be written.

use super::*;

#[test]
fn values_in_every_form() {
    for args in [
        &["-nack-port", "9999"][..],
        &["-nack-port=9999"],
        &["--nack-port", "9999"],
        &["--nack-port=9999"],
        &["-nack-port", "1", "--nack-port=9999"],
        &["-debug", "-nack-port", "9999", "-suppress-ack"],
    ] {
        assert_eq!(started(args, &[]).nack.port, 9999, "{args:?}");
    }
}

#[test]
fn switches_in_every_form() {
    for (args, expected) in [
        (&["-suppress-ack"][..], true),
        (&["--suppress-ack"], true),
        (&["-suppress-ack=true"], true),
        (&["-suppress-ack=1"], true),
        (&["-suppress-ack=T"], true),
        (&["--suppress-ack=False"], false),
        (&["-suppress-ack=0"], false),
        (&["-suppress-ack", "-suppress-ack=false"], false),
        (&["-suppress-ack", "-debug"], true),
    ] {
        assert_eq!(started(args, &[]).nack.suppress_ack, expected, "{args:?}");
    }
    assert!(!started(&["-beacon-enabled=false"], &[]).beacon.enabled);
    for (text, expected) in [("true", true), ("t", true), ("1", true), ("FALSE", false), ("0", false)] {
        assert_eq!(started(&[], &[("SUPPRESS_ACK", text)]).nack.suppress_ack, expected, "{text}");
    }
}

#[test]
fn a_value_may_look_like_a_flag_or_be_empty() {
    assert_eq!(started(&["-instance", "-debug"], &[]).telemetry.instance, "-debug");
    assert_eq!(started(&["-instance", "--"], &[]).telemetry.instance, "--");
    assert_eq!(started(&["-instance", "a=b"], &[]).telemetry.instance, "a=b");
    assert_eq!(started(&["-instance=a=b"], &[]).telemetry.instance, "a=b");
    let nowhere = started(&["-nack-addr", ""], &[("NACK_ADDR", "fd10::20")]);
    assert_eq!(nowhere.nack.addr, None, "an empty flag still beats the variable");
}

#[test]
fn an_empty_variable_is_not_set() {
    let settings = started(&[], &[("NACK_PORT", ""), ("SUPPRESS_ACK", ""), ("CACHE_TTL", ""), ("INSTANCE_ID", "")]);
    assert_eq!((settings.nack.port, settings.nack.suppress_ack), (9300, false));
    assert_eq!(in_force(&settings, "cache-ttl").1, SetBy::Default);
    assert_eq!(in_force(&settings, "instance").1, SetBy::Default);
}

#[test]
fn variables_are_upper_snake_case_but_for_three() {
    for flag in all() {
        let expected = match flag.name {
            "scope" => "MC_SCOPE".to_owned(),
            "instance" => "INSTANCE_ID".to_owned(),
            name => name.to_uppercase().replace('-', "_"),
        };
        assert_eq!(flag.env, expected);
    }
    assert_eq!(rows::find("egress-hoplimit").expect("a setting").env, "EGRESS_HOPLIMIT");
    assert_eq!(in_force(&started(&[], &[("SCOPE", "org"), ("INSTANCE", "i")]), "scope").1, SetBy::Default);
}

#[test]
fn the_old_names_of_the_chain_limit_work() {
    let limits = started(&["-rl-sender-rate", "7", "--rl-sender-window=2s"], &[]).limits;
    assert_eq!((limits.chain_rate, limits.chain_window), (7, Duration::from_secs(2)));
    let (line, _) = refused(&["-rl-sender-rate", "-5"], &[]);
    assert_eq!(line, "-rl-chain-rate -5: 0, or a number from 0.000001 to 1000000000, is accepted");
    let limits = started(&[], &[("RL_SENDER_RATE", "7"), ("RL_SENDER_WINDOW", "2s")]).limits;
    assert_eq!((limits.chain_rate, limits.chain_window), (7, Duration::from_secs(2)));
    assert_eq!(started(&[], &[("RL_SENDER_RATE", "7"), ("RL_CHAIN_RATE", "8")]).limits.chain_rate, 8);
    assert_eq!(started(&[], &[("RL_SENDER_RATE", "7"), ("RL_CHAIN_RATE", "")]).limits.chain_rate, 7);
    assert_eq!(started(&["-rl-sender-rate=6"], &[("RL_CHAIN_RATE", "8")]).limits.chain_rate, 6);
}

#[test]
fn help_and_version_are_asked_for() {
    for arg in ["-h", "-help", "--help"] {
        // Whatever else stands there.
        let stop = start(&["-nack-port=0", arg], &[("SHARD_BITS", "99")]).expect_err("help");
        assert_eq!((stop.code(), stop.to_stdout()), (0, true), "{arg}");
        let text = stop.to_string();
        for flag in all() {
            assert!(text.contains(&format!("--{}", flag.name)) && text.contains(flag.env), "{}", flag.name);
        }
    }
    for arg in ["-version", "--version"] {
        let stop = start(&[arg], &[]).expect_err("version");
        assert_eq!((stop.code(), stop.to_stdout()), (0, true), "{arg}");
        let says = stop.to_string();
        assert!(says.starts_with(concat!("retry-endpoint ", env!("CARGO_PKG_VERSION"), " (commit ")), "{says}");
        assert!(says.contains(", built ") && says.lines().count() == 1, "{says}");
    }
}
