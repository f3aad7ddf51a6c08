//! The code at a system call.
//!
//! ```text
//! around    enter stub:  displaced; hook ─▶ jmp to the call, or behind it
//!           exit stub:   hook; displaced; jmp back
//! over      both in one, with the call between them
//! ```
//!
//! A *hook* is five bytes: a call of the programs, or a `nop` where nobody wants this call. The injector writes it; the rest of a stub
//! stays as it is. Whom it calls:
//!
//! - the chain of the number's programs (see [`chain`](crate::chain)),
//! - or, where programs want a whole `pt_regs` or the agent has to know of the call, the arena's gate, which makes a `pt_regs` on
//!   the stack and calls the agent with it. Afterwards registers come from there: programs may change a call's arguments.
//!
//! A number that is no constant is looked up at the call; then see
//! [`dispatch`](crate::dispatch).
//!
//! A call changes rcx and r11 and keeps the flags. So the stub uses these registers, and saves the flags only where somebody behind
//! the call looks at them. Behind the call the two are what the kernel leaves, unless the call was skipped;
//! the status flags in r11 are those of the stub where nobody looks at flags.
//!
//! Where nobody looks at the flags and the number is no constant, the carry flag is set over a call whose end nobody wants: nothing is
//! looked up behind it. It only ever spares work. In a call that began before there was a stub it is anything, and where it is clear a note is
//! looked for that is not there.
//!
//! ```text
//!   │ the caller's stack            │ ◀ its stack pointer
//!   │ red zone, a word; flags, or what the stub keeps
//!   │ the hook's return address, a word
//!   │ return address of the gate    │
//!   ├───────────────────────────────┤
//!   │ status flags, slot            │
//!   │ pt_regs                       │ ◀ S; rbx while the agent runs
//! ```

use crate::arena::{ALIGNMENT, FILLER};
use crate::assemble::{assembled, finish_copy};
use crate::chain::{CallLink, HOOK_BELOW, bare};
use crate::dispatch::Dispatch;
use crate::displaced::{Around, Moved, displace_around, reaches};
use crate::gates::Gates;
use crate::near;
use crate::phase::{Shared, call, home_slot, slot_field};
use crate::site_code::{Environment, Stub, StubError, ThreadKey};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::system_call::{Hooks, SystemCalls};
use beeline_abi::thread::ThreadSlot;
use beeline_site::SitePlan;
use iced_x86::code_asm::{
    AsmRegister64, CodeAssembler, CodeLabel, al, ax, byte_ptr, cl, dword_ptr, eax, ecx, edx, qword_ptr, r8,
    r9, r10, r11, r11d, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp, word_ptr,
};
use iced_x86::{IcedError, Instruction, Mnemonic};
use std::mem::offset_of;

/// What the gates for system calls need. Addresses are the target's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemCallTarget {
    /// The process's [`SystemCalls`].
    pub calls: u64,
    /// The agent's `beeline_system_call_enter`.
    pub enter: u64,
    /// The agent's `beeline_system_call_exit`.
    pub exit: u64,
    /// The agent's `beeline_system_call_missed`, with the address of the registers as its fourth argument.
    pub missed: u64,
}

/// A window at a system call.
#[derive(Clone, Copy, Debug)]
pub struct SystemCallCode<'a> {
    /// The window.
    pub plan: &'a SitePlan,
    /// Address of the window in the process.
    pub address: u64,
    /// Address of the call.
    pub call: u64,
    /// The number, where it is a constant.
    pub number: Option<u32>,
    /// Nobody behind the call looks at the flags.
    pub flags_dead: bool,
    /// Whom the hooks call now: before and behind the call.
    pub hooked: [Option<u64>; 2],
}

impl SystemCallCode<'_> {
    /// Address behind the call.
    fn behind(&self) -> u64 {
        self.call + SYSCALL_LEN
    }

    /// The call is one of the displaced instructions.
    fn is_over(&self) -> bool {
        let window = self.address..self.address + u64::from(self.plan.code_len);
        window.contains(&self.call)
    }
}

/// Bytes of `syscall`.
const SYSCALL_LEN: u64 = 2;
/// What no stub at a call is longer than, alignment included.
pub const SYSTEM_CALL_STUB_MAX: u64 = 448;
/// What the gates of an arena are not longer than.
pub const SYSTEM_CALL_GATES_MAX: u64 = 2560;

/// From the stack pointer of a hook to the word that hooks leave free: on top of it are the red zone, below it the flags, or what the stub keeps.
pub(crate) const KEPT: i32 = 8;
/// From the caller's stack pointer to the word with the gate's return address: what the hook keeps, its return address, one word.
const BELOW: i32 = HOOK_BELOW + 16;
/// Bytes of the frame.
const FRAME_LEN: i32 = size_of::<PtRegs>() as i32 + 24;
const STATUS: i32 = size_of::<PtRegs>() as i32;
const SLOT: i32 = STATUS + 8;
/// From S to the caller's stack pointer.
const TO_CALLER: i32 = FRAME_LEN + 8 + BELOW;
const RUN_REGS: i32 = (offset_of!(ThreadSlot, run) + offset_of!(RunContext, regs)) as i32;

/// Addresses of an arena's gates for system calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallGates {
    /// What hooks call: before the call, behind it.
    pub(crate) hooked: [u64; 2],
    /// The same where the number is no constant.
    pub(crate) dispatch: [u64; 2],
}

/// Makes the gates for address `at`.
pub(crate) fn build_call_gates(
    shared: Shared<'_>,
    target: &SystemCallTarget,
    at: u64,
) -> Result<(Vec<u8>, CallGates), StubError> {
    let Shared { environment, gates, .. } = shared;
    let wrap = |e: IcedError| StubError::Assembler { at, reason: e.to_string() };
    let mut asm = CodeAssembler::new(64).map_err(wrap)?;
    let mut entries = [asm.create_label(), asm.create_label()];
    for (entry, is_exit) in entries.iter_mut().zip([false, true]) {
        asm.set_label(entry).map_err(wrap)?;
        Gate { environment, gates, target, at, is_exit }.write(&mut asm).map_err(wrap)?;
    }
    let [enter, exit] = entries;
    let mut starts = [0; 2];
    starts[0] = asm.instructions().len();
    hooked_enter(&mut asm, enter).map_err(wrap)?;
    starts[1] = asm.instructions().len();
    hooked_exit(&mut asm, exit).map_err(wrap)?;
    let (mut code, offsets) = assembled(&mut asm, &starts, at)?;
    let address = |index: usize| at + u64::from(offsets.get(index).copied().unwrap_or_default());
    let hooked = [address(0), address(1)];
    code.resize(code.len().next_multiple_of(ALIGNMENT as usize), FILLER);
    let dispatch = Dispatch { shared, calls: target.calls, gate: hooked[1] };
    let (more, dispatch) = dispatch.build(at + code.len() as u64)?;
    code.extend(more);
    Ok((code, CallGates { hooked, dispatch }))
}

/// What a hook before a call calls, with r11 = where to go on when it is skipped; the word before that is the address behind the call. Where it
/// is 0 the hook's free word is the address of that of the call's slot (see [`dispatched`](crate::dispatched)).
fn hooked_enter(asm: &mut CodeAssembler, gate: CodeLabel) -> Result<(), IcedError> {
    let (mut call, mut in_slot, mut known) = (asm.create_label(), asm.create_label(), asm.create_label());
    asm.lea(rsp, qword_ptr(rsp - 8))?;
    asm.mov(qword_ptr(rsp), r11)?;
    asm.mov(rcx, qword_ptr(r11 - 8))?;
    asm.jrcxz(in_slot)?;
    asm.mov(r11, rcx)?;
    asm.set_label(&mut known)?;
    asm.mov(ecx, eax)?;
    asm.call(gate)?;
    asm.mov(r11, qword_ptr(rsp))?;
    asm.lea(rsp, qword_ptr(rsp + 8))?;
    asm.jrcxz(call)?;
    // Past the return address.
    asm.lea(rsp, qword_ptr(rsp + 8))?;
    asm.jmp(r11)?;
    asm.set_label(&mut call)?;
    asm.ret()?;
    asm.set_label(&mut in_slot)?;
    // Past the word with r11, and the return address.
    asm.mov(r11, qword_ptr(rsp + (16 + KEPT)))?;
    asm.mov(r11, qword_ptr(r11))?;
    asm.jmp(known)
}

/// What a hook behind a call calls, with rcx = number. The hook is followed by `lea behind(%rip),%rcx`, which tells the address behind the call.
/// Where it is not, the hook's free word is the address of that of the call's slot (see [`dispatched`](crate::dispatched)).
fn hooked_exit(asm: &mut CodeAssembler, gate: CodeLabel) -> Result<(), IcedError> {
    /// Bytes of that instruction, of it before the distance, and two of these.
    const REFERENCE: (i32, i32) = (7, 3);
    const OPCODE: u32 = 0x0d8d;
    let (mut in_slot, mut known) = (asm.create_label(), asm.create_label());
    asm.lea(rsp, qword_ptr(rsp - 8))?;
    asm.mov(qword_ptr(rsp), r11)?;
    asm.mov(r11, qword_ptr(rsp + 8))?;
    asm.cmp(word_ptr(r11 + 1), OPCODE)?;
    asm.jne(in_slot)?;
    asm.push(rax)?;
    asm.movsxd(rax, dword_ptr(r11 + REFERENCE.1))?;
    asm.lea(r11, qword_ptr(r11 + rax + REFERENCE.0))?;
    asm.pop(rax)?;
    asm.set_label(&mut known)?;
    asm.call(gate)?;
    asm.mov(r11, qword_ptr(rsp))?;
    asm.lea(rsp, qword_ptr(rsp + 8))?;
    asm.ret()?;
    asm.set_label(&mut in_slot)?;
    // Past the word with r11, and the return address.
    asm.mov(r11, qword_ptr(rsp + (16 + KEPT)))?;
    asm.mov(r11, qword_ptr(r11))?;
    asm.jmp(known)
}

/// One gate while it is written. It takes rax = number or result, rcx = number (behind the call with what a [`PendingCall`](beeline_abi::system_call::PendingCall) adds), r11 =
/// address behind the call; it gives rcx = 1 when the call is to be skipped.
struct Gate<'a> {
    environment: &'a Environment,
    gates: &'a Gates,
    target: &'a SystemCallTarget,
    at: u64,
    is_exit: bool,
}

/// Registers and their places in `pt_regs`. The first six are those that the agent may change.
fn general() -> [(AsmRegister64, i32); 12] {
    [
        (rdi, offset_of!(PtRegs, di) as i32),
        (rsi, offset_of!(PtRegs, si) as i32),
        (rdx, offset_of!(PtRegs, dx) as i32),
        (r10, offset_of!(PtRegs, r10) as i32),
        (r8, offset_of!(PtRegs, r8) as i32),
        (r9, offset_of!(PtRegs, r9) as i32),
        (rbx, offset_of!(PtRegs, bx) as i32),
        (rbp, offset_of!(PtRegs, bp) as i32),
        (r12, offset_of!(PtRegs, r12) as i32),
        (r13, offset_of!(PtRegs, r13) as i32),
        (r14, offset_of!(PtRegs, r14) as i32),
        (r15, offset_of!(PtRegs, r15) as i32),
    ]
}

const CHANGED: usize = 6;

impl Gate<'_> {
    fn write(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut found, mut run, mut restore) = (asm.create_label(), asm.create_label(), asm.create_label());
        let (mut claim, mut guard, mut missed) = (asm.create_label(), asm.create_label(), asm.create_label());
        self.save(asm)?;
        match self.environment.thread_key {
            ThreadKey::FsSelf => asm.mov(rax, qword_ptr(0u64).fs())?,
            ThreadKey::FsBase => asm.rdfsbase(rax)?,
        }
        // The number is on its way to the agent.
        asm.mov(r8, rcx)?;
        asm.mov(rdx, rax)?;
        home_slot(asm, self.at, self.environment.threads, rdx)?;
        asm.mov(rax, rdx)?;
        asm.cmp(slot_field(offset_of!(ThreadSlot, key)), rax)?;
        asm.jne(claim)?;
        asm.set_label(&mut found)?;
        asm.cmp(slot_field(offset_of!(ThreadSlot, guard)), 0)?;
        asm.jne(guard)?;
        asm.set_label(&mut run)?;
        asm.mov(slot_field(offset_of!(ThreadSlot, guard)), rsp)?;
        self.call_agent(asm, missed)?;
        asm.mov(slot_field(offset_of!(ThreadSlot, guard)), 0)?;
        asm.set_label(&mut restore)?;
        self.restore(asm)?;
        asm.set_label(&mut claim)?;
        asm.call(self.gates.claim)?;
        asm.test(rcx, rcx)?;
        asm.jne(found)?;
        asm.jmp(missed)?;
        asm.set_label(&mut guard)?;
        asm.call(self.gates.guard)?;
        asm.test(rax, rax)?;
        asm.jne(run)?;
        asm.set_label(&mut missed)?;
        self.count_missed(asm)?;
        asm.jmp(restore)
    }

    /// From r8 = number, as it came; gives rcx = not 0 when the call is to be skipped all the same.
    fn count_missed(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.mov(rbx, rsp)?;
        asm.and(rsp, -16i32)?;
        asm.mov(rdi, self.target.calls)?;
        if self.is_exit {
            asm.mov(rsi, r8)?;
        } else {
            asm.mov(rsi, qword_ptr(rbx + offset_of!(PtRegs, orig_ax) as i32))?;
        }
        asm.mov(edx, u32::from(self.is_exit))?;
        asm.mov(rcx, rbx)?;
        call(asm, self.at, self.target.missed)?;
        asm.mov(rsp, rbx)?;
        asm.mov(rbx, qword_ptr(rsp + offset_of!(PtRegs, bx) as i32))?;
        asm.mov(rcx, rax)?;
        if self.is_exit { Ok(()) } else { asm.mov(qword_ptr(rsp + SLOT), rax) }
    }

    /// Makes the frame.
    fn save(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let field = |offset: usize| qword_ptr(rsp + offset as i32);
        asm.lea(rsp, qword_ptr(rsp - FRAME_LEN))?;
        asm.mov(field(offset_of!(PtRegs, ax)), rax)?;
        asm.mov(field(offset_of!(PtRegs, orig_ax)), rax)?;
        asm.lahf()?;
        asm.seto(al)?;
        asm.mov(qword_ptr(rsp + STATUS), rax)?;
        for (register, offset) in general() {
            asm.mov(qword_ptr(rsp + offset), register)?;
        }
        asm.mov(field(offset_of!(PtRegs, ip)), r11)?;
        asm.mov(field(offset_of!(PtRegs, cx)), r11)?;
        asm.lea(rax, qword_ptr(rsp + TO_CALLER))?;
        asm.mov(field(offset_of!(PtRegs, sp)), rax)?;
        // What the kernel has there: interrupts on, and the reserved bit.
        asm.mov(field(offset_of!(PtRegs, flags)), 0x202)?;
        asm.mov(field(offset_of!(PtRegs, r11)), 0x202)?;
        asm.mov(field(offset_of!(PtRegs, cs)), 0x33)?;
        asm.mov(field(offset_of!(PtRegs, ss)), 0x2b)?;
        if !self.is_exit {
            // `-ENOSYS`, until somebody knows better (arch/x86/entry/entry_64.S).
            asm.mov(field(offset_of!(PtRegs, ax)), -38)?;
        }
        Ok(())
    }

    /// From rcx = slot; gives rax = what the agent says, rcx = slot.
    fn call_agent(&self, asm: &mut CodeAssembler, missed: CodeLabel) -> Result<(), IcedError> {
        let mut ready = asm.create_label();
        asm.mov(qword_ptr(rcx + RUN_REGS), rsp)?;
        asm.mov(qword_ptr(rsp + SLOT), rcx)?;
        asm.mov(rbx, rsp)?;
        asm.mov(rdi, rsp)?;
        if self.environment.small_stacks {
            asm.mov(rax, slot_field(offset_of!(ThreadSlot, stack_top)))?;
            asm.test(rax, rax)?;
            asm.jne(ready)?;
            asm.mov(rbx, qword_ptr(rsp + offset_of!(PtRegs, bx) as i32))?;
            asm.mov(slot_field(offset_of!(ThreadSlot, guard)), 0)?;
            asm.jmp(missed)?;
            asm.set_label(&mut ready)?;
            asm.mov(rsp, rax)?;
        }
        asm.and(rsp, -16i32)?;
        asm.mov(rsi, rcx)?;
        asm.mov(rdx, self.target.calls)?;
        asm.mov(rcx, r8)?;
        call(asm, self.at, if self.is_exit { self.target.exit } else { self.target.enter })?;
        asm.mov(rsp, rbx)?;
        asm.mov(rcx, qword_ptr(rsp + SLOT))?;
        asm.mov(rbx, qword_ptr(rsp + offset_of!(PtRegs, bx) as i32))?;
        // Skipped or not, until the registers are back.
        if self.is_exit { Ok(()) } else { asm.mov(qword_ptr(rsp + SLOT), rax) }
    }

    /// Back to the stub. A hit that was missed comes with rcx = 0, unless its call is to be skipped.
    fn restore(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut plain = asm.create_label();
        for (register, offset) in general().into_iter().take(CHANGED) {
            asm.mov(register, qword_ptr(rsp + offset))?;
        }
        asm.mov(rax, qword_ptr(rsp + STATUS))?;
        if !self.is_exit {
            // rcx = slot, or 1: somebody decided.
            asm.jrcxz(plain)?;
            asm.mov(rcx, qword_ptr(rsp + SLOT))?;
            asm.set_label(&mut plain)?;
        }
        asm.add(al, 0x7f)?; // 1 overflows, 0 does not
        asm.sahf()?;
        if self.is_exit {
            asm.mov(rax, qword_ptr(rsp + offset_of!(PtRegs, ax) as i32))?;
        } else {
            let mut call = asm.create_label();
            let mut done = asm.create_label();
            asm.jrcxz(call)?;
            asm.mov(rax, qword_ptr(rsp + offset_of!(PtRegs, ax) as i32))?;
            asm.jmp(done)?;
            asm.set_label(&mut call)?;
            asm.mov(rax, qword_ptr(rsp + offset_of!(PtRegs, orig_ax) as i32))?;
            asm.set_label(&mut done)?;
        }
        asm.lea(rsp, qword_ptr(rsp + FRAME_LEN))?;
        asm.ret()
    }
}

/// Bytes of a hook.
pub const HOOK_LEN: usize = 5;

/// The bytes of a hook at `at` that calls `target`; none where nobody wants the call. None when it is too far away.
pub fn hook(at: u64, target: Option<u64>) -> Option<[u8; HOOK_LEN]> {
    let Some(target) = target else { return Some([0x0f, 0x1f, 0x44, 0x00, 0x00]) };
    let distance = i128::from(target) - i128::from(at) - HOOK_LEN as i128;
    let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
    Some([0xe8, a, b, c, d])
}

/// Where a stub goes on when its call is skipped.
#[derive(Clone, Copy)]
enum Skipped {
    /// Behind the copy of it.
    Copy(CodeLabel),
    /// Behind the call in its place.
    Call,
}

/// The windows at a call, while they are written.
struct Windows<'a> {
    code: &'a SystemCallCode<'a>,
    target: &'a SystemCallTarget,
    gates: CallGates,
    /// Where the stub will be.
    at: u64,
    /// Index of what is behind the displaced call.
    behind: Option<usize>,
    /// Indexes of the hooks.
    hooks: [Option<usize>; 2],
    /// Where the hook before the call goes on when that is skipped, and what is there.
    skip: Option<(CodeLabel, Skipped)>,
    /// Indexes of chains that stand in the stub, for its hooks to call.
    chains: [Option<usize>; 2],
}

impl<'a> Windows<'a> {
    fn new(code: &'a SystemCallCode<'a>, target: &'a SystemCallTarget, gates: CallGates, at: u64) -> Self {
        Windows { code, target, gates, at, behind: None, hooks: [None; 2], skip: None, chains: [None; 2] }
    }

    /// The carry flag is set over the call when nobody wants its end.
    fn carries(&self) -> bool {
        self.code.number.is_none() && self.code.flags_dead
    }

    fn go_on(&self, asm: &mut CodeAssembler, skipped: Skipped) -> Result<(), IcedError> {
        match skipped {
            Skipped::Copy(behind) => asm.jmp(behind),
            Skipped::Call => asm.jmp(self.code.behind()),
        }
    }

    /// Runs the programs of the beginning; to `skipped` when the call is not to be made.
    fn enter(&mut self, asm: &mut CodeAssembler, skipped: Skipped) -> Result<(), IcedError> {
        let (skip, mut plain) = (asm.create_label(), asm.create_label());
        self.skip = Some((skip, skipped));
        if self.code.number.is_some() {
            asm.lea(r11, qword_ptr(skip))?;
            self.enter_hook(asm)?;
            self.hook(asm, 0)?;
            return self.leave_hook(asm);
        }
        // The lower half of the number is enough to know that nobody wants it.
        near::address(asm, self.at, rcx, self.target.calls + offset_of!(SystemCalls, wanted) as u64)?;
        asm.movzx(r11d, ax)?;
        asm.movzx(ecx, byte_ptr(rcx + r11))?;
        if self.carries() {
            asm.cmp(cl, 1)?;
            asm.jb(plain)?;
        } else {
            asm.jrcxz(plain)?;
        }
        asm.lea(r11, qword_ptr(skip))?;
        self.enter_hook(asm)?;
        if self.carries() {
            asm.mov(dword_ptr(rsp), ecx)?;
        }
        asm.call(self.gates.dispatch[0])?;
        self.leave_enter(asm)?;
        asm.set_label(&mut plain)?;
        asm.zero_bytes()
    }

    /// Behind the hook before a call: what of the call is wanted stands where flags are kept otherwise.
    fn leave_enter(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if !self.carries() {
            return self.leave_hook(asm);
        }
        asm.cmp(byte_ptr(rsp), i32::from(SystemCalls::EXIT))?;
        asm.lea(rsp, qword_ptr(rsp + HOOK_BELOW))
    }

    /// Runs the programs of the end.
    fn exit(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut plain = asm.create_label();
        if let Some(number) = self.code.number {
            asm.mov(ecx, number)?;
        } else if self.carries() {
            asm.jb(plain)?;
        }
        self.enter_hook(asm)?;
        self.hook(asm, 1)?;
        // What the kernel leaves in it. The gate reads the address here, too.
        near::reference(asm, rcx, self.code.behind())?;
        self.leave_hook(asm)?;
        asm.set_label(&mut plain)?;
        asm.zero_bytes()
    }

    /// The hook before the call, or behind it.
    fn hook(&mut self, asm: &mut CodeAssembler, index: usize) -> Result<(), IcedError> {
        self.hooks[index] = Some(asm.instructions().len());
        asm.db(&[0x0f, 0x1f, 0x44, 0x00, 0x00])
    }

    /// Below the red zone; with the flags saved where they are looked at.
    fn enter_hook(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.code.flags_dead {
            return asm.sub(rsp, HOOK_BELOW);
        }
        asm.lea(rsp, qword_ptr(rsp - (HOOK_BELOW - 8)))?;
        asm.pushfq()
    }

    /// Back to the caller's stack pointer and flags.
    fn leave_hook(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.code.flags_dead {
            return asm.add(rsp, HOOK_BELOW);
        }
        asm.popfq()?;
        asm.lea(rsp, qword_ptr(rsp + (HOOK_BELOW - 8)))
    }

    /// The chains that stand in the stub.
    fn chains(&mut self, asm: &mut CodeAssembler, near: &NearChains<'_>) -> Result<(), IcedError> {
        for (index, links) in near.links.into_iter().enumerate() {
            let start = asm.instructions().len();
            if self.hooks[index].is_some() && bare(asm, near.shared, links, index == 1, self.at)? {
                self.chains[index] = Some(start);
            }
        }
        Ok(())
    }

    /// What runs when a call is skipped.
    fn cold(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if let Some((mut skip, skipped)) = self.skip {
            asm.db(&self.code.behind().to_le_bytes())?;
            asm.set_label(&mut skip)?;
            self.leave_enter(asm)?;
            self.go_on(asm, skipped)?;
        }
        // What assembles to nothing has no offset: this has one, and never runs.
        asm.int3()
    }
}

impl Around for Windows<'_> {
    fn first(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.code.address == self.code.behind() { self.exit(asm) } else { Ok(()) }
    }

    fn instead(
        &mut self,
        asm: &mut CodeAssembler,
        instruction: &Instruction,
        moved: &mut Vec<Moved>,
    ) -> Result<bool, IcedError> {
        if instruction.mnemonic() != Mnemonic::Syscall || instruction.ip() != self.code.call {
            return Ok(false);
        }
        let mut skipped = asm.create_label();
        self.enter(asm, Skipped::Copy(skipped))?;
        asm.syscall()?;
        let behind = asm.instructions().len();
        moved.push(Moved { original: self.code.behind(), index: behind });
        self.behind = Some(behind);
        asm.set_label(&mut skipped)?;
        self.exit(asm)?;
        Ok(true)
    }

    fn last(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.code.address + u64::from(self.code.plan.code_len) != self.code.call {
            return Ok(());
        }
        self.enter(asm, Skipped::Call)
    }
}

/// A stub at a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallStub {
    /// Its code.
    pub stub: Stub,
    /// Offset behind the copy of the call, where that is displaced; else 0.
    pub behind: u32,
}

/// The programs of a call whose number is a constant, before it and behind it. Their chains stand in the stub, where they are short enough.
#[derive(Clone, Copy)]
pub(crate) struct NearChains<'a> {
    pub(crate) shared: Shared<'a>,
    pub(crate) links: [&'a [CallLink]; 2],
}

/// Makes the code of a window for address `at`.
///
/// # Errors
/// [`StubError`] when a displaced instruction or the site is out of reach of `at`.
pub(crate) fn build_call_stub(
    code: &SystemCallCode<'_>,
    target: &SystemCallTarget,
    gates: CallGates,
    near: &NearChains<'_>,
    at: u64,
) -> Result<CallStub, StubError> {
    let wrap = |e: IcedError| StubError::Assembler { at, reason: e.to_string() };
    for place in [code.address, code.call] {
        if !reaches(at, place) {
            return Err(StubError::OutOfRange { at, target: place });
        }
    }
    let mut asm = CodeAssembler::new(64).map_err(wrap)?;
    let mut windows = Windows::new(code, target, gates, at);
    let mut displaced = displace_around(&mut asm, code.plan, code.address, at, &mut windows)?;
    // Found before the place of the same address that is behind the programs.
    displaced.sort_by_key(|moved| moved.index);
    windows.chains(&mut asm, near).map_err(wrap)?;
    let cold = asm.instructions().len();
    windows.cold(&mut asm).map_err(wrap)?;
    let marked = [windows.hooks, windows.chains].into_iter().flatten().flatten().collect();
    let (mut stub, marked) = finish_copy(&mut asm, displaced, cold, marked, at)?;
    let mut marked = marked.into_iter();
    let mut offset = |mark: Option<usize>| mark.and_then(|_| marked.next());
    let (hooks, chains) = (windows.hooks.map(&mut offset), windows.chains.map(&mut offset));
    for index in [0, 1] {
        let target = chains[index].map(|chain| at + u64::from(chain)).or(code.hooked[index]);
        let Some((offset, target)) = hooks[index].zip(target) else { continue };
        let at = at + u64::from(offset);
        let bytes = hook(at, Some(target)).ok_or(StubError::OutOfRange { at, target })?;
        if let Some(place) = stub.bytes.get_mut(offset as usize..offset as usize + HOOK_LEN) {
            place.copy_from_slice(&bytes);
        }
    }
    let offset = |hook: Option<u32>| hook.and_then(|at| u16::try_from(at).ok()).unwrap_or(Hooks::NONE);
    let [enter, exit] = hooks.map(offset);
    let trailer = Hooks { number: code.number.unwrap_or(Hooks::NO_NUMBER), enter, exit };
    stub.bytes.extend(trailer.to_bytes());
    let found = windows.behind.filter(|_| code.is_over()).and(stub.pc_in_stub(code.behind()));
    let behind = found.map_or(0, |address| (address - at) as u32);
    Ok(CallStub { stub, behind })
}
