//! Programs of the bench, not of the product: the load, the count of what comes back, and the shortest possible
//! reflector, which is the limit of the machine.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "the entries exist on the BPF target only"))]

mod count;
mod frame;
mod nack;
mod pace;
mod reflect;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers used here are offered to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
