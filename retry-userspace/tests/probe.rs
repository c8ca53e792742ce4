//! `retry-endpoint probe` as an operator calls it: what it prints, and its exit code.

use std::net::UdpSocket;
use std::process::{Command, Output};
use std::thread;

use retry_common::wire::answer::Answer;

fn probe(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retry-endpoint")).arg("probe").args(args).output().expect("it starts")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

/// Stands in for an endpoint: answers `count` NACKs with MISS.
fn responder(count: usize) -> String {
    let socket = UdpSocket::bind("[::1]:0").expect("bound");
    let address = socket.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for _ in 0..count {
            let (_, from) = socket.recv_from(&mut [0; 64]).expect("received");
            socket.send_to(&Answer::Miss.to_bytes(), from).expect("sent");
        }
    });
    address
}

#[test]
fn a_good_endpoint_is_exit_code_0() {
    let address = responder(3);
    let output = probe(&[&address, "-count", "3", "-interval=1ms"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(text.starts_with(&format!("{address}: 3 sent, 3 answered, 0 % lost, round trip")), "{text}");
    assert!(text.ends_with("\nok\n"), "{text}");
}

#[test]
fn json_is_one_object() {
    let address = responder(2);
    let output = probe(&["--json", &address, "--count", "2", "--interval", "1ms"]);
    assert_eq!(output.status.code(), Some(0));
    let object: serde_json::Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert_eq!((&object["ok"], &object["verdict"]), (&true.into(), &"ok".into()));
    assert_eq!((&object["report"]["sent"], &object["report"]["answered"]), (&2.into(), &2.into()));
}

#[test]
fn a_bad_endpoint_is_exit_code_1() {
    let closed = UdpSocket::bind("[::1]:0").expect("bound").local_addr().expect("bound").to_string();
    let output = probe(&[&closed, "-count", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("unreachable (ICMP)"), "{}", stdout(&output));
    let output = probe(&["nowhere.invalid"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
}

#[test]
fn a_bad_command_line_is_exit_code_2() {
    for args in [&[][..], &["::1", "-count", "0"], &["::1", "-interval", "soon"], &["::1", "-x"], &["::1", "::2"]] {
        let output = probe(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
    let help = probe(&["-help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("retry-endpoint probe [OPTIONS] <ADDR>"), "{}", stdout(&help));
}
