//! The Redis of these tests: a [`Server`] whose failures are the test's.

use std::path::Path;
use std::time::Duration;

use redis::{Cmd, FromRedisValue};
use retry_common::key::FrameKey;
use retry_testbed::net::fabric::Host;
use retry_testbed::peers::redis::{PORT, Server, name};

/// Where one with TLS listens for the test itself.
const PLAIN_PORT: u16 = 6380;

/// A Redis that runs until this is dropped.
pub(crate) struct RedisServer<'a>(Server<'a>);

impl<'a> RedisServer<'a> {
    pub(crate) fn start(host: &'a Host) -> Self {
        Self(Server::start(host).expect("a Redis"))
    }

    pub(crate) fn with_password(host: &'a Host, password: &str) -> Self {
        Self(Server::start_with(host, PORT, Some(password), &[]).expect("a Redis"))
    }

    /// One that speaks TLS with clients whose certificate its authority signed: the files `ca.pem`, `server.pem` and
    /// `server.key` of a directory.
    pub(crate) fn with_tls(host: &'a Host, files: &Path) -> Self {
        let file = |name| files.join(name).to_string_lossy().into_owned();
        let port = PORT.to_string();
        let tls = [
            ["--tls-port", &port],
            ["--tls-ca-cert-file", &file("ca.pem")],
            ["--tls-cert-file", &file("server.pem")],
            ["--tls-key-file", &file("server.key")],
            ["--tls-auth-clients", "yes"],
        ];
        Self(Server::start_with(host, PLAIN_PORT, None, tls.as_flattened()).expect("a Redis"))
    }

    /// Host and port, as `-redis-addr` takes them.
    pub(crate) fn address(&self) -> String {
        format!("[{}]:{PORT}", self.0.host().addr)
    }

    pub(crate) fn pause(&self) {
        self.0.pause().expect("it stops");
    }

    pub(crate) fn go_on(&self) {
        self.0.go_on().expect("it goes on");
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it dies");
    }

    pub(crate) fn start_again(&mut self) {
        self.0.start_again().expect("a Redis");
    }

    /// Runs one command on a connection of its own.
    pub(crate) fn run<T: FromRedisValue + Send>(&self, command: &Cmd) -> T {
        self.0.run(command).expect("Redis answers")
    }

    /// What is left of the life of a frame; `None` when it is not there.
    pub(crate) fn frame_life(&self, key: FrameKey) -> Option<Duration> {
        self.0.frame_life(key).expect("Redis answers")
    }

    /// What is left of the life of a claim; `None` when it is not there.
    pub(crate) fn claim_life(&self, prefix: &str, key: FrameKey) -> Option<Duration> {
        let left: i64 = self.run(redis::cmd("PTTL").arg(name(prefix, key)));
        // −1 is one that stays for ever.
        assert_ne!(left, -1, "a claim without an end");
        u64::try_from(left).ok().map(Duration::from_millis)
    }

    /// The bytes of a frame, if it is there.
    pub(crate) fn frame(&self, key: FrameKey) -> Option<Vec<u8>> {
        self.0.frame(key).expect("Redis answers")
    }

    /// How many keys begin so.
    pub(crate) fn keys(&self, prefix: &str) -> usize {
        self.0.keys(prefix).expect("Redis answers")
    }

    /// How often a command was called, by all clients together.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        self.0.calls(command).expect("Redis answers")
    }
}
