//! Ways of writing, and who beats whom.

use super::*;

fn port(args: &[&str], env: &[(&str, &str)]) -> u16 {
    parse(args, env).unwrap_or_else(|stop| panic!("{args:?} {env:?}: {stop}")).nack.port
}

#[test]
fn every_form_of_a_value() {
    for args in [
        &["-nack-port", "9311"][..],
        &["-nack-port=9311"],
        &["--nack-port", "9311"],
        &["--nack-port=9311"],
        &["-debug", "-nack-port", "9311"],
        &["-nack-port", "9311", "-debug"],
        &["-nack-port", "1", "--nack-port=9311"],
        &["-nack-port=1", "-nack-port", "9311"],
    ] {
        assert_eq!(port(args, &[]), 9311, "{args:?}");
    }
}

#[test]
fn every_form_of_a_switch() {
    for (args, expected) in [
        (&[][..], false),
        (&["-suppress-ack"], true),
        (&["--suppress-ack"], true),
        (&["-suppress-ack=true"], true),
        (&["--suppress-ack=T"], true),
        (&["-suppress-ack=1"], true),
        (&["-suppress-ack=false"], false),
        (&["--suppress-ack=0"], false),
        (&["-suppress-ack", "-suppress-ack=false"], false),
        (&["-suppress-ack=false", "-suppress-ack"], true),
        (&["-suppress-ack", "-nack-port", "9311"], true),
    ] {
        assert_eq!(of(args).nack.suppress_ack, expected, "{args:?}");
    }
    assert!(!of(&["-beacon-enabled=false"]).beacon.enabled, "a switch that is on by default");
    assert!(parse(&[], &[("SUPPRESS_ACK", "TRUE")]).expect("accepted").nack.suppress_ack);
    // As in Go, the word after a switch is not its value: it is left over, and not ignored.
    assert_eq!(refusal(&["-suppress-ack", "true"], &[]).0, 2);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_default() {
    assert_eq!(port(&[], &[]), 9300);
    assert_eq!(port(&[], &[("NACK_PORT", "9301")]), 9301);
    assert_eq!(port(&["-nack-port", "9302"], &[("NACK_PORT", "9301")]), 9302);
    assert_eq!(port(&["-nack-port", "9300"], &[("NACK_PORT", "9301")]), 9300, "also with the default's value");
    assert_eq!(port(&["-nack-port", "9302"], &[("NACK_PORT", "nonsense")]), 9302, "what is beaten is not read");
    let debug = |args: &[&str], env: &[(&str, &str)]| parse(args, env).expect("accepted").telemetry.debug;
    assert!(!debug(&["-debug=false"], &[("DEBUG", "true")]));
    assert!(debug(&["-debug"], &[("DEBUG", "false")]));
}

#[test]
fn an_empty_variable_is_unset() {
    assert_eq!(port(&[], &[("NACK_PORT", "")]), 9300);
    let settings =
        parse(&[], &[("MC_IFACE", ""), ("CACHE_TTL", ""), ("DEBUG", ""), ("REDIS_ADDR", "")]).expect("accepted");
    assert_eq!(text(&settings, "mc-iface"), ("eth0", SetBy::Default));
    assert_eq!(settings.cache.ttl(Class::Block).as_secs(), 600);
    assert_eq!(parse(&[], &[("RL_CHAIN_RATE", ""), ("RL_SENDER_RATE", "8")]).expect("accepted").limits.chain_rate, 8);
}

/// Only the variables of the table are read: a scope in `SCOPE` or an instance in `INSTANCE` is somebody else's.
#[test]
fn other_variables_mean_nothing() {
    let settings = parse(&[], &[("SCOPE", "nonsense"), ("INSTANCE", "x"), ("nack-port", "1")]).expect("accepted");
    assert_eq!(text(&settings, "scope"), ("site", SetBy::Default));
    assert_ne!(settings.telemetry.instance, "x");
    assert_eq!(settings.nack.port, 9300);
}

#[test]
fn a_value_may_begin_with_a_dash_behind_an_equals_sign() {
    assert_eq!(of(&["-instance=-a"]).telemetry.instance, "-a");
    assert_eq!(of(&["-instance=--a=b"]).telemetry.instance, "--a=b");
    assert_eq!(of(&["-instance", "-5"]).telemetry.instance, "-5", "a number");
    // Elsewhere it is a flag whose neighbour lost its value: no interface gets the name of a flag.
    let (code, line) = refusal(&["-mc-iface", "-debug"], &[]);
    assert!(code == 2 && line.contains("mc-iface"), "{line}");
}

#[test]
fn help_and_version() {
    for args in [&["-help"], &["--help"], &["-h"], &["-version"], &["--version"], &["-V"]] {
        let stop = parse(args, &[]).expect_err("ends");
        assert_eq!((stop.code(), stop.to_stdout()), (0, true), "{args:?}");
    }
    let help = parse(&["-help"], &[]).expect_err("ends").to_string();
    for flag in FLAGS {
        assert!(help.contains(&format!("--{}", flag.name)), "{} in\n{help}", flag.name);
        assert!(help.contains(&flag.env()), "{} in\n{help}", flag.env());
    }
    let version = parse(&["-version"], &[]).expect_err("ends").to_string();
    assert_eq!(version, format!("retry-endpoint {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(parse(&["-nack-port", "0", "-help"], &[]).expect_err("ends").code(), 0, "help comes before values");
}

#[test]
fn usage_is_one_line_and_code_2() {
    for (args, named) in [
        (&["-no-such-flag"][..], "no-such-flag"),
        (&["-no-such-flag=1"], "no-such-flag"),
        (&["--no-such-flag", "1"], "no-such-flag"),
        (&["-nack-prot", "1"], "nack-prot"),
        (&["-NACK-PORT", "1"], "-N"),
        (&["-x"], "-x"),
        (&["-5"], "-5"),
        (&["word"], "word"),
        (&["-"], "-"),
        (&["--", "word"], "word"),
        (&["-nack-port"], "nack-port"),
        (&["-debug", "--nack-port"], "nack-port"),
        (&["-help=yes"], "help"),
        (&["-two\nlines"], "two"),
    ] {
        let (code, line) = refusal(args, &[]);
        assert_eq!(code, 2, "{args:?}: {line}");
        assert!(line.contains(named) && line.contains("-help"), "{args:?}: {line}");
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused_by_name() {
    use std::os::unix::ffi::OsStringExt as _;
    let bad = |start: &str| OsString::from_vec([start.as_bytes(), b"\xFF"].concat());
    for args in [vec![bad("-instance=")], vec!["-instance".into(), bad("one")], vec![bad("-inst")]] {
        let all = std::iter::once(OsString::from("retry-endpoint")).chain(args.clone());
        let stop = Settings::from_args_and_env(all, |_| None::<OsString>).expect_err("refused");
        assert_eq!(stop.code(), 2, "{stop}");
        assert!(stop.to_string().contains("UTF-8") && !stop.to_string().contains('\n'), "{stop}");
    }
    let env = |name: &str| (name == "MC_IFACE").then(|| bad("eth"));
    let stop = Settings::from_args_and_env(std::iter::once("retry-endpoint".into()), env).expect_err("refused");
    assert_eq!(stop.code(), 1);
    assert!(stop.to_string().starts_with("MC_IFACE eth"), "{stop}");
}
