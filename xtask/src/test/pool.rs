//! Runs the tests of the privileged suites as processes of their own, several at a time: most of them wait for timers.
//!
//! Each process has mount and process namespaces of its own, with an empty bpffs and an empty `/run/netns`: no test sees what
//! another pins, names or starts. What is the host's as a whole (processors, memory, clocks of the kernel) is shared: a test that
//! measures it is listed in `suites.rs` and runs while no other test does.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    context::{Context, shown},
    test::{
        binaries::{Binary, STRESS_SECONDS, printed, time_limit},
        libtest::{self, Outcome},
    },
};

/// The namespaces of one test. The kernel kills what still runs in a process namespace when its first process ends, and that ends
/// with `unshare`.
const NAMESPACES: [&str; 7] =
    ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"];
/// Mounts the file systems of the namespaces and runs the command until its time is over. It is the shell's child: the first
/// process of a namespace ignores signals. `$1` is the limit in seconds.
const SETUP: &str = r#"
set -e
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/netns
mount -t tmpfs netns /run/netns
limit=$1
shift
status=0
timeout --signal=KILL "$limit" "$@" || status=$?
exit $status
"#;

/// One test.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Position of its suite in what the caller runs.
    pub(crate) suite: usize,
    /// As the test binary names it.
    pub(crate) test: String,
    /// The binary that has it.
    pub(crate) binary: Binary,
    /// No other test runs meanwhile.
    pub(crate) alone: bool,
}

/// A test that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Which.
    pub(crate) job: Job,
    /// With what.
    pub(crate) outcome: Outcome,
    /// When it began and ended.
    pub(crate) time: (Instant, Instant),
}

/// The names of the binary's tests that the filter chooses.
///
/// # Errors
/// It is no test binary.
pub(crate) fn list(binary: &Binary, filter: &[String]) -> Result<Vec<String>> {
    let mut command = Command::new(&binary.path);
    command.args(["--list", "--format", "terse"]).args(filter).current_dir(&binary.directory);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(&command)))?;
    ensure!(
        output.status.success(),
        "{}: {}\n{}",
        output.status,
        shown(&command),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(names(&String::from_utf8_lossy(&output.stdout)))
}

/// The names in `name: test` lines.
fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Options of a filter that are about how a test runs. What chooses tests has done so in [`list`].
fn options(filter: &[String]) -> Vec<&str> {
    let mut options = Vec::new();
    let mut words = filter.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--skip" => _ = words.next(),
            "--exact" => {}
            _ if word.starts_with("--skip=") || !word.starts_with('-') => {}
            _ => options.push(word),
        }
    }
    options
}

/// Runs the jobs in their order, `at_a_time` of them at once. Each is handed to `ended` when it has ended, in no order.
///
/// # Errors
/// A test could not be started; no further one is then.
pub(crate) fn run(
    context: &Context,
    filter: &[String],
    jobs: Vec<Job>,
    at_a_time: usize,
    mut ended: impl FnMut(Ended),
) -> Result<()> {
    let options = options(filter);
    each(jobs, at_a_time, |job| run_one(context, &options, job), &mut ended)
}

/// Does `work` on the items in their order, `at_a_time` at once. After an error nothing more is begun.
fn each<I: Send, T: Send>(
    items: Vec<I>,
    at_a_time: usize,
    work: impl Fn(I) -> Result<T> + Sync,
    done: &mut impl FnMut(T),
) -> Result<()> {
    let queue = Mutex::new(items.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..at_a_time.max(1) {
            let sender = sender.clone();
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                while let Some(item) = next() {
                    if sender.send(work(item)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        // An error drops the receiver, which every worker sees after its item.
        receiver.into_iter().try_for_each(|result| result.map(&mut *done))
    })
}

fn run_one(context: &Context, options: &[&str], job: Job) -> Result<Ended> {
    let start = Instant::now();
    let mut environment = context.program_environment();
    if let Some(seconds) = std::env::var_os(STRESS_SECONDS) {
        environment.push((STRESS_SECONDS, PathBuf::from(seconds)));
    }
    let mut command = context.as_root("unshare", environment)?;
    command.args(NAMESPACES).args(["sh", "-c", SETUP, "sh", &time_limit().to_string()]);
    command.arg(&job.binary.path).args(["--exact", &job.test, "--show-output", "--test-threads=1"]).args(options);
    command.current_dir(&job.binary.directory);
    let (text, status) = printed(command)?;
    let outcome = judged(&job.test, &text, status.success(), &status.to_string());
    Ok(Ended { job, outcome, time: (start, Instant::now()) })
}

/// The outcome of a process that was to run this one test. One that did not, or whose exit code says something else than its
/// output, has failed.
fn judged(test: &str, text: &str, success: bool, status: &str) -> Outcome {
    let mut outcome = libtest::parse(text);
    let verdicts: Vec<&String> = outcome.passed.iter().chain(&outcome.failed).collect();
    let is_this = verdicts == [test] || verdicts.is_empty() && outcome.skipped.len() == 1;
    if !outcome.complete || !is_this || success != outcome.failed.is_empty() {
        return Outcome {
            failed: vec![test.to_owned()],
            failures: format!("the process of {test} ended with {status}:\n{text}"),
            complete: true,
            ..Outcome::default()
        };
    }
    if let Some((_, reason)) = outcome.skipped.pop() {
        return Outcome { skipped: vec![(test.to_owned(), reason)], complete: true, ..Outcome::default() };
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ENDED_WELL: &str =
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 8 filtered out; finished in 0.10s\n";

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn only_tests_are_listed() {
        assert_eq!(names("a::b: test\nc: benchmark\n\n2 tests, 1 benchmark\nd: test\n"), ["a::b", "d"]);
    }

    #[test]
    fn what_chooses_tests_is_no_option_of_one() {
        let filter = words(&["part", "--exact", "--nocapture", "--skip", "other", "--skip=third", "--include-ignored"]);
        assert_eq!(options(&filter), ["--nocapture", "--include-ignored"]);
    }

    #[test]
    fn a_test_has_passed_only_when_its_process_says_so_too() {
        let passed = format!("running 1 test\ntest a::b ... ok\n\n{ENDED_WELL}");
        assert_eq!(judged("a::b", &passed, true, "exit status: 0").passed, ["a::b"]);
        for (test, text, success) in [
            ("a::b", passed.as_str(), false),
            ("a::c", passed.as_str(), true),
            ("a::b", "running 1 test\ntest a::b ... ", true),
            ("a::b", "running 1 test\ntest a::b ... ok\n", true),
            ("a::b", "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured", true),
            ("a::b", "", true),
        ] {
            let outcome = judged(test, text, success, "signal: 9");
            assert_eq!(outcome.failed, [test], "{text}");
            assert!(outcome.passed.is_empty() && outcome.skipped.is_empty() && outcome.complete, "{text}");
            assert!(outcome.failures.contains("signal: 9") && outcome.failures.contains(text), "{text}");
        }
    }

    #[test]
    fn a_test_that_skips_has_not_passed() {
        let captured = format!("test a ... ok\n\nsuccesses:\n\n---- a stdout ----\nSKIP x: no veth\n\n{ENDED_WELL}");
        let printed = format!("test a ... SKIP x: no veth\nok\n\n{ENDED_WELL}");
        for text in [captured, printed] {
            let outcome = judged("a", &text, true, "exit status: 0");
            assert!(outcome.passed.is_empty(), "{text}");
            assert_eq!(outcome.skipped, [("a".to_owned(), "no veth".to_owned())], "{text}");
        }
    }

    #[test]
    fn as_many_are_at_work_as_asked_for() {
        let (now, most) = (Mutex::new(0), Mutex::new(0));
        let work = |item: u32| {
            let mut at_work = now.lock().expect("no panic");
            *at_work += 1;
            let mut seen = most.lock().expect("no panic");
            *seen = (*seen).max(*at_work);
            drop((at_work, seen));
            thread::sleep(Duration::from_millis(20));
            *now.lock().expect("no panic") -= 1;
            Ok(item)
        };
        let mut done = Vec::new();
        each((0..12).collect(), 3, work, &mut |item| done.push(item)).expect("no error");
        done.sort_unstable();
        assert_eq!(done, (0..12).collect::<Vec<_>>());
        assert_eq!(*most.lock().expect("no panic"), 3);
    }

    #[test]
    fn nothing_is_begun_after_an_error() {
        let begun = Mutex::new(0);
        let work = |item: u32| {
            *begun.lock().expect("no panic") += 1;
            thread::sleep(Duration::from_millis(5));
            ensure!(item != 1, "one is broken");
            Ok(item)
        };
        let mut done = Vec::new();
        let result = each((0..100).collect(), 1, work, &mut |item| done.push(item));
        assert_eq!(result.expect_err("an error").to_string(), "one is broken");
        assert_eq!(done, [0]);
        assert!(*begun.lock().expect("no panic") < 100);
    }
}
