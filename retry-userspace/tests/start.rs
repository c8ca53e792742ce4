//! The binary refuses what it cannot do: an exit code, and one line on stderr that an operator can act on. Nothing here
//! gets as far as joining a group or touching an interface, so nothing here needs rights.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

const BINARY: &str = env!("CARGO_BIN_EXE_retry-endpoint");
/// XDP on the loopback interface.
const NATIVE: [&str; 8] = ["-mc-iface", "lo", "-egress-iface", "lo", "-nack-addr", "::1", "-xdp", "native"];
/// A user without rights.
const USER: u32 = 65_534;

/// The binary with these arguments and variables, and none of the caller's variables.
fn start<A: AsRef<OsStr>>(args: &[A], env: &[(&str, &str)]) -> Output {
    finish(Command::new(BINARY).args(args).env_clear().envs(env.iter().copied()))
}

/// One start at a time: some get as far as their ports, which are this host's.
fn finish(command: &mut Command) -> Output {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    command.stdin(Stdio::null()).output().expect("the binary starts")
}

/// The one line of a refusal with this exit code.
fn refusal<A: AsRef<OsStr>>(code: i32, args: &[A], env: &[(&str, &str)]) -> String {
    refused(code, &start(args, env))
}

fn refused(code: i32, output: &Output) -> String {
    let line = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert!(output.stdout.is_empty(), "stdout is not for errors");
    assert!(line.starts_with("retry-endpoint: ") && line.ends_with('\n'), "{line:?}");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// True when this host has an interface with `::1`.
fn has_ipv6_loopback() -> bool {
    std::net::UdpSocket::bind("[::1]:0").is_ok()
}

#[test]
fn bad_values_end_with_1() {
    for (args, env, expected) in [
        (&["-nack-port", "0"][..], &[][..], "-nack-port 0: a whole number from 1 to 65535 is accepted"),
        (&["-rl-ip-rate=-5"], &[], "-rl-ip-rate -5: "),
        (&["-mc-iface", ""], &[], "-mc-iface is not set: "),
        (&[], &[("CACHE_MEMORY", "15m")], "-cache-memory (from CACHE_MEMORY) 15m: "),
        (&["-drain-timeout=8761h"], &[], "-drain-timeout 8761h: 0 to 8760h is accepted"),
    ] {
        let line = refusal(1, args, env);
        assert!(line.starts_with(&format!("retry-endpoint: {expected}")), "{line}");
    }
}

#[test]
fn usage_ends_with_2() {
    for args in [&["-no-such-flag"][..], &["-nack-port"], &["word"]] {
        let line = refusal(2, args, &[]);
        assert!(line.contains("-help"), "{line}");
    }
}

#[test]
fn bytes_that_are_no_text_end_with_2() {
    use std::os::unix::ffi::OsStrExt as _;
    let line = refusal(2, &[OsStr::from_bytes(b"-instance=\xFF")], &[]);
    assert!(line.contains("-instance=") && line.contains("UTF-8"), "{line}");
}

#[test]
fn help_and_version_end_with_0() {
    for (arg, expected) in [("-help", "--nack-port"), ("--help", "NACK_PORT"), ("-version", env!("CARGO_PKG_VERSION"))]
    {
        let output = start(&[arg], &[]);
        assert_eq!(output.status.code(), Some(0), "{arg}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(expected), "{arg}");
        assert!(output.stderr.is_empty(), "{arg}");
    }
}

#[test]
fn an_interface_that_is_not_there_is_named_beside_those_that_are() {
    for (args, setting) in [
        (&["-mc-iface", "nosuch0"][..], "-mc-iface"),
        (&["-mc-iface", "lo", "-egress-iface", "lo,nosuch0"], "-egress-iface"),
    ] {
        let line = refusal(1, args, &[]);
        assert!(line.contains(&format!("{setting} nosuch0")), "{line}");
        let there = line.split("there are: ").nth(1).unwrap_or_default();
        assert!(there.trim().split(", ").any(|name| name == "lo"), "{line}");
    }
}

#[test]
fn an_address_that_no_interface_has_is_named() {
    // Documentation prefix, RFC 3849: no host has it.
    for (setting, other) in [("-nack-addr", "-xdp=off"), ("-bind-source", "-nack-addr=::1")] {
        if other.contains("::1") && !has_ipv6_loopback() {
            println!("SKIP an_address_that_no_interface_has_is_named: this host has no IPv6 loopback");
            return;
        }
        let line = refusal(1, &["-mc-iface", "lo", "-egress-iface", "lo", setting, "2001:db8::99", other], &[]);
        assert!(line.contains(&format!("{setting} 2001:db8::99: ")), "{line}");
    }
}

/// What the lines have in common: the setting, and what to do.
fn native(more: &[&str]) -> String {
    let line = refusal(1, &[&NATIVE, more].concat(), &[]);
    assert!(line.starts_with("retry-endpoint: -xdp native: "), "{line}");
    line
}

#[test]
fn native_without_a_bpf_file_system_says_how_to_get_one() {
    if !has_ipv6_loopback() {
        println!("SKIP native_without_a_bpf_file_system_says_how_to_get_one: this host has no IPv6 loopback");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path().to_str().expect("a path in UTF-8");
    let line = native(&["-bpffs", directory]);
    assert!(
        line.contains("`cargo xtask build`") || line.contains(directory) && line.contains("`mount -t bpf "),
        "{line}"
    );
}

/// As a user without rights, where root runs this.
#[test]
fn native_without_rights_does_not_start() {
    if !has_ipv6_loopback() {
        println!("SKIP native_without_rights_does_not_start: this host has no IPv6 loopback");
        return;
    }
    // Where every user may read and run it.
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("ours");
    let binary = directory.path().join("retry-endpoint");
    fs::copy(BINARY, &binary).expect("a copy");
    let mut command = Command::new(&binary);
    if nix::unistd::geteuid().is_root() {
        command.uid(USER).gid(USER);
    }
    let line = refused(1, &finish(command.args(NATIVE).env_clear()));
    assert!(line.starts_with("retry-endpoint: -xdp native: ") && line.contains("root"), "{line}");
}
