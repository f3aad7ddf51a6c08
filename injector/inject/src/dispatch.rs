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
use crate::guard::is_at_guarded_call;
use crate::stack::Stack;
use crate::target::remote;
use crate::wire::Wire;
use beeline_abi::calls::CallGate;
use beeline_abi::dispatch::{
    BLOCKING, BlockingBits, DISPATCH_MAGIC, Dispatch, DispatchEntry, FIXED, Known, KnownRange, SIGSYS,
    SLOT_LEN, SLOTS,
};
use beeline_abi::guard::{Guard, MASKING, bit};
use beeline_abi::process::Region;
use beeline_ptrace::{PtraceError, Registers, StoppedProcess, read_status};
use beeline_remote::{Mapping, Mappings, Process, RemoteError};
use beeline_site::Segment;
use beeline_stub::{DispatchedCode, fixed_slot_bytes, slot_bytes};
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
/// Above it no address is believed.
const ADDRESSES_END: u64 = 1 << 56;
/// Bytes of `syscall`.
const SYSCALL_LEN: u64 = 2;
/// Bytes of the last page that others may want: whoever borrows a thread has code there.
const LEFT_FREE: u64 = 512;
/// Fewer slots are not worth it.
const SLOTS_MIN: u64 = 32;
/// `-ERESTART_RESTARTBLOCK`: the kernel goes on with an interrupted call by `restart_syscall`, which only works from where calls are let
/// through: a signal handler ends it.
const RESTART_BLOCK: i64 = -516;

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
            .map_err(|what| format!("{what} behind the code of {}", file.file_name()))
    }

    /// As a process has it already.
    pub(crate) fn of(dispatching: &Dispatching) -> LetThrough {
        LetThrough { range: dispatching.range(), tail: dispatching.tail }
    }

    /// When there is room between the end of the code and that of its mapping.
    fn before(process: &Process, code: Range<u64>, end: u64) -> Result<LetThrough, String> {
        // Some distance: what looks like padding may be data of the last function.
        let tail = code.end.next_multiple_of(64) + 64;
        let let_through = LetThrough { range: code.start..end, tail };
        let bytes = process.memory().read_vec(tail, end.saturating_sub(tail) as usize);
        let unused = bytes.map_err(|error| error.to_string())?.iter().all(|&byte| byte == 0);
        let fits = unused && let_through.slots() >= SLOTS_MIN;
        if fits { Ok(let_through) } else { Err("there is no room for slots".to_owned()) }
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
        let slots = self.slots() - FIXED as u64;
        // Calls of files are made from few places.
        let plain = slots / 5;
        let made = Dispatching {
            block,
            start: self.range.start,
            len: self.range.end - self.range.start,
            tail: self.tail,
            traced: slots - plain,
            plain,
            fixed: FIXED as u64,
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

/// What a process says of how its calls are dispatched cannot be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Damaged;

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
    fixed: u64,
}

impl Dispatching {
    /// What the process has, when the block of its guard is at `guard`; what is unmapped already it has not. The error: it is damaged.
    pub(crate) fn read(process: &Process, guard: u64) -> Result<Option<Dispatching>, Damaged> {
        let memory = process.memory();
        let block = memory.read_u64(guard.wrapping_add(offset_of!(Guard, dispatch) as u64)).unwrap_or(0);
        let Ok(bytes) = memory.read_array::<HEAD_LEN>(block) else { return Ok(None) };
        let word = |offset: usize| u64::get(&bytes[offset..]);
        let found = Dispatching {
            block,
            start: word(offset_of!(Dispatch, start)),
            len: word(offset_of!(Dispatch, len)),
            tail: word(offset_of!(Dispatch, tail)),
            traced: word(offset_of!(Dispatch, traced)),
            plain: word(offset_of!(Dispatch, plain)),
            fixed: word(offset_of!(Dispatch, fixed)),
        };
        let counts = [found.traced, found.plain, found.fixed];
        let is_sane = counts.iter().all(|&count| count <= SLOTS as u64)
            && counts.iter().sum::<u64>() <= SLOTS as u64
            && found.tail.wrapping_sub(found.start) < found.len
            && found.start.checked_add(found.len).is_some_and(|end| end < ADDRESSES_END)
            && block < ADDRESSES_END;
        let is_one = word(offset_of!(Dispatch, magic)) == DISPATCH_MAGIC;
        if is_one && is_sane { Ok(Some(found)) } else { Err(Damaged) }
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
        self.traced + self.plain + self.fixed
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
            let (slot, entry) = (self.slot(index), self.entry(index));
            if index >= self.traced + self.plain {
                code.extend(fixed_slot_bytes(slot, entry)?);
                continue;
            }
            let kind = u64::from(index >= self.traced);
            let left = self.block + offset_of!(Dispatch, left) as u64 + 8 * kind;
            code.extend(slot_bytes(slot, entry, left)?);
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
            (offset_of!(Dispatch, restorer), self.restorer()),
            (offset_of!(Dispatch, tail), self.tail),
            (offset_of!(Dispatch, traced), self.traced),
            (offset_of!(Dispatch, plain), self.plain),
            (offset_of!(Dispatch, fixed), self.fixed),
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

    /// Says where slots go on, and which calls need none with programs: their table is at `known`.
    pub(crate) fn lead(
        &self,
        process: &Process,
        code: &DispatchedCode,
        (known, ranges): (u64, &[KnownRange]),
    ) -> Result<(), RemoteError> {
        process.memory().write(known, &known_ranges(ranges))?;
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
        let mut words = Vec::new();
        for thread in stopped.threads().iter().filter(|thread| tids.contains(&thread.tid())) {
            let pointer = thread.known_registers()?.fs_base;
            if pointer != 0 && pointer & BlockingBits::ALL == 0 {
                words.push(pointer | BlockingBits::NOW | BlockingBits::SINCE_ATTACH);
            }
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        process.memory().write(self.block + offset_of!(Dispatch, blocking) as u64, &bytes)?;
        self.set_word(process, offset_of!(Dispatch, blocking_top), words.len() as u64)?;
        for thread in stopped.threads().iter().filter(|thread| tids.contains(&thread.tid())) {
            thread.set_signal_mask(thread.signal_mask()? & !bit(SIGSYS))?;
        }
        Ok(())
    }

    /// Those that blocked it before, and have not set their masks since, block it again.
    fn block_again(&self, process: &Process, stopped: &StoppedProcess) -> Result<(), RemoteError> {
        let at = self.block + offset_of!(Dispatch, blocking) as u64;
        let words = process.memory().read_vec(at, size_of::<u64>() * BLOCKING)?;
        let words: Vec<u64> = words.chunks_exact(u64::LEN).map(u64::get).collect();
        for thread in stopped.threads() {
            let pointer = thread.known_registers()?.fs_base;
            // A handler that has returned, or is about to, can have changed what was seen of others; unblocked nothing can happen to them.
            const MEANT: u64 = BlockingBits::NOW | BlockingBits::SINCE_ATTACH;
            let wants = |word: &u64| word & !BlockingBits::ALL == pointer && word & MEANT == MEANT;
            if pointer != 0 && words.iter().any(wants) {
                thread.set_signal_mask(thread.signal_mask()? | bit(SIGSYS))?;
            }
        }
        // From now on nobody sees what they do with their masks.
        self.set_word(process, offset_of!(Dispatch, blocking_top), 0)?;
        process.memory().write(at, &[0; size_of::<u64>() * BLOCKING])
    }

    /// Has the calls of all threads dispatched, and of those that they make.
    pub(crate) fn begin(&self, process: &Process, stopped: &StoppedProcess) -> Result<(), RemoteError> {
        self.set_word(process, offset_of!(Dispatch, is_on), 1)?;
        for thread in stopped.threads() {
            let registers = thread.known_registers()?;
            let waits = registers.orig_rax as i64 >= 0 && registers.rax as i64 == RESTART_BLOCK;
            if waits && !self.range().contains(&registers.rip) {
                let Some(registers) = self.in_slot(process, &registers)? else {
                    // It goes on from where it waits; what it calls from outside of libc is not seen.
                    let missed = offset_of!(Dispatch, missed);
                    let before = process.memory().read_u64(self.block + missed as u64)?;
                    self.set_word(process, missed, before + 1)?;
                    continue;
                };
                thread.set_registers(&registers)?;
            }
            thread.set_dispatch(Some(self.configuration()))?;
        }
        Ok(())
    }

    /// The registers of a thread that waits in a call, as if it had made it from a slot; none when all are in use.
    fn in_slot(&self, process: &Process, registers: &Registers) -> Result<Option<Registers>, RemoteError> {
        let entries = self.entries(process)?;
        // Its begin was not seen: neither is its end.
        let plain = || self.traced..self.traced + self.plain;
        let of = |index: &u64| entries.get(*index as usize).copied().unwrap_or_default();
        let same = plain().find(|index| of(index) == (registers.rip, of(index).1.max(1)));
        let Some(index) = same.or_else(|| plain().find(|index| of(index).1 == 0)) else { return Ok(None) };
        let entry = self.entry(index);
        let memory = process.memory();
        memory.write_u64(entry + offset_of!(DispatchEntry, behind) as u64, registers.rip)?;
        memory.write_u64(entry + offset_of!(DispatchEntry, threads) as u64, of(&index).1 + 1)?;
        Ok(Some(Registers { rip: self.slot(index) + SYSCALL_LEN, ..*registers }))
    }

    /// Of each slot the address behind its call, and the threads on their way through it.
    fn entries(&self, process: &Process) -> Result<Vec<(u64, u64)>, RemoteError> {
        const LEN: usize = size_of::<DispatchEntry>();
        let bytes = process.memory().read_vec(self.entry(0), LEN * self.slots() as usize)?;
        let word = |entry: &[u8], offset: usize| u64::get(&entry[offset..]);
        let entries = bytes.chunks_exact(LEN);
        let read = |it: &[u8]| {
            (word(it, offset_of!(DispatchEntry, behind)), word(it, offset_of!(DispatchEntry, threads)))
        };
        Ok(entries.map(read).collect())
    }

    /// Nobody is on his way through a slot, as far as entries tell; those of `int 0x80` do not.
    pub(crate) fn is_unused(&self, process: &Process) -> Result<bool, RemoteError> {
        let entries = self.entries(process)?;
        let (counted, fixed) = entries.split_at((self.traced + self.plain) as usize);
        Ok(counted.iter().all(|entry| entry.1 == 0) && fixed.iter().all(|entry| entry.0 == 0))
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
            if let Some((index, registers)) = self.out_of_slot(process, &thread.known_registers()?)? {
                thread.set_registers(&registers)?;
                let threads = self.entry(index) + offset_of!(DispatchEntry, threads) as u64;
                let before = process.memory().read_u64(threads)?;
                process.memory().write_u64(threads, before.saturating_sub(1))?;
            }
        }
        Ok(None)
    }

    /// The registers of a thread in a slot as they are at the call itself, or behind it.
    fn out_of_slot(
        &self,
        process: &Process,
        registers: &Registers,
    ) -> Result<Option<(u64, Registers)>, RemoteError> {
        let Some(distance) = registers.rip.checked_sub(self.slot(0)) else { return Ok(None) };
        let (index, within) = (distance / SLOT_LEN, distance % SLOT_LEN);
        if index >= self.slots() {
            return Ok(None);
        }
        let behind =
            process.memory().read_u64(self.entry(index) + offset_of!(DispatchEntry, behind) as u64)?;
        let rip = if within == 0 { behind.wrapping_sub(SYSCALL_LEN) } else { behind };
        // What the kernel leaves in it; `int 0x80` leaves it alone.
        let is_fixed = index >= self.traced + self.plain;
        let rcx = if within == 0 || is_fixed { registers.rcx } else { behind };
        Ok(Some((index, Registers { rip, rcx, ..*registers })))
    }

    /// Calls at which programs could run, and those that were made without.
    pub(crate) fn counts(&self, process: &Process) -> Option<(u64, u64)> {
        let word = |offset: usize| process.memory().read_u64(self.block + offset as u64).ok();
        word(offset_of!(Dispatch, calls)).zip(word(offset_of!(Dispatch, missed)))
    }
}

/// Bytes of memory that are searched at most.
const SEARCH_MAX: usize = 1 << 30;
/// How much at a time, and how much of the part before with it: a frame, as far as it matters.
const PART: u64 = 1 << 20;
const FRAME: u64 = 512;

/// Somewhere in the process's memory there is a signal frame that goes back to a slot: on a stack that no thread is on, or far up one.
/// None where there is too much memory to be searched.
pub(crate) fn is_returned_to(
    process: &Process,
    maps: &Mappings,
    dispatching: &Dispatching,
) -> Result<Option<bool>, RemoteError> {
    let mut left = SEARCH_MAX;
    for mapping in maps.iter().filter(|mapping| mapping.read && mapping.write && !is_ours(mapping)) {
        let whole = mapping.start..mapping.end;
        let written = if mapping.shared { Ok(vec![whole.clone()]) } else { process.written(whole.clone()) };
        for range in written.unwrap_or_else(|_| vec![whole]) {
            for part in range.clone().step_by(PART as usize) {
                // With the beginning of a frame whose program counter is in this part.
                let start = part.saturating_sub(FRAME).max(range.start);
                let len = ((part + PART).min(range.end) - start) as usize;
                let Some(rest) = left.checked_sub(len) else { return Ok(None) };
                left = rest;
                // What cannot be read is no stack.
                let bytes = process.memory().read_vec(start, len).unwrap_or_default();
                let stack = Stack::new(start, &bytes);
                if stack.saved_pcs_but(dispatching.restorer()).any(|pc| dispatching.tail().contains(&pc)) {
                    return Ok(Some(true));
                }
            }
        }
    }
    Ok(Some(false))
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
        if is_at_guarded_call(process, &registers) {
            return Ok(Err(format!("thread {tid} is about to block signals; try again")));
        }
        let stack = Stack::of(process, maps, &registers);
        if stack.handler_masks().any(|mask| mask & bit(SIGSYS) != 0) {
            return Ok(Err(format!("thread {tid} will block SIGSYS behind a signal handler; try again")));
        }
        if (thread.signal_mask()? | meanwhile) & bit(SIGSYS) == 0 {
            continue;
        }
        if stack.handler_masks().next().is_some() {
            return Ok(Err(format!("thread {tid} is in a signal handler that blocks SIGSYS; try again")));
        }
        if pending & bit(SIGSYS) != 0 {
            return Ok(Err(format!("thread {tid} has a SIGSYS pending, which it blocks; try again")));
        }
        if MASKING.contains(&registers.orig_rax) {
            return Ok(Err(format!("thread {tid} waits in a call that blocks SIGSYS; try again")));
        }
        tids.push(tid);
    }
    let too_many = tids.len() > BLOCKING;
    Ok(if too_many { Err(format!("{} threads block SIGSYS", tids.len())) } else { Ok(tids) })
}

/// The bytes of a table of ranges.
fn known_ranges(ranges: &[KnownRange]) -> Vec<u8> {
    let words = ranges.iter().flat_map(|range| [range.start, range.end]);
    [ranges.len() as u64].into_iter().chain(words).flat_map(u64::to_le_bytes).collect()
}

/// Bytes that a table of so many takes.
pub(crate) fn known_len(count: usize) -> usize {
    size_of::<Known>() + count * size_of::<KnownRange>()
}

/// The ranges of these addresses behind calls that have jumps around them, and of code of ours.
pub(crate) fn known_code(calls: impl Iterator<Item = u64>, ours: &[Region]) -> Vec<KnownRange> {
    let calls = calls.map(|call| call + SYSCALL_LEN..call + SYSCALL_LEN + 1);
    let ours = ours.iter().filter(|it| it.len != 0).map(|region| region.start..region.start + region.len);
    let mut all: Vec<KnownRange> =
        calls.chain(ours).map(|range| KnownRange { start: range.start, end: range.end }).collect();
    all.sort_unstable_by_key(|range| range.start);
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
