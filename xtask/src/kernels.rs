//! Suite `kernels`: a test binary on Debian's kernels, under qemu. What only the newest kernel's verifier accepts shows here.

mod image;
mod initramfs;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    context::{Context, find_program, output, shown, step},
    kernels::{
        image::{Image, SERIES, Series},
        initramfs::Archive,
    },
    test::libtest::{self, Outcome},
    tools::static_busybox,
};

/// A boot takes seconds, all tables of packets on an emulated processor three minutes; more where the machine is slow or busy.
const TIME_LIMIT: Duration = Duration::from_secs(900);
/// Drivers that the tests use and that are modules there.
const MODULES: [&str; 2] = ["veth", "virtio_net"];
/// The same, where they are not built in.
const BUILT_IN: [&str; 1] = ["virtio_pci"];
/// The host's, because busybox has none or one that cannot make a pair of links.
const PROGRAMS: [&str; 2] = ["ip", "ethtool"];
/// What the two cards on one link leave out: what merges packets keeps XDP programs off, and what filters drops tagged packets
/// and groups that are only captured.
const CARD: &str = "romfile=,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,ctrl_vlan=off,ctrl_rx=off";
/// The last line of the guest's output, followed by the exit code of the tests.
const MARKER: &str = "guest: tests ended with ";
/// Where the tests find their objects in the guest.
const GUEST_DIRECTORY: &str = "/retry";

/// What became of one series: its name in the count, and its tests' outcome, or why there was none.
pub(crate) type Verdict = (String, Result<Outcome, String>);

/// Runs the test binary on every series, all guests at the same time: each has one processor.
///
/// # Errors
/// The guest cannot be built or qemu cannot be started.
pub(crate) fn run(context: &Context, test: &Path, filter: &[String]) -> Result<Vec<Verdict>> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(vec![("kernels".to_owned(), Err("the guests are x86_64, this machine is not".to_owned()))]);
    }
    let work = context.target.join("kernels/guest");
    fs::create_dir_all(&work)?;
    // One after the other: apt has a lock.
    let images = SERIES.iter().map(|series| Ok((series, series.fetch(context)?))).collect::<Result<Vec<_>>>()?;
    ensure!(
        images.iter().any(|(_, image)| image.is_some()),
        "no kernel to test on: the package lists have neither; `apt-get update` or a Debian 12 machine helps"
    );
    thread::scope(|scope| {
        let guests: Vec<_> = images
            .into_iter()
            .map(|(series, image)| {
                let work = work.join(series.name);
                let guest = image.map(|image| scope.spawn(move || boot(context, &image, test, filter, &work)));
                (series, guest)
            })
            .collect();
        let verdict = |(series, guest): (&Series, Option<thread::ScopedJoinHandle<'_, Result<Log>>>)| {
            let place = format!("kernels {}", series.name);
            let Some(guest) = guest else {
                let reason = "this machine's package lists have no such kernel; those of Debian 12 have it";
                return Ok((place, Err(reason.to_owned())));
            };
            let log = guest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            step(format_args!("Linux {} took {:.1} s", series.name, log.took.as_secs_f64()));
            Ok((place, Ok(outcome(&log, filter))))
        };
        guests.into_iter().map(verdict).collect()
    })
}

/// What a guest's tests came to. None at all is a failure, unless a filter chose none.
fn outcome(log: &Log, filter: &[String]) -> Outcome {
    let mut outcome = libtest::parse(&log.tests);
    if log.exit_code != Some(if outcome.failed.is_empty() { 0 } else { 101 }) || outcome.ran() == 0 && filter.is_empty()
    {
        outcome.complete = false;
    }
    if !outcome.complete {
        outcome.failures = format!("{}\nlast lines of the console:\n{}", log.tests, tail(&log.console, 40));
    }
    outcome
}

/// What came out of a guest.
#[derive(Debug)]
struct Log {
    /// The tests' output.
    tests: String,
    /// The kernel's.
    console: String,
    /// Of the test binary; `None` when the guest did not come that far.
    exit_code: Option<i32>,
    /// From its start to its end.
    took: Duration,
}

fn boot(context: &Context, image: &Image, test: &Path, filter: &[String], work: &Path) -> Result<Log> {
    step(format_args!("boot Linux {}", work.file_name().unwrap_or_default().display()));
    let start = Instant::now();
    let (archive, console, tests) = (path(work, "cpio"), path(work, "console.log"), path(work, "tests.log"));
    fs::write(&archive, guest(context, image, test, filter, work)?)?;
    for log in [&console, &tests] {
        fs::write(log, "")?;
    }
    let mut command = Command::new("qemu-system-x86_64");
    // Emulated, so that it is the same on every machine: one with /dev/kvm may yet be unable to nest.
    command.args(["-machine", "accel=tcg", "-cpu", "max", "-m", "2G", "-display", "none", "-monitor", "none"]);
    command.args(["-nodefaults", "-no-reboot", "-kernel"]).arg(image.vmlinuz()?).arg("-initrd").arg(&archive);
    // Two lines: the kernel's messages would end up in the middle of the tests'.
    for log in [&console, &tests] {
        command.arg("-serial").arg(format!("file:{}", log.display()));
    }
    for card in ["h0", "h1"] {
        command.arg("-netdev").arg(format!("hubport,id={card},hubid=0"));
        command.arg("-device").arg(format!("virtio-net-pci,netdev={card},{CARD}"));
    }
    // On a busy machine the emulated timer is late, and the kernel would end its start because of that.
    command.args(["-append", "console=ttyS0 panic=-1 no_timer_check rdinit=/init"]);
    wait(&mut command)?;
    fs::remove_file(archive)?;
    let text = |file: &Path| Ok::<_, std::io::Error>(String::from_utf8_lossy(&fs::read(file)?).into_owned());
    let (tests, console) = (text(&tests)?, text(&console)?);
    let code = tests.lines().rev().find_map(|line| line.trim().strip_prefix(MARKER)?.parse().ok());
    Ok(Log { tests, console, exit_code: code, took: start.elapsed() })
}

fn path(work: &Path, extension: &str) -> PathBuf {
    let mut path = work.as_os_str().to_owned();
    path.push(".");
    path.push(extension);
    path.into()
}

/// Waits for the guest to power off; one that does not is ended, and the missing marker tells.
fn wait(command: &mut Command) -> Result<()> {
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{status}: {}", shown(command));
            return Ok(());
        }
        if start.elapsed() > TIME_LIMIT {
            step(format_args!("the guest did not end in {} s and is stopped", TIME_LIMIT.as_secs()));
            child.kill()?;
            child.wait()?;
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The guest's file system: busybox, modules, the test binary with its libraries, the objects, the golden files.
fn guest(context: &Context, image: &Image, test: &Path, filter: &[String], work: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/proc", "/sys", "/dev", "/tmp", "/run"] {
        archive.directory(directory)?;
    }
    let busybox = static_busybox().context("no busybox without shared libraries")?;
    archive.file("/bin/busybox", &read(&busybox)?)?;
    archive.link("/bin/sh", "busybox")?;
    let modules = image.modules(&BUILT_IN, &MODULES)?;
    for (name, bytes) in &modules {
        archive.file(&format!("/modules/{name}.ko"), bytes)?;
    }
    let stripped = path(work, "test");
    // Symbols stay, for the backtrace of a failed test; line tables would triple what the guest unpacks.
    output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(test))?;
    archive.file(&format!("{GUEST_DIRECTORY}/test"), &read(&stripped)?)?;
    fs::remove_file(stripped)?;
    let mut needed = BTreeSet::from_iter(libraries(&output(Command::new("ldd").arg(test))?));
    for name in PROGRAMS {
        let program = find_program(name).with_context(|| format!("no program {name}"))?;
        needed.extend(libraries(&output(Command::new("ldd").arg(&program))?));
        archive.file(&format!("{GUEST_DIRECTORY}/bin/{name}"), &read(&program)?)?;
    }
    for library in needed {
        archive.file(&library, &read(Path::new(&library))?)?;
    }
    for object in [context.ebpf_object(), context.linear_object(), context.bench_object()] {
        let name = object.file_name().context("objects have names")?.to_string_lossy().into_owned();
        archive.file(&format!("{GUEST_DIRECTORY}/{name}"), &read(&object)?)?;
    }
    golden(&context.root.join("retry-common/tests/golden"), &mut archive)?;
    let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    archive.file("/init", init(&names, filter).as_bytes())?;
    archive.finish()
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The golden files, at the place where the tests were compiled to look for them.
fn golden(directory: &Path, archive: &mut Archive) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let file = entry?.path();
        archive.file(file.to_str().context("a path that is no text")?, &read(&file)?)?;
    }
    Ok(())
}

/// The files that `ldd` names, the loader among them.
fn libraries(ldd: &str) -> Vec<String> {
    let path = |line: &str| {
        let found = line.split_once("=>").map_or(line, |(_, right)| right);
        found.split_whitespace().next().filter(|word| word.starts_with('/')).map(str::to_owned)
    };
    ldd.lines().filter_map(path).collect()
}

/// The first program of the guest.
fn init(modules: &[&str], filter: &[String]) -> String {
    let load: String = modules.iter().map(|name| format!("insmod /modules/{name}.ko\n")).collect();
    let filter: String = filter.iter().map(|word| format!(" {}", quoted(word))).collect();
    format!(
        "#!/bin/sh
export PATH={GUEST_DIRECTORY}/bin:/bin HOME=/tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmp /tmp
mkdir -p /run/netns
{load}ip link set lo up
export RETRY_EBPF_OBJECT={GUEST_DIRECTORY}/retry-ebpf.o RETRY_BENCH_OBJECT={GUEST_DIRECTORY}/retry-bench.o
export RETRY_EBPF_LINEAR={GUEST_DIRECTORY}/retry-ebpf-linear.o
export RETRY_SLOW_MACHINE=1 RETRY_CARDS=1 RUST_BACKTRACE=1
cd {GUEST_DIRECTORY}
{GUEST_DIRECTORY}/test --show-output --test-threads=1{filter} </dev/null >/dev/ttyS1 2>&1
echo \"{MARKER}$?\" >/dev/ttyS1
sync
poweroff -f
"
    )
}

/// A word that the guest's shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_names() {
        let ldd = "\tlinux-vdso.so.1 (0x00007fff)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(ldd), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn the_guest_loads_modules_in_order_and_passes_the_filter_on() {
        let script = init(&["failover", "veth"], &["a b".to_owned(), "it's".to_owned()]);
        assert!(script.contains("insmod /modules/failover.ko\ninsmod /modules/veth.ko\nip link set lo up"));
        assert!(script.contains(r"--test-threads=1 'a b' 'it'\''s' <"));
        assert!(script.trim_end().ends_with("poweroff -f"));
    }

    #[test]
    fn only_the_end_of_a_long_console_is_shown() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
