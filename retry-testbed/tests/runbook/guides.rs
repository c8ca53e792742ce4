//! The tutorial and the how-tos work: every command of each page runs as it stands there, in order, on the hosts that the page
//! names, and what the page says that it shows is compared with what it shows. `…` stands for anything.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use retry_testbed::net::fabric::Fabric;
use retry_testbed::net::loss::LossRule;
use retry_testbed::net::netns::{ChildGuard, Netns};
use retry_testbed::peers::redis;
use retry_testbed::scene::{binary, is_root};

/// How long a page's commands may take that end by themselves.
const PATIENCE: &str = "60";

/// A block of commands, and what they show.
#[derive(Debug, Default)]
struct Block {
    /// The host that they run on; the machine itself where the page makes its own hosts.
    host: String,
    /// They run until the page ends.
    stays: bool,
    commands: String,
    shows: Vec<String>,
}

/// The blocks of a page. After "```sh" stand the host, and `stays` where the command is to go on.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let mut words = kind.split_whitespace();
        match words.next() {
            Some("sh") => {
                let host = words.next().unwrap_or_default().to_owned();
                let stays = words.next() == Some("stays");
                blocks.push(Block { host, stays, commands: text.join("\n"), shows: Vec::new() });
            }
            Some("text") => {
                let block = blocks.last_mut().expect("what is shown follows a command");
                block.shows = text.into_iter().map(str::to_owned).collect();
            }
            other => assert!(other.is_none(), "{kind:?}: a block of a page is sh or text"),
        }
    }
    assert!(blocks.len() > 4, "the page has commands: {blocks:#?}");
    blocks
}

/// Whether a line is what the page says, with anything in the places of `…`.
fn is_like(line: &str, wanted: &str) -> bool {
    let pieces: Vec<&str> = wanted.split('…').collect();
    let [first, middle @ .., last] = pieces.as_slice() else {
        return line == wanted;
    };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// The page's lines come in what was shown, in their order; others may stand between them.
#[track_caller]
fn is_shown(block: &Block, shown: &str) {
    let mut lines = shown.lines().map(str::trim_start);
    for wanted in &block.shows {
        let is_there = lines.by_ref().any(|line| is_like(line, wanted.trim_start()));
        assert!(is_there, "{}\nshows no line\n{wanted}\nbut\n{shown}", block.commands);
    }
}

/// A directory as the project's, where commands may leave files, and programs as a host has them.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project");
        let link = |from: &Path, to: &str| {
            std::os::unix::fs::symlink(from, directory.path().join(to)).expect("a link");
        };
        link(&root.join("docs"), "docs");
        std::fs::create_dir_all(directory.path().join("target/release")).expect("a directory");
        std::fs::create_dir(directory.path().join("bin")).expect("a directory");
        link(&binary(), "target/release/retry-endpoint");
        link(&binary(), "bin/retry-endpoint");
        // The server under another name.
        link(&which(redis::TOOLS[0].0), "bin/redis-server");
        Self { directory }
    }

    fn prepare(&self, command: &mut Command) {
        let path = std::env::var("PATH").expect("a search path");
        let own = self.directory.path().join("bin");
        command.current_dir(self.directory.path()).env("PATH", format!("{}:{path}:/usr/sbin:/sbin", own.display()));
        command.stdin(Stdio::null());
    }
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("a search path");
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.exists());
    found.expect("what the suite needs is installed")
}

/// Starts what stays, and waits until it serves.
fn stay(place: &Place, ns: &Netns, block: &Block, number: usize) -> ChildGuard {
    let log = place.directory.path().join(format!("block-{number}"));
    let out = File::create(&log).expect("a log");
    let mut command = Command::new("bash");
    place.prepare(&mut command);
    command.args(["-c", &format!("exec {}", block.commands)]);
    command.stdout(out.try_clone().expect("a handle")).stderr(out);
    let mut child = ns.spawn(command).expect("it starts");
    let serves = |port: u16| {
        let host = format!("ss -H -l -n -t -u | grep -q ':{port} '");
        ns.command("bash").expect("a command").args(["-c", &host]).status().is_ok_and(|status| status.success())
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let ready = "curl -sf http://[::1]:9400/readyz";
    loop {
        let is_up = if block.commands.starts_with("retry-endpoint") {
            ns.command("bash")
                .expect("a command")
                .args(["-c", ready])
                .stdout(Stdio::null())
                .status()
                .expect("bash")
                .success()
        } else {
            serves(redis::PORT)
        };
        if is_up {
            return child;
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(child.try_wait().expect("its state").is_none(), "{} ends:\n{said}", block.commands);
        assert!(Instant::now() < deadline, "{} is not ready:\n{said}", block.commands);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs a page whose blocks name hosts of a fabric.
fn run_on(fabric: &Fabric, page: &str, others_may_fail: bool) {
    let place = Place::new();
    retry_testbed::daemon::mount_bpffs().expect("bpffs");
    let mut staying = Vec::new();
    for (number, block) in blocks(page).iter().enumerate() {
        let ns = &fabric.host(&block.host).expect("a host of the page").ns;
        if block.stays {
            staying.push(stay(&place, ns, block, number));
            continue;
        }
        let mut command = ns.command("timeout").expect("a command");
        place.prepare(&mut command);
        let output = command.args([PATIENCE, "bash", "-c", &block.commands]).output().expect("bash starts");
        let shown = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        println!("[{}] $ {}\n{shown}", block.host, block.commands);
        assert!(!shown.contains("command not found"), "a tool is missing: {shown}");
        assert!(others_may_fail || output.status.success(), "{} ends with {}: {shown}", block.commands, output.status);
        is_shown(block, &shown);
    }
    for child in staying.iter_mut().rev() {
        child.end(Duration::from_secs(10)).expect("it ends");
    }
}

#[test]
fn the_tutorial() {
    if !is_root("the_tutorial") {
        return;
    }
    let blocks = blocks(include_str!("../../../docs/tutorial.md"));
    // One shell for all, as a reader has; the project is built, and root needs no sudo.
    let mut script = "mount -t tmpfs none /run/netns && mount -t bpf bpf /sys/fs/bpf || exit 1\n".to_owned()
        + "sudo() { \"$@\"; }\ncargo() { [ \"$*\" = 'xtask build' ]; }\n";
    for (number, block) in blocks.iter().enumerate() {
        assert_eq!((&*block.host, block.stays), ("", false), "the tutorial makes its own hosts");
        script += &format!("echo '@@ {number}'\n{}\n", block.commands);
    }
    script += "echo '@@ end'\n";
    let place = Place::new();
    std::fs::create_dir_all("/run/netns").expect("a directory");
    let mut command = Command::new("unshare");
    place.prepare(&mut command);
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "timeout",
        PATIENCE,
        "bash",
        "-c",
        &script,
    ]);
    let output = command.output().expect("unshare starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{shown}\n{errors}");
    let parts: Vec<&str> = shown.split("@@ ").skip(1).collect();
    assert_eq!(parts.len(), blocks.len() + 1, "it runs to its end:\n{shown}\n{errors}");
    for (block, part) in blocks.iter().zip(parts) {
        is_shown(block, part);
    }
    assert!(!errors.contains("command not found"), "a tool is missing: {errors}");
    let left: Vec<_> = std::fs::read_dir(place.directory.path()).expect("a directory").collect();
    assert_eq!(left.len(), 3, "the reader's directory is as it was: {left:?}");
}

#[test]
fn two_endpoints() {
    if !is_root("two_endpoints") {
        return;
    }
    let fabric = Fabric::bridged(&["one", "two", "redis", "publisher", "listener"], 1500).expect("a fabric");
    run_on(&fabric, include_str!("../../../docs/two-endpoints.md"), false);
}

#[test]
fn cross_domain() {
    if !is_root("cross_domain") {
        return;
    }
    let fabric = Fabric::bridged(&["far", "near", "publisher", "listener"], 1500).expect("a fabric");
    let publisher = fabric.host("publisher").expect("a host").addr;
    let lost = LossRule { source: Some(publisher), ..LossRule::random(1_000) };
    let _loss = fabric.lose("near", &lost).expect("a lossy link");
    run_on(&fabric, include_str!("../../../docs/cross-domain.md"), false);
}

/// A virtual link lacks some of the settings, and says so.
#[test]
fn tune_a_nic() {
    if !is_root("tune_a_nic") {
        return;
    }
    let fabric = Fabric::flat_with_queues(1500, 2).expect("a fabric");
    run_on(&fabric, include_str!("../../../docs/tune-a-nic.md"), true);
}

#[test]
fn what_a_page_says_is_compared() {
    assert!(is_like("a 12 b 3 c", "a … b … c") && is_like("a b", "a b") && is_like("x", "…"));
    assert!(!is_like("a 12 b 3 d", "a … b … c") && !is_like("a bc", "a b") && !is_like("za b", "a …"));
}
