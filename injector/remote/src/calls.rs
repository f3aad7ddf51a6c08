//! System calls of a borrowed thread, one at a time or as a list that it makes in one go.
//!
//! A list costs two context switches, however long it is: the thread goes through it by itself, as long as each call has the
//! result that is expected of it, and halts. Where it cannot halt unless its system calls are traced (a seccomp filter, or every
//! signal that processes ignore by themselves is handled), the calls are made one by one, to the same effect.

use crate::borrow::{BUFFERS_LEN, Borrowed};
use crate::error::RemoteError;
use crate::trampoline::{ENTRY_LEN, ENTRY_WORDS, OWN_WORD, RESULT};
use std::io;

/// Calls of which a list in the scratch mapping consists at most; longer ones are made in parts.
const LIST_MAX: usize = 200;
/// Where the list begins, and so where the stack of function calls ends.
const LIST: u64 = BUFFERS_LEN;
const _: () = assert!(LIST_MAX as u64 * ENTRY_LEN <= 16 << 10);

/// Linux gives errors as results from here on.
const ERRORS: std::ops::Range<i64> = -4095..0;
/// `MAP_FIXED_NOREPLACE`, since Linux 4.17; before that it is a hint, which is why the result is compared.
const FIXED_NOREPLACE: i32 = 0x10_0000;

/// A system call to be made in a process, with the result that is expected of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemCall {
    what: &'static str,
    number: i64,
    arguments: [u64; 6],
    expected: u64,
    /// The fifth argument stands at this address when the call is made.
    fifth_at: Option<u64>,
}

/// An open file of the process: where the 32-bit word lies that is its descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    pub(crate) word: u64,
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
    /// The file.
    pub descriptor: Descriptor,
    /// Where in the file.
    pub offset: u64,
}

impl SystemCall {
    /// Call `number`, of which this result is expected. `what` names it in errors.
    pub(crate) fn new(what: &'static str, number: i64, arguments: [u64; 6], expected: u64) -> SystemCall {
        SystemCall { what, number, arguments, expected, fifth_at: None }
    }

    /// Maps zeroed private memory at exactly `address`; `replace` when that is a part of a mapping of ours.
    pub fn map_anonymous(what: &'static str, address: u64, len: u64, replace: bool) -> SystemCall {
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | placing(replace)) as u64;
        let arguments = [address, len, protection, flags, u64::MAX, 0];
        SystemCall::new(what, libc::SYS_mmap, arguments, address)
    }

    /// Maps an open file of the process at exactly the given address.
    pub fn map_file(what: &'static str, file: &FileMapping) -> SystemCall {
        let kind = if file.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let flags = (kind | placing(file.replace)) as u64;
        let arguments = [file.address, file.len, file.protection as u64, flags, 0, file.offset];
        let call = SystemCall::new(what, libc::SYS_mmap, arguments, file.address);
        SystemCall { fifth_at: Some(file.descriptor.word), ..call }
    }

    /// Sets what is to be done with a signal to the action at `action`, and has the former one written to `old`; 0 = neither.
    pub fn signal_action(signal: u64, action: u64, old: u64) -> SystemCall {
        const MASK_LEN: u64 = 8;
        SystemCall::new("rt_sigaction", libc::SYS_rt_sigaction, [signal, action, old, MASK_LEN, 0, 0], 0)
    }

    /// Unmaps a range.
    pub fn unmap(address: u64, len: u64) -> SystemCall {
        SystemCall::new("munmap", libc::SYS_munmap, [address, len, 0, 0, 0, 0], 0)
    }

    /// Its entry in a list, which begins at `address`.
    fn entry(&self, address: u64) -> [u64; ENTRY_WORDS] {
        let [first, second, third, fourth, fifth, sixth] = self.arguments;
        let place = self.fifth_at.unwrap_or(address + OWN_WORD);
        [self.number as u64, first, second, third, fourth, place, sixth, NO_RESULT, self.expected, fifth]
    }

    /// What a result means.
    fn check(&self, result: u64) -> Result<(), RemoteError> {
        if result == self.expected {
            return Ok(());
        }
        let error = if ERRORS.contains(&(result as i64)) { -(result as i64) as i32 } else { libc::EEXIST };
        Err(RemoteError::SystemCall { what: self.what, source: io::Error::from_raw_os_error(error) })
    }
}

/// No call has this result.
const NO_RESULT: u64 = 1 << 63;

fn placing(replace: bool) -> i32 {
    if replace { libc::MAP_FIXED } else { FIXED_NOREPLACE }
}

impl Borrowed<'_> {
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
        let result = self.make(number, arguments)?;
        if ERRORS.contains(&(result as i64)) {
            let source = io::Error::from_raw_os_error(-(result as i64) as i32);
            return Err(RemoteError::SystemCall { what, source });
        }
        Ok(result)
    }

    /// Makes these calls one after the other, as long as each has the result that is expected of it.
    ///
    /// # Errors
    /// [`RemoteError::SystemCall`] for the first that has not: with the error that it returned, `EEXIST` when something else is
    /// mapped where it was to map.
    pub fn make_all(&mut self, calls: &[SystemCall]) -> Result<(), RemoteError> {
        if !self.halts_by_signal() {
            return calls.iter().try_for_each(|call| self.make_alone(call));
        }
        calls.chunks(LIST_MAX).try_for_each(|part| self.make_list(part))
    }

    /// Makes one of them.
    pub(crate) fn make_alone(&mut self, call: &SystemCall) -> Result<(), RemoteError> {
        let mut arguments = call.arguments;
        if let Some(place) = call.fifth_at {
            arguments[4] = self.process().memory().read_u32(place)?.into();
        }
        let result = self.make(call.number, arguments)?;
        self.take_back(call, result)
    }

    fn make_list(&mut self, calls: &[SystemCall]) -> Result<(), RemoteError> {
        let start = self.scratch() + LIST;
        let address = |index: usize| start + index as u64 * ENTRY_LEN;
        let mut words: Vec<u64> =
            calls.iter().enumerate().flat_map(|(index, call)| call.entry(address(index))).collect();
        let Some(last) = words.len().checked_sub(2) else { return Ok(()) };
        // After the last one there is no next, whatever its result.
        words[last] = NO_RESULT;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let memory = self.process().memory();
        memory.write(start, &bytes)?;
        self.go_through(start)?;
        memory.read(start, &mut bytes)?;
        for (call, entry) in calls.iter().zip(bytes.chunks_exact(ENTRY_LEN as usize)) {
            let result = entry[RESULT as usize..][..8].try_into().map_or(NO_RESULT, u64::from_le_bytes);
            self.take_back(call, result)?;
        }
        Ok(())
    }

    /// Checks a result. What was mapped elsewhere goes: a kernel before 4.17 takes the address for a hint.
    fn take_back(&mut self, call: &SystemCall, result: u64) -> Result<(), RemoteError> {
        let checked = call.check(result);
        let is_error = result == NO_RESULT || ERRORS.contains(&(result as i64));
        if checked.is_err() && call.number == libc::SYS_mmap && !is_error {
            self.make(libc::SYS_munmap, [result, call.arguments[1], 0, 0, 0, 0])?;
        }
        checked
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
                && self.halts_by_signal()
                && self.system_call("close_range", libc::SYS_close_range, all).is_ok()
            {
                continue;
            }
            // A single one, or a kernel before 5.9, or a filter that may not know the call.
            let close = |&it: &u64| SystemCall::new("close", libc::SYS_close, [it, 0, 0, 0, 0, 0], 0);
            self.make_all(&run.iter().map(close).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
