//! Who may ask, and whose frames are stored, in tables that the daemon fills: [`retry_common::acl`]. The only file with map-value
//! pointers into them.
//!
//! The daemon writes to the table that is not in force, and then changes one word of the settings.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use retry_common::abi::Settings;
use retry_common::acl::{self, AclBucket, Head, Key};
use retry_common::counter::Counter;

use crate::log;
use crate::packet::IpUdp;

/// `BPF_F_MMAPABLE` (linux/bpf.h).
const MMAPABLE: usize = 1024;

/// How each of the two tables is read.
#[btf_map]
static ACL_HEADS: Array<Head, 2, MMAPABLE> = Array::new();
/// Buckets of both; the daemon sets how many.
#[btf_map]
static ACL_BUCKETS: Array<AclBucket, 1, MMAPABLE> = Array::new();
/// Prefixes of both; the daemon sets how many.
#[btf_map]
static ACL_KEYS: Array<Key, 1, MMAPABLE> = Array::new();

/// The table in force.
struct Table(&'static Head);

impl acl::Table for Table {
    type Bucket = *const AclBucket;

    #[inline(always)]
    fn head(&self) -> &Head {
        self.0
    }

    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        ACL_BUCKETS.get_ptr(number)
    }

    #[inline(always)]
    fn entry(&self, bucket: &Self::Bucket, way: usize) -> u64 {
        // SAFETY: below the number of ways, as the only caller's loop is.
        let entry = unsafe { bucket.cast::<u64>().add(way) };
        // SAFETY: eight aligned bytes of a live map value; volatile because the daemon writes tables.
        unsafe { entry.read_volatile() }
    }

    #[inline(always)]
    fn key(&self, number: u32) -> Option<Key> {
        // SAFETY: integers of a live map value.
        ACL_KEYS.get_ptr(number).map(|key| unsafe { *key })
    }
}

/// True when every source that is looked at stands on an allow list.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "0, 1 or 2")]
pub(crate) fn has_allow_list(settings: &Settings) -> bool {
    let number = log::acl(settings);
    let head = if number == 0 { None } else { ACL_HEADS.get_ptr((number as u32).wrapping_sub(1)) };
    // SAFETY: as in `admit`.
    head.is_some_and(|head| acl::has_allow_list(unsafe { &*head }))
}

/// Whether the NACK behind these headers is looked at; true when its source is served as a peer.
#[inline(always)]
pub(crate) fn admit(headers: &IpUdp, settings: &Settings) -> Result<bool, Counter> {
    let (hop_limit, least) = (headers.hop_limit, settings.hop_limit_min);
    acl::admit(in_force(settings).as_ref(), u128::from_be_bytes(headers.source), hop_limit, least)
}

/// Whether frames of this source are stored.
#[inline(always)]
pub(crate) fn publishes(source: u128, settings: &Settings) -> bool {
    acl::publishes(in_force(settings).as_ref(), source)
}

/// The table in force.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "0, 1 or 2")]
fn in_force(settings: &Settings) -> Option<Table> {
    let number = log::acl(settings);
    let head = if number == 0 { None } else { ACL_HEADS.get_ptr((number as u32).wrapping_sub(1)) };
    // SAFETY: the value lives as long as the program. The daemon does not write to it while its table is in force.
    head.map(|head| Table(unsafe { &*head }))
}
