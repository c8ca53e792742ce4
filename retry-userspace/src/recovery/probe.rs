//! `retry-endpoint probe ADDR`: how an endpoint does, from here: round trip, loss, and whether its answers come from the
//! address that was asked.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, Command, value_parser};
use retry_common::key::FrameKey;
use retry_common::wire::NACK_PORT;
use retry_common::wire::answer::Answer;
use retry_common::wire::frame::Frame;
use retry_common::wire::nack::{FLAG_PROXIED, Nack};
use serde::Serialize;

use super::sockets::{is_unreachable, tell_errors};
use super::upstreams::is_same;
use crate::command_line::{self, UNREADABLE};
use crate::net::batch::LONGEST_DATAGRAM;
use crate::settings::parse_duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// The address asked.
    pub address: SocketAddr,
    /// NACKs sent, or refused because there is no way there.
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
    /// NACKs that the frame asked for came back to; none when frames that do not exist were asked for.
    pub frames: Option<u32>,
}

impl Report {
    /// The verdict in one line, and whether it is good.
    #[must_use]
    pub(crate) fn verdict(&self) -> (bool, String) {
        if let Some(other) = self.answered_by.first() {
            let (other, asked) = (other.ip(), self.address.ip());
            return (
                false,
                format!(
                    "answers come from ANOTHER address {other}: listeners that connect their socket never see them \
                     (start that endpoint with -nack-addr {asked}, or announce {other})"
                ),
            );
        }
        match (self.answered, self.unreachable) {
            (0, 0) => (
                false,
                "no answer: no endpoint there, a filter on the way, or an endpoint with -suppress-miss".to_owned(),
            ),
            (0, _) => (false, "unreachable (ICMP): no program takes NACKs there".to_owned()),
            (answered, _) if answered < self.sent => (false, "answers, but not always: see the loss".to_owned()),
            (answered, _) if self.frames.is_some_and(|frames| frames < answered) => (
                false,
                format!(
                    "answers, and the frame came back to {} of {answered} NACKs: `retry-endpoint nack` shows why",
                    self.frames.unwrap_or(0)
                ),
            ),
            _ => (true, "ok".to_owned()),
        }
    }
}

/// Runs the subcommand; `args` begins behind the word `probe`. Exit code 0 for a good verdict, 1 for another, 2 for a
/// command line that cannot be read.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = match command_line::matches(command(), args) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    let (Some(address), Some(count), Some(interval)) = (
        matches.get_one::<String>("ADDR"),
        matches.get_one::<u32>("count").copied(),
        matches.get_one::<Duration>("interval").copied(),
    ) else {
        return ExitCode::from(UNREADABLE);
    };
    let frame = matches.get_one::<FrameKey>("frame").copied();
    let outcome = resolve(address).and_then(|address| probe(address, count, interval, frame));
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    match outcome {
        Ok(report) => {
            let (good, verdict) = report.verdict();
            // When no process reads any more, the exit code still tells.
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

/// The command line.
pub(crate) fn command() -> Command {
    Command::new("retry-endpoint probe")
        .about("Sends NACKs to an endpoint, for frames that do not exist or for a real one, and tells how it answers.")
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
        .arg(
            Arg::new("frame")
                .long("frame")
                .value_name("HASHKEY:SEQ")
                .value_parser(frame_key)
                .help("Asks for this frame, which has to come back by unicast each time. Flow and number as in logs."),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object."))
}

/// A key as logs show it: the flow in hexadecimal, the number in decimal.
fn frame_key(text: &str) -> Result<FrameKey, String> {
    let parsed = text.split_once(':').and_then(|(hash_key, seq_num)| {
        let is_plain = hash_key.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hash_key = u64::from_str_radix(hash_key, 16).ok().filter(|_| is_plain)?;
        Some(FrameKey::new(hash_key, seq_num.parse().ok()?))
    });
    parsed.ok_or_else(|| "a flow and a number are accepted, such as 0123456789abcdef:42".to_owned())
}

/// The first address of this text: an address or a name, with or without a port.
///
/// # Errors
/// The name has none.
pub(crate) fn resolve(text: &str) -> std::io::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip, NACK_PORT).into());
    }
    let mut addresses = match text.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(_) => (text.trim_matches(['[', ']']), NACK_PORT).to_socket_addrs()?,
    };
    addresses.next().ok_or_else(|| std::io::Error::other("the name has no address"))
}

/// Sends `count` NACKs, for `frame` or every one for another frame that does not exist, and listens after each for up to a
/// second.
///
/// # Errors
/// A socket cannot be had, or fails otherwise than by an ICMP error.
pub(crate) fn probe(
    address: SocketAddr,
    count: u32,
    interval: Duration,
    frame: Option<FrameKey>,
) -> std::io::Result<Report> {
    // Not connected: an answer from elsewhere is what we want to see.
    let socket = UdpSocket::bind(if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    tell_errors(&socket, address.is_ipv6())?;
    let (mut times, mut answered_by, mut unreachable, mut frames) = (Vec::new(), BTreeSet::new(), 0, 0);
    let mut note = |from| {
        if !is_same(from, address) {
            answered_by.insert(from);
        }
    };
    for number in 0..count {
        if number > 0 {
            std::thread::sleep(interval);
        }
        // A late answer says nothing of the next NACK.
        while !matches!(listen(&socket, Duration::ZERO, frame)?, Heard::Nothing) {}
        // Proxied: it is not to ask others for a frame that does not exist, and a real one comes back by unicast.
        let key = frame.unwrap_or_else(|| FrameKey::new(rand::random(), rand::random()));
        let nack = Nack { flags: FLAG_PROXIED, key, subtree_id: [0; 32] };
        let start = Instant::now();
        match socket.send_to(&nack.to_bytes(), address) {
            Ok(_) => {}
            Err(error) if is_unreachable(&error) => {
                unreachable += 1;
                continue;
            }
            Err(error) => return Err(error),
        }
        let (mut is_answered, mut has_frame) = (false, frame.is_none());
        while !(is_answered && has_frame) {
            match listen(&socket, PATIENCE.saturating_sub(start.elapsed()), frame)? {
                Heard::Answer(answer, from) => {
                    if !is_answered {
                        times.push(start.elapsed());
                    }
                    is_answered = true;
                    note(from);
                    // No frame follows a MISS.
                    has_frame |= !matches!(answer, Answer::Ack { .. });
                }
                Heard::Frame(from) => {
                    frames += u32::from(!has_frame);
                    has_frame = true;
                    note(from);
                }
                Heard::Unreachable => {
                    unreachable += 1;
                    break;
                }
                Heard::Nothing => break,
            }
        }
    }
    times.sort();
    // To the microsecond: what is finer is the clock's.
    let ms = |at: usize| times.get(at).map_or(0.0, |time: &Duration| (time.as_secs_f64() * 1e6).round() / 1e3);
    let rtt_ms = (!times.is_empty()).then(|| [ms(0), ms(times.len() / 2), ms(times.len() - 1)]);
    let answered = u32::try_from(times.len()).unwrap_or(count);
    let loss = f64::from(count - answered) / f64::from(count.max(1));
    Ok(Report { address, sent: count, answered, loss, rtt_ms, answered_by, unreachable, frames: frame.map(|_| frames) })
}

enum Heard {
    /// A MISS, an ACK or a THROTTLED.
    Answer(Answer, SocketAddr),
    /// The frame that was asked for.
    Frame(SocketAddr),
    /// An ICMP error.
    Unreachable,
    Nothing,
}

/// Listens for an answer; with a patience of zero takes only what is there.
fn listen(socket: &UdpSocket, patience: Duration, frame: Option<FrameKey>) -> std::io::Result<Heard> {
    let (start, mut buffer) = (Instant::now(), vec![0; LONGEST_DATAGRAM]);
    loop {
        let left = patience.saturating_sub(start.elapsed());
        socket.set_nonblocking(left.is_zero())?;
        socket.set_read_timeout(Some(left).filter(|left| !left.is_zero()))?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let bytes = &buffer[..length];
                if let Ok(answer) = Answer::parse(bytes) {
                    return Ok(Heard::Answer(answer, from));
                }
                if frame.is_some_and(|key| Frame::parse(bytes).is_ok_and(|frame| frame.head().key == key)) {
                    return Ok(Heard::Frame(from));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(error) if is_unreachable(&error) => return Ok(Heard::Unreachable),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn lines(report: &Report) -> String {
    let rtt = report.rtt_ms.map_or_else(
        || "no round trip measured".to_owned(),
        |[least, median, most]| format!("round trip min/median/max {least:.3}/{median:.3}/{most:.3} ms"),
    );
    let frames = report.frames.map_or_else(String::new, |frames| format!(", {frames} with the frame"));
    format!(
        "{}: {} sent, {} answered{frames}, {:.0} % lost, {rtt}",
        report.address,
        report.sent,
        report.answered,
        report.loss * 100.0
    )
}
