//! What a program can ask about the probe that runs it.

use crate::error;
use beeline_abi::errno::EINVAL;
use beeline_abi::link::LinkRuntime;
use beeline_abi::run::RunContext;

/// The link whose program runs; `None` in a test run.
///
/// # Safety
///
/// `run` is valid; `run.link` is 0 or the address of a [`LinkRuntime`] that outlives the run.
unsafe fn link<'a>(run: *const RunContext) -> Option<&'a LinkRuntime> {
    // SAFETY: the caller's contract.
    unsafe { ((*run).link as *const LinkRuntime).as_ref() }
}

/// `u64 bpf_get_func_ip(void *ctx)`: address of the probed instruction; of the function for a return probe.
pub(crate) unsafe extern "sysv64" fn get_func_ip(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: compiled code hands on the run that the stub made.
    unsafe { link(run).map_or(0, |link| link.func_ip) }
}

/// `u64 bpf_get_attach_cookie(void *ctx)`: the number given at attach, 0 when none was.
pub(crate) unsafe extern "sysv64" fn get_attach_cookie(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `get_func_ip`.
    unsafe { link(run).map_or(0, |link| link.cookie) }
}

/// `long bpf_override_return(struct pt_regs *regs, u64 rc)`: the probed function is skipped and returns `rc`. Obeyed by
/// stubs of function entries; nothing happens elsewhere.
pub(crate) unsafe extern "sysv64" fn override_return(
    _: u64,
    value: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `get_func_ip`.
    unsafe {
        (*run).override_value = value;
        (*run).flags |= RunContext::OVERRIDE;
    }
    0
}

/// `long bpf_get_func_arg(void *ctx, u32 n, u64 *value)` for tracing programs, whose context is the arguments, the
/// return value behind them, their number before them.
///
/// Errors: `-EINVAL` when there is no argument `n`.
pub(crate) unsafe extern "sysv64" fn get_func_arg(
    context: u64,
    n: u64,
    value: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let context = context as *const u64;
    let n = n as u32;
    // SAFETY: the verifier lets only programs with such a context call this; it proved the word for the value.
    unsafe {
        if u64::from(n) >= *context.sub(1) {
            return error(EINVAL);
        }
        *(value as *mut u64) = *context.add(n as usize);
    }
    0
}

/// `long bpf_get_func_ret(void *ctx, u64 *value)` for tracing programs at a function's exit.
pub(crate) unsafe extern "sysv64" fn get_func_ret(
    context: u64,
    value: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let context = context as *const u64;
    // SAFETY: as in `get_func_arg`.
    unsafe { *(value as *mut u64) = *context.add(*context.sub(1) as usize) };
    0
}

/// `long bpf_get_func_arg_cnt(void *ctx)` for tracing programs.
pub(crate) unsafe extern "sysv64" fn get_func_arg_cnt(
    context: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `get_func_arg`.
    unsafe { *(context as *const u64).sub(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_facts() {
        let link = LinkRuntime { cookie: 5, func_ip: 0x1234, ..LinkRuntime::default() };
        let mut run = RunContext { link: &raw const link as u64, ..RunContext::default() };
        let mut none = RunContext::default();
        // SAFETY: the runs are valid.
        unsafe {
            assert_eq!(get_attach_cookie(0, 0, 0, 0, 0, &mut run), 5);
            assert_eq!(get_func_ip(0, 0, 0, 0, 0, &mut run), 0x1234);
            assert_eq!(get_attach_cookie(0, 0, 0, 0, 0, &mut none), 0);
            assert_eq!(get_func_ip(0, 0, 0, 0, 0, &mut none), 0);
        }
    }

    #[test]
    fn arguments_of_tracing_programs() {
        let words = [2u64, 10, 11, 99];
        let context = &raw const words[1] as u64;
        let mut run = RunContext::default();
        let mut value = 0u64;
        let at = &raw mut value as u64;
        // SAFETY: the context is laid out as theirs.
        unsafe {
            assert_eq!(get_func_arg_cnt(context, 0, 0, 0, 0, &mut run), 2);
            assert_eq!((get_func_arg(context, 1, at, 0, 0, &mut run), value), (0, 11));
            assert_eq!(get_func_arg(context, 2, at, 0, 0, &mut run) as i64, -EINVAL);
            assert_eq!((get_func_ret(context, at, 0, 0, 0, &mut run), value), (0, 99));
        }
    }
}
