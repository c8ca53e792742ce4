//! The daemon on the loopback of a network namespace of the test's own.

use std::io::{BufRead, BufReader};
use std::panic::resume_unwind;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::server::{INSTANCE, SOON};

/// Where it takes NACKs.
pub(crate) const NACKS: &str = "[::1]:9300";

/// Runs `test` in a network namespace with a loopback, which goes away with it, on a tokio runtime there.
pub(crate) fn in_namespace(name: &str, test: impl AsyncFnOnce() + Send + 'static) {
    if !geteuid().is_root() {
        println!("SKIP {name}: needs root");
        return;
    }
    let outcome = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace (CAP_SYS_ADMIN)");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("ip is installed").success(), "the loopback comes up");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(test());
    })
    .join();
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// A daemon that exports to a collector. Dropped, it is killed.
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts one, and waits until it serves.
    pub(crate) async fn start(endpoint: &str, more: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_retry-endpoint"))
            .args(["-mc-iface=lo", "-egress-iface=lo", "-nack-addr=::1", "-xdp=off", "-metrics-addr=[::1]:0"])
            .args(["-cache-memory=16m", "-cache-memory-long=16m", "-beacon-enabled=false", "-nack-workers=1"])
            .args(["-instance", INSTANCE, "-otlp-endpoint", endpoint])
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
        let daemon = Self { child, log };
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
