//! Memory for programs that are not trusted: each access is looked up in a list of regions.

use super::stack::Stack;
use super::{AccessError, Memory, raw};
use beeline_isa::{AtomicOp, Size};
use core::marker::PhantomData;

/// What a program may do with a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    bytes: u64,
    rights: Rights,
}

/// Buffers lent for the time of a run, and the frames in use. Everything else is refused.
#[derive(Debug)]
pub struct Checked<'a> {
    stack: Stack,
    regions: Vec<Region>,
    lent: PhantomData<&'a mut [u8]>,
}

impl<'a> Checked<'a> {
    /// Memory with nothing but frames.
    pub fn new() -> Checked<'a> {
        Checked { stack: Stack::new(), regions: Vec::new(), lent: PhantomData }
    }

    /// Adds a buffer and returns its address.
    pub fn lend(&mut self, buffer: &'a mut [u8], rights: Rights) -> u64 {
        let start = buffer.as_mut_ptr() as u64;
        self.regions.push(Region { start, bytes: buffer.len() as u64, rights });
        start
    }

    /// Adds memory that is nobody's buffer: a map.
    ///
    /// # Safety
    /// The bytes can be read, and written with [`Rights::Write`], as long as this memory lives.
    pub unsafe fn lend_raw(&mut self, start: u64, bytes: u64, rights: Rights) {
        self.regions.push(Region { start, bytes, rights });
    }

    /// Takes a buffer back: its address leads nowhere from now on.
    pub fn revoke(&mut self, start: u64) {
        self.regions.retain(|region| region.start != start);
    }

    fn check(&mut self, address: u64, size: Size, write: bool) -> Result<(), AccessError> {
        let bytes = u64::from(size.bytes());
        let inside = |start: u64, len: u64| {
            address >= start && address - start <= len && len - (address - start) >= bytes
        };
        let (stack, used) = self.stack.in_use();
        let allowed = inside(stack, used)
            || self.regions.iter().any(|region| {
                inside(region.start, region.bytes) && (!write || region.rights == Rights::Write)
            });
        if allowed { Ok(()) } else { Err(AccessError::Outside { address, bytes: size.bytes(), write }) }
    }
}

impl Default for Checked<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory for Checked<'_> {
    fn load(&mut self, address: u64, size: Size) -> Result<u64, AccessError> {
        self.check(address, size, false)?;
        // SAFETY: the bytes are in a frame or in a buffer that is lent to us; so below.
        Ok(unsafe { raw::load(address, size) })
    }

    fn store(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError> {
        self.check(address, size, true)?;
        // SAFETY: as in `load`, and it may be written.
        unsafe { raw::store(address, size, value) };
        Ok(())
    }

    fn load_acquire(&mut self, address: u64, size: Size) -> Result<u64, AccessError> {
        self.check(address, size, false)?;
        // SAFETY: as in `load`.
        unsafe { raw::load_acquire(address, size) }
    }

    fn store_release(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError> {
        self.check(address, size, true)?;
        // SAFETY: as in `store`.
        unsafe { raw::store_release(address, size, value) }
    }

    fn fetch_update(
        &mut self,
        address: u64,
        size: Size,
        op: AtomicOp,
        operand: u64,
    ) -> Result<u64, AccessError> {
        self.check(address, size, true)?;
        // SAFETY: as in `store`.
        unsafe { raw::fetch_update(address, size, op, operand) }
    }

    fn compare_exchange(
        &mut self,
        address: u64,
        size: Size,
        expected: u64,
        new: u64,
    ) -> Result<u64, AccessError> {
        self.check(address, size, true)?;
        // SAFETY: as in `store`.
        unsafe { raw::compare_exchange(address, size, expected, new) }
    }

    fn enter(&mut self) -> Result<u64, AccessError> {
        self.stack.enter()
    }

    fn leave(&mut self) {
        self.stack.leave();
    }
}
