//! Chromium without a window, in a namespace, driven by its WebDriver (W3C) and the DevTools commands that chromedriver
//! passes on.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use retry_testbed::daemon::http;
use retry_testbed::net::netns::{ChildGuard, Netns};
use serde_json::{Value, json};

/// A port of the namespace that nothing else uses.
const DRIVER: &str = "127.0.0.1:9515";
/// Starting Chromium takes a second or two, on a busy machine ten.
const PATIENCE: Duration = Duration::from_secs(40);

/// A browser with one window. It ends with the value.
pub(crate) struct Browser<'a> {
    ns: &'a Netns,
    session: String,
    driver: ChildGuard,
    _profile: tempfile::TempDir,
}

impl<'a> Browser<'a> {
    pub(crate) fn start(ns: &'a Netns) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("chromedriver");
        command.args(["--port=9515", "--log-level=WARNING"]).env("HOME", profile.path());
        // The default buses of this host are not the test's.
        command
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut driver = ns.spawn(command).expect("chromedriver");
        let deadline = Instant::now() + PATIENCE;
        while http::get(ns, address(), "/status").is_err() {
            if Instant::now() > deadline {
                driver.kill();
                let mut said = String::new();
                let _ = driver.child_mut().stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
                panic!("chromedriver does not answer: {said}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut browser = Self { ns, session: String::new(), driver, _profile: profile };
        let arguments = [
            "--headless=new",
            // As root, and in a container's small /dev/shm.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--lang=en",
            "--window-size=1280,1000",
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let started = browser.call("POST", "/session", &capabilities);
        browser.session = format!("/session/{}", started["sessionId"].as_str().expect("a session"));
        browser
    }

    /// A request to the driver; the answer's `value`.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let bytes = if method == "GET" { Vec::new() } else { body.to_string().into_bytes() };
        let (status, answer) = http::exchange(self.ns, address(), method, path, None, &bytes).expect("an answer");
        let mut answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer["value"].take()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    /// A DevTools command.
    pub(crate) fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Opens a page and waits until it is loaded.
    pub(crate) fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What a script in the page returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    pub(crate) fn text(&self, script: &str) -> String {
        self.run(script).as_str().unwrap_or_else(|| panic!("{script}: no text")).to_owned()
    }

    /// The visible text of the page.
    pub(crate) fn shown(&self) -> String {
        self.text("return document.body.innerText")
    }

    /// Waits until `script` returns true.
    pub(crate) fn until(&self, what: &str, script: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.run(script) != true {
            assert!(Instant::now() < deadline, "never came: {what}\n{}", self.shown());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Presses a key: a character, or one of WebDriver's names for keys.
    pub(crate) fn press(&self, key: &str) {
        let keys = json!({ "actions": [{ "type": "key", "id": "keys", "actions": [
            { "type": "keyDown", "value": key }, { "type": "keyUp", "value": key },
        ] }] });
        self.post("/actions", &keys);
    }

    /// Scripts of pages run, or do not; those of the test run always.
    pub(crate) fn scripts(&self, run: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": !run }));
    }

    pub(crate) fn scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    pub(crate) fn width(&self, pixels: u32) {
        let metrics = json!({ "width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Errors and warnings of the console since the last call.
    pub(crate) fn console(&self) -> Vec<Value> {
        self.post("/se/log", &json!({ "type": "browser" })).as_array().cloned().expect("a list")
    }

    /// URLs that were asked for since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "performance" }));
        let messages = log.as_array().expect("a list").iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            (message["message"]["method"] == "Network.requestWillBeSent").then_some(message)
        });
        messages
            .filter_map(|message| Some(message["message"]["params"]["request"]["url"].as_str()?.to_owned()))
            .collect()
    }

    /// The whole page as PNG, in base64.
    pub(crate) fn picture(&self) -> String {
        let shot = self.devtools("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        shot["data"].as_str().expect("a picture").to_owned()
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Chromium ends with its session; a driver that has died cannot be asked.
            let _ = http::exchange(self.ns, address(), "DELETE", &self.session, None, &[]);
        }
        self.driver.kill();
    }
}

fn address() -> SocketAddr {
    DRIVER.parse().expect("an address")
}
