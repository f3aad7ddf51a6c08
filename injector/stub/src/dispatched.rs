//! The code at a call that the kernel has handed to the process (see [`beeline_abi::dispatch`]). One piece serves all slots.
//!
//! ```text
//! enter:   programs ─▶ jmp to the slot          rcx = the slot's entry, from the handler of SIGSYS
//! slot:    syscall ─▶ jmp to left[0] or left[1] rcx = the slot's entry again
//! left:    (programs) ─▶ the entry is free ─▶ jmp behind the call
//! ```
//!
//! A call changes rcx and r11; the flags are kept. Nothing is kept on the stack over the call.

use crate::assemble::assembled;
use crate::chain::HOOK_BELOW;
use crate::site_code::StubError;
use crate::system_call::{CallGates, KEPT, SystemCallTarget};
use beeline_abi::dispatch::{DispatchEntry, SLOT_LEN};
use beeline_abi::system_call::{PendingCall, SystemCalls};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, ax, byte_ptr, ecx, qword_ptr, r11, r11d, rax, rcx, rsp};
use std::mem::offset_of;

/// What the code for dispatched calls is not longer than, alignment included.
pub const DISPATCHED_MAX: u64 = 512;

/// Where calls go on that were handed to the process. Addresses are the process's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DispatchedCode {
    /// Before the call.
    pub enter: u64,
    /// Behind it: with programs, without.
    pub left: [u64; 2],
}

const BEHIND: i32 = offset_of!(DispatchEntry, behind) as i32;
const THREADS: i32 = offset_of!(DispatchEntry, threads) as i32;
const SLOT: i32 = offset_of!(DispatchEntry, slot) as i32;
/// A gate reads the address behind the call at the start of the entry.
const _: () = assert!(BEHIND == 0);

/// Makes it for address `at`.
pub(crate) fn build_dispatched(
    target: &SystemCallTarget,
    gates: CallGates,
    at: u64,
) -> Result<(Vec<u8>, DispatchedCode), StubError> {
    let wrap = |e: IcedError| StubError::Assembler { at, reason: e.to_string() };
    let mut asm = CodeAssembler::new(64).map_err(wrap)?;
    let mut leave = asm.create_label();
    let mut starts = [0; 3];
    starts[0] = asm.instructions().len();
    enter(&mut asm, target, gates, &mut leave).map_err(wrap)?;
    starts[1] = asm.instructions().len();
    left(&mut asm, gates, leave).map_err(wrap)?;
    starts[2] = asm.instructions().len();
    left_without_programs(&mut asm, leave).map_err(wrap)?;
    let (code, offsets) = assembled(&mut asm, &starts, at)?;
    let address = |index: usize| at + u64::from(offsets.get(index).copied().unwrap_or_default());
    Ok((code, DispatchedCode { enter: address(0), left: [address(1), address(2)] }))
}

/// Below the red zone, with the flags and the entry saved.
fn go_below(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.lea(rsp, qword_ptr(rsp - (HOOK_BELOW - 8)))?;
    asm.pushfq()?;
    asm.cld()?;
    asm.mov(qword_ptr(rsp + KEPT), rcx)
}

/// With rax = number, rcx = entry. `leave` is behind it.
fn enter(
    asm: &mut CodeAssembler,
    target: &SystemCallTarget,
    gates: CallGates,
    leave: &mut CodeLabel,
) -> Result<(), IcedError> {
    let (mut skip, mut make) = (asm.create_label(), asm.create_label());
    go_below(asm)?;
    asm.mov(rcx, target.calls + offset_of!(SystemCalls, wanted) as u64)?;
    asm.movzx(r11d, ax)?;
    asm.movzx(ecx, byte_ptr(rcx + r11))?;
    asm.jrcxz(make)?;
    asm.lea(r11, qword_ptr(skip))?;
    asm.call(gates.dispatch[0])?;
    asm.set_label(&mut make)?;
    asm.mov(rcx, qword_ptr(rsp + KEPT))?;
    asm.popfq()?;
    asm.lea(rsp, qword_ptr(rsp + (HOOK_BELOW - 8)))?;
    asm.jmp(qword_ptr(rcx + SLOT))?;
    // The gate finds the address behind the call in the entry.
    asm.db(&[0; 8])?;
    asm.set_label(&mut skip)?;
    asm.mov(r11, qword_ptr(rsp + KEPT))?;
    asm.set_label(leave)?;
    free_and_go(asm)
}

/// From r11 = entry: what the kernel leaves in rcx and r11 is the place behind the call, and the flags.
fn free_and_go(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.mov(rcx, qword_ptr(r11 + BEHIND))?;
    // From here on the entry may be another call's.
    asm.lock().dec(qword_ptr(r11 + THREADS))?;
    asm.mov(r11, qword_ptr(rsp))?;
    asm.popfq()?;
    asm.lea(rsp, qword_ptr(rsp + (HOOK_BELOW - 8)))?;
    asm.jmp(rcx)
}

/// With rax = result, rcx = entry.
fn left(asm: &mut CodeAssembler, gates: CallGates, leave: CodeLabel) -> Result<(), IcedError> {
    let (mut known, mut done) = (asm.create_label(), asm.create_label());
    go_below(asm)?;
    asm.test(rax, rax)?;
    asm.jne(known)?;
    // A thread may begin here, with no note of the call: the agent looks closer.
    asm.mov(rcx, PendingCall::UNKNOWN)?;
    asm.call(gates.hooked[1])?;
    // Not what stands behind a hook: the gate finds the address behind the call in the entry.
    asm.nop()?;
    asm.jmp(done)?;
    asm.set_label(&mut known)?;
    asm.call(gates.dispatch[1])?;
    asm.nop()?;
    asm.set_label(&mut done)?;
    asm.mov(r11, qword_ptr(rsp + KEPT))?;
    asm.jmp(leave)
}

/// With rcx = entry.
fn left_without_programs(asm: &mut CodeAssembler, leave: CodeLabel) -> Result<(), IcedError> {
    go_below(asm)?;
    asm.mov(r11, rcx)?;
    asm.jmp(leave)
}

/// The bytes of the slot at `at`, for the entry at `entry`; it goes on where the word at `left` says. None where they are too far apart.
pub fn slot_bytes(at: u64, entry: u64, left: u64) -> Option<[u8; SLOT_LEN as usize]> {
    let distance = |to: u64, behind: u64| {
        let distance = i128::from(to) - i128::from(at + behind);
        i32::try_from(distance).ok().map(i32::to_le_bytes)
    };
    let [a, b, c, d] = distance(entry, 9)?;
    let [e, f, g, h] = distance(left, 15)?;
    // syscall; lea rcx, [rip + entry]; jmp [rip + left]
    Some([0x0f, 0x05, 0x48, 0x8d, 0x0d, a, b, c, d, 0xff, 0x25, e, f, g, h, 0xcc])
}

/// The bytes of the slot at `at` for `int 0x80`, which changes no register: it goes on where the entry at `entry` says. None where they are too
/// far apart.
pub fn fixed_slot_bytes(at: u64, entry: u64) -> Option<[u8; SLOT_LEN as usize]> {
    let distance = i128::from(entry) + i128::from(BEHIND) - i128::from(at + 8);
    let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
    // int 0x80; jmp [rip + behind]
    Some([0xcd, 0x80, 0xff, 0x25, a, b, c, d, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc])
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    #[test]
    fn a_slot() {
        let bytes = slot_bytes(0x7000_0000, 0x6000_0040, 0x6000_0008).expect("near");
        let mut formatter = IntelFormatter::new();
        let decoded =
            Decoder::with_ip(64, &bytes[..15], 0x7000_0000, DecoderOptions::NONE).into_iter().map(|it| {
                let mut text = String::new();
                formatter.format(&it, &mut text);
                text
            });
        assert_eq!(
            decoded.collect::<Vec<_>>(),
            ["syscall", "lea rcx,[60000040h]", "jmp qword ptr [60000008h]"]
        );
        assert_eq!(slot_bytes(0x1_0000_0000, 0x2_0000_0000, 0), None);
    }
}
