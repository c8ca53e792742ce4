//! The page as HTML. Every value is escaped: names of interfaces, addresses and texts of errors may hold anything.
//!
//! The script finds its values by these attributes: `data-rows` at a table's body names a list of [`Status`], `data-v` at a
//! column's head or at an element the value, `data-f` its notation, which is one of [`notation`]'s.

use maud::{DOCTYPE, Markup, html};

use super::model::{Counted, OfTalker, Status};

/// What stands for a value that is absent.
const ABSENT: &str = "–";

/// Notations of values. The script has the same under the same names.
mod notation {
    pub(super) use crate::notation::{count, seconds};

    /// MiB, which rings are counted in.
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory: exact up to 2^53")]
    pub(super) fn bytes(bytes: u64) -> String {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }

    /// Numbers by name, or a dash.
    pub(super) fn reasons(reasons: &std::collections::BTreeMap<&str, u64>) -> String {
        let all: Vec<String> = reasons.iter().map(|(name, times)| format!("{name} {}", count(*times))).collect();
        if all.is_empty() { super::ABSENT.to_owned() } else { all.join(", ") }
    }

    pub(super) const fn up(is_up: bool) -> &'static str {
        if is_up { "up" } else { "down" }
    }

    pub(super) const fn yes(is_so: bool) -> &'static str {
        if is_so { "yes" } else { "no" }
    }

    /// A part of a whole in per cent; 0 of nothing.
    pub(super) fn share(part: f64, whole: f64) -> String {
        format!("{:.0} %", if whole > 0.0 { (part / whole * 100.0).min(100.0) } else { 0.0 })
    }
}

/// What a row of `nacks` or `answers` means.
fn meaning(of: &str, name: &str) -> &'static str {
    match (of, name) {
        ("nacks", "asked") => "NACKs received",
        ("nacks", "hit") => "hits: the frame is held",
        ("nacks", "miss") => "misses: the frame is not held",
        ("nacks", "over_limit") => "over a limit",
        ("nacks", "dropped") => "dropped: malformed, stale or lost",
        ("answers", "ack") => "ACK",
        ("answers", "miss") => "MISS",
        ("answers", "throttled") => "THROTTLED",
        ("answers", "multicast") => "multicast repairs",
        ("answers", "unicast") => "unicast copies",
        ("answers", "held_down") => "left out: hold-down",
        ("answers", "other_instance") => "left out: another instance sent it",
        ("answers", "failed") => "not sent: an error",
        _ => ABSENT,
    }
}

/// What the frame log held at the start.
fn start(mode: &str) -> &'static str {
    match mode {
        "fresh" => "fresh: no frames of an earlier daemon",
        "unfit" => "unfit: what an earlier daemon left does not fit",
        "adopted" => "adopted: went on with the frames of an earlier daemon",
        "read_over" => "read over: copied the frames of an earlier daemon",
        _ => ABSENT,
    }
}

/// A table that scrolls by itself where the page is narrow, also by keyboard.
fn table(id: &str, title: &str, caption: &str, rows: &str, none: &str, head: Markup, body: Markup) -> Markup {
    html! {
        section aria-labelledby=(id) {
            h2 id=(id) { (title) }
            p.note { (caption) }
            div.scroll role="group" tabindex="0" aria-labelledby=(id) {
                table {
                    caption { (title) }
                    thead { tr { (head) } }
                    tbody data-rows=(rows) data-none=(none) { (body) }
                }
            }
        }
    }
}

fn none(columns: usize, text: &str) -> Markup {
    html! { tr { td colspan=(columns) { (text) } } }
}

fn column(name: &str, value: &str, form: &str) -> Markup {
    let is_number = ["count", "seconds", "bytes"].contains(&form);
    html! { th scope="col" data-v=(value) data-f=(form) class=[is_number.then_some("num")] { (name) } }
}

/// A bar with its share in words.
fn meter(part: f64, whole: f64, label: &str) -> Markup {
    let value = if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 };
    html! {
        meter min="0" max="1" value=(format!("{value:.3}")) aria-label=(label) {} " " span { (notation::share(part, whole)) }
    }
}

/// Rows that stay: the script fills their cells.
fn counted(of: &str, all: &[Counted]) -> Markup {
    html! {
        @for one in all {
            tr data-name=(one.name) {
                th scope="row" { (meaning(of, one.name)) }
                td.num { (notation::count(one.kernel)) }
                td.num { (notation::count(one.daemon)) }
                td.num.live {}
                td.live {}
            }
        }
    }
}

fn counted_head(name: &str) -> Markup {
    html! {
        th scope="col" { (name) }
        th.num scope="col" { "by the kernel" }
        th.num scope="col" { "by the daemon" }
        th.num.live scope="col" { "per second" }
        th.live scope="col" { "last two minutes" }
    }
}

/// The whole page.
pub(super) fn render(status: &Status) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (status.status) " · " (status.instance) " · retry-endpoint" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/status.css";
                script src="/status.js" defer {}
            }
            body {
                a.skip href="#main" { "Skip to the status" }
                (header(status))
                main id="main" tabindex="-1" {
                    (attention(status))
                    (interfaces(status))
                    (table("nacks", "NACKs", "Since the counters began, on both paths.", "", "",
                        counted_head("NACKs"), counted("nacks", &status.nacks)))
                    (table("answers", "Answers", "What left, by the path that sent it.", "", "",
                        counted_head("answer"), counted("answers", &status.answers)))
                    (talkers(status))
                    (limits(status))
                    (frames(status))
                    (beyond(status))
                    (handover(status))
                }
                footer {
                    p {
                        a href="/v1/status" { "This as JSON" } " · " a href="/metrics" { "Metrics" } " · "
                        a href="/readyz" { "Readiness" } " · "
                        a href=(concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/operations.md")) { "Runbook" }
                    }
                }
            }
        }
    }
}

fn header(status: &Status) -> Markup {
    html! {
        header {
            h1 { "retry-endpoint " span data-v="instance" data-f="text" { (status.instance) } }
            p.state {
                strong id="state" class=(status.status) { (status.status.replace('_', " ")) }
                " "
                span id="summary" role="status" { (summary(status)) }
            }
            dl.facts {
                div { dt { "Path" } dd {
                    span data-v="xdp.mode" data-f="text" { (status.xdp.mode) } ": "
                    span data-v="xdp.reason" data-f="text" { (status.xdp.reason) }
                } }
                div { dt { "Threads ready" } dd {
                    span data-v="workers_ready" data-f="count" { (status.workers_ready) } " of "
                    span data-v="workers_total" data-f="count" { (status.workers_total) }
                } }
                @if let Some(latency) = &status.latency {
                    div { dt { "Kernel program per NACK" } dd {
                        "half of them within " span data-v="latency.p50_seconds" data-f="seconds" { (latency.p50_seconds.map_or_else(|| ABSENT.to_owned(), notation::seconds)) }
                        ", 99 % within " span data-v="latency.p99_seconds" data-f="seconds" { (latency.p99_seconds.map_or_else(|| ABSENT.to_owned(), notation::seconds)) }
                    } }
                }
                div { dt { "Running for" } dd data-v="uptime_seconds" data-f="seconds" { (notation::seconds(status.uptime_seconds)) } }
                div { dt { "Build" } dd { (status.version) ", commit " code { (status.commit) } } }
                div { dt { "Host" } dd { (status.host) ", Linux " (status.kernel) } }
            }
            p.updates.live {
                button type="button" id="pause" { "Pause updates" }
                " " span id="updated" {}
            }
            noscript { p.updates { "Without JavaScript the page shows one moment: load it again for the next." } }
        }
    }
}

/// State and number of things to look at, in one sentence.
fn summary(status: &Status) -> String {
    match status.attention.len() {
        0 => "nothing needs attention".to_owned(),
        1 => "1 thing needs attention".to_owned(),
        many => format!("{many} things need attention"),
    }
}

fn attention(status: &Status) -> Markup {
    html! {
        section aria-labelledby="attention" {
            h2 id="attention" { "What needs attention" }
            ul id="list" {
                @for one in &status.attention {
                    li { span { (one.what) } " " a href=(one.link) { "Runbook: " (one.section) } }
                }
                @if status.attention.is_empty() { li.fine { "Nothing." } }
            }
        }
    }
}

fn interfaces(status: &Status) -> Markup {
    let head = html! {
        (column("interface", "name", "text"))
        (column("used for", "roles", "list"))
        (column("mode", "mode", "text"))
        (column("why", "reason", "text"))
        (column("packets sent by the kernel", "sent", "count"))
        (column("lost", "lost", "count"))
    };
    let count = |number: Option<u64>| number.map_or_else(|| ABSENT.to_owned(), notation::count);
    let body = html! {
        @for one in &status.interfaces {
            tr {
                th scope="row" { (one.name) }
                td { (one.roles.join(", ")) }
                td { (one.mode) }
                td { (one.reason) }
                td.num { (count(one.sent)) }
                td.num { (count(one.lost)) }
            }
        }
        @if status.interfaces.is_empty() { (none(6, "None is in use.")) }
    };
    let caption = "What each interface is used for, and where its NACKs are answered: native or skb by the kernel program, off by the daemon's socket.";
    table("interfaces", "Interfaces", caption, "interfaces", "None is in use.", head, body)
}

fn talkers(status: &Status) -> Markup {
    let caption = "NACKs of the last minute. Where many come they are estimates: asked is right to within the error in 95 of 100 cases.";
    let of = |id: &str, title: &str, first: &str, rows: &str, all: &[OfTalker]| {
        let head = html! {
            (column(first, "name", "text"))
            (column("asked", "asked", "count"))
            (column("error", "error", "count"))
            (column("answered", "answered", "count"))
            (column("missed", "missed", "count"))
            (column("refused", "refused", "reasons"))
            (column("bytes out", "bytes_out", "count"))
        };
        let body = html! {
            @for one in all {
                tr {
                    th scope="row" { (one.name) }
                    td.num { (notation::count(one.asked)) }
                    td.num { (notation::count(one.error)) }
                    td.num { (notation::count(one.answered)) }
                    td.num { (notation::count(one.missed)) }
                    td { (notation::reasons(&one.refused)) }
                    td.num { (notation::count(one.bytes_out)) }
                }
            }
            @if all.is_empty() { (none(7, "None asked.")) }
        };
        table(id, title, caption, rows, "None asked.", head, body)
    };
    html! {
        @if let Some(talkers) = &status.talkers {
            (of("sources", "Sources that ask most", "source", "talkers.sources", &talkers.sources))
            (of("flows", "Flows that are asked for most", "flow", "talkers.flows", &talkers.flows))
        }
    }
}

fn limits(status: &Status) -> Markup {
    let head = html! {
        (column("level", "level", "text"))
        (column("settings in force", "settings", "text"))
        (column("kernel", "kernel", "count"))
        (column("daemon", "daemon", "count"))
    };
    let body = html! {
        @for one in &status.limits {
            tr {
                th scope="row" { (one.level) }
                td { (one.settings) }
                td.num { (notation::count(one.kernel)) }
                td.num { (notation::count(one.daemon)) }
            }
        }
    };
    let caption = "NACKs over each limit, by path. A rate or maximum of 0 is no limit.";
    table("limits", "Limits", caption, "limits", "None.", head, body)
}

fn frames(status: &Status) -> Markup {
    let classes = html! {
        th scope="col" data-v="class" data-f="text" { "class" }
        (column("ring", "ring", "text"))
        (column("oldest frame", "oldest_age_seconds", "seconds"))
        (column("TTL", "ttl_seconds", "seconds"))
        th scope="col" data-v="oldest_age_seconds" data-of="ttl_seconds" data-f="share" data-label="oldest frame against the TTL" { "of the TTL" }
    };
    let of_classes = html! {
        @for one in &status.classes {
            tr {
                th scope="row" { (one.class) }
                td { (one.ring) }
                td.num { (notation::seconds(one.oldest_age_seconds)) }
                td.num { (notation::seconds(one.ttl_seconds)) }
                td { (meter(one.oldest_age_seconds, one.ttl_seconds, "oldest frame against the TTL")) }
            }
        }
    };
    let rings = html! {
        (column("ring", "ring", "text"))
        (column("in use", "used_bytes", "bytes"))
        (column("size", "size_bytes", "bytes"))
        (column("oldest frame", "oldest_age_seconds", "seconds"))
        th scope="col" data-v="used_bytes" data-of="size_bytes" data-f="share" data-label="fill of the ring" { "fill" }
    };
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory: exact up to 2^53")]
    let of_rings = html! {
        @for one in &status.rings {
            tr {
                th scope="row" { (one.ring) }
                td.num { (notation::bytes(one.used_bytes)) }
                td.num { (notation::bytes(one.size_bytes)) }
                td.num { (notation::seconds(one.oldest_age_seconds)) }
                td { (meter(one.used_bytes as f64, one.size_bytes as f64, "fill of the ring")) }
            }
        }
    };
    html! {
        (table("classes", "Frames by class", "Age of the oldest frame that is held against the life of its class; 0 s without a frame.",
            "classes", "None.", classes, of_classes))
        (table("rings", "Rings", "The memory of the frame log.", "rings", "None.", rings, of_rings))
    }
}

fn beyond(status: &Status) -> Markup {
    let upstreams = html! {
        (column("upstream endpoint", "name", "text"))
        (column("health", "up", "up"))
        (column("round trip", "rtt_seconds", "seconds"))
    };
    let of_upstreams = html! {
        @for one in &status.upstreams {
            tr {
                th scope="row" { (one.name) }
                td { (notation::up(one.up)) }
                td.num { (one.rtt_seconds.map_or_else(|| ABSENT.to_owned(), notation::seconds)) }
            }
        }
        @if status.upstreams.is_empty() { (none(3, "None is asked.")) }
    };
    let peers = html! {
        (column("NACK address", "nack", "text"))
        (column("tier", "tier", "count"))
        (column("preference", "preference", "count"))
        (column("draining", "draining", "yes"))
        (column("last beacon", "age_seconds", "seconds"))
        (column("forgotten in", "expires_in_seconds", "seconds"))
    };
    let of_peers = html! {
        @for one in &status.peers {
            tr {
                th scope="row" { (one.nack) }
                td.num { (one.tier) }
                td.num { (one.preference) }
                td { (notation::yes(one.draining)) }
                td.num { (notation::seconds(one.age_seconds)) }
                td.num { (notation::seconds(one.expires_in_seconds)) }
            }
        }
        @if status.peers.is_empty() { (none(6, "None is heard.")) }
    };
    html! {
        section aria-labelledby="redis" {
            h2 id="redis" { "Redis" }
            @match &status.redis {
                None => p { "No shared store: -redis-addr is not set." },
                Some(redis) => dl.facts {
                    div { dt { "State" } dd data-v="redis.up" data-f="up" { (notation::up(redis.up)) } }
                    div { dt { "Last error" } dd data-v="redis.reason" data-f="text" { (redis.reason.as_deref().unwrap_or(ABSENT)) } }
                    div { dt { "Frames that wait to be written" } dd data-v="redis.queued_frames" data-f="count" { (redis.queued_frames) } }
                },
            }
        }
        (table("upstreams", "Upstream endpoints", "Asked for frames that are missing here, with -proxy-enabled.",
            "upstreams", "None is asked.", upstreams, of_upstreams))
        (table("peers", "Peers", "Endpoints heard by beacon. Beacons carry no proof of their sender.",
            "peers", "None is heard.", peers, of_peers))
    }
}

fn handover(status: &Status) -> Markup {
    let handover = &status.handover;
    html! {
        section aria-labelledby="handover" {
            h2 id="handover" { "Leases and hand-over" }
            dl.facts {
                div { dt { "Start" } dd { (start(handover.start_mode)) } }
                div { dt { "Hand-over" } dd {
                    @if handover.on { "on: kernel program, frames and memberships outlive the daemon" }
                    @else { "off: the frames end with the daemon" }
                } }
                div { dt { "Kernel answers alone for" } dd { (notation::seconds(handover.bpf_lease_seconds)) } }
                div { dt { "Kernel waits for a silent daemon for" } dd { (notation::seconds(handover.daemon_lease_seconds)) } }
                div { dt { "Starts that took frames over" } dd { (notation::count(handover.adopted)) } }
                div { dt { "Frames held" } dd data-v="frames" data-f="count" { (notation::count(status.frames)) } }
            }
        }
    }
}
