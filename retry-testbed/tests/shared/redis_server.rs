//! One Redis on a host of a fabric, and what it holds. What fails ends the test.

use std::net::SocketAddrV6;
use std::path::Path;
use std::time::Duration;

use redis::{Cmd, FromRedisValue};
use retry_common::key::FrameKey;
use retry_testbed::fabric::Host;
use retry_testbed::redis::{PORT, Server, name};

/// Where one with TLS listens for the test itself.
const PLAIN_PORT: u16 = 6380;

/// A Redis that runs until this is dropped.
pub(crate) struct RedisServer<'a> {
    host: &'a Host,
    server: Server<'a>,
}

impl<'a> RedisServer<'a> {
    pub(crate) fn start(host: &'a Host) -> Self {
        Self::start_with(host, None)
    }

    /// One that asks for a password.
    pub(crate) fn start_with(host: &'a Host, password: Option<&str>) -> Self {
        let server = Server::start_with(host, PORT, password, &[]).expect("a Redis");
        Self { host, server }
    }

    /// One that speaks TLS with clients whose certificate its authority signed: the files `ca.pem`, `server.pem` and
    /// `server.key` of a directory.
    pub(crate) fn start_tls(host: &'a Host, files: &Path) -> Self {
        let file = |name| files.join(name).to_string_lossy().into_owned();
        let port = PORT.to_string();
        let tls = [
            ["--tls-port", &port],
            ["--tls-ca-cert-file", &file("ca.pem")],
            ["--tls-cert-file", &file("server.pem")],
            ["--tls-key-file", &file("server.key")],
            ["--tls-auth-clients", "yes"],
        ];
        let server = Server::start_with(host, PLAIN_PORT, None, tls.as_flattened()).expect("a Redis");
        Self { host, server }
    }

    /// Host and port, as `-redis-addr` takes them.
    pub(crate) fn address(&self) -> String {
        SocketAddrV6::new(self.host.addr, PORT, 0, 0).to_string()
    }

    /// Stops it as it is: connections stay open, nothing is answered.
    pub(crate) fn pause(&self) {
        self.server.pause().expect("it stops");
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.server.go_on().expect("it goes on");
    }

    /// Kills it: connections break, what it held is gone.
    pub(crate) fn kill(&mut self) {
        self.server.kill().expect("it dies");
    }

    /// Starts it again, empty, at the same address.
    pub(crate) fn start_again(&mut self) {
        self.server.start_again().expect("it starts");
    }

    /// Runs one command on a connection of its own.
    pub(crate) fn run<T: FromRedisValue + Send>(&self, command: &Cmd) -> T {
        self.server.run(command).expect("Redis answers")
    }

    /// What is left of the life of a frame; `None` when it is not there.
    pub(crate) fn frame_life(&self, key: FrameKey) -> Option<Duration> {
        self.life("bre:frame:", key)
    }

    /// What is left of the life of one of the keys of a frame; `None` when it is not there.
    pub(crate) fn life(&self, prefix: &str, key: FrameKey) -> Option<Duration> {
        let left: i64 = self.run(redis::cmd("PTTL").arg(name(prefix, key)));
        // −1 is one that stays for ever.
        assert_ne!(left, -1, "a key without an end");
        u64::try_from(left).ok().map(Duration::from_millis)
    }

    /// The bytes of a frame, if it is there.
    pub(crate) fn frame(&self, key: FrameKey) -> Option<Vec<u8>> {
        self.server.frame(key).expect("Redis answers")
    }

    /// How many keys begin so.
    pub(crate) fn keys(&self, prefix: &str) -> usize {
        self.server.keys(prefix).expect("Redis answers")
    }

    /// How often a command was called, by anybody.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        self.server.calls(command).expect("Redis answers")
    }
}
