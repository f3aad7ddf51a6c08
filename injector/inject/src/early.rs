//! System calls that a program makes before its libraries are there: the loader's, and those with which a static program sets
//! itself up.
//!
//! ```text
//! execve ─▶ stopped before the first instruction ─▶ the calls of the loader, or of a static program, get their jumps
//! ─▶ to where all libraries are there ─▶ attached to as any process; what was not known of its threads yet is entered then
//! ```
//!
//! In between the process is like no other, in two ways:
//!
//! - Its thread has no thread pointer. Stubs ask for the fs base, and find the slot at the home of 0 ready: it was claimed by
//!   the thread for another key, and moved there. It is free for whoever comes with a real key.
//! - The C library registers a `struct rseq`, and a thread can have one only. The agent, which has registered its own when a program
//!   needed a CPU before, gives it up in time; where libc's lies the tracer sees, who stops at all calls until the libraries are there.

use crate::attach::{Failure, Prepared};
use crate::error::TargetRefused;
use crate::generation::Generation;
use crate::report::{AttachReport, ProbeOutcome, ProbeState};
use crate::request::{ProbeKind, Request};
use crate::start::AT_ENTRY;
use crate::target::{self, remote};
use crate::wire::{BlockHead, HEAD_LEN};
use beeline_abi::process::{ProcessBlock, Region};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{THREAD_SLOTS, ThreadSlot, home_index};
use beeline_ptrace::{Registers, StopError, StopOptions, Stopped, StoppedProcess};
use beeline_remote::{Borrowed, Process, RemoteError};
use std::mem::offset_of;
use std::time::Duration;

/// How often an attempt is made again.
const ATTEMPTS_MAX: usize = 8;

/// Bytes of a slot.
const SLOT_LEN: usize = size_of::<ThreadSlot>();

/// What was put into a program before its first instruction.
#[derive(Debug)]
pub(crate) struct Early {
    report: AttachReport,
    /// Address of the agent's block.
    block: u64,
    /// Where the agent is.
    home: Region,
    /// The loader maps all libraries before it relocates the first: it has no auditors.
    maps_all_first: bool,
}

/// Attaches to a program that stands before its first instruction, and runs the programs of the end of its `execve`, at which its
/// registers were `executed`. None when there is nothing to be had so early; then the thread is as it was.
///
/// # Errors
/// When the process is lost.
pub(crate) fn put_in(
    request: &Request,
    thread: Stopped,
    executed: &Registers,
) -> Result<(Stopped, Option<Early>), TargetRefused> {
    let pid = thread.tid();
    let mut stopped = StoppedProcess::around(thread, StopOptions::default())?;
    // Why it cannot be done is told when everything else is put in.
    let early = match request.of_system_calls() {
        Ok(request) => attempt(&request, &mut stopped, executed).unwrap_or_default(),
        Err(_) => None,
    };
    let mut threads = stopped.into_threads().0;
    let only = threads.pop().ok_or(StopError::Died { pid, how: None })?;
    Ok((only, early))
}

fn attempt(
    request: &Request,
    stopped: &mut StoppedProcess,
    executed: &Registers,
) -> Result<Option<Early>, TargetRefused> {
    let process = target::open_traced(stopped.pid())?;
    let entry = process.auxiliary(AT_ENTRY).map_err(|error| remote(process.pid(), error))?;
    let mut key = None;
    for _ in 0..ATTEMPTS_MAX {
        let prepared = Prepared::new(&process, request, key)?.before_first_instruction(entry);
        let mut planned = prepared.plan()?;
        if planned.sites.is_empty() {
            return Ok(None);
        }
        let generation = Generation::build(prepared.ingredients(), &mut planned)?;
        let block = generation.block;
        let agent = Agent {
            exit: generation.system_call_exit,
            slot: generation.head.threads,
            calls: generation.head.system_calls,
        };
        let home = generation.regions.iter().find(|region| block.wrapping_sub(region.start) < region.len);
        let home = home.copied().unwrap_or_default();
        match prepared.apply(&mut planned, generation, stopped) {
            Ok(()) => {
                if wants_end(request, executed.orig_rax) {
                    // It is lost if the process is, which shows later.
                    let _ = end_of_execve(&process, stopped, &agent, executed);
                }
                let report = prepared.report(&planned, stopped.threads().len(), Duration::ZERO);
                let maps_all_first = !process.began_with_variable("LD_AUDIT");
                return Ok(Some(Early { report, block, home, maps_all_first }));
            }
            Err(Failure::OtherKey(other)) => key = Some(other),
            Err(Failure::Again | Failure::InTheWay) => {}
            Err(Failure::Refused(reason)) => return Err(reason),
        }
    }
    Ok(None)
}

/// Addresses in a process that was attached to before its first instruction.
struct Agent {
    /// The function that is called behind a system call.
    exit: u64,
    /// The slot of the only thread.
    slot: u64,
    /// The process's [`SystemCalls`](beeline_abi::system_call::SystemCalls).
    calls: u64,
}

/// A program wants the end of the call with this number.
fn wants_end(request: &Request, number: u64) -> bool {
    let mut ends = request.system_calls.iter().filter(|call| call.kind == ProbeKind::Return);
    ends.any(|call| call.number.is_none_or(|wanted| u64::from(wanted) == number))
}

/// Runs the programs of the end of a call that succeeded, and came back in a new program. Its registers are the kernel's for that: all
/// but three are zero.
fn end_of_execve(
    process: &Process,
    stopped: &mut StoppedProcess,
    agent: &Agent,
    executed: &Registers,
) -> Result<(), RemoteError> {
    const REGISTERS: u64 = (offset_of!(ThreadSlot, run) + offset_of!(RunContext, regs)) as u64;
    let maps = process.maps()?;
    let mut borrowed = Borrowed::begin(process, &maps, stopped, 0)?;
    let at = borrowed.scratch();
    let mut bytes = [0u8; size_of::<PtRegs>()];
    for (offset, value) in [
        (offset_of!(PtRegs, orig_ax), executed.orig_rax),
        (offset_of!(PtRegs, ip), executed.rip),
        (offset_of!(PtRegs, cs), executed.cs),
        (offset_of!(PtRegs, flags), executed.eflags),
        (offset_of!(PtRegs, sp), executed.rsp),
        (offset_of!(PtRegs, ss), executed.ss),
    ] {
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    process.memory().write(at, &bytes)?;
    process.memory().write_u64(agent.slot + REGISTERS, at)?;
    borrowed.call(agent.exit, [at, agent.slot, agent.calls, executed.orig_rax])?;
    process.memory().write_u64(agent.slot + REGISTERS, 0)?;
    borrowed.end(stopped)
}

/// Gives the thread without a thread pointer its slot. `claim` is the agent's function.
pub(crate) fn place_slot(
    borrowed: &mut Borrowed<'_>,
    claim: u64,
    block: u64,
    threads: u64,
) -> Result<(), RemoteError> {
    /// No thread's: fs bases are aligned.
    const KEY: u64 = 0x1004;
    const _: () = assert!(home_index(0) == 0 && home_index(KEY) != 0);
    // Neither being set up nor shared: those are the marks in a key.
    const _: () = assert!(KEY & (1 | ThreadSlot::SHARED) == 0);
    let claimed = borrowed.call(claim, [KEY, block, 0, 0])?;
    if !is_slot(claimed, threads) {
        // Its calls are counted as missed.
        return Ok(());
    }
    let memory = borrowed.process().memory();
    let mut slot = memory.read_array::<SLOT_LEN>(claimed)?;
    slot[offset_of!(ThreadSlot, key)..][..8].fill(0);
    memory.write(threads, &slot)?;
    memory.write(claimed, &[0; SLOT_LEN])
}

/// The address lies in the table of slots at `threads`.
fn is_slot(address: u64, threads: u64) -> bool {
    address.wrapping_sub(threads) < THREAD_SLOTS * SLOT_LEN as u64
}

impl Early {
    /// Looks at a thread that stops at the begin or at the end of a system call, on its way to where its libraries are there.
    ///
    /// # Errors
    /// When the process is lost.
    pub(crate) fn at_system_call(&self, process: &Process, thread: &Stopped) -> Result<(), RemoteError> {
        /// Of `rseq`.
        const UNREGISTER: u64 = 1;
        let registers = thread.registers()?;
        let succeeds = registers.orig_rax == libc::SYS_rseq as u64 && registers.rax == 0;
        if !succeeds || registers.rdx == UNREGISTER || self.is_agent(registers.rip) {
            return Ok(());
        }
        let bytes = process.memory().read_array::<HEAD_LEN>(self.block)?;
        let Ok(head) = BlockHead::from_bytes(&bytes) else { return Ok(()) };
        let rseq_offset = registers.rdi.wrapping_sub(registers.fs_base) as i64;
        let flags = head.flags | ProcessBlock::FLAG_RSEQ;
        process.memory().write(self.block, &BlockHead { rseq_offset, flags, ..head }.to_bytes())
    }

    /// The thread begins a call with which the loader protects what it has relocated: all libraries are mapped by then.
    pub(crate) fn relocates(&self, registers: &Registers) -> bool {
        let begins = registers.rax as i64 == -i64::from(libc::ENOSYS);
        begins
            && self.maps_all_first
            && registers.orig_rax == libc::SYS_mprotect as u64
            && registers.rdx == libc::PROT_READ as u64
            && !self.is_agent(registers.rip)
    }

    /// The address lies in the agent: the call there is one of its own.
    pub(crate) fn is_agent(&self, address: u64) -> bool {
        address.wrapping_sub(self.home.start) < self.home.len
    }

    /// What was done in both steps.
    pub(crate) fn and_then(self, later: AttachReport) -> AttachReport {
        let mut report = AttachReport { first: self.report.first, ..later };
        for outcome in &mut report.probes {
            let placed = |early: &&ProbeOutcome| {
                early.link_id == outcome.link_id && matches!(early.state, ProbeState::Placed { .. })
            };
            if outcome.state == ProbeState::AlreadyInForce
                && let Some(early) = self.report.probes.iter().find(placed)
            {
                outcome.state = early.state.clone();
            }
        }
        report
    }
}
