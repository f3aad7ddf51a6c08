//! Sessions: one program at the entry of a function and at its return, and a word that it keeps in between
//! (`kernel/trace/bpf_trace.c`).

use beeline_abi::link::LinkRuntime;
use beeline_abi::run::RunContext;
use beeline_abi::thread::SESSIONS;

/// `bool bpf_session_is_return(void)`: the function returns; false at its entry.
pub(crate) unsafe extern "sysv64" fn session_is_return(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the caller's run; the injector wrote its link.
    let link = unsafe { ((*run).link as *const LinkRuntime).as_ref() };
    u64::from(link.is_some_and(|link| link.flags & LinkRuntime::RETURN != 0))
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
    // SAFETY: the caller's run; the injector wrote its link.
    unsafe {
        let flags = ((*run).link as *const LinkRuntime).as_ref().map_or(0, |link| link.flags);
        let index = (flags & LinkRuntime::SESSION_INDEX) >> LinkRuntime::SESSION_INDEX_SHIFT;
        let cookies = (&raw mut (*run).session_cookies).cast::<u64>();
        cookies.add((index as usize).min(SESSIONS - 1)) as u64
    }
}
