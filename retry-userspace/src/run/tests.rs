//! The daemon while a thread keeps the frame log's lock.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;
use crate::net::testing::{SOON, in_namespace};
use crate::telemetry;

const METRICS: &str = "[::1]:9400";
const API: &str = "[::1]:9401";
/// Nothing that does not wait takes as long, also on a busy machine; the lock is held for longer.
const PROMPT: Duration = Duration::from_secs(5);

fn settings() -> Settings {
    let flags = [
        "retry-endpoint",
        "-xdp=off",
        "-mc-iface=near",
        "-egress-iface=near",
        "-nack-addr=fd01::1",
        "-cache-memory=16m",
        "-cache-memory-long=16m",
        "-beacon-interval=1s",
        "-metrics-addr=[::1]:9400",
        "-admin-addr=[::1]:9401",
    ];
    Settings::from_args_and_env(flags.iter().map(Into::into), |_| None::<String>).expect("right settings")
}

/// An answer within [`PROMPT`], or none.
fn ask(address: &str, request: &str) -> Option<String> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, PROMPT).ok()?;
    stream.set_read_timeout(Some(PROMPT)).ok()?;
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn adverts() -> Option<u64> {
    let text = ask(METRICS, "GET /metrics")?;
    let line = text.lines().find(|line| line.starts_with("bre_beacon_adverts_sent_total"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[test]
fn a_log_that_is_locked_stops_neither_the_timers_nor_http_nor_the_end() {
    in_namespace("a_log_that_is_locked_stops_neither_the_timers_nor_http_nor_the_end", |_| {
        let (seen, fills) = mpsc::channel();
        let (end, ends) = tokio::sync::oneshot::channel::<()>();
        let daemon = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
            let settings = settings();
            let log_level = telemetry::init(&telemetry::Config::from(&settings));
            let shutdown = async { drop(ends.await) };
            let outcome = runtime.block_on(run_seen(&settings, log_level, shutdown, |fill| {
                seen.send(Arc::clone(fill)).expect("the test listens");
            }));
            let ended = Instant::now();
            runtime.shutdown_background();
            (outcome, ended)
        });
        let fill = fills.recv_timeout(SOON).expect("a daemon");
        let deadline = Instant::now() + SOON;
        while adverts().is_none_or(|sent| sent == 0) {
            assert!(Instant::now() < deadline, "the daemon is not there");
            std::thread::sleep(Duration::from_millis(20));
        }

        let lock = fill.writer.lock().expect("no panic");
        // As many as the runtime has threads, and more: each waits for the log.
        for _ in 0..4 {
            let delete = "DELETE /v1/frames/0000000000000001/1";
            std::thread::spawn(move || ask(API, delete));
        }
        // The lease is renewed by the same task as the beacon is sent.
        let before = adverts().expect("/metrics answers while the log is locked");
        let deadline = Instant::now() + SOON;
        while adverts().expect("/metrics answers while the log is locked") < before + 2 {
            assert!(Instant::now() < deadline, "the main task stands still");
            std::thread::sleep(Duration::from_millis(100));
        }
        let answer = ask(METRICS, "GET /healthz").expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // A thread that hangs is a dead daemon to the kernel, and says so.
        let deadline = Instant::now() + SOON;
        loop {
            let answer = ask(METRICS, "GET /readyz").expect("an answer");
            if answer.starts_with("HTTP/1.1 503") && answer.contains("makes no progress") {
                break;
            }
            assert!(Instant::now() < deadline, "{answer}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let asked = Instant::now();
        end.send(()).expect("the daemon listens");
        let deadline = asked + SOON;
        while !daemon.is_finished() {
            assert!(Instant::now() < deadline, "the daemon does not end while its log is locked");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(lock);
        let (outcome, ended) = daemon.join().expect("no panic");
        assert!(outcome.is_ok(), "{outcome:?}");
        println!("ended after {:?}", ended - asked);
    });
}
