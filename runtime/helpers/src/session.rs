//! Sessions: one program at the entry of a function and at its return, and a word that it keeps in between
//! (`kernel/trace/bpf_trace.c`). The compiler puts both in place of their calls.

use beeline_abi::run::RunContext;

/// `bool bpf_session_is_return(void)`: the function returns; false at its entry.
pub(crate) unsafe extern "sysv64" fn session_is_return(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the caller's run.
    unsafe { (*run).session & 1 }
}

/// `__u64 *bpf_session_cookie(void)`: the session's word for this call of the function, 0 at first.
pub(crate) unsafe extern "sysv64" fn session_cookie(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the caller's run.
    unsafe {
        match (*run).session & !1 {
            // A test run.
            0 => &raw mut (*run).session_cookies as u64,
            cookie => cookie,
        }
    }
}
