//! Calls of code that is in no file: where the kernel lets calls through, the slots from which the others are made, the threads whose
//! calls are dispatched (`beeline_abi::dispatch`).
//!
//! ```text
//! attach    slots ▸ guard with the handler of SIGSYS ▸ jumps of libc's calls ▸ where slots go on ▸ dispatch of each thread
//! detach    dispatch of each thread ▸ threads in slots go back ▸ handler ▸ jumps ▸ nobody is on the way ▸ slots
//! ```
//!
//! If we are killed in between, some threads have their calls dispatched and others do not: all calls are made.

use crate::error::TargetRefused;
use crate::existing::{Existing, is_ours};
use crate::files::{MappedFile, MappedFiles};
use crate::stack::Stack;
use crate::target::remote;
use crate::wire::Wire;
use beeline_abi::calls::CallGate;
use beeline_abi::dispatch::{
    DISPATCH_MAGIC, Dispatch, DispatchEntry, Known, KnownRange, SIGSYS, SLOT_LEN, SLOTS, UNBLOCKED,
};
use beeline_abi::guard::{Guard, MASKING, bit};
use beeline_ptrace::{PtraceError, Registers, StoppedProcess, read_status};
use beeline_remote::{Mapping, Mappings, Process, RemoteError};
use beeline_site::Segment;
use beeline_stub::{DispatchedCode, slot_bytes};
use std::mem::offset_of;
use std::ops::Range;

/// Bytes of the block.
pub(crate) const DISPATCH_LEN: u64 = size_of::<Dispatch>() as u64;
/// Bytes of the head of it that never changes.
const HEAD_LEN: usize = offset_of!(Dispatch, known);

/// What handlers return to: `rt_sigreturn`, by the bytes that unwinders know a signal frame by; padded to a slot.
const RESTORER: [u8; 16] =
    [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc];
/// What the agent makes its own calls by: `syscall`, `ret`.
const CALL: [u8; 16] = {
    let mut bytes = [0xcc; 16];
    (bytes[0], bytes[1], bytes[2]) = (0x0f, 0x05, 0xc3);
    bytes
};
/// Bytes of `syscall`.
const SYSCALL_LEN: u64 = 2;
/// Bytes of the last page that others may want: whoever borrows a thread has code there.
const LEFT_FREE: u64 = 512;
/// Fewer slots are not worth it.
const SLOTS_MIN: u64 = 32;
/// `-ERESTART_RESTARTBLOCK`: the kernel goes on with an interrupted call by `restart_syscall`, which only works from where calls are let
/// through: a signal handler ends it.
const RESTART_BLOCK: i64 = -516;
/// `-ERESTARTNOHAND`: the same call from its beginning.
const RESTART_SAME: i64 = -514;

/// The code from which calls are made as always, and what lies behind it on its last page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LetThrough {
    pub(crate) range: Range<u64>,
    /// Where there are zeros.
    tail: u64,
}

impl LetThrough {
    /// The code of the file that has most system calls: libc, or the whole program. The error is a reason.
    pub(crate) fn find(process: &Process, files: &MappedFiles) -> Result<LetThrough, String> {
        let calls =
            |file: &&MappedFile| file.binary(process).map_or(0, |binary| binary.system_calls().sites.len());
        let file = files.iter().filter(|file| !file.mappings.iter().any(is_ours)).max_by_key(calls);
        let file = file.filter(|file| calls(file) > 0).ok_or("no file of its has system calls")?;
        let binary = file.binary(process).map_err(str::to_owned)?;
        let first = binary.system_calls().sites.first().map_or(0, |site| site.vaddr);
        let holds = |it: &&Segment| it.executable && first.wrapping_sub(it.vaddr) < it.file_size;
        let segment = binary.segments().iter().find(holds).ok_or("its code is in no segment")?;
        let last = (segment.file_offset + segment.file_size).saturating_sub(1);
        let [start] = file.addresses(segment.file_offset)[..] else {
            return Err(format!("{} is mapped more than once", file.file_name()));
        };
        let end = file.addresses(last).first().map_or(start, |last| last + 1);
        let mapping = file.mappings.iter().find(|mapping| mapping.holds(end - 1));
        let mapping = mapping.filter(|mapping| mapping.holds(start) || is_next(file, start, mapping));
        let mapping =
            mapping.ok_or_else(|| format!("the code of {} is not in one piece", file.file_name()))?;
        LetThrough::before(process, start..end, mapping.end)
            .ok_or_else(|| format!("there is no room for slots behind the code of {}", file.file_name()))
    }

    /// As a process has it already.
    pub(crate) fn of(dispatching: &Dispatching) -> LetThrough {
        LetThrough { range: dispatching.range(), tail: dispatching.tail }
    }

    /// When there is room between the end of the code and that of its mapping.
    fn before(process: &Process, code: Range<u64>, end: u64) -> Option<LetThrough> {
        // Some distance: what looks like padding may be data of the last function.
        let tail = code.end.next_multiple_of(64) + 64;
        let let_through = LetThrough { range: code.start..end, tail };
        let len = end.checked_sub(tail)?;
        let unused = process.memory().read_vec(tail, len as usize).ok()?.iter().all(|&byte| byte == 0);
        (unused && let_through.slots() >= SLOTS_MIN).then_some(let_through)
    }

    fn first_slot(&self) -> u64 {
        self.tail + (RESTORER.len() + CALL.len()) as u64
    }

    fn slots(&self) -> u64 {
        let room = self.range.end.saturating_sub(self.first_slot() + LEFT_FREE);
        (room / SLOT_LEN).min(SLOTS as u64)
    }

    /// The block, at `block`, that goes with it; none when it is too far away.
    pub(crate) fn head(&self, block: u64) -> Option<Dispatching> {
        let slots = self.slots();
        // Calls of files are made from few places.
        let plain = slots / 4;
        let made = Dispatching {
            block,
            start: self.range.start,
            len: self.range.end - self.range.start,
            tail: self.tail,
            traced: slots - plain,
            plain,
        };
        made.code().map(|_| made)
    }
}

/// Executable mappings of a file, one behind the other, lead from `start` to this one.
fn is_next(file: &MappedFile, start: u64, last: &Mapping) -> bool {
    let mut at = file.mappings.iter().find(|mapping| mapping.holds(start)).map(|mapping| mapping.end);
    while let Some(end) = at.filter(|&end| end < last.end) {
        at = file.mappings.iter().find(|mapping| mapping.start == end).map(|mapping| mapping.end);
    }
    at == Some(last.end)
}

/// How the calls of a process are dispatched: what never changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dispatching {
    /// Address of the block.
    pub(crate) block: u64,
    start: u64,
    len: u64,
    tail: u64,
    traced: u64,
    plain: u64,
}

impl Dispatching {
    /// What the process has, when the block of its guard is at `guard`.
    pub(crate) fn read(process: &Process, guard: u64) -> Option<Dispatching> {
        let memory = process.memory();
        let block = memory.read_u64(guard.wrapping_add(offset_of!(Guard, dispatch) as u64)).ok()?;
        let bytes = if block == 0 { return None } else { memory.read_array::<HEAD_LEN>(block).ok()? };
        let word = |offset: usize| u64::get(&bytes[offset..]);
        let found = Dispatching {
            block,
            start: word(offset_of!(Dispatch, start)),
            len: word(offset_of!(Dispatch, len)),
            tail: word(offset_of!(Dispatch, tail)),
            traced: word(offset_of!(Dispatch, traced)),
            plain: word(offset_of!(Dispatch, plain)),
        };
        let is_sane = found.traced.checked_add(found.plain).is_some_and(|slots| slots <= SLOTS as u64)
            && found.tail.wrapping_sub(found.start) < found.len;
        (word(offset_of!(Dispatch, magic)) == DISPATCH_MAGIC && is_sane).then_some(found)
    }

    /// What the kernel is told.
    pub(crate) fn configuration(&self) -> beeline_ptrace::Dispatch {
        beeline_ptrace::Dispatch { start: self.start, len: self.len, selector: 0 }
    }

    /// Address of the code to which handlers return.
    pub(crate) fn restorer(&self) -> u64 {
        self.tail
    }

    fn call(&self) -> u64 {
        self.tail + RESTORER.len() as u64
    }

    fn slot(&self, index: u64) -> u64 {
        self.call() + CALL.len() as u64 + index * SLOT_LEN
    }

    fn slots(&self) -> u64 {
        self.traced + self.plain
    }

    /// Code of ours behind libc's.
    pub(crate) fn tail(&self) -> Range<u64> {
        self.tail..self.slot(self.slots())
    }

    /// Calls from there are let through.
    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }

    fn entry(&self, index: u64) -> u64 {
        self.block + offset_of!(Dispatch, entries) as u64 + index * size_of::<DispatchEntry>() as u64
    }

    /// What stands behind libc's code; none where that is too far from the block.
    fn code(&self) -> Option<Vec<u8>> {
        let mut code = [RESTORER, CALL].concat();
        for index in 0..self.slots() {
            let kind = u64::from(index >= self.traced);
            let left = self.block + offset_of!(Dispatch, left) as u64 + 8 * kind;
            code.extend(slot_bytes(self.slot(index), self.entry(index), left)?);
        }
        Some(code)
    }

    /// The block, to begin with.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; DISPATCH_LEN as usize];
        for (offset, word) in [
            (offset_of!(Dispatch, magic), DISPATCH_MAGIC),
            (offset_of!(Dispatch, start), self.start),
            (offset_of!(Dispatch, len), self.len),
            (offset_of!(Dispatch, call), self.call()),
            (offset_of!(Dispatch, restorer), self.restorer()),
            (offset_of!(Dispatch, tail), self.tail),
            (offset_of!(Dispatch, traced), self.traced),
            (offset_of!(Dispatch, plain), self.plain),
        ] {
            word.put(&mut bytes[offset..]);
        }
        for index in 0..self.slots() {
            let slot = self.entry(index) - self.block + offset_of!(DispatchEntry, slot) as u64;
            self.slot(index).put(&mut bytes[slot as usize..]);
        }
        bytes
    }

    /// Puts the slots where they are to be. Nothing leads there yet.
    pub(crate) fn put_code(&self, process: &Process) -> Result<(), RemoteError> {
        process.memory().write(self.tail, &self.code().unwrap_or_default())
    }

    /// Takes them out again. Nothing leads there any more.
    pub(crate) fn take_code(&self, process: &Process) -> Result<(), RemoteError> {
        let tail = self.tail();
        process.memory().write(tail.start, &vec![0; (tail.end - tail.start) as usize])
    }

    fn set_word(&self, process: &Process, offset: usize, word: u64) -> Result<(), RemoteError> {
        process.memory().write_u64(self.block + offset as u64, word)
    }

    /// Says where slots go on, and which code needs none with programs.
    pub(crate) fn lead(
        &self,
        process: &Process,
        code: &DispatchedCode,
        known: u64,
    ) -> Result<(), RemoteError> {
        self.set_word(process, offset_of!(Dispatch, enter), code.enter)?;
        let left = offset_of!(Dispatch, left);
        self.set_word(process, left, code.left[0])?;
        self.set_word(process, left + 8, code.left[1])?;
        self.set_word(process, offset_of!(Dispatch, known), known)
    }

    /// Addresses that it refers to: the code of an attach, and its tables.
    pub(crate) fn referred(&self, process: &Process) -> Vec<u64> {
        let words = [
            offset_of!(Dispatch, enter),
            offset_of!(Dispatch, left),
            offset_of!(Dispatch, left) + 8,
            offset_of!(Dispatch, known),
        ];
        let word = |offset| process.memory().read_u64(self.block + offset as u64).ok();
        words.into_iter().filter_map(word).chain([self.block]).collect()
    }

    /// Lets the agent make its calls from where they are let through, or by itself again.
    pub(crate) fn serve_agent(&self, process: &Process, gate: u64, serve: bool) -> Result<(), RemoteError> {
        let at = gate + CallGate::INSTRUCTION as u64;
        process.memory().write_u64(at, if serve { self.call() } else { 0 })
    }

    /// Threads that block the signal do not any more: they are noted.
    pub(crate) fn unblock(
        &self,
        process: &Process,
        maps: &Mappings,
        stopped: &StoppedProcess,
    ) -> Result<(), RemoteError> {
        let tids = blocking(process, maps, stopped)?.unwrap_or_default();
        let words: Vec<u8> = tids.iter().flat_map(|tid| tid.to_le_bytes()).collect();
        process.memory().write(self.block + offset_of!(Dispatch, unblocked) as u64, &words)?;
        for thread in stopped.threads().iter().filter(|thread| tids.contains(&thread.tid())) {
            thread.set_signal_mask(thread.signal_mask()? & !bit(SIGSYS))?;
        }
        Ok(())
    }

    /// They block it again.
    fn block_again(&self, process: &Process, stopped: &StoppedProcess) -> Result<(), RemoteError> {
        let at = self.block + offset_of!(Dispatch, unblocked) as u64;
        let words = process.memory().read_vec(at, 4 * UNBLOCKED)?;
        let tids: Vec<i32> = words.as_chunks().0.iter().map(|word| i32::from_le_bytes(*word)).collect();
        for thread in stopped.threads().iter().filter(|thread| tids.contains(&thread.tid())) {
            thread.set_signal_mask(thread.signal_mask()? | bit(SIGSYS))?;
        }
        process.memory().write(at, &[0; 4 * UNBLOCKED])
    }

    /// Has the calls of all threads dispatched, and of those that they make.
    pub(crate) fn begin(&self, process: &Process, stopped: &StoppedProcess) -> Result<(), RemoteError> {
        self.set_word(process, offset_of!(Dispatch, is_on), 1)?;
        for thread in stopped.threads() {
            let registers = thread.known_registers()?;
            let waits = registers.orig_rax as i64 >= 0 && registers.rax as i64 == RESTART_BLOCK;
            if waits && !self.range().contains(&registers.rip) {
                thread.set_registers(&self.in_slot(process, &registers)?)?;
            }
            thread.set_dispatch(Some(self.configuration()))?;
        }
        Ok(())
    }

    /// The registers of a thread that waits in a call, as if it had made it from a slot; without a free one it makes the call anew.
    fn in_slot(&self, process: &Process, registers: &Registers) -> Result<Registers, RemoteError> {
        let memory = process.memory();
        // Its begin was not seen: neither is its end.
        for index in self.traced..self.slots() {
            let entry = self.entry(index);
            let threads = entry + offset_of!(DispatchEntry, threads) as u64;
            if memory.read_u64(threads)? == 0 {
                memory.write_u64(entry + offset_of!(DispatchEntry, behind) as u64, registers.rip)?;
                memory.write_u64(threads, 1)?;
                return Ok(Registers { rip: self.slot(index) + SYSCALL_LEN, ..*registers });
            }
        }
        Ok(Registers { rax: RESTART_SAME as u64, ..*registers })
    }

    /// Lets all threads make their calls again, those in slots from where they were; a thread to which a call was handed over that it has
    /// not taken up yet has to go on first.
    pub(crate) fn end(
        &self,
        process: &Process,
        stopped: &StoppedProcess,
    ) -> Result<Option<i32>, RemoteError> {
        self.set_word(process, offset_of!(Dispatch, is_on), 0)?;
        for thread in stopped.threads() {
            if thread.dispatch()? == Some(self.configuration()) {
                thread.set_dispatch(None)?;
            }
        }
        let due = |tid| read_status(tid).is_ok_and(|status| status.pending & bit(SIGSYS) != 0);
        if let Some(thread) = stopped.threads().iter().find(|thread| due(thread.tid())) {
            return Ok(Some(thread.tid()));
        }
        self.block_again(process, stopped)?;
        for thread in stopped.threads() {
            if let Some(registers) = self.out_of_slot(process, &thread.known_registers()?)? {
                thread.set_registers(&registers)?;
            }
        }
        Ok(None)
    }

    /// The registers of a thread in a slot as they are at the call itself, or behind it.
    fn out_of_slot(
        &self,
        process: &Process,
        registers: &Registers,
    ) -> Result<Option<Registers>, RemoteError> {
        let Some(distance) = registers.rip.checked_sub(self.slot(0)) else { return Ok(None) };
        let (index, within) = (distance / SLOT_LEN, distance % SLOT_LEN);
        if index >= self.slots() {
            return Ok(None);
        }
        let behind =
            process.memory().read_u64(self.entry(index) + offset_of!(DispatchEntry, behind) as u64)?;
        let rip = if within == 0 { behind.wrapping_sub(SYSCALL_LEN) } else { behind };
        // What the kernel leaves in it.
        let rcx = if within == 0 { registers.rcx } else { behind };
        Ok(Some(Registers { rip, rcx, ..*registers }))
    }

    /// Calls at which programs could run, and those that were made without.
    pub(crate) fn counts(&self, process: &Process) -> Option<(u64, u64)> {
        let word = |offset: usize| process.memory().read_u64(self.block + offset as u64).ok();
        word(offset_of!(Dispatch, calls)).zip(word(offset_of!(Dispatch, missed)))
    }
}

/// The threads that block the signal; a reason why that cannot be changed, for the moment. A thread can block it now, in a call like
/// `ppoll` meanwhile, or behind a signal handler that it is in.
pub(crate) fn blocking(
    process: &Process,
    maps: &Mappings,
    stopped: &StoppedProcess,
) -> Result<Result<Vec<i32>, String>, RemoteError> {
    let mut tids = Vec::new();
    for thread in stopped.threads() {
        let (tid, registers) = (thread.tid(), thread.known_registers()?);
        let (meanwhile, pending) = read_status(tid).map_or((0, 0), |status| (status.blocked, status.pending));
        if Stack::of(process, maps, &registers).handler_masks().any(|mask| mask & bit(SIGSYS) != 0) {
            return Ok(Err(format!("thread {tid} will block SIGSYS behind a signal handler; try again")));
        }
        if (thread.signal_mask()? | meanwhile) & bit(SIGSYS) == 0 {
            continue;
        }
        if pending & bit(SIGSYS) != 0 {
            return Ok(Err(format!("thread {tid} has a SIGSYS pending, which it blocks; try again")));
        }
        if MASKING.contains(&registers.orig_rax) {
            return Ok(Err(format!("thread {tid} waits in a call that blocks SIGSYS; try again")));
        }
        tids.push(tid);
    }
    let too_many = tids.len() > UNBLOCKED;
    Ok(if too_many { Err(format!("{} threads block SIGSYS", tids.len())) } else { Ok(tids) })
}

/// The bytes of a table of ranges: code of files that can be read, whose calls have jumps around them, the kernel's, and ours.
pub(crate) fn known_ranges(ranges: &[KnownRange]) -> Vec<u8> {
    let words = ranges.iter().flat_map(|range| [range.start, range.end]);
    [ranges.len() as u64].into_iter().chain(words).flat_map(u64::to_le_bytes).collect()
}

/// Bytes that a table of so many takes.
pub(crate) fn known_len(count: usize) -> usize {
    size_of::<Known>() + count * size_of::<KnownRange>()
}

/// Those of a process, and of what is to be mapped into it.
pub(crate) fn known_code(
    process: &Process,
    maps: &Mappings,
    files: &MappedFiles,
    ours: impl Iterator<Item = Range<u64>>,
) -> Vec<KnownRange> {
    let of_file = files.iter().filter(|file| file.binary(process).is_ok()).flat_map(|file| &file.mappings);
    let others = maps.iter().filter(|mapping| is_ours(mapping) || mapping.name == "[vdso]");
    let mapped = of_file.chain(others).map(|mapping| mapping.start..mapping.end);
    let mut all: Vec<KnownRange> =
        mapped.chain(ours).map(|range| KnownRange { start: range.start, end: range.end }).collect();
    all.sort_unstable_by_key(|range| range.start);
    // Neighbours become one: the address behind a call is looked for, which can be the first one of the next.
    all.dedup_by(|next, range| {
        let adjoins = next.start <= range.end;
        if adjoins {
            range.end = range.end.max(next.end);
        }
        adjoins
    });
    all
}

/// A kernel without the request says so.
pub(crate) fn check_kernel(pid: i32, stopped: &StoppedProcess) -> Result<(), TargetRefused> {
    let Some(thread) = stopped.threads().first() else { return Ok(()) };
    // As it is.
    match thread.dispatch().and_then(|how| thread.set_dispatch(how)) {
        Ok(()) => Ok(()),
        Err(PtraceError::Request { .. }) => Err(TargetRefused::NotComplete {
            pid,
            reason: "it needs Linux 6.4, or a kernel that allows PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG"
                .to_owned(),
        }),
        Err(error) => Err(remote(pid, error.into())),
    }
}

impl Existing {
    /// The address is that of a slot, or of what goes with them.
    pub(crate) fn is_in_tail(&self, address: u64) -> bool {
        self.dispatching.is_some_and(|dispatching| dispatching.tail().contains(&address))
    }
}
