//! What the page looks like and how it is read: without JavaScript, light and dark, narrow, by keyboard, by assistive
//! technology.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, group};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, binary, counted, eventually, flags, frame, is_root, two_hosts};
use serde_json::{Value, json};

use crate::PAGE;
use crate::browser::Browser;

/// WebDriver's name for the tabulator key.
const TAB: &str = "\u{e004}";

/// Every row of every table as text. Ages go on while the page is read, so that one age is as good as another.
const ROWS: &str = r"
    const age = /[\d.]+ (s|ms|µs|min|h)( \d+ (s|min))?/g;
    const cells = (row) => [...row.cells].filter((cell) => !cell.classList.contains('live'));
    const rows = [...document.querySelectorAll('main tr')];
    return rows.map((row) => cells(row).map((cell) => cell.textContent.trim().replace(age, 'AGE').replace(/^\d+ %$/, 'SHARE')));";

/// Contrast of every text with what is behind it, where it is below 4.5 (WCAG 2.2, 1.4.3), and how many texts there are.
const CONTRAST: &str = r"
    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const luminance = (color) => {
      const [r, g, b] = channels(color).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor;
        const parts = channels(color);
        if (parts.length === 3 || parts[3] > 0) return color;
      }
      return 'rgb(255, 255, 255)';
    };
    const texts = [...document.querySelectorAll('body *')].filter((element) => {
      const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      return own && element.checkVisibility() && !['SCRIPT', 'NOSCRIPT'].includes(element.tagName);
    });
    const low = texts.map((element) => {
      const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((x, y) => y - x);
      return [Math.round((a + 0.05) / (b + 0.05) * 10) / 10, element.tagName, element.textContent.slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
    return [texts.length, low];";

/// Twenty hits and twenty misses.
fn traffic(daemon: &Daemon<'_>, endpoint: &Host, client: &Host) {
    hits_and_misses(daemon, endpoint, client, 1..=20);
}

/// Ten more of each.
fn traffic_again(daemon: &Daemon<'_>, endpoint: &Host, client: &Host) {
    hits_and_misses(daemon, endpoint, client, 21..=30);
}

fn hits_and_misses(daemon: &Daemon<'_>, endpoint: &Host, client: &Host, numbers: std::ops::RangeInclusive<u64>) {
    let publisher = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let socket = asker(client);
    for number in numbers {
        let key = FrameKey::new(0x100c5, number);
        publisher.send(group(0), &frame(key, 300, 1)).expect("a frame leaves");
        counted(daemon, "bre_frames_cached_total", &[], number);
        let missing = FrameKey::new(0x100c5, 1_000 + number);
        for key in [key, missing] {
            assert!(!ask(&socket, endpoint.nack_address(), &nack(key), 1).is_empty(), "{}", daemon.log());
        }
    }
}

/// Writes a picture to the directory that `RETRY_PAGE_PICTURES` names, if it is set.
fn picture(browser: &Browser<'_>, name: &str) {
    let encoded = browser.picture();
    assert!(encoded.starts_with("iVBORw0KGgo"), "a PNG");
    let Some(directory) = std::env::var_os("RETRY_PAGE_PICTURES") else { return };
    let file = std::fs::File::create(Path::new(&directory).join(name)).expect("a file");
    let mut decoder = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(file).spawn().expect("base64");
    let mut input = decoder.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut input, encoded.as_bytes()).expect("written");
    drop(input);
    assert!(decoder.wait().expect("it ends").success());
}

const POLLED: &str = "return document.getElementById('updated').textContent.startsWith('Updated')";
const CHARTED: &str = "return document.querySelectorAll('main svg').length == 13";

/// The page without JavaScript says what the page with JavaScript says.
#[test]
fn the_page_is_whole_without_javascript() {
    if !is_root("the_page_is_whole_without_javascript") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-proxy-enabled", "-upstream-retry-endpoints", "[fd10::77]:9300", "-rl-ip-rate", "5000"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    traffic(&daemon, endpoint, client);
    // The upstream endpoint is not there: three recoveries without an answer.
    eventually("the upstream is down", || {
        daemon.metrics().expect("a scrape").get("bre_upstream_up{upstream=\"[fd10::77]:9300\"}") == Some(0.0)
    });
    let browser = Browser::start(&endpoint.ns);
    browser.scripts(false);
    browser.open(PAGE);
    let plain = browser.run(ROWS);
    let shown = browser.shown();
    for words in ["ready", "An upstream is lost", "Without JavaScript", "[fd10::77]:9300", "-rl-ip-rate 5000", "native"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    for words in ["Pause updates", "per second", "last two minutes"] {
        assert!(!shown.contains(words), "{words} needs the script: {shown}");
    }
    assert!(plain.as_array().expect("rows").len() > 30, "{plain}");

    browser.scripts(true);
    browser.open(PAGE);
    browser.until("a poll", POLLED);
    // What the server wrote goes, so that every cell is of the script.
    browser.run("for (const cell of document.querySelectorAll('main td')) cell.replaceChildren()");
    browser
        .until("the cells are back", "return document.querySelector('tr[data-name=ack]').cells[1].textContent != ''");
    assert_eq!(browser.run(ROWS), plain, "with the script, and without");
    assert_eq!(browser.console(), [Value::Null; 0]);
}

/// In both colour schemes and at 360 pixels: text stands out, nothing is cut off, nothing comes from another host.
#[test]
fn it_is_readable_in_every_form() {
    if !is_root("it_is_readable_in_every_form") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    // No Redis is there: something needs attention.
    let more = ["-redis-addr", "[fd10::77]:6379"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    let browser = Browser::start(&endpoint.ns);
    browser.open(PAGE);
    browser.until("a poll", POLLED);
    traffic(&daemon, endpoint, client);
    browser.until("charts", CHARTED);
    // A picture is to show charts.
    for round in 0..if std::env::var_os("RETRY_PAGE_PICTURES").is_some() { 36 } else { 1 } {
        traffic_again(&daemon, endpoint, client);
        std::thread::sleep(std::time::Duration::from_millis(200 + round % 7 * 300));
    }
    browser.until("lines", "return document.querySelector('tr[data-name=ack] polyline').points.length > 4");
    browser.until("a fault", "return document.getElementById('list').innerText.includes('Redis is dead')");
    for (scheme, width, name) in [
        ("light", 1280, "light.png"),
        ("dark", 1280, "dark.png"),
        ("light", 360, "narrow.png"),
        ("dark", 360, "dark-narrow.png"),
    ] {
        browser.scheme(scheme);
        browser.width(width);
        let contrast = browser.run(CONTRAST);
        assert!(contrast[0].as_u64().is_some_and(|texts| texts > 80), "{contrast}");
        assert_eq!(contrast[1], json!([]), "{scheme}: below 4.5 to 1");
        let wide = browser.run("return document.documentElement.scrollWidth");
        assert!(wide.as_u64().is_some_and(|wide| wide <= u64::from(width)), "{wide} pixels at {width}");
        picture(&browser, name);
    }
    let requests = browser.requests();
    assert!(requests.iter().any(|url| url == "http://[::1]:9400/v1/status"), "{requests:?}");
    let foreign: Vec<_> = requests.iter().filter(|url| !url.starts_with(PAGE) && !url.starts_with("data:")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert_eq!(browser.console(), [Value::Null; 0]);
}

/// The focus goes through the page in the order in which it is read, and the button stops the updates.
#[test]
fn the_keyboard_is_enough() {
    if !is_root("the_keyboard_is_enough") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let browser = Browser::start(&endpoint.ns);
    browser.open(PAGE);
    browser.until("a poll", POLLED);
    let focus =
        "const at = document.activeElement; return at.id || at.getAttribute('aria-labelledby') || at.textContent";
    let mut order = Vec::new();
    for _ in 0..16 {
        browser.press(TAB);
        order.push(browser.text(focus));
        let outlined = browser.run("return getComputedStyle(document.activeElement).outlineStyle");
        assert_eq!(outlined, "solid", "the focus is seen at {order:?}");
    }
    let expected = [
        "Skip to the status",
        "pause",
        "interfaces",
        "nacks",
        "answers",
        "sources",
        "flows",
        "limits",
        "classes",
        "rings",
        "upstreams",
        "peers",
        "This as JSON",
        "Metrics",
        "Readiness",
        "Runbook",
    ];
    assert_eq!(order, expected);
    // The link at the top leads past the header.
    browser.run("document.querySelector('.skip').focus()");
    browser.press("\u{e007}");
    browser.until("the main part", "return document.activeElement.id == 'main'");
    browser.run("document.getElementById('pause').focus()");
    browser.press(" ");
    assert_eq!(browser.text("return document.getElementById('pause').textContent"), "Go on with updates");
    browser.run("window.polls = performance.getEntriesByType('resource').length");
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    assert_eq!(browser.run("return performance.getEntriesByType('resource').length - window.polls"), 0);
    browser.press(" ");
    browser.until("it goes on", "return performance.getEntriesByType('resource').length > window.polls");
}

/// What assistive technology gets: landmarks, one heading per section, and a name for everything that needs one.
#[test]
fn assistive_technology_finds_its_way() {
    if !is_root("assistive_technology_finds_its_way") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let browser = Browser::start(&endpoint.ns);
    browser.open(PAGE);
    browser.until("a poll", POLLED);
    traffic(&daemon, endpoint, client);
    browser.until("charts", CHARTED);
    let tree = browser.devtools("Accessibility.getFullAXTree", json!({}));
    let nodes: Vec<(&str, &str)> = tree["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .filter(|node| node["ignored"] != true)
        .map(|node| (node["role"]["value"].as_str().unwrap_or(""), node["name"]["value"].as_str().unwrap_or("")))
        .collect();
    let count = |wanted: &str| nodes.iter().filter(|(role, _)| *role == wanted).count();
    for (role, number) in [
        ("banner", 1),
        ("main", 1),
        ("contentinfo", 1),
        ("status", 1),
        ("table", 10),
        ("image", 13),
        ("meter", 7),
        ("button", 1),
    ] {
        assert_eq!(count(role), number, "{role}");
    }
    let named =
        BTreeSet::from(["table", "image", "meter", "button", "link", "region", "group", "heading", "columnheader"]);
    let nameless: Vec<_> = nodes.iter().filter(|(role, name)| named.contains(role) && name.trim().is_empty()).collect();
    assert!(nameless.is_empty(), "{nameless:?}");
    let headings = browser.run("return [...document.querySelectorAll('h1, h2, h3')].map((one) => one.tagName)");
    let levels: Vec<_> = headings.as_array().expect("a list").iter().map(Value::as_str).collect();
    assert_eq!((levels[0], levels.len()), (Some("H1"), 14), "{headings}");
    assert!(levels[1..].iter().all(|level| *level == Some("H2")), "{headings}");
    assert_eq!(browser.text("return document.documentElement.lang"), "en");
    // What changes by itself and matters is announced: politely, and as a whole.
    assert_eq!(browser.text("return document.querySelector('[role=status]').id"), "summary");
}
