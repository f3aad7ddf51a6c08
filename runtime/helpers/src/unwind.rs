//! One step of a walk over a user stack: by the tables that the injector prepared, by frame pointers where there are none.
//!
//! Every address is another's word: memory is read as helpers read any, and each step of a table goes up the stack, so a
//! walk neither faults nor goes round in circles.

use beeline_abi::process::ProcessBlock;
use beeline_abi::regs::PtRegs;
use beeline_abi::unwind::{Cfa, DWARF_RBP, DWARF_RSP, Rbp, UnwindRow, UnwindText};

/// Where a walk stands: the registers of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Where the frame's code stands: behind its call, or at the instruction itself when `exact`.
    pub(crate) ip: u64,
    pub(crate) sp: u64,
    pub(crate) bp: u64,
    /// `ip` is where the thread stands, not where it returns to.
    pub(crate) exact: bool,
}

/// What the tables say of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing: frame pointers have to do.
    Nothing,
    /// Nobody called this.
    Outermost,
    /// The registers that a signal saved are at this address.
    Signal(u64),
    /// A frame.
    Caller {
        /// Address of the word behind the return address.
        cfa: u64,
        /// Where the caller's rbp is saved, 0 = it is what it is here.
        saved_rbp: u64,
        /// Nobody knows the caller's rbp.
        rbp_lost: bool,
    },
}

/// Offsets of saved registers from the stack pointer in a signal's frame, the `struct ucontext` being there
/// (`arch/x86/include/uapi/asm/{ucontext,sigcontext}.h`).
pub(crate) const SIGNAL_RBP: u64 = 40 + 10 * 8;
/// The stack pointer.
pub(crate) const SIGNAL_RSP: u64 = 40 + 15 * 8;
/// The instruction pointer.
pub(crate) const SIGNAL_RIP: u64 = 40 + 16 * 8;

/// The mapping that holds an address.
///
/// # Safety
///
/// `block` is the process's, as the injector wrote it.
#[inline(always)]
pub(crate) unsafe fn text(block: &ProcessBlock, address: u64) -> Option<&UnwindText> {
    if block.texts == 0 {
        return None;
    }
    // SAFETY: the injector's table has so many entries, and stays as long as the agent.
    let texts =
        unsafe { core::slice::from_raw_parts(block.texts as *const UnwindText, block.text_count as usize) };
    let behind = texts.partition_point(|text| text.start <= address);
    texts.get(behind.wrapping_sub(1)).filter(|text| address < text.end)
}

/// The row that holds at an address.
unsafe fn row(block: &ProcessBlock, address: u64) -> Option<&UnwindRow> {
    // SAFETY: the caller's contract; rows as texts.
    unsafe {
        let text = text(block, address)?;
        let offset = address.wrapping_sub(text.base);
        if text.rows == 0 || offset > u64::from(u32::MAX) {
            return None;
        }
        let rows = core::slice::from_raw_parts(text.rows as *const UnwindRow, text.row_count as usize);
        let behind = rows.partition_point(|row| u64::from(row.start) <= offset);
        rows.get(behind.wrapping_sub(1))
    }
}

/// What the tables say of a frame's caller. `registers` are the thread's in its innermost frame. `word` reads memory.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn find(
    block: &ProcessBlock,
    frame: &Frame,
    registers: Option<&PtRegs>,
    mut word: impl FnMut(u64) -> Option<u64>,
) -> Found {
    let place = if frame.exact { frame.ip } else { frame.ip.wrapping_sub(1) };
    // SAFETY: the caller's contract.
    let Some(row) = (unsafe { row(block, place) }) else { return Found::Nothing };
    let offset = i64::from(row.cfa_offset);
    let base = match row.cfa & 0x0f {
        DWARF_RSP => Some(frame.sp),
        DWARF_RBP => Some(frame.bp),
        other => registers.and_then(|registers| register(registers, other)),
    };
    let at = base.map(|base| base.wrapping_add_signed(offset));
    let cfa = match row.cfa & 0xf0 {
        0 => match row.cfa {
            Cfa::OUTERMOST => return Found::Outermost,
            Cfa::SIGNAL => return Found::Signal(frame.sp),
            Cfa::LINKAGE => {
                let late = frame.ip & 15 >= offset as u64;
                Some(frame.sp.wrapping_add(if late { 16 } else { 8 }))
            }
            _ => return Found::Nothing,
        },
        Cfa::REGISTER => at,
        Cfa::MEMORY => at.and_then(&mut word),
        Cfa::MEMORY_PLUS_8 => at.and_then(&mut word).map(|found| found.wrapping_add(8)),
        _ => None,
    };
    // Further up, by at least the return address: a walk that does not get there ends here.
    let Some(cfa) = cfa.filter(|&cfa| cfa >= frame.sp.saturating_add(8)) else { return Found::Outermost };
    let saved_rbp = match row.rbp {
        Rbp::AT_CFA => cfa.wrapping_add_signed(i64::from(row.rbp_offset)),
        Rbp::AT_RBP => frame.bp.wrapping_add_signed(i64::from(row.rbp_offset)),
        _ => 0,
    };
    Found::Caller { cfa, saved_rbp, rbp_lost: row.rbp == Rbp::LOST }
}

/// A register by its DWARF number (System V AMD64 ABI, figure 3.36).
fn register(registers: &PtRegs, number: u8) -> Option<u64> {
    Some(match number {
        0 => registers.ax,
        1 => registers.dx,
        2 => registers.cx,
        3 => registers.bx,
        4 => registers.si,
        5 => registers.di,
        8 => registers.r8,
        9 => registers.r9,
        10 => registers.r10,
        11 => registers.r11,
        12 => registers.r12,
        13 => registers.r13,
        14 => registers.r14,
        15 => registers.r15,
        _ => return None,
    })
}
