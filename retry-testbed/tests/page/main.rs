//! The status page in Chromium, of a real daemon on a fabric: with and without JavaScript, while frames and NACKs flow,
//! with faults, in both colour schemes, by keyboard, and as assistive technology gets it.

#![expect(clippy::panic, reason = "a test's panic is its message")]

mod browser;
mod looks;

use std::sync::Arc;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, INTERFACE, group};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::peers::redis::{PORT, Server};
use retry_testbed::scene::{ask, asker, binary, counted, flags, frame, is_root, two_hosts};

use browser::Browser;
use serde_json::Value;

const PAGE: &str = "http://[::1]:9400/";
const KEY: FrameKey = FrameKey::new(0x9a6e, 1);

/// The number in a row of a table, by its column.
fn cell(table: &str, row: &str, column: usize) -> String {
    format!(
        "return document.querySelector('section[aria-labelledby={table}] tr[data-name={row}]').cells[{column}].textContent"
    )
}

/// Frames and NACKs change the numbers, the rates and the charts of an open page.
#[test]
fn traffic_is_shown_while_it_happens() {
    if !is_root("traffic_is_shown_while_it_happens") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let browser = Browser::start(&endpoint.ns);
    browser.open(PAGE);
    browser.until("the first poll", "return document.getElementById('updated').textContent.startsWith('Updated')");
    assert_eq!(browser.text(&cell("answers", "ack", 1)), "0");

    let publisher = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publisher.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let socket = asker(client);
    for _ in 0..10 {
        assert!(!ask(&socket, endpoint.nack_address(), &nack(KEY), 1).is_empty(), "{}", daemon.log());
    }
    let acks = cell("answers", "ack", 1).replace("return ", "return 10 == ");
    browser.until("ten ACKs by the kernel", &acks);
    let label = browser.text("return document.querySelector('tr[data-name=ack] svg').getAttribute('aria-label')");
    assert!(label.starts_with("ACK: ") && label.ends_with(" in the last two minutes"), "{label}");
    assert!(!label.contains("at most 0 "), "{label}");
    assert_eq!(browser.console(), [Value::Null; 0], "nothing is wrong");
    // A daemon that has ended is told, and what was shown stays.
    let mut daemon = daemon;
    assert!(daemon.end().expect("it ends").success());
    browser
        .until("the end is told", "return document.getElementById('summary').textContent.includes('does not answer')");
    assert_eq!(browser.text(&cell("answers", "ack", 1)), "10");
}

/// Redis is down and the interface loses its address: the page says so, names the sections, and says when it is over.
#[test]
fn a_fault_is_shown_with_its_section_and_ends() {
    if !is_root("a_fault_is_shown_with_its_section_and_ends") {
        return;
    }
    let fabric = Fabric::bridged(&["endpoint", "redis"], 1500).expect("a fabric");
    let (endpoint, on) = (fabric.host("endpoint").expect("a host"), fabric.host("redis").expect("a host"));
    let mut redis = Server::start(on).expect("Redis");
    let address = format!("[{}]:{PORT}", on.addr);
    let own = endpoint.addr.to_string();
    let more = ["-redis-addr", &address, "-nack-addr", &own];
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    let browser = Browser::start(&endpoint.ns);
    browser.open(PAGE);
    let said = |words: &str| format!("return document.getElementById('list').innerText.includes({words:?})");
    let gone = |words: &str| said(words).replace("return ", "return !");
    browser.until("all is well", "return document.getElementById('summary').textContent == 'nothing needs attention'");

    redis.kill().expect("it dies");
    browser.until("Redis is told", &said("Runbook: Redis is dead or refuses us"));
    let without = ["ip", "-6", "addr", "del", &format!("{own}/64"), "dev", INTERFACE];
    endpoint.ns.run(&without).expect("the address goes");
    browser.until("the address is told", &said("Runbook: The daemon is not ready"));
    browser.until("the state is told", "return document.getElementById('state').textContent == 'not ready'");
    browser.until("the mode is told", "return document.querySelector('[data-v=\"xdp.mode\"]').textContent == 'off'");
    // Without its script the page says the same.
    let page = retry_testbed::daemon::http::get(&endpoint.ns, "[::1]:9400".parse().expect("an address"), "/");
    let page = page.expect("a page").1;
    for words in
        ["no interface of this host has this address", "#redis-is-dead-or-refuses-us", "#the-daemon-is-not-ready"]
    {
        assert!(page.contains(words), "{words}: {page}");
    }

    let with = ["ip", "-6", "addr", "add", &format!("{own}/64"), "dev", INTERFACE, "nodad"];
    endpoint.ns.run(&with).expect("the address comes");
    browser.until("the address is back", &gone("The daemon is not ready"));
    redis.start_again().expect("Redis");
    browser.until("Redis is back", &gone("Redis is dead"));
    browser.until("the state is told", "return document.getElementById('state').textContent == 'ready'");
}

/// The sources and flows that ask most are shown while they ask, and without JavaScript too.
#[test]
fn those_that_ask_most_are_shown() {
    if !is_root("those_that_ask_most_are_shown") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let browser = Browser::start(&endpoint.ns);
    browser.open(PAGE);
    let body = |table: &str| format!("document.querySelector('section[aria-labelledby={table}] tbody')");
    browser.until("the first poll", "return document.getElementById('updated').textContent.startsWith('Updated')");
    assert_eq!(browser.text(&format!("return {}.innerText.trim()", body("sources"))), "None asked.");

    let socket = asker(client);
    for _ in 0..5 {
        assert_eq!(ask(&socket, endpoint.nack_address(), &nack(KEY), 1).len(), 1, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (source, flow) = (client.addr.to_string(), "0000000000009a6e");
    // Name, asked, error, answered, missed, refused, bytes out.
    let row = |name: &str| format!("{name}|5|0|0|5|–|320");
    let cells = |table: &str| format!("[...{}.rows[0].cells].map((cell) => cell.textContent).join('|')", body(table));
    for (table, name) in [("sources", source.as_str()), ("flows", flow)] {
        browser.until("five misses", &format!("return {} == '{}'", cells(table), row(name)));
        assert_eq!(browser.text(&format!("return {}.rows[0].cells[0].scope", body(table))), "row");
    }
    assert_eq!(browser.console(), [Value::Null; 0], "nothing is wrong");
    let page = daemon.get("/").expect("a page").1;
    for name in [source.as_str(), flow] {
        let cells = ["5", "0", "0", "5"].map(|cell| format!("<td class=\"num\">{cell}</td>")).concat();
        let row = format!("<th scope=\"row\">{name}</th>{cells}<td>–</td><td class=\"num\">320</td>");
        assert!(page.contains(&row), "{row}: {page}");
    }
}
