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

use crate::error::RemoteError;
use crate::maps::{Mapping, Mappings};
use crate::process::Process;
use crate::trampoline::{BLOCK_LEN, Block, Home, scratch_of};
use beeline_ptrace::{Registers, Resume, Stop, Stopped, StoppedProcess, Tid, Waited, read_status};
use std::io;
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

/// `MAP_FIXED_NOREPLACE`, since Linux 4.17; before that it is a hint, which is why the result is compared.
const FIXED_NOREPLACE: i32 = 0x10_0000;

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
    /// It has a seccomp filter.
    filtered: bool,
    /// Signals that arrived and could not be blocked, to be sent again.
    signals: Vec<i32>,
}

impl<'p> Borrowed<'p> {
    /// Borrows the thread at `index` of a process that stands still and has these mappings.
    ///
    /// # Errors
    /// [`RemoteError::Busy`] when a thread still works for a borrower that was killed: let the process go on for a
    /// moment and try again. In this and all other cases the thread is back in `stopped`, as it was.
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
        let left_behind = place.scratch.filter(|range| is_scratch(maps, range));
        let scratch_mapped = left_behind.is_some();
        let scratch = match left_behind {
            Some(range) => range,
            None => {
                let start = process.free_range(maps, SCRATCH_LEN, SCRATCH_RANGE, &[])?;
                start..start + SCRATCH_LEN
            }
        };
        let block = Block::new(place.address, &home, scratch.clone());
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
            filtered: false,
            signals: Vec::new(),
        };
        match borrowed.move_in() {
            Ok(()) => Ok(borrowed),
            Err(error) => {
                // The reason why we give up is reported; what follows is a consequence of it.
                let _ = borrowed.end(stopped);
                Err(error)
            }
        }
    }

    fn move_in(&mut self) -> Result<(), RemoteError> {
        let home = self.registers_at(self.block.home());
        self.thread()?.set_registers(&home)?;
        let mask = SYNCHRONOUS.iter().fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1)));
        self.thread()?.set_signal_mask(mask | self.home.signal_mask)?;
        if read_status(self.tid).is_ok_and(|status| status.seccomp != 0) {
            self.filtered = true;
            self.thread()?.suspend_seccomp(true)?;
        }
        if self.scratch_mapped {
            self.close_left_behind();
            return self.process.memory().write(self.scratch.start, &[0; BUFFERS_LEN as usize]);
        }
        self.map_anonymous(self.scratch.start, SCRATCH_LEN, "mmap of scratch memory")?;
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

    /// Makes a system call in the process. `what` names it in the error.
    ///
    /// # Errors
    /// [`RemoteError::SystemCall`] with the error that it returned.
    pub fn system_call(
        &mut self,
        what: &'static str,
        number: i64,
        arguments: [u64; 6],
    ) -> Result<u64, RemoteError> {
        let mut registers = self.registers_at(self.block.call_system());
        registers.rax = number as u64;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
        self.thread()?.set_registers(&registers)?;
        self.run_to_system_call()?;
        self.run_to_system_call()?;
        let registers = self.thread()?.registers()?;
        if registers.rip != self.block.home() {
            return Err(self.interrupted(&registers, "it left the call"));
        }
        let result = registers.rax as i64;
        if (-4095..0).contains(&result) {
            return Err(RemoteError::SystemCall {
                what,
                source: io::Error::from_raw_os_error(-result as i32),
            });
        }
        Ok(result as u64)
    }

    /// Calls a System V function in the process, on a stack of our own. It may clobber general registers only.
    ///
    /// # Errors
    /// [`RemoteError::Interrupted`] when it faults.
    pub fn call(&mut self, function: u64, arguments: [u64; 3]) -> Result<u64, RemoteError> {
        /// Reserved, and interrupts enabled: what every user thread has.
        const PLAIN_FLAGS: u64 = 0x202;
        let mut registers = self.registers_at(self.block.call());
        registers.rax = function;
        [registers.rdi, registers.rsi, registers.rdx] = arguments;
        registers.rsp = self.scratch.end - 64;
        registers.eflags = PLAIN_FLAGS;
        self.thread()?.set_registers(&registers)?;
        loop {
            self.run_to_system_call()?;
            let registers = self.thread()?.registers()?;
            if registers.rip == self.block.home() {
                // The entry of the getpid behind the function; its exit is the state in which calls leave the thread.
                self.run_to_system_call()?;
                return Ok(registers.rdi);
            }
        }
    }

    /// Maps zeroed private memory at exactly `address`.
    ///
    /// # Errors
    /// `EEXIST` when something is mapped there, `ENOMEM` when a limit of the process is reached.
    pub fn map_anonymous(&mut self, address: u64, len: u64, what: &'static str) -> Result<(), RemoteError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | FIXED_NOREPLACE;
        self.map(what, address, len, libc::PROT_READ | libc::PROT_WRITE, flags, u64::MAX, 0)
    }

    /// Maps zeroed private memory over a part of a mapping of ours.
    ///
    /// # Errors
    /// `ENOMEM` when a limit of the process is reached.
    pub fn replace_anonymous(
        &mut self,
        address: u64,
        len: u64,
        what: &'static str,
    ) -> Result<(), RemoteError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        self.map(what, address, len, libc::PROT_READ | libc::PROT_WRITE, flags, u64::MAX, 0)
    }

    /// Maps an open file of the process at exactly the given address.
    ///
    /// # Errors
    /// `EEXIST` when something is mapped there, `ENOMEM` when a limit of the process is reached.
    pub fn map_file(&mut self, file: &FileMapping, what: &'static str) -> Result<(), RemoteError> {
        let kind = if file.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let place = if file.replace { libc::MAP_FIXED } else { FIXED_NOREPLACE };
        self.map(what, file.address, file.len, file.protection, kind | place, file.descriptor, file.offset)
    }

    #[expect(clippy::too_many_arguments, reason = "they are mmap's")]
    fn map(
        &mut self,
        what: &'static str,
        address: u64,
        len: u64,
        protection: i32,
        flags: i32,
        descriptor: u64,
        offset: u64,
    ) -> Result<(), RemoteError> {
        let arguments = [address, len, protection as u64, flags as u64, descriptor, offset];
        let mapped = self.system_call(what, libc::SYS_mmap, arguments)?;
        if mapped == address {
            return Ok(());
        }
        self.unmap(mapped, len)?;
        Err(RemoteError::SystemCall { what, source: io::Error::from_raw_os_error(libc::EEXIST) })
    }

    /// Unmaps a range.
    ///
    /// # Errors
    /// Only for ranges that are none.
    pub fn unmap(&mut self, address: u64, len: u64) -> Result<(), RemoteError> {
        self.system_call("munmap", libc::SYS_munmap, [address, len, 0, 0, 0, 0]).map(drop)
    }

    /// Closes a descriptor of the process.
    ///
    /// # Errors
    /// `EBADF` when it is not open.
    pub fn close(&mut self, descriptor: u64) -> Result<(), RemoteError> {
        self.system_call("close", libc::SYS_close, [descriptor, 0, 0, 0, 0, 0]).map(drop)
    }

    /// Closes descriptors of the process, neighbouring ones with one call.
    ///
    /// # Errors
    /// `EBADF` when one is not open.
    pub fn close_all(&mut self, descriptors: &[u64]) -> Result<(), RemoteError> {
        let mut sorted = descriptors.to_vec();
        sorted.sort_unstable();
        for run in sorted.chunk_by(|a, b| a + 1 == *b) {
            let (first, last) = (run[0], run[run.len() - 1]);
            let all = [first, last, 0, 0, 0, 0];
            if run.len() > 1
                && !self.filtered
                && self.system_call("close_range", libc::SYS_close_range, all).is_ok()
            {
                continue;
            }
            // A single one, or a kernel before 5.9, or a filter that may not know the call.
            for &descriptor in run {
                self.close(descriptor)?;
            }
        }
        Ok(())
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
        let unmapped = if self.scratch_mapped { self.unmap(self.scratch.start, SCRATCH_LEN) } else { Ok(()) };
        self.leave_system_call()?;
        self.thread()?.set_signal_mask(self.home.signal_mask)?;
        self.thread()?.set_registers(&self.home.registers)?;
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

    /// Lets the thread run to its next stop.
    fn run(&mut self, how: Resume) -> Result<(), RemoteError> {
        let tid = self.tid;
        let thread = self.thread.take().ok_or(RemoteError::Died { tid })?;
        match thread.resume(how)?.wait(CALL_TIMEOUT)? {
            Waited::Dead(_) => Err(RemoteError::Died { tid }),
            Waited::Stopped(mut thread, stop) => {
                // A stop takes effect at once, and the thread works on in it: sent again later, it would come behind the
                // continuation that somebody may have sent meanwhile.
                let signal = if stop == Stop::Signal(libc::SIGSTOP) { None } else { thread.take_signal() };
                self.in_system_call = stop == Stop::Syscall;
                let thread = self.thread.insert(thread);
                match signal {
                    Some(signal) if SYNCHRONOUS.contains(&signal) => {
                        let registers = thread.registers()?;
                        Err(self.interrupted(&registers, &format!("signal {signal}")))
                    }
                    Some(signal) => {
                        self.signals.push(signal);
                        Ok(())
                    }
                    None => Ok(()),
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

/// A file to be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileMapping {
    /// Where.
    pub address: u64,
    /// How many bytes.
    pub len: u64,
    /// `PROT_*`.
    pub protection: i32,
    /// Writes reach the file.
    pub shared: bool,
    /// What is mapped there is replaced: it is a part of a mapping of ours.
    pub replace: bool,
    /// Descriptor in the process.
    pub descriptor: u64,
    /// Where in the file.
    pub offset: u64,
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
