//! `retry-endpoint top` beside a daemon that runs: as text, as JSON, and in a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::net::netns::ChildGuard;
use retry_testbed::peers::answer::nack;
use retry_testbed::scene::{ask, asker, binary, eventually, flags, is_root, two_hosts};
use serde_json::Value;

const KEY: FrameKey = FrameKey::new(0x709, 1);

fn run(host: &Host, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("top").args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    host.ns.spawn(command).expect("it starts").output().expect("it ends")
}

/// What it writes; it has ended well.
fn said(host: &Host, arguments: &[&str]) -> String {
    let output = run(host, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{}: {error}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// Text and JSON, of both paths: the state, the mode, rates and the source that asks.
#[test]
fn a_look_as_text_and_as_json() {
    if !is_root("a_look_as_text_and_as_json") {
        return;
    }
    for xdp in ["native", "off"] {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &[])).expect("a daemon");
        let socket = asker(client);
        let (text, json) = std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let text = said(endpoint, &["-once", "-interval", "1"]);
                (text, said(endpoint, &["--once", "--json", "--interval", "1"]))
            });
            while !looks.is_finished() {
                ask(&socket, endpoint.nack_address(), &nack(KEY), 1);
                std::thread::sleep(Duration::from_millis(5));
            }
            looks.join().expect("no panic")
        });
        let mode = format!("{xdp} (-xdp {xdp})");
        for wanted in
            ["ready  ", &mode, "asked", &client.addr.to_string(), "0000000000000709", "Redis: no shared store"]
        {
            assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
        }
        let per_second: f64 = text
            .lines()
            .find_map(|line| line.strip_prefix("asked "))
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| unreachable!("a rate in\n{text}"));
        assert!((20.0..=250.0).contains(&per_second), "{per_second} per second");
        assert_eq!(json.lines().count(), 1);
        let look: Value = serde_json::from_str(&json).expect("one object");
        assert_eq!((&look["status"], &look["xdp"]["mode"]), (&"ready".into(), &xdp.into()));
        assert!(look["per_second"]["nacks"]["asked"].as_f64().is_some_and(|rate| rate > 20.0), "{look}");
        assert_eq!(look["talkers"]["sources"][0]["name"], client.addr.to_string(), "{look}");
    }
}

/// A daemon that is not there is told in one line, with what to do.
#[test]
fn no_daemon_is_told() {
    if !is_root("no_daemon_is_told") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let output = run(endpoint, &["[::1]:9"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.starts_with("retry-endpoint top: http://[::1]:9/v1/status: ") && error.lines().count() == 1,
        "{error}"
    );
}

/// A program in a terminal.
struct InTerminal {
    child: ChildGuard,
    keys: File,
    terminal: OwnedFd,
    screen: std::thread::JoinHandle<Vec<u8>>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl InTerminal {
    fn start(host: &Host, arguments: &[&str]) -> Self {
        let size = Winsize { ws_row: 50, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let mut command = Command::new(binary());
        command.arg("top").args(arguments).env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end());
        let child = host.ns.spawn(command).expect("it starts");
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let (kept, mut from) = (Arc::clone(&seen), File::from(pty.master.try_clone().expect("a descriptor")));
        let screen = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The read fails once no process has the other end.
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                kept.lock().expect("no panic").extend_from_slice(&buffer[..length]);
            }
            kept.lock().expect("no panic").clone()
        });
        Self { child, keys: File::from(pty.master), terminal: pty.slave, screen, seen }
    }

    fn shows(&self, words: &str) -> bool {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic")).contains(words)
    }

    /// True while lines are edited by the terminal, as a shell expects it.
    fn is_cooked(&self) -> bool {
        let flags = tcgetattr(self.terminal.as_fd()).expect("a terminal").local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// Once it has ended: how, the terminal's state, and all that was shown.
    fn end(mut self) -> (ExitStatus, bool, String) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let is_cooked = self.is_cooked();
        drop(self.terminal);
        let all = self.screen.join().expect("no panic");
        (status, is_cooked, String::from_utf8_lossy(&all).into_owned())
    }
}

/// q and SIGTERM end it; both times the terminal is what it was.
#[test]
fn a_terminal_is_given_back() {
    if !is_root("a_terminal_is_given_back") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let socket = asker(client);
    for is_signal in [false, true] {
        let mut program = InTerminal::start(endpoint, &["--interval", "0.2"]);
        eventually("the screen is drawn", || program.shows("Upstream endpoints") && program.shows("q ends"));
        assert!(!program.is_cooked(), "keys come one by one");
        // What happens meanwhile is shown.
        ask(&socket, endpoint.nack_address(), &nack(KEY), 1);
        eventually("the source is shown", || program.shows(&client.addr.to_string()));
        if is_signal {
            kill(Pid::from_raw(program.child.id().try_into().expect("a pid")), Signal::SIGTERM).expect("it is there");
        } else {
            program.keys.write_all(b"q").expect("a key");
        }
        let (status, is_cooked, all) = program.end();
        assert!(status.success(), "{status}: {all}");
        assert!(is_cooked, "signal: {is_signal}");
        let (taken, given) = ("\u{1b}[?1049h", "\u{1b}[?1049l");
        assert_eq!((all.matches(taken).count(), all.matches(given).count()), (1, 1), "the second screen, and back");
        assert!(all.ends_with("\u{1b}[?25h"), "the cursor is there again: {:?}", &all[all.len().saturating_sub(40)..]);
    }
}
