//! `struct pt_regs` of x86-64 as a uprobe program sees it (`arch/x86/include/asm/ptrace.h`).

/// The registers at a probe. Field order and names are the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct PtRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub bp: u64,
    pub bx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub ax: u64,
    pub cx: u64,
    pub dx: u64,
    pub si: u64,
    pub di: u64,
    /// -1 in a uprobe: the thread is not in a system call.
    pub orig_ax: u64,
    pub ip: u64,
    /// 0x33 in user mode.
    pub cs: u64,
    pub flags: u64,
    pub sp: u64,
    /// 0x2b in user mode.
    pub ss: u64,
}

/// Size of [`PtRegs`] in bytes.
pub const PT_REGS_SIZE: u32 = 168;
const _: () = assert!(size_of::<PtRegs>() == PT_REGS_SIZE as usize);
const _: () = assert!(core::mem::offset_of!(PtRegs, di) == 112);
const _: () = assert!(core::mem::offset_of!(PtRegs, sp) == 152);
