//! What runs in the kernel: the census iterators and the probes.
//!
//! Built only for `bpfel-unknown-none`, by `cargo xtask ebpf`; x86-64 system call layouts.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod kernel;
mod maps;
mod probes;

/// Dual MIT/GPL, as Linux writes it: helpers such as `bpf_probe_read_kernel` are GPL-only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program with a path to here.
    loop {}
}
