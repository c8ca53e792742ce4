//! `retry-endpoint probe ADDR`: how an endpoint does, from here: round trip, loss, and whether its answers come from the
//! address that was asked.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, Command, value_parser};
use retry_common::key::FrameKey;
use retry_common::wire::answer::Answer;
use retry_common::wire::nack::{FLAG_PROXIED, Nack};
use serde::Serialize;

use super::sockets::{is_unreachable, tell_errors};
use super::upstreams::is_same;
use crate::settings::parse_duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The port of NACKs.
const PORT: u16 = 9300;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The address asked.
    pub address: SocketAddr,
    /// NACKs sent.
    pub sent: u32,
    /// NACKs answered, from whatever address.
    pub answered: u32,
    /// Share of NACKs that were not, 0 to 1.
    pub loss: f64,
    /// Shortest, median and longest round trip, milliseconds; none without an answer.
    pub rtt_ms: Option<[f64; 3]>,
    /// Other addresses that answers came from.
    pub answered_by: BTreeSet<SocketAddr>,
    /// ICMP errors that came back.
    pub unreachable: u32,
}

impl Report {
    /// The verdict in one line, and whether it is good.
    #[must_use]
    pub fn verdict(&self) -> (bool, String) {
        if let Some(other) = self.answered_by.first() {
            return (
                false,
                format!(
                    "answers come from ANOTHER address, {}: listeners that connect their socket never see them; give the \
                     endpoint -nack-addr {}",
                    other.ip(),
                    self.address.ip()
                ),
            );
        }
        match (self.answered, self.unreachable) {
            (0, 0) => (false, "no answer: wrong address, a filter, or a limit on the way".to_owned()),
            (0, _) => (false, "unreachable: the network answers with ICMP errors; nobody listens there".to_owned()),
            (answered, _) if answered < self.sent => (false, "answers, but not always: see the loss".to_owned()),
            _ => (true, "ok".to_owned()),
        }
    }
}

/// Runs the subcommand; `args` begins behind the word `probe`. Exit code 0 for a good verdict, 1 for another, 2 for a
/// command line that cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    // Go's one dash, as everywhere.
    let args = args.map(|arg| match arg.to_str() {
        Some(text) if text.starts_with('-') && !text.starts_with("--") && text.len() > 2 => format!("-{text}").into(),
        _ => arg,
    });
    let matches = match command().try_get_matches_from([OsString::from("probe")].into_iter().chain(args)) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let (Some(address), Some(count), Some(interval)) = (
        matches.get_one::<String>("ADDR"),
        matches.get_one::<u32>("count").copied(),
        matches.get_one::<Duration>("interval").copied(),
    ) else {
        return ExitCode::from(2);
    };
    let outcome = resolve(address).and_then(|address| probe(address, count, interval));
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    match outcome {
        Ok(report) => {
            let (good, verdict) = report.verdict();
            // When nobody reads any more, the exit code still tells.
            let _ = if matches.get_flag("json") {
                let line = serde_json::json!({ "report": report, "ok": good, "verdict": verdict });
                writeln!(out, "{line}")
            } else {
                writeln!(out, "{}\n{verdict}", lines(&report))
            };
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _ = writeln!(err, "retry-endpoint probe {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    Command::new("retry-endpoint probe")
        .about("Sends NACKs that surely miss to an endpoint and tells how it answers.")
        .arg(
            Arg::new("ADDR")
                .required(true)
                .help("Address or name, with or without a port: fd10::20, [fd10::20]:9300, retry.example:9300."),
        )
        .arg(
            Arg::new("count")
                .long("count")
                .default_value("10")
                .value_parser(value_parser!(u32).range(1..=1000))
                .help("NACKs to send, 1 to 1000."),
        )
        .arg(
            Arg::new("interval")
                .long("interval")
                .default_value("200ms")
                .value_parser(|text: &str| parse_duration(text).map_err(|why| why.to_string()))
                .help("Time between two of them; endpoints limit how often one address may ask."),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object."))
}

fn resolve(text: &str) -> std::io::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip, PORT).into());
    }
    let mut addresses = match text.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(_) => (text.trim_matches(['[', ']']), PORT).to_socket_addrs()?,
    };
    addresses.next().ok_or_else(|| std::io::Error::other("the name has no address"))
}

/// Sends `count` NACKs and listens; every one for another frame that nobody has.
///
/// # Errors
/// A socket cannot be had, or a NACK does not leave.
pub fn probe(address: SocketAddr, count: u32, interval: Duration) -> std::io::Result<Report> {
    // Not connected: an answer from elsewhere is what we want to see.
    let socket = UdpSocket::bind(if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    tell_errors(&socket, address.is_ipv6())?;
    let mut report =
        Report { address, sent: 0, answered: 0, loss: 0.0, rtt_ms: None, answered_by: BTreeSet::new(), unreachable: 0 };
    let mut times = Vec::new();
    for number in 0..count {
        let start = Instant::now();
        let key = FrameKey::new(rand::random(), rand::random());
        let nack = Nack { flags: FLAG_PROXIED, key, subtree_id: [0; 32] };
        match socket.send_to(&nack.to_bytes(), address) {
            Ok(_) => {}
            Err(error) if is_unreachable(&error) => {}
            Err(error) => return Err(error),
        }
        report.sent += 1;
        if let Some((from, time)) = wait(&socket, start, &mut report.unreachable)? {
            report.answered += 1;
            times.push(time);
            if !is_same(from, address) {
                report.answered_by.insert(from);
            }
        }
        if number + 1 < count {
            std::thread::sleep(interval.saturating_sub(start.elapsed()));
        }
    }
    times.sort();
    let ms = |at: usize| times.get(at).map_or(0.0, |time: &Duration| time.as_secs_f64() * 1e3);
    report.rtt_ms = (!times.is_empty()).then(|| [ms(0), ms(times.len() / 2), ms(times.len() - 1)]);
    report.loss = f64::from(report.sent - report.answered) / f64::from(report.sent.max(1));
    Ok(report)
}

/// Waits for a MISS, an ACK or a THROTTLED.
fn wait(socket: &UdpSocket, start: Instant, unreachable: &mut u32) -> std::io::Result<Option<(SocketAddr, Duration)>> {
    let mut buffer = [0; 2048];
    loop {
        let left = PATIENCE.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if Answer::parse(&buffer[..length]).is_ok() => return Ok(Some((from, start.elapsed()))),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) if is_unreachable(&error) => {
                *unreachable += 1;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
}

fn lines(report: &Report) -> String {
    let rtt = report.rtt_ms.map_or_else(
        || "no round trip measured".to_owned(),
        |[least, median, most]| format!("round trip min/median/max {least:.3}/{median:.3}/{most:.3} ms"),
    );
    format!(
        "{}: {} sent, {} answered, {:.0} % lost, {rtt}",
        report.address,
        report.sent,
        report.answered,
        report.loss * 100.0
    )
}
