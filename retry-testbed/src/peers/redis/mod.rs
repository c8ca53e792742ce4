//! Redis for tests: real servers on hosts of a fabric, without persistence, ended with their value.
//!
//! The program is `redis-check-rdb` of Debian's redis-tools, which is the server under another name: the package
//! redis-server would start a Redis of its own on the machine that the tests run on.

mod cluster;

use std::{
    fs::{self, File},
    net::SocketAddrV6,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use redis::{Cmd, Connection, FromRedisValue};
use retry_common::key::FrameKey;

use crate::net::{fabric::Host, netns::ChildGuard};

pub use cluster::Cluster;

/// The port that a server listens on unless it is told otherwise.
pub const PORT: u16 = 6379;
/// Programs that servers need, each with the Debian package that brings it.
pub const TOOLS: [(&str, &str); 1] = [(PROGRAM, "redis-tools")];

const PROGRAM: &str = "redis-check-rdb";
/// By this name it serves.
const NAME: &str = "redis-server";
/// What it says, in its directory.
const LOG: &str = "log";
/// How long a server may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that runs until this is dropped.
#[derive(Debug)]
pub struct Server<'a> {
    host: &'a Host,
    port: u16,
    password: Option<String>,
    arguments: Vec<String>,
    directory: tempfile::TempDir,
    child: ChildGuard,
}

impl<'a> Server<'a> {
    /// Starts one at the host's address and waits until it answers.
    ///
    /// # Errors
    /// One of [`TOOLS`] is missing, or it does not answer in time: the message holds its log.
    pub fn start(host: &'a Host) -> Result<Self> {
        Self::start_with(host, PORT, None, &[])
    }

    /// Starts one on another port, with a password, with more arguments.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(host: &'a Host, port: u16, password: Option<&str>, more: &[&str]) -> Result<Self> {
        let mut server = Self::launch(host, port, password, more)?;
        server.await_up()?;
        Ok(server)
    }

    /// As [`Server::start_with`], without waiting: for servers that do not answer plainly.
    ///
    /// # Errors
    /// One of [`TOOLS`] is missing.
    pub fn launch(host: &'a Host, port: u16, password: Option<&str>, more: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut arguments: Vec<String> = ["--protected-mode", "no", "--save", "", "--appendonly", "no"]
            .into_iter()
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect();
        if !more.contains(&"--port") {
            arguments.extend(["--port".to_owned(), port.to_string()]);
        }
        if let Some(password) = password {
            arguments.extend(["--requirepass".to_owned(), password.to_owned()]);
        }
        let child = launch(host, directory.path(), &arguments)?;
        Ok(Self { host, port, password: password.map(str::to_owned), arguments, directory, child })
    }

    /// Address and port.
    #[must_use]
    pub const fn address(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.host.addr, self.port, 0, 0)
    }

    /// The host that it runs on.
    #[must_use]
    pub const fn host(&self) -> &'a Host {
        self.host
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default()
    }

    /// Stops it as it is: connections stay open, nothing is answered.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> Result<()> {
        self.child.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn go_on(&self) -> Result<()> {
        self.child.signal(Signal::SIGCONT)
    }

    /// Kills it: connections break, what it held is gone. A dead one stays dead.
    ///
    /// # Errors
    /// The kernel refuses the wait.
    pub fn kill(&mut self) -> Result<()> {
        self.child.child_mut().kill()?;
        self.child.child_mut().wait()?;
        Ok(())
    }

    /// Starts it again at the same address, with nothing in it.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.child = launch(self.host, self.directory.path(), &self.arguments)?;
        self.await_up()
    }

    /// Runs one command on a connection of its own.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub fn run<T: FromRedisValue + Send>(&self, command: &Cmd) -> Result<T> {
        Ok(command.query(&mut self.connect()?)?)
    }

    /// The bytes of a frame, if it is there.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub fn frame(&self, key: FrameKey) -> Result<Option<Vec<u8>>> {
        self.run(redis::cmd("GET").arg(name("bre:frame:", key)))
    }

    /// What is left of the life of a frame; `None` when it is not there.
    ///
    /// # Errors
    /// As [`Server::run`], and a frame that has no end.
    pub fn frame_life(&self, key: FrameKey) -> Result<Option<Duration>> {
        let left: i64 = self.run(redis::cmd("PTTL").arg(name("bre:frame:", key)))?;
        if left == -1 {
            bail!("a frame without an end");
        }
        Ok(u64::try_from(left).ok().map(Duration::from_millis))
    }

    /// How many keys begin so.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub fn keys(&self, prefix: &str) -> Result<usize> {
        let keys: Vec<Vec<u8>> = self.run(redis::cmd("KEYS").arg(format!("{prefix}*")))?;
        Ok(keys.len())
    }

    /// How often a command was called, by all clients together.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub fn calls(&self, command: &str) -> Result<u64> {
        let text: String = self.run(redis::cmd("INFO").arg("commandstats"))?;
        let start = format!("cmdstat_{command}:calls=");
        let rest = text.lines().find_map(|line| line.strip_prefix(&start));
        Ok(rest.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0))
    }

    fn connect(&self) -> Result<Connection> {
        let login = self.password.as_ref().map_or_else(String::new, |password| format!(":{password}@"));
        let client = redis::Client::open(format!("redis://{login}{}", self.address()))?;
        let connection = self.host.ns.enter(|| client.get_connection_with_timeout(Duration::from_secs(1)))?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    fn await_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{NAME} at {} ended: {status}\n{}", self.address(), self.log());
            }
            match self.run::<String>(redis::cmd("INFO").arg("server")) {
                // Another server may answer at a port that it does not get.
                Ok(text) if text.contains(&format!("process_id:{}\r", self.pid())) => return Ok(()),
                answer if Instant::now() > deadline => {
                    bail!("{NAME} at {} does not answer: {answer:?}\n{}", self.address(), self.log())
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // At SIGTERM a master would wait for its replicas, and a stopped one for ever: there is nothing to save.
        if let Err(error) = self.kill() {
            eprintln!("{NAME} at {} may still run: {error:#}", self.address());
        }
    }
}

/// The key of Redis for a frame's key.
#[must_use]
pub fn name(prefix: &str, key: FrameKey) -> Vec<u8> {
    [prefix.as_bytes(), &key.to_bytes()].concat()
}

fn launch(host: &Host, directory: &Path, arguments: &[String]) -> Result<ChildGuard> {
    let mut command = Command::new(PROGRAM);
    command.arg0(NAME);
    // A Sentinel, and nothing else, begins with the file that it keeps its state in.
    command.args(arguments.iter().filter(|argument| argument.ends_with(".conf") && argument.starts_with('/')));
    command.args(["--bind", &host.addr.to_string()]);
    command.args(arguments.iter().filter(|argument| !(argument.ends_with(".conf") && argument.starts_with('/'))));
    let log = File::options().create(true).append(true).open(directory.join(LOG))?;
    command.arg("--dir").arg(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    host.ns.spawn(command).context("start Redis (Debian package redis-tools)")
}
