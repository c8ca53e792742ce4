//! The steps of docs/migration.md, run as they stand there, with the environment that the field's chart renders.

use std::{
    fs,
    net::Ipv6Addr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use retry_testbed::{
    net::fabric::{Fabric, Host},
    scene::{await_detached, binary, is_root, two_hosts},
};

use super::RENDERED;

const DOCUMENT: &str = include_str!("../../../docs/migration.md");
/// NACK_ADDR of the rendered environment.
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x20);
/// How long the start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The shell commands of the document, in their order.
fn commands() -> Vec<String> {
    let blocks = DOCUMENT.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| block.trim().to_owned()).collect()
}

/// A shell in a host's namespace that finds the program by its name. The tests are root, without sudo.
fn shell(host: &Host, directory: &Path, command: &str) -> Command {
    let program = binary();
    let beside = program.parent().expect("a directory").display();
    let mut shell = host.ns.command("sh").expect("a namespace");
    shell
        .args(["-c", &command.replace("sudo ", "exec ")])
        .current_dir(directory)
        .env("PATH", format!("{beside}:{}", std::env::var("PATH").unwrap_or_default()));
    shell
}

fn output(host: &Host, directory: &Path, command: &str) -> String {
    let output = shell(host, directory, command).output().expect("a shell");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_steps_of_a_migration() {
    if !is_root("the_steps_of_a_migration") {
        return;
    }
    let [start, ready, probe, back] = &commands()[..] else { panic!("four commands: {:?}", commands()) };
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    endpoint.add_address(ADDRESS).expect("an address");
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("retry-endpoint.env"), RENDERED).expect("a file");

    let mut daemon = shell(endpoint, directory.path(), start);
    daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = endpoint.ns.spawn(daemon).expect("a daemon");
    let deadline = Instant::now() + PATIENCE;
    let said = loop {
        let said = output(endpoint, directory.path(), ready);
        if said.contains("\"status\":\"ready\"") {
            break said;
        }
        assert!(daemon.try_wait().expect("a child").is_none(), "it has ended; `{ready}` said: {said}");
        assert!(Instant::now() < deadline, "`{ready}` said: {said}");
        thread::sleep(Duration::from_millis(50));
    };
    assert!(said.contains("\"mode\":\"native\""), "{said}");
    let said = output(client, directory.path(), probe);
    assert_eq!(said.lines().last(), Some("ok"), "`{probe}` said: {said}");

    assert!(daemon.end(PATIENCE).expect("an end").success());
    let said = output(endpoint, directory.path(), back);
    assert!(said.contains("detached"), "`{back}` said: {said}");
    await_detached(endpoint);
}
