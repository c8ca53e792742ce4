//! One Redis, Debian's `redis-server`, on a host of a fabric: without persistence, ended with its value.

use std::net::SocketAddrV6;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use redis::{Cmd, Connection, FromRedisValue, RedisResult};
use retry_common::key::FrameKey;
use retry_testbed::fabric::Host;
use retry_testbed::netns::ChildGuard;

const PORT: u16 = 6379;
/// Where one with TLS listens for the test itself.
const PLAIN_PORT: u16 = 6380;
/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A Redis that runs until this is dropped.
pub(crate) struct RedisServer<'a> {
    host: &'a Host,
    password: Option<&'a str>,
    /// For the test's own commands.
    port: u16,
    directory: tempfile::TempDir,
    child: ChildGuard,
}

impl<'a> RedisServer<'a> {
    pub(crate) fn start(host: &'a Host) -> Self {
        Self::start_with(host, None)
    }

    /// One that asks for a password.
    pub(crate) fn start_with(host: &'a Host, password: Option<&'a str>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let child = launch(host, directory.path(), password, PORT, &[]);
        let server = Self { host, password, port: PORT, directory, child };
        server.await_up();
        server
    }

    /// One that speaks TLS with clients whose certificate its authority signed: the files `ca.pem`, `server.pem` and
    /// `server.key` of a directory.
    pub(crate) fn start_tls(host: &'a Host, files: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name| files.join(name).to_string_lossy().into_owned();
        let port = PORT.to_string();
        let tls = [
            ["--tls-port", &port],
            ["--tls-ca-cert-file", &file("ca.pem")],
            ["--tls-cert-file", &file("server.pem")],
            ["--tls-key-file", &file("server.key")],
            ["--tls-auth-clients", "yes"],
        ];
        let child = launch(host, directory.path(), None, PLAIN_PORT, tls.as_flattened());
        let server = Self { host, password: None, port: PLAIN_PORT, directory, child };
        server.await_up();
        server
    }

    /// Host and port, as `-redis-addr` takes them.
    pub(crate) fn address(&self) -> String {
        SocketAddrV6::new(self.host.addr, PORT, 0, 0).to_string()
    }

    /// Stops it as it is: connections stay open, nothing is answered.
    pub(crate) fn pause(&self) {
        self.child.signal(Signal::SIGSTOP).expect("it stops");
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.child.signal(Signal::SIGCONT).expect("it goes on");
    }

    /// Kills it: connections break, what it held is gone.
    pub(crate) fn kill(&mut self) {
        self.child.signal(Signal::SIGKILL).expect("it dies");
        self.child.end(PATIENCE).expect("it is dead");
    }

    /// Starts it again, empty, at the same address.
    pub(crate) fn start_again(&mut self) {
        self.child = launch(self.host, self.directory.path(), self.password, self.port, &[]);
        self.await_up();
    }

    /// Runs one command on a connection of its own.
    pub(crate) fn run<T: FromRedisValue + Send>(&self, command: &Cmd) -> T {
        self.connect().and_then(|mut connection| command.query(&mut connection)).expect("Redis answers")
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
        self.run(redis::cmd("GET").arg(name("bre:frame:", key)))
    }

    /// How many keys begin so.
    pub(crate) fn keys(&self, prefix: &str) -> usize {
        let keys: Vec<Vec<u8>> = self.run(redis::cmd("KEYS").arg(format!("{prefix}*")));
        keys.len()
    }

    /// How often a command was called, by anybody.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let text: String = self.run(redis::cmd("INFO").arg("commandstats"));
        let start = format!("cmdstat_{command}:calls=");
        let rest = text.lines().find_map(|line| line.strip_prefix(&start));
        rest.map_or(0, |rest| rest.split(',').next().and_then(|count| count.parse().ok()).expect("a count"))
    }

    fn connect(&self) -> RedisResult<Connection> {
        let login = self.password.map_or_else(String::new, |password| format!(":{password}@"));
        let address = SocketAddrV6::new(self.host.addr, self.port, 0, 0);
        let client = redis::Client::open(format!("redis://{login}{address}"))?;
        let connection = self.host.ns.enter(|| client.get_connection_with_timeout(Duration::from_secs(1)))?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    fn await_up(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.connect().and_then(|mut connection| redis::cmd("PING").exec(&mut connection)) {
            assert!(Instant::now() < deadline, "Redis does not start: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The key of Redis for a frame's key.
fn name(prefix: &str, key: FrameKey) -> Vec<u8> {
    [prefix.as_bytes(), &key.to_bytes()].concat()
}

fn launch(host: &Host, directory: &Path, password: Option<&str>, port: u16, more: &[&str]) -> ChildGuard {
    let mut command = Command::new("redis-server");
    let (address, port) = (host.addr.to_string(), port.to_string());
    command.args(["--bind", &address, "--port", &port, "--protected-mode", "no", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(directory).args(more);
    if let Some(password) = password {
        command.args(["--requirepass", password]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    host.ns.spawn(command).expect("redis-server (Debian package redis-server)")
}
