//! Settings in files: what is read, what beats what, and what a second reading changes.

use std::collections::BTreeMap;
use std::fs;

use tempfile::TempDir;

use super::*;

/// A directory with a file of settings and one of variables.
struct Files(TempDir);

impl Files {
    fn new(config: &str, variables: &str) -> Self {
        let files = Self(tempfile::tempdir().expect("a directory"));
        files.write(config, variables);
        files
    }

    fn write(&self, config: &str, variables: &str) {
        fs::write(self.config(), config).expect("a file");
        fs::write(self.variables(), variables).expect("a file");
    }

    fn config(&self) -> String {
        self.0.path().join("retry.toml").to_str().expect("UTF-8").to_owned()
    }

    fn variables(&self) -> String {
        self.0.path().join("retry.env").to_str().expect("UTF-8").to_owned()
    }

    fn start(&self, args: &[&str], env: &[(&str, &str)]) -> Settings {
        let (config, variables) = (self.config(), self.variables());
        let named = ["-config", config.as_str(), "-env-file", variables.as_str()];
        started(&[&named, args].concat(), env)
    }
}

/// The line of a file of settings that cannot stand, without its path.
fn refusal(config: &str) -> String {
    let files = Files::new(config, "");
    let path = files.config();
    refused(&["-config", &path], &[]).0.replace(&path, "FILE")
}

/// Every pair of sources, for a text, a number and a switch.
#[test]
fn a_flag_beats_a_variable_a_variable_the_file_and_the_file_the_default() {
    for (name, env, of) in [
        ("rl-ip-rate", "RL_IP_RATE", ["1", "2", "3", "4", "100"]),
        ("cache-ttl-tx", "CACHE_TTL_TX", ["1s", "2s", "3s", "4s", "60s"]),
        ("suppress-miss", "SUPPRESS_MISS", ["true", "1", "T", "t", "false"]),
    ] {
        let [by_flag, of_env_file, of_environment, of_config, default] = of;
        for sources in 0..16_u8 {
            let has = |source: u8| sources & 1 << source != 0;
            let config = format!("{name} = \"{of_config}\"");
            let variable = format!("{env}={of_env_file}");
            let files = Files::new(if has(0) { &config } else { "" }, if has(2) { &variable } else { "" });
            let flag = format!("-{name}={by_flag}");
            let args: &[&str] = if has(3) { &[&flag] } else { &[] };
            let environment: &[(&str, &str)] = if has(1) { &[(env, of_environment)] } else { &[] };
            let expected = match sources {
                8.. => (by_flag, SetBy::Flag),
                4.. => (of_env_file, SetBy::Env),
                2.. => (of_environment, SetBy::Env),
                1 => (of_config, SetBy::File),
                _ => (default, SetBy::Default),
            };
            let (value, set_by) = in_force(&files.start(args, environment), name);
            assert_eq!((value.as_str(), set_by), expected, "{name}, sources {sources:04b}");
        }
    }
}

#[test]
fn a_file_has_values_of_every_type() {
    let files = Files::new(
        "mc-iface = 'eth7'\nnack-port = 9301\nrl-ip-rate = 0.5\nsuppress-ack = true\nbeacon-enabled = false\n\
         egress-iface = ['eth8', 'eth9']\nssm-publishers-static = []\ncache-max-keys = 1_000\nrl-sender-rate = 7\n\
         mc-group-id = 0x0C\n",
        "",
    );
    let s = files.start(&[], &[]);
    assert_eq!(
        (s.ingress.mc_iface.as_str(), s.nack.port, s.limits.ip_rate),
        ("eth7", 9301, Rate::every(2_000_000_000))
    );
    assert_eq!((s.nack.suppress_ack, s.beacon.enabled, s.cache.max_keys), (true, false, 1_000));
    assert_eq!(s.egress.ifaces, ["eth8", "eth9"]);
    assert_eq!((s.limits.chain_rate, s.ingress.group_id), (7, 12), "a former name, and a number in hexadecimal");
}

#[test]
fn every_setting_can_stand_in_a_file() {
    for (name, value, with) in SAMPLES.iter().filter(|(name, ..)| !["config", "env-file"].contains(name)) {
        let files = Files::new(&format!("{name} = '{value}'\n"), "");
        assert_eq!(in_force(&files.start(with, &[]), name), ((*value).to_owned(), SetBy::File), "{name}");
        let files = Files::new("", &format!("{}={value}\n", rows::find(name).expect("a setting").env));
        assert_eq!(in_force(&files.start(with, &[]), name), ((*value).to_owned(), SetBy::Env), "{name}");
    }
}

#[test]
fn a_file_that_cannot_stand_is_told_with_key_value_and_what_is_accepted() {
    for (config, line) in [
        ("nack-prot = 9301", "nack-prot (from FILE) 9301: there is no such setting (-help lists all)"),
        ("nack-port = 'x'", "-nack-port (from FILE) x: a whole number from 1 to 65535 is accepted"),
        ("nack-port = 70000", "-nack-port (from FILE) 70000: a whole number from 1 to 65535 is accepted"),
        ("nack-port = true", "-nack-port (from FILE) true: 1 to 65535 is accepted"),
        ("nack-port = [9301]", "-nack-port (from FILE) [9301]: 1 to 65535 is accepted"),
        ("egress-iface = [1]", "-egress-iface (from FILE) [1]: an array of strings is accepted"),
        ("egress-iface = ['a,b']", "-egress-iface (from FILE) [\"a,b\"]: an array of strings is accepted"),
        ("cache-ttl = 1979-05-27", "-cache-ttl (from FILE) 1979-05-27: 1ms to 1176h is accepted"),
        ("[nack]\nport = 9301", "nack (from FILE) { port = 9301 }: there is no such setting (-help lists all)"),
        ("config = 'x'", "config (from FILE): it is accepted as a flag or a variable"),
        ("env-file = 'x'", "env-file (from FILE): it is accepted as a flag or a variable"),
        ("a = 1\nnack-port 1", "-config FILE: TOML is accepted: line 2, nack-port 1: key with no value, expected `=`"),
        ("debug = true\ndebug = true", "-config FILE: TOML is accepted: line 2, debug = true: duplicate key"),
        (
            "rl-chain-rate = 1\nrl-sender-rate = 1",
            "rl-sender-rate (from FILE): it is accepted once: -rl-chain-rate stands there too",
        ),
        (
            "redis-addr = 7",
            "-redis-addr (from FILE) 7: host:port, redis://host or rediss://host, a comma list of a cluster, \
                           or redis+sentinel://host:port,…/name is accepted",
        ),
        // As a value of its own, and beside another setting.
        ("rl-ip-burst = 0", "-rl-ip-burst (from FILE) 0: at least 1 is accepted while -rl-ip-rate is above 0"),
    ] {
        assert_eq!(refusal(config), line);
    }
    let (line, code) = refused(&["-config", "/nowhere/retry.toml"], &[]);
    assert_eq!(
        (line.as_str(), code),
        ("-config /nowhere/retry.toml: a readable file is accepted: No such file or directory (os error 2)", 1)
    );
    let (line, _) = refused(&[], &[("ENV_FILE", "/nowhere/retry.env")]);
    assert_eq!(
        line,
        "-env-file (from ENV_FILE) /nowhere/retry.env: a readable file is accepted: No such file or directory (os error 2)"
    );
    started(&["-env-file", "-/nowhere/retry.env"], &[]);
    let files = Files::new("", "NACK_PORT=1\nno variable\n");
    let (line, _) = refused(&["-env-file", &files.variables()], &[]);
    assert_eq!(line, format!("-env-file {}: line 2: NAME=VALUE is accepted", files.variables()));
    files.write("", "NACK_PORT=x\n");
    let (line, _) = refused(&["-env-file", &files.variables()], &[]);
    assert_eq!(
        line,
        format!("-nack-port (from NACK_PORT in {}) x: a whole number from 1 to 65535 is accepted", files.variables())
    );
}

#[test]
fn a_file_is_checked_without_a_start() {
    let files = Files::new("nack-port = 9301\n", "RL_IP_RATE=5\n");
    let (config, variables) = (files.config(), files.variables());
    let args = ["-check-config", "-config", &config, "-env-file", &variables];
    let stop = start(&args, &[]).expect_err("it does not start");
    // The two that name the files are set as well.
    assert!(stop.code() == 0 && stop.to_string().starts_with("the settings can stand: 4 set"), "{stop}");
    files.write("nack-port = 0\n", "");
    assert_eq!(start(&args, &[]).expect_err("refused").code(), 1);
}

#[test]
fn a_password_of_a_file_is_not_shown() {
    for config in ["redis-addr = 'redis://me:hunter2@r:1:2'", "redis-addr = 'redis://me:hunter2@r'\nredis-addr = 'x'"] {
        assert!(!refusal(config).contains("hunter2"), "{}", refusal(config));
    }
    let files = Files::new("redis-addr = 'redis://me:hunter2@r'", "ADMIN_TOKEN=hunter2\n");
    let settings = files.start(&[], &[]);
    assert_eq!(settings.admin.token, Some(AdminToken("hunter2".to_owned())));
    assert!(!format!("{settings:?}").contains("hunter2"));
    assert_eq!(in_force(&settings, "redis-addr").0, "redis://***@r");
}

fn changes(changes: &[Change]) -> Vec<(&str, &str, &str)> {
    changes.iter().map(|one| (one.name, one.from.as_str(), one.to.as_str())).collect()
}

#[test]
fn what_is_live_changes_and_the_rest_waits() {
    let files = Files::new("rl-ip-rate = 100\ncache-memory = '256m'\n", "");
    let first = files.start(&["-nack-port=9301"], &[]);
    let same = first.read_again().expect("it stands");
    assert!(same.changed.is_empty() && same.settings.waiting().is_empty(), "{same:?}");

    files.write("rl-ip-rate = 5\ncache-memory = '512m'\nnack-port = 9302\n", "RL_SEQUENCE_MAX=7\n");
    let second = first.read_again().expect("it stands");
    assert_eq!(changes(&second.changed), [("rl-ip-rate", "100", "5"), ("rl-sequence-max", "100", "7")]);
    assert_eq!(changes(second.settings.waiting()), [("cache-memory", "256m", "512m")], "the flag holds the port");
    let second = second.settings;
    assert_eq!((second.limits.ip_rate, second.limits.sequence_max, second.cache.memory), (5.into(), 7, 256 << 20));
    assert_eq!(in_force(&second, "cache-memory"), ("256m".to_owned(), SetBy::File));
    let waits = |settings: &Settings, name: &str| {
        settings.describe().iter().find(|one| one.flag.name == name).and_then(|one| one.after_restart.clone())
    };
    assert_eq!(waits(&second, "cache-memory").as_deref(), Some("512m"));

    files.write("rl-ip-rate = 5\n", "");
    let third = second.read_again().expect("it stands");
    assert_eq!(changes(&third.changed), [("rl-sequence-max", "7", "100")]);
    assert!(third.settings.waiting().is_empty(), "256m is the default");
    assert_eq!(waits(&third.settings, "cache-memory"), None);
}

#[test]
fn what_cannot_stand_is_refused_whole() {
    let files = Files::new("rl-ip-rate = 100\n", "");
    let settings = files.start(&[], &[]);
    for (config, line) in [
        ("rl-ip-rate = 5\nnack-port = 0\n", "-nack-port (from FILE) 0: a whole number from 1 to 65535 is accepted"),
        (
            "rl-ip-rate = 5\nrl-ip-burst = 0\n",
            "-rl-ip-burst (from FILE) 0: at least 1 is accepted while -rl-ip-rate is above 0",
        ),
        (
            "rl-ip-rate = 5\n[",
            "-config FILE: TOML is accepted: line 2, [: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`",
        ),
    ] {
        files.write(config, "");
        let error = settings.read_again().expect_err(config).to_string();
        assert_eq!(error.replace(&files.config(), "FILE"), line);
    }
    fs::remove_file(files.config()).expect("it was there");
    assert!(settings.read_again().is_err());
}

/// The service manager has put the file's variables into the environment. What the file no longer has is unset then, and what
/// came otherwise stays.
#[test]
fn a_variable_that_left_its_file_is_unset() {
    let files = Files::new("", "RL_IP_RATE=5\nRL_IP_BURST=6\n");
    let environment = [("RL_IP_RATE", "5"), ("RL_IP_BURST", "7"), ("RL_SEQUENCE_MAX", "8")];
    let first = files.start(&[], &environment);
    let of = |settings: &Settings| (settings.limits.ip_rate, settings.limits.ip_burst, settings.limits.sequence_max);
    assert_eq!(of(&first), (5.into(), 6, 8));
    files.write("", "");
    assert_eq!(of(&first.read_again().expect("it stands").settings), (100.into(), 7, 8));
    files.write("", "RL_IP_RATE=\nRL_SEQUENCE_MAX=9\n");
    assert_eq!(of(&first.read_again().expect("it stands").settings), (100.into(), 7, 9));
}

#[test]
fn the_api_beats_all_until_the_files_are_read_again() {
    let files = Files::new("rl-ip-rate = 50\n", "");
    let first = files.start(&["-rl-sequence-max=7"], &[]);
    let set = |settings: &Settings, values: &[(&str, Option<&str>)]| {
        let values: BTreeMap<_, _> =
            values.iter().map(|(name, text)| ((*name).to_owned(), text.map(str::to_owned))).collect();
        settings.overridden(&values)
    };
    let second = set(&first, &[("rl-ip-rate", Some("5")), ("rl-sequence-max", Some("6"))]).expect("it stands");
    assert_eq!(changes(&second.changed), [("rl-ip-rate", "50", "5"), ("rl-sequence-max", "7", "6")]);
    assert_eq!(in_force(&second.settings, "rl-sequence-max"), ("6".to_owned(), SetBy::Api));
    let third = set(&second.settings, &[("rl-ip-rate", None), ("rl-ip-burst", Some("9"))]).expect("it stands");
    assert_eq!(changes(&third.changed), [("rl-ip-rate", "5", "50"), ("rl-ip-burst", "10", "9")]);
    assert_eq!(in_force(&third.settings, "rl-sequence-max").0, "6", "it holds");
    let fourth = third.settings.read_again().expect("it stands");
    assert_eq!(changes(&fourth.changed), [("rl-ip-burst", "9", "10"), ("rl-sequence-max", "6", "7")]);
    assert_eq!(in_force(&fourth.settings, "rl-sequence-max"), ("7".to_owned(), SetBy::Flag));

    for (name, text, line) in [
        (
            "nack-port",
            "9302",
            "-nack-port (from POST /v1/config): it needs a restart: set it by flag, variable or -config",
        ),
        ("no-such", "1", "-no-such (from POST /v1/config): there is no such setting"),
        (
            "rl-ip-rate",
            "x",
            "-rl-ip-rate (from POST /v1/config) x: 0, or a number from 0.000001 to 1000000000, is accepted",
        ),
        (
            "rl-ip-burst",
            "0",
            "-rl-ip-burst (from POST /v1/config) 0: at least 1 is accepted while -rl-ip-rate is above 0",
        ),
    ] {
        let error = set(&first, &[("rl-group-rate", Some("1")), (name, Some(text))]).expect_err(name);
        assert_eq!(error.to_string(), line);
    }
    let twice = set(&first, &[("rl-chain-rate", Some("1")), ("rl-sender-rate", Some("2"))]).expect_err("twice");
    assert_eq!(twice.to_string(), "-rl-sender-rate (from POST /v1/config): it is given twice");
}

/// The table of sources' budgets has its size from the start.
#[test]
fn a_budget_of_sources_changes_where_there_is_one() {
    let files = Files::new("", "");
    let set = |settings: &Settings, text: &str| {
        settings.overridden(&[("rl-source-bytes".to_owned(), Some(text.to_owned()))].into())
    };
    let without = files.start(&[], &[]);
    files.write("rl-source-bytes = 9000\nrl-total-bytes = 8000\nunproven-factor = 3\n", "");
    let read = without.read_again().expect("it stands");
    assert_eq!(changes(&read.changed), [("rl-total-bytes", "0", "8000"), ("unproven-factor", "0", "3")]);
    assert_eq!(changes(read.settings.waiting()), [("rl-source-bytes", "0", "9000")]);
    assert_eq!(
        set(&without, "9000").expect_err("no table").to_string(),
        "-rl-source-bytes (from POST /v1/config): it needs a restart: set it by flag, variable or -config"
    );
    let with = files.start(&[], &[]);
    let other = set(&with, "7000").expect("it stands");
    assert_eq!(changes(&other.changed), [("rl-source-bytes", "9000", "7000")]);
    assert_eq!(set(&with, "0").expect("it stands").settings.limits.source_bytes, 0);
}

#[test]
fn another_token_is_in_force_and_is_not_shown() {
    let files = Files::new("", "ADMIN_TOKEN=one\n");
    let settings = files.start(&[], &[]);
    files.write("", "ADMIN_TOKEN=two\n");
    let again = settings.read_again().expect("it stands");
    assert_eq!(changes(&again.changed), [("admin-token-file", "***", "***")]);
    assert_eq!(changes(again.settings.waiting()), []);
    assert_eq!(again.settings.admin.token, Some(AdminToken("two".to_owned())));
    assert_eq!(changes(&again.settings.read_again().expect("it stands").changed), []);
    let by_api = BTreeMap::from([("admin-token-file".to_owned(), Some("/etc/passwd".to_owned()))]);
    let error = settings.overridden(&by_api).expect_err("an API that changes who may ask it").to_string();
    assert_eq!(error, "-admin-token-file (from POST /v1/config): it is set by flag, variable or -config");
}
