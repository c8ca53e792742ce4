//! `retry-endpoint`: parses the settings, starts the daemon, and turns its end into an exit code. `retry-endpoint probe`
//! asks another one instead, `nack` asks one for a frame as a listener does, `check` looks at the host, `verify-log` checks the
//! frame log of one that runs, `watch` shows what it decides, `top` shows how it does, `firewall`
//! makes rules for `-acl-file` of the host's nftables rules, `status` tells what is pinned, and `detach`
//! ends what a daemon that is gone has left. The daemon itself starts `retry-endpoint hold`, which keeps sockets while no daemon
//! runs.

use std::io::Write;
use std::process::ExitCode;

use retry_userspace::{
    LogConfig, Settings, Stop, check, confine, detach, firewall, has_hold_verb, hold, nack, probe, raise_capabilities,
    run, shutdown_signal, start_log, status, top, verify_log, watch,
};

fn main() -> ExitCode {
    raise_capabilities();
    match std::env::args_os().nth(1) {
        Some(verb) if verb == "probe" => return probe(std::env::args_os().skip(2)),
        Some(verb) if verb == "check" => return check(std::env::args_os().skip(2)),
        Some(verb) if verb == "nack" => return nack(std::env::args_os().skip(2)),
        Some(verb) if verb == "status" => return status(std::env::args_os().skip(2)),
        Some(verb) if verb == "detach" => return detach(std::env::args_os().skip(2)),
        Some(verb) if verb == "verify-log" => return verify_log(std::env::args_os().skip(2)),
        Some(verb) if verb == "watch" => return watch(std::env::args_os().skip(2)),
        Some(verb) if verb == "firewall" => return firewall(std::env::args_os().skip(2)),
        Some(verb) if verb == "top" => return top(std::env::args_os().skip(2)),
        Some(verb) if verb == "hold" => return hold(std::env::args_os().skip(2)),
        _ => {}
    }
    has_hold_verb();
    let settings = match Settings::from_args_and_env(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(settings) => settings,
        Err(stop) => return say(&stop),
    };
    let log_level = start_log(&LogConfig::from(&settings));
    // Before there are threads: what the process may do belongs to each of them.
    if let Err(error) = confine(&settings) {
        return failed(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    // Before anything is there that a signal would leave behind.
    let shutdown = {
        let _on = runtime.enter();
        shutdown_signal()
    };
    let outcome = runtime.block_on(run(&settings, log_level, shutdown));
    // What still runs waits for something that does not come.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    // The line that the operator acts on, whatever the log level is.
    let _ = writeln!(std::io::stderr(), "retry-endpoint: {error}");
    ExitCode::FAILURE
}

fn say(stop: &Stop) -> ExitCode {
    let _ = if stop.to_stdout() {
        writeln!(std::io::stdout(), "{stop}")
    } else {
        writeln!(std::io::stderr(), "retry-endpoint: {stop}")
    };
    ExitCode::from(stop.code())
}
