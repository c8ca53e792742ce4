//! Writes an event as a line of text or of JSON.

use std::fmt::Write as _;
use std::time::SystemTime;

use retry_common::abi::{Watched, ticket_role};
use retry_common::counter::Counter;

use super::join::Event;
use crate::clock::{monotonic_ns, nanoseconds};

/// Names of interfaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// That the packet came by.
    pub(super) came: Option<String>,
    /// That answers and unicast copies leave by.
    pub(super) nack: Option<String>,
    /// That multicast repairs leave by.
    pub(super) egress: Vec<String>,
}

/// A time of the monotonic clock as nanoseconds of Unix time.
pub(super) fn unix_ns(at_ns: u64) -> u64 {
    let now_ns = nanoseconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    now_ns.saturating_sub(monotonic_ns().saturating_sub(at_ns))
}

/// A counter as a reason, in one word; `None` for those that say no more than the verdict.
pub(super) fn reason_word(counter: Counter) -> Option<&'static str> {
    match counter {
        Counter::CacheHits | Counter::CacheMisses => None,
        Counter::RetransmitHeldDown => Some("holddown"),
        Counter::RetransmitDedup => Some("dedup"),
        Counter::DaemonAbsent => Some("daemon_absent"),
        Counter::RepairTorn => Some("torn"),
        Counter::RetransmitErrors | Counter::AckErrors | Counter::MissErrors | Counter::ThrottledErrors => {
            Some("send_error")
        }
        other => other.series().labels.last().map(|(_, word)| *word),
    }
}

/// The limit that refused a NACK.
fn limit(counter: Counter) -> Option<&'static str> {
    let (name, word) = *counter.series().labels.first()?;
    (name == "level").then_some(word)
}

/// What left, and by which interfaces as far as it is known.
fn sent(event: &Event, names: &Names) -> Vec<String> {
    let by = |what: &str, interface: Option<&String>| {
        interface.map_or_else(|| what.to_owned(), |one| format!("{what}@{one}"))
    };
    let answer = event.answer.or((event.sent & ticket_role::ACK != 0).then_some("ack"));
    let mut sent: Vec<String> = answer.iter().map(|answer| by(answer, names.nack.as_ref())).collect();
    if event.sent & ticket_role::UNICAST != 0 {
        sent.push(by("unicast", names.nack.as_ref()));
    }
    if event.sent & ticket_role::MULTICAST_HERE != 0 {
        match names.egress.as_slice() {
            [] => sent.push("multicast".to_owned()),
            all => sent.extend(all.iter().map(|one| format!("multicast@{one}"))),
        }
    }
    sent
}

const fn path(event: &Event) -> &'static str {
    if event.cpu == Watched::DAEMON { "user" } else { "xdp" }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of a packet that is no NACK.
fn refused(event: &Event) -> Option<String> {
    let packet = event.packets.first().filter(|_| matches!(event.verdict, "refused" | "passed"))?;
    Some(hex(&packet.bytes))
}

/// One line of text: words `name=value`, the time (UTC) before them.
pub(super) fn text(event: &Event, names: &Names) -> String {
    let unix_ns = unix_ns(event.at_ns);
    let (second, micros) = (unix_ns / 1_000_000_000 % 86_400, unix_ns / 1_000 % 1_000_000);
    let mut line = format!("{:02}:{:02}:{:02}.{micros:06}", second / 3_600, second / 60 % 60, second % 60);
    let mut word = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(line, " {name}={value}");
        }
    };
    word("path", Some(path(event).to_owned()));
    word("interface", names.came.clone());
    word("source", event.source.map(|source| source.to_string()));
    word("flow", event.key.map(|key| format!("{:016x}", key.hash_key())));
    word("number", event.key.map(|key| key.seq_num().to_string()));
    word("verdict", Some(event.verdict.to_owned()));
    word("limit", event.reason.and_then(limit).map(str::to_owned));
    let reason = event.reason.filter(|reason| limit(*reason).is_none()).and_then(reason_word);
    word("reason", reason.map(str::to_owned));
    let sent = sent(event, names);
    word("sent", (!sent.is_empty()).then(|| sent.join(",")));
    word("took", (event.took_ns != 0).then(|| format!("{}ns", event.took_ns)));
    word("bytes", refused(event));
    line
}

/// One object of JSON. What is not known is null.
pub(super) fn json(event: &Event, names: &Names) -> String {
    let unix_ns = unix_ns(event.at_ns);
    serde_json::json!({
        "unix_ns": unix_ns,
        "path": path(event),
        "interface": names.came,
        "source": event.source.map(|source| source.ip().to_string()),
        "port": event.source.map(|source| source.port()),
        "flow": event.key.map(|key| format!("{:016x}", key.hash_key())),
        "number": event.key.map(|key| key.seq_num()),
        "verdict": event.verdict,
        "limit": event.reason.and_then(limit),
        "reason": event.reason.and_then(reason_word),
        "sent": sent(event, names),
        "took_ns": event.took_ns,
        "bytes": refused(event),
    })
    .to_string()
}
