//! A stopped thread, borrowed to make system calls and function calls in its process.
//!
//! ```text
//! begin:  block written ▸ registers at HOME ▸ signals blocked ▸ scratch memory mapped
//! end:    scratch memory unmapped ▸ stop outside of a system call ▸ signal mask, registers as found ▸ block erased
//! ```
//!
//! At each point in between the thread finds home by itself if we are killed (see [`trampoline`](crate::trampoline)).
//! What then stays behind is the block and the scratch mapping that it names; the next borrower takes both over, closes
//! the descriptors that are written down there, and removes them when it is done.

use crate::calls::SystemCall;
use crate::error::RemoteError;
use crate::maps::{Mapping, Mappings};
use crate::process::Process;
use crate::trampoline::{BLOCK_LEN, Block, Halt, Home, scratch_of};
use beeline_ptrace::{
    Dispatch, Registers, Resume, Status, Stop, Stopped, StoppedProcess, Tid, Waited, read_status,
};
use std::ops::Range;
use std::time::Duration;

/// Bytes of the scratch mapping: buffers at its start, the stack of a function call at its end.
pub const SCRATCH_LEN: u64 = 128 << 10;

/// Where the scratch mapping goes: far from code, so that it takes no address that is in demand.
const SCRATCH_RANGE: Range<u64> = 0x2000_0000_0000..0x3000_0000_0000;

/// Bytes at its start that are buffers.
pub(crate) const BUFFERS_LEN: u64 = SCRATCH_LEN / 2;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Signals that an instruction raises. They stay unblocked: a blocked one would be forced and its handler reset.
const SYNCHRONOUS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// A thread that works for us. Dropping it puts the thread back as it was, as [`Borrowed::end`] does.
#[derive(Debug)]
pub struct Borrowed<'p> {
    process: &'p Process,
    tid: Tid,
    /// There but for the time in which it runs, unless it died.
    thread: Option<Stopped>,
    /// It stands at the entry or exit of a system call.
    in_system_call: bool,
    home: Home,
    block: Block,
    scratch: Range<u64>,
    scratch_mapped: bool,
    halt: Halt,
    /// Signals that arrived and could not be blocked, to be sent again.
    signals: Vec<i32>,
    /// How its calls are dispatched when it is not borrowed.
    dispatch: Option<Dispatch>,
}

impl<'p> Borrowed<'p> {
    /// Borrows the thread at `index` of a process that stands still and has these mappings.
    ///
    /// # Errors
    /// [`RemoteError::Busy`] when a thread still works for a borrower that was killed: let the process go on for a
    /// moment and try again. [`RemoteError::NotNow`] where [`can_be_borrowed`] says no. In these and all other cases the
    /// thread is back in `stopped`, as it was.
    pub fn begin(
        process: &'p Process,
        maps: &Mappings,
        stopped: &mut StoppedProcess,
        index: usize,
    ) -> Result<Borrowed<'p>, RemoteError> {
        let place = Place::find(process, maps)?;
        place.check_unused(stopped)?;
        let thread = &stopped.threads()[index];
        let home =
            Home { registers: registers_outside_rseq(process, thread)?, signal_mask: thread.signal_mask()? };
        let status = read_status(thread.tid()).ok();
        if let Some(why) = obstacle(process, thread, status.as_ref())? {
            return Err(RemoteError::NotNow { tid: thread.tid(), why });
        }
        // Whom we borrow is let through, or dispatched by us.
        let dispatch = thread.dispatch()?.filter(|how| Some(*how) == process.own_dispatch());
        let filtered = status.as_ref().is_some_and(|status| status.seccomp != 0);
        let halt = status.as_ref().map_or(Halt::AtCall, |status| halt_of(status, home.signal_mask));
        let left_behind = place.scratch.filter(|range| is_scratch(maps, range));
        let scratch_mapped = left_behind.is_some();
        let scratch = match left_behind {
            Some(range) => range,
            None => {
                let start = process.free_range(maps, SCRATCH_LEN, SCRATCH_RANGE, &[])?;
                start..start + SCRATCH_LEN
            }
        };
        let block = Block::new(place.address, &home, scratch.clone(), halt);
        let thread_id = thread.tid();
        process.memory().write(block.address, &block.bytes)?;
        let mut borrowed = Borrowed {
            process,
            tid: thread_id,
            thread: Some(stopped.take(index)),
            in_system_call: false,
            home,
            block,
            scratch,
            scratch_mapped,
            halt,
            signals: Vec::new(),
            dispatch,
        };
        match borrowed.move_in(filtered) {
            Ok(()) => Ok(borrowed),
            Err(error) => {
                // The reason why we give up is reported; what follows is a consequence of it.
                let _ = borrowed.end(stopped);
                Err(error)
            }
        }
    }

    fn move_in(&mut self, filtered: bool) -> Result<(), RemoteError> {
        if self.dispatch.is_some() {
            // If we are killed it stays so: nothing depends on it.
            self.thread()?.set_dispatch(None)?;
        }
        let home = self.registers_at(self.block.home());
        self.thread()?.set_registers(&home)?;
        let mut unblocked = SYNCHRONOUS.to_vec();
        if let Halt::BySignal { signal, .. } = self.halt {
            unblocked.push(signal);
        }
        let mask = unblocked.iter().fold(u64::MAX, |mask, signal| mask & !bit(*signal));
        self.thread()?.set_signal_mask(mask | self.home.signal_mask)?;
        if filtered {
            self.thread()?.suspend_seccomp(true)?;
        }
        if self.scratch_mapped {
            self.close_left_behind();
            return self.process.memory().write(self.scratch.start, &[0; BUFFERS_LEN as usize]);
        }
        let what = "mmap of scratch memory";
        self.make_alone(&SystemCall::map_anonymous(what, self.scratch.start, SCRATCH_LEN, false))?;
        self.scratch_mapped = true;
        Ok(())
    }

    /// The process.
    pub fn process(&self) -> &'p Process {
        self.process
    }

    /// The thread that works for us.
    pub(crate) fn tid(&self) -> Tid {
        self.tid
    }

    /// Memory in the process that calls may use: [`SCRATCH_LEN`] bytes, zero at first. The upper half is a stack.
    pub fn scratch(&self) -> u64 {
        self.scratch.start
    }

    /// The registers as the thread was found.
    pub fn home_registers(&self) -> &Registers {
        &self.home.registers
    }

    /// It can make many calls in one go.
    pub(crate) fn halts_by_signal(&self) -> bool {
        self.halt != Halt::AtCall
    }

    /// Makes one system call; its result, which may be an error.
    pub(crate) fn make(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, RemoteError> {
        let place = if self.halts_by_signal() { self.block.one() } else { self.block.call_system() };
        let mut registers = self.registers_at(place);
        registers.rax = number as u64;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
        if self.halts_by_signal() {
            return Ok(self.run_to_halt(&registers)?.rbx);
        }
        self.thread()?.set_registers(&registers)?;
        self.run_to_system_call()?;
        self.run_to_system_call()?;
        let registers = self.thread()?.registers()?;
        if registers.rip != self.block.home() {
            return Err(self.interrupted(&registers, "it left the call"));
        }
        Ok(registers.rax)
    }

    /// Goes through the list of calls at `start`.
    pub(crate) fn go_through(&mut self, start: u64) -> Result<(), RemoteError> {
        let mut registers = self.registers_on_our_stack(self.block.list());
        registers.rbx = start;
        self.run_to_halt(&registers).map(drop)
    }

    /// Calls a System V function in the process, on a stack of our own. It may clobber general registers only.
    ///
    /// # Errors
    /// [`RemoteError::Interrupted`] when it faults.
    pub fn call(&mut self, function: u64, arguments: [u64; 4]) -> Result<u64, RemoteError> {
        let mut registers = self.registers_on_our_stack(self.block.call());
        registers.rax = function;
        [registers.rdi, registers.rsi, registers.rdx, registers.rcx] = arguments;
        self.run_to_halt(&registers).map(|registers| registers.rbx)
    }

    /// Runs from these registers to the halt; the registers then.
    fn run_to_halt(&mut self, registers: &Registers) -> Result<Registers, RemoteError> {
        self.thread()?.set_registers(registers)?;
        let Halt::BySignal { signal, .. } = self.halt else {
            loop {
                self.run_to_system_call()?;
                let registers = self.thread()?.registers()?;
                if registers.rip == self.block.home() {
                    // The entry of the getpid behind the function; its exit is the state in which calls leave the thread.
                    self.run_to_system_call()?;
                    return Ok(registers);
                }
            }
        };
        loop {
            let stop = self.run(Resume::Continue)?;
            let registers = self.thread()?.registers()?;
            if stop == Stop::Signal(signal) && registers.rip == self.block.home() {
                return Ok(registers);
            }
        }
    }

    /// Puts the thread back as it was found and returns it.
    ///
    /// # Errors
    /// When the thread died; there is nothing to put back then.
    pub fn end(mut self, stopped: &mut StoppedProcess) -> Result<(), RemoteError> {
        let result = self.restore();
        if let Some(thread) = self.thread.take() {
            stopped.put_back(thread);
        }
        result
    }

    fn restore(&mut self) -> Result<(), RemoteError> {
        let scratch = SystemCall::unmap(self.scratch.start, SCRATCH_LEN);
        let unmapped = if self.scratch_mapped { self.make_alone(&scratch) } else { Ok(()) };
        self.leave_system_call()?;
        self.thread()?.set_signal_mask(self.home.signal_mask)?;
        self.thread()?.set_registers(&self.home.registers)?;
        if self.dispatch.is_some() {
            self.thread()?.set_dispatch(self.dispatch)?;
        }
        self.process.memory().write(self.block.address, &[0; BLOCK_LEN])?;
        for signal in std::mem::take(&mut self.signals) {
            send(self.process.pid(), self.tid, signal);
        }
        unmapped
    }

    /// From a stop in a system call to one in which the kernel looks at `orig_rax`: only there an interrupted call
    /// is begun again.
    fn leave_system_call(&mut self) -> Result<(), RemoteError> {
        while self.in_system_call {
            self.thread()?.interrupt_next()?;
            self.run(Resume::Continue)?;
        }
        Ok(())
    }

    fn run_to_system_call(&mut self) -> Result<(), RemoteError> {
        loop {
            self.run(Resume::ToSyscall)?;
            if self.in_system_call {
                return Ok(());
            }
        }
    }

    /// Lets the thread run to its next stop, and tells which it is.
    fn run(&mut self, how: Resume) -> Result<Stop, RemoteError> {
        let tid = self.tid;
        let thread = self.thread.take().ok_or(RemoteError::Died { tid })?;
        match thread.resume(how)?.wait(CALL_TIMEOUT)? {
            Waited::Dead(_) => Err(RemoteError::Died { tid }),
            Waited::Stopped(mut thread, stop) => {
                // A stop takes effect at once, and the thread works on in it: sent again later, it would come behind the
                // continuation that somebody may have sent meanwhile.
                let signal = if stop == Stop::Signal(libc::SIGSTOP) { None } else { thread.take_signal() };
                // Its own, or one that it would not have noticed either.
                let halt =
                    |&signal: &i32| matches!(self.halt, Halt::BySignal { signal: own, .. } if own == signal);
                let signal = signal.filter(|signal| !halt(signal));
                self.in_system_call = stop == Stop::Syscall;
                let thread = self.thread.insert(thread);
                match signal {
                    Some(signal) if SYNCHRONOUS.contains(&signal) && !thread.signal_was_sent() => {
                        let registers = thread.registers()?;
                        Err(self.interrupted(&registers, &format!("signal {signal}")))
                    }
                    Some(signal) => {
                        self.signals.push(signal);
                        Ok(stop)
                    }
                    None => Ok(stop),
                }
            }
        }
    }

    fn interrupted(&self, registers: &Registers, why: &str) -> RemoteError {
        RemoteError::Interrupted { tid: self.tid, pc: registers.rip, why: why.to_owned() }
    }

    /// The registers as found, but at another place and in no system call.
    fn registers_at(&self, pc: u64) -> Registers {
        Registers { rip: pc, orig_rax: u64::MAX, ..self.home.registers }
    }

    /// The same for code that uses the stack.
    fn registers_on_our_stack(&self, pc: u64) -> Registers {
        /// Reserved, and interrupts enabled: what every user thread has.
        const PLAIN_FLAGS: u64 = 0x202;
        Registers { rsp: self.scratch.end - 64, eflags: PLAIN_FLAGS, ..self.registers_at(pc) }
    }

    /// The thread; it is lost when it died, or did not stop any more.
    fn thread(&self) -> Result<&Stopped, RemoteError> {
        self.thread.as_ref().ok_or(RemoteError::Died { tid: self.tid })
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Nobody is left to tell; if the thread is dead there is nothing to do, and else it comes home by itself.
            let _ = self.restore();
        }
    }
}

/// Unused bytes for the block, and what an earlier block there says.
#[derive(Debug)]
struct Place {
    address: u64,
    scratch: Option<Range<u64>>,
}

impl Place {
    /// The kernel's own code has room in every process; a file's last page of code mostly has some, too.
    fn find(process: &Process, maps: &Mappings) -> Result<Place, RemoteError> {
        let usable = |mapping: &&Mapping| {
            mapping.execute
                && mapping.read
                && !mapping.write
                && !mapping.shared
                && mapping.name != "[vsyscall]"
        };
        let (kernel, others): (Vec<_>, Vec<_>) =
            maps.iter().filter(usable).partition(|mapping| mapping.name == "[vdso]");
        for mapping in kernel.into_iter().chain(others) {
            let address = mapping.end - BLOCK_LEN as u64;
            let Ok(bytes) = process.memory().read_array::<BLOCK_LEN>(address) else { continue };
            let scratch = scratch_of(&bytes);
            if scratch.is_some() || bytes == [0; BLOCK_LEN] {
                return Ok(Place { address, scratch });
            }
        }
        Err(RemoteError::NoPadding)
    }

    /// No thread is on its way through an earlier block or on its scratch stack.
    fn check_unused(&self, stopped: &StoppedProcess) -> Result<(), RemoteError> {
        let Some(scratch) = &self.scratch else { return Ok(()) };
        let block = self.address..self.address + BLOCK_LEN as u64;
        for thread in stopped.threads() {
            let registers = thread.registers()?;
            if block.contains(&registers.rip) || scratch.contains(&registers.rsp) {
                return Err(RemoteError::Busy { tid: thread.tid() });
            }
        }
        Ok(())
    }
}

/// The thread can make calls for us as it stands. One that cannot does so when it has gone on for a moment, or another thread does.
///
/// # Errors
/// When it was killed meanwhile.
pub fn can_be_borrowed(process: &Process, thread: &Stopped) -> Result<bool, RemoteError> {
    Ok(obstacle(process, thread, read_status(thread.tid()).ok().as_ref())?.is_none())
}

/// Why a thread cannot make calls for us as it stands.
///
/// A signal that an instruction has raised belongs to the place where the thread stands. It would be delivered at ours, and not be raised again
/// where the thread is put back: a trapped call has been left already, and so has an `int3`. A call that the thread has dispatched ends in
/// its handler, and is not made.
fn obstacle(
    process: &Process,
    thread: &Stopped,
    status: Option<&Status>,
) -> Result<Option<&'static str>, RemoteError> {
    let due = status.map_or(0, |status| status.pending & !status.blocked);
    if SYNCHRONOUS.iter().any(|&signal| due & bit(signal) != 0) {
        return Ok(Some("it is about to receive a signal"));
    }
    let allows = |dispatch: Dispatch| {
        let selector = process.memory().read_array(dispatch.selector);
        dispatch.selector != 0 && selector.is_ok_and(|selector| selector == [Dispatch::ALLOW])
    };
    Ok(match thread.dispatch()? {
        Some(dispatch) if Some(dispatch) != process.own_dispatch() && !allows(dispatch) => {
            Some("it dispatches its system calls")
        }
        _ => None,
    })
}

/// How a thread can halt that has no filter: by a signal that does nothing to a process which does not handle it, also when
/// nobody traces it any more.
fn halt_of(status: &Status, blocked: u64) -> Halt {
    const HARMLESS: [i32; 2] = [libc::SIGURG, libc::SIGWINCH];
    let harmless = HARMLESS.into_iter().find(|&signal| (status.caught | blocked) & bit(signal) == 0);
    match (harmless, status.ids_inside) {
        (Some(signal), Some(ids)) if status.seccomp == 0 => Halt::BySignal { signal, ids },
        _ => Halt::AtCall,
    }
}

/// A signal in a set.
fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The range is what a scratch mapping looks like; neighbours may have been merged with it.
fn is_scratch(maps: &Mappings, range: &Range<u64>) -> bool {
    range.end.checked_sub(range.start) == Some(SCRATCH_LEN)
        && range.start.is_multiple_of(4096)
        && maps.at(range.start).is_some_and(|mapping| {
            mapping.end >= range.end && mapping.write && !mapping.shared && mapping.name.is_empty()
        })
}

/// The thread's registers; if it was stopped in a restartable sequence, with the program counter at the abort handler.
/// The kernel would send it there, too, but it looks only at where the thread is when it goes on.
fn registers_outside_rseq(process: &Process, thread: &Stopped) -> Result<Registers, RemoteError> {
    let mut registers = thread.registers()?;
    let Some(rseq) = thread.rseq()? else { return Ok(registers) };
    // struct rseq: cpu_id_start, cpu_id, then the address of a struct rseq_cs:
    // version and flags (32 bits each), start_ip, post_commit_offset, abort_ip.
    let section = process.memory().read_u64(rseq.address + 8).unwrap_or(0);
    if section == 0 {
        return Ok(registers);
    }
    let Ok(words) = process.memory().read_array::<32>(section) else { return Ok(registers) };
    let word =
        |index: usize| u64::from_le_bytes(words[8 * index..8 * index + 8].try_into().unwrap_or_default());
    if registers.rip.wrapping_sub(word(1)) < word(2) {
        registers.rip = word(3);
        registers.orig_rax = u64::MAX;
    }
    Ok(registers)
}

/// Sends a signal to a thread, as somebody did while the thread could not take it.
fn send(pid: Tid, tid: Tid, signal: i32) {
    // SAFETY: a plain system call. It fails only when the thread is gone.
    unsafe {
        libc::syscall(libc::SYS_tgkill, pid, tid, signal);
    }
}
