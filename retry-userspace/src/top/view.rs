//! What `top` shows, as lines: the terminal gets them with their styles, `--once` without.

use std::time::Duration;

use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::status::{Counted, Status, Talker};
use crate::notation::{count, seconds};

/// What stands for a value that is absent.
const ABSENT: &str = "–";
/// Between two columns.
const GAP: &str = "  ";

/// A look at a daemon, and the one before it.
pub(super) struct Look<'a> {
    /// What it says.
    pub(super) now: &'a Status,
    /// What it said, and how long ago.
    pub(super) before: Option<(&'a Status, Duration)>,
}

/// A line as an address is written (`instance` may hold anything): no control character reaches the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

fn or_absent<T>(value: Option<T>, written: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| ABSENT.to_owned(), written)
}

/// What grew per second since the look before, by name; `None` at the first look.
pub(super) fn per_second(of: impl Fn(&Status) -> &[Counted], name: &str, look: &Look<'_>) -> Option<f64> {
    let (before, passed) = look.before?;
    let sum = |status: &Status| {
        of(status).iter().find(|one| one.name == name).map(|one| one.kernel.saturating_add(one.daemon))
    };
    // Another daemon's counters may begin lower.
    let grown = sum(look.now)?.saturating_sub(sum(before)?);
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    let rate = grown as f64 / passed.as_secs_f64();
    rate.is_finite().then_some(rate)
}

fn rate(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// A table: a heading, and rows below it. Columns whose heading begins with `#` hold numbers and stand at the right.
fn table(title: String, heads: &[&str], rows: Vec<Vec<String>>, none: &str, lines: &mut Vec<Line<'static>>) {
    lines.push(Line::default());
    lines.push(Line::styled(title, Style::new().add_modifier(Modifier::BOLD)));
    if rows.is_empty() {
        lines.push(Line::raw(none.to_owned()));
        return;
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        let head = heads.get(column).map_or(0, |head| head.trim_start_matches('#').chars().count());
        cells.max().unwrap_or(0).max(head)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let row = |cells: Vec<&str>| {
        let padded = cells.iter().zip(heads).zip(&widths).map(|((cell, head), width)| {
            if head.starts_with('#') { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        padded.collect::<Vec<_>>().join(GAP)
    };
    let head = row(heads.iter().map(|head| head.trim_start_matches('#')).collect());
    lines.push(Line::styled(head, Style::new().add_modifier(Modifier::DIM)));
    lines.extend(rows.iter().map(|cells| Line::raw(row(cells.iter().map(String::as_str).collect()))));
}

/// What a name in `nacks` or `answers` is called.
fn called(name: &str) -> String {
    match name {
        "over_limit" => "over a limit".to_owned(),
        "held_down" => "held down".to_owned(),
        "other_instance" => "other instance".to_owned(),
        other => other.to_owned(),
    }
}

fn counted(all: &[Counted], of: impl Fn(&Status) -> &[Counted] + Copy, look: &Look<'_>) -> Vec<[String; 3]> {
    let row = |one: &Counted| {
        let sum = one.kernel.saturating_add(one.daemon);
        [called(&one.name), or_absent(per_second(of, &one.name, look), rate), count(sum)]
    };
    all.iter().map(row).collect()
}

fn talkers(all: &[Talker]) -> Vec<Vec<String>> {
    let reasons = |one: &Talker| {
        let all: Vec<String> = one.refused.iter().map(|(name, times)| format!("{name} {}", count(*times))).collect();
        if all.is_empty() { ABSENT.to_owned() } else { all.join(", ") }
    };
    let error = |one: &Talker| if one.error == 0 { String::new() } else { format!("±{}", count(one.error)) };
    all.iter()
        .map(|one| {
            vec![
                one.name.clone(),
                count(one.asked),
                error(one),
                count(one.answered),
                count(one.missed),
                count(one.bytes_out),
                reasons(one),
            ]
        })
        .collect()
}

/// The whole of it.
pub(super) fn lines(look: &Look<'_>) -> Vec<Line<'static>> {
    let status = look.now;
    let state = status.status.replace('_', " ");
    let style = match status.status.as_str() {
        "ready" => Style::new().green(),
        "degraded" | "draining" | "starting" => Style::new().yellow(),
        _ => Style::new().red(),
    };
    let mut lines = vec![Line::from(vec![
        Span::styled(plain(&state), style.add_modifier(Modifier::BOLD)),
        Span::raw(format!(
            "{GAP}{} on {}, {} of retry-endpoint {}, {} frames",
            plain(&status.instance),
            plain(&status.host),
            seconds(status.uptime_seconds),
            plain(&status.version),
            count(status.frames)
        )),
    ])];
    for one in &status.attention {
        let text = format!("! {} (runbook: {})", plain(&one.what), plain(&one.section));
        lines.push(Line::styled(text, Style::new().yellow()));
    }
    let interfaces = status.interfaces.iter().map(|one| {
        let why = format!("{} ({})", one.mode, one.reason);
        vec![one.name.clone(), one.roles.join(", "), why, or_absent(one.sent, count), or_absent(one.lost, count)]
    });
    table(
        "Interfaces".to_owned(),
        &["interface", "used for", "mode", "#sent", "#lost"],
        interfaces.collect(),
        "None is in use.",
        &mut lines,
    );

    let nacks = counted(&status.nacks, |status| &status.nacks, look);
    let answers = counted(&status.answers, |status| &status.answers, look);
    let empty = || [String::new(), String::new(), String::new()];
    let both = (0..nacks.len().max(answers.len())).map(|at| {
        let [nack, answer] = [&nacks, &answers].map(|side| side.get(at).cloned().unwrap_or_else(empty));
        nack.into_iter().chain([String::new()]).chain(answer).collect()
    });
    let title = match &status.latency {
        Some(latency) => format!(
            "NACKs and answers; the kernel program takes {} per NACK (p50), {} (p99), in the last {}",
            or_absent(latency.p50_seconds, seconds),
            or_absent(latency.p99_seconds, seconds),
            seconds(latency.window_seconds)
        ),
        None => "NACKs and answers".to_owned(),
    };
    let heads = ["NACKs", "#per second", "#in all", "", "answers", "#per second", "#in all"];
    table(title, &heads, both.collect(), "None.", &mut lines);

    if let Some(top) = &status.talkers {
        let of = |first: &'static str| [first, "#asked", "error", "#answered", "#missed", "#bytes out", "refused"];
        let window = seconds(top.window_seconds);
        let title = format!("Sources that asked most in the last {window}");
        table(title, &of("source"), talkers(&top.sources), "None asked.", &mut lines);
        let title = format!("Flows that were asked for most in the last {window}");
        table(title, &of("flow"), talkers(&top.flows), "None asked.", &mut lines);
    }

    let classes = status
        .classes
        .iter()
        .map(|one| vec![one.class.clone(), seconds(one.oldest_age_seconds), seconds(one.ttl_seconds)]);
    table("Frames".to_owned(), &["class", "#oldest frame", "#TTL"], classes.collect(), "None.", &mut lines);

    let up = |is_up: bool| if is_up { "up" } else { "down" };
    let upstreams = status
        .upstreams
        .iter()
        .map(|one| vec![one.name.clone(), up(one.up).to_owned(), or_absent(one.rtt_seconds, seconds)]);
    let heads = ["upstream endpoint", "health", "#round trip"];
    table("Upstream endpoints".to_owned(), &heads, upstreams.collect(), "None is asked.", &mut lines);

    lines.push(Line::default());
    lines.push(Line::raw(match &status.redis {
        None => "Redis: no shared store".to_owned(),
        Some(redis) => {
            let why = redis.reason.as_ref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
            format!("Redis: {}{why}; {} frames wait to be written", up(redis.up), count(redis.queued_frames))
        }
    }));
    lines
}

/// Lines as text, without styles.
pub(super) fn text(lines: &[Line<'_>]) -> String {
    let mut text = String::new();
    for line in lines {
        let whole: String = line.spans.iter().map(|span| span.content.as_ref()).collect();
        text.push_str(whole.trim_end());
        text.push('\n');
    }
    text
}
