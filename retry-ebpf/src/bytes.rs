//! The budgets in bytes ([`retry_common::limits::bytes`]): the daemon charges the same memory. The only file with map-value pointers
//! into the state of the total.
//!
//! Each step is a global function of its own for the kernel: the verifier follows it once, not for each place that calls it, and its
//! 32 bytes of stack begin behind those of `retry_nack`, which uses 440 of 512. What the steps need stands in a map.

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use retry_common::abi::{AddressKey, Settings, TotalBytes, setting_flag};
use retry_common::limits::ByteBudget;
use retry_common::limits::bytes::{self, Afforded, Leaving, Ledger, Steps};

use crate::admit::{self, Charge};
use crate::atomic::compare_exchange;
use crate::classify::Request;
use crate::{acl, log};

/// `BPF_F_MMAPABLE` (linux/bpf.h): the daemon charges it too.
const MMAPABLE: usize = 1024;

#[btf_map]
static TOTAL_BYTES: Array<TotalBytes, 1, MMAPABLE> = Array::new();

/// The NACK that is looked at on this CPU.
#[btf_map]
static ASKER: PerCpuArray<Asker, 1> = PerCpuArray::new();

/// The source of a NACK, and what would leave for it. On the stacks of the programs it would have no place.
#[repr(C)]
struct Asker {
    charge: Charge,
    /// [`UNASKED`], 1 when the source has shown that it hears us, else 0.
    proof: u64,
    to_source: u32,
    all: u32,
    /// Tag of the way that the source may take.
    old: u64,
}

/// The tables have not been asked yet.
const UNASKED: u64 = 2;
/// No way.
const NO_BUDGET: u32 = u32::MAX;

/// What one NACK is judged by.
struct Judged {
    asker: &'static mut Asker,
    settings: &'static Settings,
    total: *mut u64,
}

impl Judged {
    #[inline(always)]
    fn new() -> Option<Self> {
        let (settings, total, asker) = (log::settings()?, TOTAL_BYTES.get_ptr_mut(0)?, asker()?);
        Some(Self { asker, settings, total: total.cast::<u64>() })
    }
}

impl Ledger for Judged {
    /// The verifier follows each.
    const ATTEMPTS: u32 = admit::BYTES_ATTEMPTS;

    #[inline(always)]
    fn total_budget(&self) -> ByteBudget {
        log::byte_budget(&self.settings.bytes.total)
    }

    #[inline(always)]
    fn unproven_factor(&self) -> u64 {
        log::unproven_factor(self.settings)
    }

    #[inline(always)]
    fn is_proven(&mut self) -> bool {
        if self.asker.proof == UNASKED {
            let is_proven = acl::has_allow_list(self.settings) || admit::is_known(&self.asker.charge.key.address);
            self.asker.proof = u64::from(is_proven);
        }
        self.asker.proof != 0
    }

    #[inline(always)]
    fn total(&self) -> u64 {
        // SAFETY: eight aligned bytes of a live map value; volatile because others write them.
        unsafe { self.total.read_volatile() }
    }

    #[inline(always)]
    fn replace_total(&mut self, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        unsafe { compare_exchange(self.total, old, new) }
    }
}

/// Notes whose NACK is looked at, where a budget is on.
#[inline(always)]
pub(crate) fn asked(request: &Request) {
    if log::flags(request.settings) & setting_flag::BYTE_BUDGETS == 0 {
        return;
    }
    let Some(asker) = asker() else { return };
    asker.charge.key = AddressKey { address: request.headers.source };
    asker.charge.hash = request.source_hash;
    asker.charge.now_ns = request.now_ns;
    asker.proof = UNASKED;
}

/// Whether so much may leave for the NACK that was noted last; what may is charged.
#[inline(always)]
pub(crate) fn afford(to_source: u32, all: u32) -> Afforded {
    let Some(asker) = asker() else { return Afforded::OverTotal };
    asker.to_source = to_source;
    asker.all = all;
    bytes::afford(&mut Noted)
}

/// The steps for the NACK that was noted last.
struct Noted;

impl Steps for Noted {
    #[inline(always)]
    fn may_leave(&mut self) -> Afforded {
        match retry_may_leave() {
            0 => Afforded::Yes,
            1 => Afforded::Unproven,
            _ => Afforded::OverTotal,
        }
    }

    #[inline(always)]
    fn take_source(&mut self) -> bool {
        let way = match retry_find_source() {
            0 => match retry_lightest_source() {
                0 => return false,
                chosen => match retry_find_source() {
                    0 => retry_claim_source(chosen - 1),
                    way => way,
                },
            },
            way => way,
        };
        match way {
            0 => false,
            NO_BUDGET => true,
            way => retry_charge_source(way - 1) != 0,
        }
    }

    #[inline(always)]
    fn take_total(&mut self) -> bool {
        retry_take_total() != 0
    }
}

#[inline(always)]
fn asker() -> Option<&'static mut Asker> {
    // SAFETY: this CPU's own value; XDP programs do not interrupt each other there.
    ASKER.get_ptr_mut(0).map(|asker| unsafe { &mut *asker })
}

/// One of [`Afforded`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn retry_may_leave() -> u32 {
    let Some(mut judged) = Judged::new() else { return Afforded::OverTotal as u32 };
    let leaving = Leaving { to_source: judged.asker.to_source, all: judged.asker.all, before: 0 };
    let now_ns = judged.asker.charge.now_ns;
    bytes::may_leave(&mut judged, &leaving, now_ns) as u32
}

/// The way of the source in the table of budgets, plus one; 0: it has none. [`NO_BUDGET`]: nothing is to be charged.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn retry_find_source() -> u32 {
    let (Some(settings), Some(asker)) = (log::settings(), asker()) else { return 0 };
    let budget = log::byte_budget(&settings.bytes.source);
    if budget.is_off() || asker.to_source == 0 {
        return NO_BUDGET;
    }
    asker.charge.budget = budget;
    asker.charge.bytes = u64::from(asker.to_source);
    numbered(admit::find_source(&asker.charge, settings.byte_mask))
}

/// The same, of a way that the source may take; 0: there is no room for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn retry_lightest_source() -> u32 {
    let (Some(settings), Some(asker)) = (log::settings(), asker()) else { return 0 };
    match admit::lightest_source(&asker.charge, settings.byte_mask) {
        Some((way, old)) => {
            asker.old = old;
            numbered(Some(way))
        }
        None => 0,
    }
}

/// The same, of the way that the source has taken.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn retry_claim_source(way: u32) -> u32 {
    let (Some(settings), Some(asker)) = (log::settings(), asker()) else { return 0 };
    numbered(admit::claim_source(&asker.charge, settings.byte_mask, way as usize, asker.old))
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "below four")]
const fn numbered(way: Option<usize>) -> u32 {
    match way {
        Some(way) => way as u32 + 1,
        None => 0,
    }
}

/// 1 when the budget of the source, which has this way, has been charged.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn retry_charge_source(way: u32) -> u32 {
    let (Some(settings), Some(asker)) = (log::settings(), asker()) else { return 0 };
    u32::from(admit::charge_source(&asker.charge, settings.byte_mask, way as usize))
}

/// 1 when the total has been charged, or is off.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn retry_take_total() -> u32 {
    let Some(mut judged) = Judged::new() else { return 0 };
    let (bytes, now_ns) = (judged.asker.all, judged.asker.charge.now_ns);
    u32::from(bytes::take_total(&mut judged, bytes, now_ns))
}
