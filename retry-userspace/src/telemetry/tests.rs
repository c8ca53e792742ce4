//! What is written where, at which level. Each test has a logger of its own, for its thread alone; one test at a time,
//! because the highest level that any logger wants is kept once for the whole process.

use std::ffi::OsString;
use std::io::{self, Write};

use serde_json::Value;

use super::*;
use crate::net::interface::Interface;
use crate::settings::Settings;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Clone, Default)]
struct Stream(Arc<Mutex<Vec<u8>>>);

impl Stream {
    fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).expect("UTF-8").lines().map(str::to_owned).collect()
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn settings(args: &[&str]) -> Settings {
    let args = ["p", "-instance", "endpoint-1"].iter().chain(args).map(OsString::from).collect::<Vec<_>>();
    Settings::from_args_and_env(args.into_iter(), |_| None::<String>).expect("settings")
}

fn config(args: &[&str]) -> Config {
    Config::from(&settings(args))
}

/// An interface that need not exist.
pub(super) fn interface(name: &str, mtu: u32) -> Interface {
    Interface {
        name: name.to_owned(),
        index: 2,
        mac: None,
        mtu,
        peer_mtu: None,
        up: true,
        carrier: true,
        loopback: false,
        multicast: true,
        addresses: Vec::new(),
    }
}

/// The one line that `speak` writes.
pub(super) fn object_of(args: &[&str], speak: impl FnOnce(&Settings)) -> Value {
    let (lines, _) = heard(&[args, &["-log-format=json"]].concat(), |_| speak(&settings(args)));
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    serde_json::from_str(line).expect("an object")
}

/// What `speak` makes the logger write: lines of stdout, lines of stderr.
fn heard(args: &[&str], speak: impl FnOnce(&LogLevel)) -> (Vec<String>, Vec<String>) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (out, err) = (Stream::default(), Stream::default());
    let (out_of, err_of) = (out.clone(), err.clone());
    let config = config(args);
    let (subscriber, level) = subscriber(&config, move || out_of.clone(), move || err_of.clone());
    let guard = subscriber.set_default();
    // The bound of the `log` crate is the process's; `init` sets it, and an earlier test may have left its own.
    log::set_max_level(config.level.as_str().parse().expect("both crates have the same words"));
    speak(&level);
    drop(guard);
    (out.lines(), err.lines())
}

fn messages(args: &[&str], speak: impl FnOnce(&LogLevel)) -> Vec<String> {
    let object = |line: String| serde_json::from_str::<Value>(&line).expect("one object a line");
    let (lines, _) = heard(&[args, &["-log-format=json"]].concat(), speak);
    lines.into_iter().map(|line| object(line)["message"].as_str().expect("a message").to_owned()).collect()
}

fn at_every_level() {
    tracing::error!("error");
    tracing::warn!("warn");
    tracing::info!("info");
    tracing::debug!("debug");
    tracing::trace!("trace");
}

#[test]
fn text_is_on_stderr() {
    let (out, err) = heard(&[], |_| tracing::info!(frames = 3, "serving"));
    assert!(out.is_empty());
    let [line] = err.as_slice() else { panic!("{err:?}") };
    assert!(line.contains("INFO") && line.contains("serving") && line.contains("frames=3"), "{line}");
    assert!(!line.contains('\u{1b}'), "no colours: {line}");
    let identity = format!(
        " service.name=retry-endpoint service.instance.id=\"endpoint-1\" service.version={}",
        env!("CARGO_PKG_VERSION")
    );
    assert!(line.ends_with(&identity), "{line}");
}

#[test]
fn a_text_line_is_one_line_and_says_who_speaks_whatever_its_words_are() {
    let (_, err) = heard(&["-instance=a b"], |_| tracing::warn!(name = ?"c\nd", "first\nsecond"));
    let [line] = err.as_slice() else { panic!("{err:?}") };
    assert!(line.contains("first\\nsecond") && line.contains("service.instance.id=\"a b\""), "{line}");
}

#[test]
fn json_is_on_stdout_one_object_a_line_and_says_who_speaks() {
    let (out, err) = heard(&["-log-format", "json"], |_| {
        tracing::info!(frames = 3u64, delta = -1, share = 0.5, on = true, name = "a\nb", "serving");
        tracing::warn!(error = %io::Error::other("no"), "second");
    });
    assert!(err.is_empty());
    let objects: Vec<Value> = out.iter().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(objects.len(), 2);
    for object in &objects {
        assert_eq!(object["service.name"], "retry-endpoint");
        assert_eq!(object["service.instance.id"], "endpoint-1");
        assert_eq!(object["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(object["target"].as_str().is_some_and(|target| target.starts_with("retry_userspace::telemetry")));
        assert!(object["time_unix"].as_f64().is_some_and(|seconds| seconds > 1.7e9));
    }
    let first = &objects[0];
    assert_eq!((&first["level"], &first["message"]), (&"INFO".into(), &"serving".into()));
    assert_eq!((&first["frames"], &first["delta"], &first["share"]), (&3.into(), &(-1).into(), &0.5.into()));
    assert_eq!((&first["on"], &first["name"]), (&true.into(), &"a\nb".into()));
    assert_eq!((&objects[1]["level"], &objects[1]["error"]), (&"WARN".into(), &"no".into()));
}

#[test]
fn an_events_own_fields_do_not_hide_the_identity() {
    let (out, _) = heard(&["-log-format", "json"], |_| tracing::info!(level = "mine", target = 7, "x"));
    let object: Value = serde_json::from_str(&out[0]).expect("an object");
    assert_eq!((&object["level"], &object["field.level"]), (&"INFO".into(), &"mine".into()));
    assert_eq!(object["field.target"], 7);
}

#[test]
fn lines_of_the_log_crate_keep_their_origin_and_level() {
    let (out, _) = heard(&["-log-format", "json"], |_| {
        log::warn!(target: "retry_ebpf", "refused: {}", 7);
        log::debug!(target: "retry_ebpf", "below the level");
    });
    let [line] = out.as_slice() else { panic!("{out:?}") };
    let object: Value = serde_json::from_str(line).expect("an object");
    assert_eq!((&object["target"], &object["level"]), (&"retry_ebpf".into(), &"WARN".into()));
    assert_eq!((&object["message"], &object["log.line"]), (&"refused: 7".into(), &Value::Null));
    assert_eq!(object["service.instance.id"], "endpoint-1");
}

#[test]
fn lines_of_the_log_crate_follow_the_level() {
    let heard = messages(&[], |level| {
        log::debug!("not yet");
        level.set("debug").expect("a level");
        log::debug!("now");
    });
    assert_eq!(heard, ["log level set", "now"]);
}

#[test]
fn the_level_is_the_settings() {
    let all = ["error", "warn", "info", "debug", "trace"];
    for (args, many) in [
        (&["-log-level=error"][..], 1),
        (&["-log-level=warn"], 2),
        (&[], 3),
        (&["-debug"], 4),
        (&["-debug", "-log-level=trace"], 5),
    ] {
        assert_eq!(messages(args, |_| at_every_level()), all[..many], "{args:?}");
    }
}

#[test]
fn libraries_are_quiet_below_warnings() {
    let speak = |_: &LogLevel| {
        tracing::debug!(target: "aya_obj::relocation", "noise");
        tracing::info!(target: "h2::codec", "noise");
        tracing::debug!(target: "hyper_util::client", "noise");
        tracing::trace!(target: "tower::buffer", "noise");
        tracing::debug!(target: "opentelemetry_sdk", "noise");
        tracing::debug!(target: "opentelemetry-otlp", "noise");
        log::debug!(target: "rustls::client::hs", "noise");
        // Once for every attempt: the store tells it once.
        log::warn!(target: "redis::cluster_handling::async_connection", "noise");
        tracing::warn!(target: "aya", "matters");
        tracing::error!(target: "hyper", "matters too");
    };
    assert_eq!(messages(&["-log-level=trace"], speak), ["matters", "matters too"]);
    assert_eq!(messages(&["-log-level=error"], speak), ["matters too"]);
}

#[test]
fn a_level_can_be_set_while_running() {
    let heard = messages(&[], |level| {
        level.set("debug").expect("a level");
        tracing::debug!("one");
        level.clone().set("ERROR").expect("a level");
        tracing::warn!("not this");
        tracing::error!("two");
        for word in ["", "loud", "3", "debug\n"] {
            let refused = level.set(word).expect_err(word).to_string();
            assert_eq!(
                refused,
                format!("level {}: trace, debug, info, warn, error is accepted", word.replace('\n', "\\n"))
            );
        }
        tracing::warn!("still not this");
    });
    assert_eq!(heard, ["log level set", "one", "two"]);
}

#[test]
fn sighup_toggles_debug() {
    let talk = |level: &LogLevel| {
        tracing::debug!("quiet");
        level.toggle_debug();
        tracing::debug!("on");
        level.toggle_debug();
        tracing::debug!("quiet again");
    };
    assert_eq!(messages(&[], talk), ["log level toggled", "on", "log level toggled"]);
    // From warn, to which it goes back.
    assert_eq!(messages(&["-log-level=warn"], talk), ["log level toggled", "on", "log level toggled"]);
    let back = messages(&["-log-level=warn"], |level| {
        level.toggle_debug();
        level.toggle_debug();
        tracing::info!("info is too much");
    });
    assert_eq!(back, ["log level toggled", "log level toggled"]);
    // Started at debug there is no level before: info.
    let from_debug = messages(&["-debug"], |level| {
        level.toggle_debug();
        at_every_level();
        level.toggle_debug();
        tracing::debug!("on");
    });
    assert_eq!(from_debug, ["log level toggled", "error", "warn", "info", "log level toggled", "on"]);
    // A level that was set is the one to go back to.
    let after_set = messages(&[], |level| {
        level.set("trace").expect("a level");
        level.toggle_debug();
        tracing::trace!("not at debug");
        level.toggle_debug();
        tracing::trace!("back");
    });
    assert_eq!(after_set, ["log level set", "log level toggled", "log level toggled", "back"]);
}

#[test]
fn a_gone_logger_is_an_error() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let level = subscriber(&config(&[]), io::sink, io::sink).1;
    assert!(matches!(level.set("debug"), Err(LogLevelError::Reload(_))));
    level.toggle_debug();
}
