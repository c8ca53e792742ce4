//! What the process takes: the `process_*` metrics that Prometheus client libraries show.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use procfs::process::{LimitValue, Process as Proc};
use procfs::{ProcError, ProcResult};

/// What the process takes, and may take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// CPU time of all threads, in user mode and in the kernel, seconds.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Most file descriptors that may be open; `u64::MAX` without a limit.
    pub max_fds: u64,
    /// Address space, bytes.
    pub virtual_bytes: u64,
    /// Largest address space, bytes; `u64::MAX` without a limit.
    pub virtual_max_bytes: u64,
    /// Memory that is resident, bytes.
    pub resident_bytes: u64,
    /// Start of the process, seconds since 1970.
    pub start_seconds: f64,
}

impl Process {
    /// This process now; `None` where /proc does not tell.
    #[must_use]
    pub fn here() -> Option<Self> {
        let read = Self::read();
        read.inspect_err(|error| tracing::debug!(%error, "/proc does not tell what the process takes")).ok()
    }

    #[expect(clippy::cast_precision_loss, reason = "ticks and seconds are far below 2^53")]
    fn read() -> ProcResult<Self> {
        let process = Proc::myself()?;
        let (stat, limits) = (process.stat()?, process.limits()?);
        let ticks = procfs::ticks_per_second();
        if ticks == 0 {
            return Err(ProcError::Other("no clock ticks".to_owned()));
        }
        let seconds = |clock_ticks: u64| clock_ticks as f64 / ticks as f64;
        Ok(Self {
            cpu_seconds: cpu_seconds()?,
            open_fds: u64::try_from(process.fd_count()?).unwrap_or(u64::MAX),
            max_fds: most(limits.max_open_files.soft_limit),
            virtual_bytes: stat.vsize,
            virtual_max_bytes: most(limits.max_address_space.soft_limit),
            resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
            start_seconds: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
        })
    }
}

/// CPU time of all threads. Not the ticks of /proc/self/stat: they are 10 ms long.
fn cpu_seconds() -> ProcResult<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|error| ProcError::Other(error.to_string()))?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs_f64())
}

const fn most(limit: LimitValue) -> u64 {
    match limit {
        LimitValue::Unlimited => u64::MAX,
        LimitValue::Value(value) => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_this_one() {
        let before = Process::here().expect("/proc");
        let file = std::fs::File::open("/proc/self/stat").expect("Linux");
        let after = Process::here().expect("/proc");
        drop(file);
        assert!(before.resident_bytes > 1 << 20 && before.virtual_bytes >= before.resident_bytes, "{before:?}");
        assert!(
            after.open_fds > 0 && after.max_fds >= after.open_fds && after.virtual_max_bytes >= after.virtual_bytes
        );
        assert!(after.cpu_seconds >= before.cpu_seconds);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!((-2.0..86_400.0).contains(&(now - after.start_seconds)), "{after:?} at {now}");
    }
}
