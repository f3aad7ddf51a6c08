//! Memory for programs whose accesses are proven.

use super::stack::Stack;
use super::{AccessError, Memory, raw};
use beeline_isa::{AtomicOp, Size};

/// Takes every address for what it says.
#[derive(Debug)]
pub struct Trusted {
    stack: Stack,
}

impl Trusted {
    /// # Safety
    /// Only programs run on it whose accesses are proven to be to memory of theirs: verified ones, or tests.
    pub unsafe fn new() -> Trusted {
        Trusted { stack: Stack::new() }
    }
}

impl Memory for Trusted {
    fn load(&mut self, address: u64, size: Size) -> Result<u64, AccessError> {
        // SAFETY: the contract of `new`; so below.
        Ok(unsafe { raw::load(address, size) })
    }

    fn store(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError> {
        // SAFETY: as in `load`.
        unsafe { raw::store(address, size, value) };
        Ok(())
    }

    fn load_acquire(&mut self, address: u64, size: Size) -> Result<u64, AccessError> {
        // SAFETY: as in `load`.
        unsafe { raw::load_acquire(address, size) }
    }

    fn store_release(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError> {
        // SAFETY: as in `load`.
        unsafe { raw::store_release(address, size, value) }
    }

    fn fetch_update(
        &mut self,
        address: u64,
        size: Size,
        op: AtomicOp,
        operand: u64,
    ) -> Result<u64, AccessError> {
        // SAFETY: as in `load`.
        unsafe { raw::fetch_update(address, size, op, operand) }
    }

    fn compare_exchange(
        &mut self,
        address: u64,
        size: Size,
        expected: u64,
        new: u64,
    ) -> Result<u64, AccessError> {
        // SAFETY: as in `load`.
        unsafe { raw::compare_exchange(address, size, expected, new) }
    }

    fn enter(&mut self) -> Result<u64, AccessError> {
        self.stack.enter()
    }

    fn leave(&mut self) {
        self.stack.leave();
    }
}
