//! What depends on the architecture: the general registers of a stopped thread (x86-64).

/// General registers of a thread in 64-bit mode (`struct user_regs_struct`).
///
/// `orig_rax` is the number of the interrupted system call, or -1 when there is none; with `rax` at -512 to -516 the
/// kernel restarts that call when the thread goes on. Whoever changes `rip` sets `orig_rax` to -1.
pub type Registers = libc::user_regs_struct;
