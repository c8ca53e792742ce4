use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::screen::{Screen, draw};
use super::status::Status;
use super::view::{Look, lines, text};

/// What a daemon says, with so many NACKs of a source.
fn status(asked: u64) -> Status {
    serde_json::from_value(serde_json::json!({
        "instance": "one\u{1b}[2J", "host": "h", "version": "1", "status": "not_ready", "uptime_seconds": 61.0, "frames": 12345,
        "interfaces": [{ "name": "eth0", "roles": ["frames", "NACKs"], "mode": "native", "reason": "-xdp auto", "sent": 5, "lost": 0 }],
        "nacks": [{ "name": "asked", "kernel": asked, "daemon": 1 }, { "name": "hit", "kernel": 1, "daemon": 0 }],
        "answers": [{ "name": "ack", "kernel": 7, "daemon": 0 }],
        "latency": { "window_seconds": 300.0, "p50_seconds": 0.0000012, "p99_seconds": null },
        "talkers": { "window_seconds": 55.0, "flows": [], "sources": [
            { "name": "fd10::11", "asked": 4000, "error": 250, "answered": 3000, "missed": 0, "refused": { "ip": 1000 }, "bytes_out": 9 },
            { "name": "fd10::12", "asked": 40, "error": 0, "answered": 40, "missed": 0, "refused": {}, "bytes_out": 8 }] },
        "classes": [{ "class": "tx", "ttl_seconds": 60.0, "oldest_age_seconds": 30.0 }],
        "redis": { "up": false, "reason": "refused", "queued_frames": 3 },
        "upstreams": [{ "name": "[fd10::99]:9300", "up": true, "rtt_seconds": 0.002 }],
        "attention": [{ "what": "Redis is down", "section": "Redis is down" }],
        "of_a_later_version": 1
    }))
    .expect("a status")
}

fn shown(terminal: &Terminal<TestBackend>) -> Vec<String> {
    let buffer = terminal.backend().buffer();
    let line = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..buffer.area.height).map(line).collect()
}

#[test]
fn everything_that_is_known_is_shown() {
    let (before, now) = (status(1000), status(3000));
    let look = Look { now: &now, before: Some((&before, Duration::from_secs(2))) };
    let text = text(&lines(&look));
    for wanted in [
        "not ready  one\u{FFFD}[2J on h, 61.0 s of retry-endpoint 1, 12,345 frames",
        "! Redis is down (runbook: Redis is down)",
        "eth0       frames, NACKs  native (-xdp auto)     5     0",
        "takes 1.2 µs per NACK (p50), – (p99), in the last 5 min 0 s",
        "asked        1000   3,001    ack             0.0       7",
        "Sources that asked most in the last 55.0 s",
        "fd10::11  4,000  ±250      3,000       0          9  ip 1,000",
        "fd10::12     40               40       0          8  –",
        "None asked.",
        "tx           30.0 s  60.0 s",
        "[fd10::99]:9300    up          2.0 ms",
        "Redis: down: refused; 3 frames wait to be written",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "an instance's name moves no cursor");
}

#[test]
fn the_first_look_has_no_rates() {
    let now = status(3000);
    let text = text(&lines(&Look { now: &now, before: None }));
    assert!(text.contains("asked           –   3,001"), "{text}");
}

#[test]
fn a_terminal_shows_a_part_and_scrolls_to_the_end() {
    let now = status(3000);
    let lines = lines(&Look { now: &now, before: None });
    let mut terminal = Terminal::new(TestBackend::new(60, 10)).expect("a terminal in memory");
    let mut scrolled = 0;
    terminal.draw(|frame| draw(frame, &lines, "the foot", &mut scrolled)).expect("drawn");
    let rows = shown(&terminal);
    assert!(rows[0].starts_with("not ready"), "{rows:?}");
    assert_eq!(rows[9], "the foot");
    scrolled = u16::MAX;
    terminal.draw(|frame| draw(frame, &lines, "the foot", &mut scrolled)).expect("drawn");
    assert_eq!(usize::from(scrolled), lines.len() - 9);
    assert!(shown(&terminal)[8].starts_with("Redis: down"), "{:?}", shown(&terminal));
}

/// A daemon that says nothing of all this is of another version.
#[test]
fn what_a_daemon_leaves_out_is_not_shown() {
    let now: Status = serde_json::from_str("{}").expect("an object");
    let text = text(&lines(&Look { now: &now, before: None }));
    assert!(!text.contains("asked most") && text.contains("Redis: no shared store"), "{text}");
}

/// Set for the process that panics: this test runs itself, in a terminal of its own.
const PANICS: &str = "RETRY_TEST_PANICS_WITH_THE_TERMINAL";

#[test]
fn a_panic_gives_the_terminal_back() {
    if std::env::var_os(PANICS).is_some() {
        let _screen = Screen::take().expect("a terminal");
        unreachable!("as asked");
    }
    let pty = openpty(None, None).expect("a terminal");
    let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let is_cooked = || {
        let flags = tcgetattr(pty.slave.as_fd()).expect("a terminal").local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    };
    assert!(is_cooked());
    let arguments = ["--exact", "top::tests::a_panic_gives_the_terminal_back", "--nocapture"];
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let child =
        command.args(arguments).env(PANICS, "1").env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end()).spawn();
    assert!(!child.expect("it starts").wait().expect("it ends").success(), "it panicked");
    assert!(is_cooked(), "keys come by lines again");
    drop(command);
    let mut master = File::from(pty.master.try_clone().expect("a descriptor"));
    drop(pty.slave);
    // The read fails at the end, as no process has the other end any more.
    let mut bytes = Vec::new();
    let _ = master.read_to_end(&mut bytes);
    let said = String::from_utf8_lossy(&bytes);
    let [taken, given, told] = ["\u{1b}[?1049h", "\u{1b}[?1049l", "as asked"].map(|words| said.find(words));
    assert!(taken.is_some() && taken < given && given < told, "the panic is told on the screen that stays: {said:?}");
}

/// The document shows a look of a real daemon: it has every table that there is, with its columns.
#[test]
fn the_document_shows_what_is_shown() {
    let document = include_str!("../../../docs/top.md");
    let now = status(3000);
    let text = text(&lines(&Look { now: &now, before: None }));
    // Tables have a title, and a line of columns below it.
    let mut heads = 0;
    for block in text.split("\n\n").skip(1) {
        let mut lines = block.lines();
        let title = lines.next().unwrap_or_default();
        let title = title.split([';', ':']).next().unwrap_or_default().trim_end_matches(char::is_numeric);
        let title = title.split(" the last ").next().unwrap_or_default();
        assert!(document.contains(title), "{title:?} is not in docs/top.md");
        let columns = lines.next().unwrap_or_default().split("  ").map(str::trim).filter(|column| !column.is_empty());
        // The daemon of the document asks no upstream endpoint.
        let is_empty = block.contains("None") || document.contains(&format!("{title}\nNone"));
        for column in columns.take_while(|_| !is_empty) {
            assert!(document.contains(column), "{column:?} of {title:?} is not in docs/top.md");
            heads += 1;
        }
    }
    assert!(heads > 20, "{heads} columns");
}
