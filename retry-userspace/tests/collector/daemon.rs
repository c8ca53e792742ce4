//! The daemon on the loopback, by its socket: it needs no rights there.

use std::io::{BufRead, BufReader};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::{INSTANCE, SOON, loopback};

/// False, and said, where there is no `::1` for daemon and collector to talk over.
pub(crate) fn has_loopback(name: &str) -> bool {
    let found = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !found {
        println!("SKIP {name}: this host has no IPv6 loopback");
    }
    found
}

/// A daemon that exports to a collector. Dropped, it is killed.
pub(crate) struct Daemon {
    /// Where it takes NACKs.
    pub(crate) nacks: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts one, and waits until it serves.
    pub(crate) async fn start(endpoint: &str, more: &[&str], env: &[(&str, &str)]) -> Self {
        // A port that was free a moment ago.
        let port =
            UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port();
        let mut child = Command::new(env!("CARGO_BIN_EXE_retry-endpoint"))
            .args(["-mc-iface=lo", "-egress-iface=lo", "-nack-addr=::1", "-xdp=off", "-metrics-addr=[::1]:0"])
            .args([
                "-cache-memory=16m",
                "-cache-memory-long=16m",
                "-beacon-enabled=false",
                "-nack-workers=1",
                "-bpf-handover=false",
            ])
            .args(["-nack-port", &port.to_string(), "-instance", INSTANCE, "-otlp-endpoint", endpoint])
            .args(more)
            .env_clear()
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = written.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        let daemon = Self { nacks: loopback(port), child, log };
        daemon.says(": serving ").await;
        daemon
    }

    /// Waits for a line with these words.
    pub(crate) async fn says(&self, words: &str) {
        let deadline = Instant::now() + SOON;
        while self.lines_with(words) == 0 {
            assert!(Instant::now() < deadline, "{words:?} is not said:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many lines with these words there are.
    pub(crate) fn lines_with(&self, words: &str) -> usize {
        self.log().lines().filter(|line| line.contains(words)).count()
    }

    /// All that it has said.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, and returns its exit status and how long the end took.
    pub(crate) async fn end(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return (status, start.elapsed());
            }
            assert!(start.elapsed() < SOON, "it does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
