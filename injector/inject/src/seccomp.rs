//! The seccomp filters of a process that stands still, and what they mean for us.
//!
//! A filter can kill the process for a call that it never makes itself. We make calls in it at attach and detach, through a
//! borrowed thread, and the agent makes some later. Calls of a borrowed thread do not pass the filter while it is traced;
//! but when we are killed in the middle, it finishes the call under its filter. So nothing is done in a process whose filters
//! could object, and the agent's gate of calls is narrowed to what they allow.
//!
//! Only `CAP_SYS_ADMIN` may read filters (`PTRACE_SECCOMP_GET_FILTER`).
//!
//! A thread that has its system calls handed to itself (`PR_SET_SYSCALL_USER_DISPATCH`) would be handed ours: it counts as a filter that
//! allows nothing.

use crate::error::TargetRefused;
use crate::target::remote;
use beeline_abi::calls::{Call, CallGate, Instruction, SET_DISPATCH, allows};
use beeline_ptrace::{PtraceError, Registers, Stopped, StoppedProcess};
use beeline_remote::{Borrowed, RemoteError};

/// What a borrowed thread calls, with the arguments that are always the same.
const BORROWED_CALLS: [Call; 10] = [
    Call::any(9, "mmap").with(2, PROT_NONE),
    Call::any(9, "mmap").with(2, PROT_READ | PROT_WRITE),
    Call::any(9, "mmap").with(2, PROT_READ | PROT_EXEC),
    Call::any(11, "munmap"),
    Call::any(3, "close"),
    Call::any(53, "socketpair").with(0, AF_UNIX).with(2, 0),
    Call::any(47, "recvmsg"),
    Call::any(39, "getpid"),
    Call::any(14, "rt_sigprocmask").with(0, SIG_SETMASK),
    Call::any(334, "rseq"),
];

/// What the guard of breakpoints cannot do without.
const GUARD_CALLS: [Call; 4] = [
    Call::any(13, "rt_sigaction"),
    Call::any(39, "getpid"),
    Call::any(310, "process_vm_readv"),
    Call::any(311, "process_vm_writev"),
];

const PROT_NONE: u64 = libc::PROT_NONE as u64;
const PROT_READ: u64 = libc::PROT_READ as u64;
const PROT_WRITE: u64 = libc::PROT_WRITE as u64;
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;
const AF_UNIX: u64 = libc::AF_UNIX as u64;
const SIG_SETMASK: u64 = libc::SIG_SETMASK as u64;

/// Asks whether the thread may read the time stamp counter.
const ASKS_FOR_COUNTER: Call = Call::any(157, "prctl").with(0, PR_GET_TSC);
/// `PR_GET_TSC`; what it says of a thread that may (`include/uapi/linux/prctl.h`).
const PR_GET_TSC: u64 = 25;
const PR_TSC_ENABLE: u32 = 1;

/// The kernel makes this call in place of an interrupted one with a timeout.
const RESTART_CALL: Call = Call::any(libc::SYS_restart_syscall as u32, "restart_syscall");
/// `-ERESTART_RESTARTBLOCK`, `-ERESTARTNOHAND`: go on by `restart_syscall`; by the same call from its beginning.
const RESTART_BLOCK: i64 = -516;
const RESTART_SAME: i64 = -514;

/// The filters of all threads.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    /// Each different one once.
    known: Vec<Vec<u64>>,
    /// A thread has filters that we may not read.
    unreadable: bool,
}

impl Filters {
    /// Reads the filters of a process that stands still. Threads for which the kernel would make a call that their filters
    /// forbid make their interrupted call from its beginning instead.
    pub(crate) fn of(stopped: &StoppedProcess) -> Result<Filters, TargetRefused> {
        let mut filters = Filters::default();
        for thread in stopped.threads() {
            let own = filters_of(thread).map_err(|error| remote(stopped.pid(), error.into()))?;
            if own.is_none()
                || own.as_ref().is_some_and(|own| !own.iter().all(|one| passes(one, &RESTART_CALL)))
            {
                spare(thread).map_err(|error| remote(stopped.pid(), error.into()))?;
            }
            match own {
                Some(own) => own.into_iter().for_each(|filter| {
                    if !filters.known.contains(&filter) {
                        filters.known.push(filter);
                    }
                }),
                None => filters.unreadable = true,
            }
        }
        Ok(filters)
    }

    /// Why a borrowed thread cannot work in this process.
    pub(crate) fn objection(&self) -> Option<String> {
        if self.unreadable {
            return Some("only root (CAP_SYS_ADMIN) can find out what its filter allows".to_owned());
        }
        let refused = |call: &&Call| self.known.iter().any(|filter| !passes(filter, call));
        let call = BORROWED_CALLS.iter().find(refused)?;
        Some(format!("its filter does not allow {}, which placing probes safely needs", call.name))
    }

    /// Why a guard cannot work in this process.
    pub(crate) fn objection_to_guard(&self) -> Option<String> {
        let refused = |call: &&Call| self.known.iter().any(|filter| !passes(filter, call));
        let call = GUARD_CALLS.iter().find(refused)?;
        Some(format!("its seccomp filter does not allow {}", call.name))
    }

    /// Why the calls of this process cannot be dispatched.
    pub(crate) fn objection_to_dispatch(&self) -> Option<String> {
        let refused = self.known.iter().any(|filter| !passes(filter, &SET_DISPATCH));
        refused.then(|| "its seccomp filter does not allow prctl(PR_SET_SYSCALL_USER_DISPATCH)".to_owned())
    }

    /// The borrowed thread may read the time stamp counter, and so may those that it has made. False where its filters let nobody ask.
    pub(crate) fn leave_counter(&self, borrowed: &mut Borrowed<'_>) -> Result<bool, RemoteError> {
        if self.unreadable || !self.known.iter().all(|filter| passes(filter, &ASKS_FOR_COUNTER)) {
            return Ok(false);
        }
        let answer = borrowed.scratch();
        let asked = borrowed.system_call("prctl", libc::SYS_prctl, [PR_GET_TSC, answer, 0, 0, 0, 0]);
        match asked {
            Ok(_) => Ok(borrowed.process().memory().read_u32(answer)? == PR_TSC_ENABLE),
            Err(RemoteError::SystemCall { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Narrows a gate to what all of them allow.
    pub(crate) fn narrow(&self, gate: &CallGate) {
        if self.unreadable {
            gate.close();
        }
        for filter in &self.known {
            gate.narrow(filter.len() as u32, &mut |index| {
                filter.get(index as usize).map(|&word| instruction(word))
            });
        }
    }
}

/// The filters of a thread; none when it has some that we may not read.
fn filters_of(thread: &Stopped) -> Result<Option<Vec<Vec<u64>>>, PtraceError> {
    let mut filters = Vec::new();
    loop {
        match thread.seccomp_filter(filters.len()) {
            Ok(Some(filter)) => filters.push(filter),
            Ok(None) => return Ok(Some(filters)),
            Err(PtraceError::Request { .. }) => {
                let status = beeline_ptrace::read_status(thread.tid());
                let has_none = filters.is_empty() && status.is_ok_and(|status| status.seccomp == 0);
                return Ok(has_none.then_some(filters));
            }
            Err(gone) => return Err(gone),
        }
    }
}

/// Lets a thread begin its interrupted call anew.
fn spare(thread: &Stopped) -> Result<(), PtraceError> {
    let registers = thread.known_registers()?;
    if registers.orig_rax as i64 >= 0 && registers.rax as i64 == RESTART_BLOCK {
        thread.set_registers(&Registers { rax: RESTART_SAME as u64, ..registers })?;
    }
    Ok(())
}

fn passes(filter: &[u64], call: &Call) -> bool {
    allows(filter.len() as u32, &mut |index| filter.get(index as usize).map(|&word| instruction(word)), call)
}

/// A `struct sock_filter` read as a little-endian word.
fn instruction(word: u64) -> Instruction {
    let [low, high, jump_true, jump_false, k @ ..] = word.to_le_bytes();
    Instruction { code: u16::from_le_bytes([low, high]), jump_true, jump_false, k: u32::from_le_bytes(k) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refused_call_is_named() {
        // ld nr; jeq #47 → errno, else allow.
        let word = |code: u64, jt: u64, jf: u64, k: u64| code | jt << 16 | jf << 24 | k << 32;
        let filter = vec![
            word(0x20, 0, 0, 0),
            word(0x15, 0, 1, 47),
            word(6, 0, 0, 0x5_0001),
            word(6, 0, 0, 0x7fff_0000),
        ];
        let filters = Filters { known: vec![filter.clone()], ..Filters::default() };
        assert!(filters.objection().is_some_and(|reason| reason.contains("recvmsg")));
        let mut other = filter;
        other[1] = word(0x15, 0, 1, 310);
        let filters = Filters { known: vec![other], ..Filters::default() };
        assert_eq!(filters.objection(), None);
        let gate = CallGate::new();
        filters.narrow(&gate);
        assert!(gate.forbids(310) && !gate.forbids(186));
        assert_eq!(Filters::default().objection(), None);
        let unreadable = Filters { unreadable: true, ..Filters::default() };
        unreadable.narrow(&gate);
        assert!(unreadable.objection().is_some() && gate.forbids(186));
    }
}
