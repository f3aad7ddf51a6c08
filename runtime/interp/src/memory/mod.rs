//! What an address is. The only module with `unsafe`.

mod checked;
mod native;
mod raw;
mod stack;
mod trusted;

pub use checked::{Checked, Rights};
pub use native::{HelperFunction, Native, NativeMap};
pub use trusted::Trusted;

use beeline_isa::{AtomicOp, Size};

/// Frames that a run can have at once (`MAX_CALL_FRAMES`).
pub const FRAMES_MAX: usize = 8;

/// Bytes of a frame (`MAX_BPF_STACK`).
pub const FRAME_BYTES: usize = 512;

/// An access that memory refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AccessError {
    /// The bytes are not in a region, or the region may not be written.
    #[error("invalid {} of {bytes} bytes at {address:#x}", if *.write { "write" } else { "read" })]
    Outside {
        /// First byte.
        address: u64,
        /// How many.
        bytes: u32,
        /// A store or an atomic operation.
        write: bool,
    },
    /// An atomic operation on an address that is not a multiple of its size.
    #[error("misaligned atomic operation on {bytes} bytes at {address:#x}")]
    Misaligned {
        /// First byte.
        address: u64,
        /// How many.
        bytes: u32,
    },
    /// More than [`FRAMES_MAX`] frames.
    #[error("call stack of more than {FRAMES_MAX} frames is too deep")]
    TooDeep,
}

/// Memory as a program sees it. Values are zero-extended; addresses are those of this process.
pub trait Memory {
    /// Reads.
    ///
    /// # Errors
    /// [`AccessError`]; so for all others.
    fn load(&mut self, address: u64, size: Size) -> Result<u64, AccessError>;

    /// Writes the low bytes of `value`.
    fn store(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError>;

    /// Reads with acquire ordering.
    fn load_acquire(&mut self, address: u64, size: Size) -> Result<u64, AccessError>;

    /// Writes with release ordering.
    fn store_release(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError>;

    /// Replaces the value by `value op operand` (by `operand` for an exchange) and returns the old one.
    fn fetch_update(
        &mut self,
        address: u64,
        size: Size,
        op: AtomicOp,
        operand: u64,
    ) -> Result<u64, AccessError>;

    /// Replaces the value by `new` when it is `expected`, and returns the old one.
    fn compare_exchange(
        &mut self,
        address: u64,
        size: Size,
        expected: u64,
        new: u64,
    ) -> Result<u64, AccessError>;

    /// Begins a frame and returns its frame pointer.
    fn enter(&mut self) -> Result<u64, AccessError>;

    /// Ends the youngest frame.
    fn leave(&mut self);
}
