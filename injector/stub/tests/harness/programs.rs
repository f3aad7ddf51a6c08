//! Programs for tests, in machine code: they use no vector register, as compiled programs do.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use super::World;
use beeline_abi::run::RunContext;
use iced_x86::code_asm::{dword_ptr, ecx, qword_ptr, r8, r9, r10, r11, rax, rcx, rdi, rdx, rsi, rsp};
use std::mem::offset_of;

/// Counts in the first word of `data`, stores the context behind it (21 words), then `run.link`, the stack pointer and
/// `run.regs`; leaves nonsense in every register that a callee may change, and in the flags.
pub(crate) fn recorder(world: &mut World, data: *mut u64) -> u64 {
    let data = data as u64;
    world.assemble(|asm| {
        asm.mov(rax, data).unwrap();
        asm.inc(qword_ptr(rax)).unwrap();
        for word in 0..21 {
            asm.mov(rdx, qword_ptr(rdi + 8 * word)).unwrap();
            asm.mov(qword_ptr(rax + (8 + 8 * word)), rdx).unwrap();
        }
        asm.mov(rdx, qword_ptr(rsi + 24)).unwrap();
        asm.mov(qword_ptr(rax + 176), rdx).unwrap();
        asm.mov(qword_ptr(rax + 184), rsp).unwrap();
        asm.mov(rdx, qword_ptr(rsi + 32)).unwrap();
        asm.mov(qword_ptr(rax + 192), rdx).unwrap();
        for register in [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11] {
            asm.mov(register, 0xbad0_bad0_bad0_bad0u64).unwrap();
        }
        asm.add(rax, rax).unwrap();
        asm.ret().unwrap();
    })
}

/// Counts in the first word of `data`, stores `count` words of the context behind it, and leaves nonsense in every register that it
/// may change, and in the flags.
pub(crate) fn record_words(world: &mut World, data: *mut u64, count: i32) -> u64 {
    world.assemble(|asm| {
        asm.mov(rax, data as u64).unwrap();
        asm.inc(qword_ptr(rax)).unwrap();
        for word in 0..count {
            asm.mov(rdx, qword_ptr(rdi + 8 * word)).unwrap();
            asm.mov(qword_ptr(rax + (8 + 8 * word)), rdx).unwrap();
        }
        for register in [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11] {
            asm.mov(register, 0xbad0_bad0_bad0_bad0u64).unwrap();
        }
        asm.add(rax, rax).unwrap();
        asm.ret().unwrap();
    })
}

/// Asks for another result: `bpf_override_return`.
pub(crate) fn overrider(world: &mut World, value: u64) -> u64 {
    world.assemble(|asm| {
        asm.mov(rax, value).unwrap();
        asm.mov(qword_ptr(rsi + offset_of!(RunContext, override_value) as i32), rax).unwrap();
        asm.or(dword_ptr(rsi + offset_of!(RunContext, flags) as i32), RunContext::OVERRIDE).unwrap();
        asm.ret().unwrap();
    })
}

/// Counts in the first word of `data`.
pub(crate) fn counter(world: &mut World, data: *mut u64) -> u64 {
    let data = data as u64;
    world.assemble(|asm| {
        asm.mov(rax, data).unwrap();
        asm.inc(qword_ptr(rax)).unwrap();
        asm.ret().unwrap();
    })
}

/// Stores the flags that it finds.
pub(crate) fn flags(world: &mut World, data: *mut u64) -> u64 {
    let data = data as u64;
    world.assemble(|asm| {
        asm.pushfq().unwrap();
        asm.mov(rax, data).unwrap();
        asm.pop(qword_ptr(rax)).unwrap();
        asm.ret().unwrap();
    })
}

/// Counts, then calls `function` with its argument 0.
pub(crate) fn caller(world: &mut World, data: *mut u64, function: u64) -> u64 {
    let data = data as u64;
    world.assemble(|asm| {
        asm.mov(rax, data).unwrap();
        asm.inc(qword_ptr(rax)).unwrap();
        asm.sub(rsp, 8).unwrap();
        asm.xor(ecx, ecx).unwrap();
        asm.mov(rdi, rcx).unwrap();
        asm.mov(rsi, rcx).unwrap();
        asm.call(function).unwrap();
        asm.add(rsp, 8).unwrap();
        asm.mov(dword_ptr(rsp - 4), 0).unwrap();
        asm.ret().unwrap();
    })
}

/// Words of the blocks that [`surround`] loads from and stores to: 16 general registers, flags, 32 for xmm.
pub(crate) const REGISTERS: usize = 16 + 1 + 32;

/// A function that loads every register and the status flags from `from`, calls `function`, and stores them to `to`.
/// Order: rax rcx rdx rbx rsp rbp rsi rdi r8..r15 flags xmm0..xmm15. rsp is stored as the change it underwent.
pub(crate) fn surround(world: &mut World, function: u64, from: *const u64, to: *mut u64) -> u64 {
    use iced_x86::code_asm::{r12, r13, r14, r15, rbp, rbx, registers::xmm::*, xmmword_ptr};
    let general = [rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    let places = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let vector = [
        xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15,
    ];
    world.assemble(|asm| {
        for register in [rbx, rbp, r12, r13, r14, r15] {
            asm.push(register).unwrap();
        }
        asm.sub(rsp, 16 + 8).unwrap();
        asm.mov(rax, from as u64).unwrap();
        for (i, register) in vector.into_iter().enumerate() {
            asm.movups(register, xmmword_ptr(rax + (136 + 16 * i as i32))).unwrap();
        }
        for (register, place) in general.into_iter().zip(places) {
            asm.mov(register, qword_ptr(rax + 8 * place)).unwrap();
        }
        asm.push(qword_ptr(rax + 128)).unwrap();
        asm.mov(qword_ptr(rsp + 8), rsp).unwrap();
        asm.add(qword_ptr(rsp + 8), 8).unwrap();
        asm.mov(rax, qword_ptr(rax)).unwrap();
        asm.popfq().unwrap();
        asm.call(function).unwrap();
        asm.mov(qword_ptr(rsp + 8), rax).unwrap();
        asm.pushfq().unwrap();
        asm.cld().unwrap();
        asm.mov(rax, to as u64).unwrap();
        asm.pop(qword_ptr(rax + 128)).unwrap();
        for (register, place) in general.into_iter().zip(places) {
            asm.mov(qword_ptr(rax + 8 * place), register).unwrap();
        }
        asm.mov(rcx, qword_ptr(rsp + 8)).unwrap();
        asm.mov(qword_ptr(rax), rcx).unwrap();
        asm.mov(rcx, rsp).unwrap();
        asm.sub(rcx, qword_ptr(rsp)).unwrap();
        asm.mov(qword_ptr(rax + 32), rcx).unwrap();
        for (i, register) in vector.into_iter().enumerate() {
            asm.movups(xmmword_ptr(rax + (136 + 16 * i as i32)), register).unwrap();
        }
        asm.add(rsp, 16 + 8).unwrap();
        for register in [r15, r14, r13, r12, rbp, rbx] {
            asm.pop(register).unwrap();
        }
        asm.ret().unwrap();
    })
}

/// A block of register values for [`surround`], different in each word, with these status flags.
pub(crate) fn pattern(data: *mut u64, flags: u64) {
    for i in 0..REGISTERS {
        // SAFETY: the caller gives room for the block.
        unsafe { *data.add(i) = 0x1111_0000_0000_0001u64.wrapping_mul(i as u64 + 1).rotate_left(i as u32) };
    }
    // SAFETY: as above.
    unsafe { *data.add(16) = flags }
}
