//! Machine code in this process: placed, linked, made executable, called.

use beeline_abi::code::{Reloc, RelocKind, Symbol};
use beeline_abi::run::RunContext;
use beeline_interp::memory::HelperFunction;
use beeline_jit::Image;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;

/// Code that could not be placed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody knows the address of a symbol.
    #[error("no address for {0:?}")]
    Unknown(Symbol),
    /// A relocation lies outside the code, or its target is too far away.
    #[error("relocation {0:?} cannot be applied")]
    Impossible(Reloc),
    /// The kernel gives no memory.
    #[error("cannot map memory for code: {0}")]
    Memory(rustix::io::Errno),
}

/// Bytes of a jump slot: `jmp *[rip+0]` and the address, padded.
const SLOT: usize = 16;

/// An image linked into this process: first written, then executable, never both.
#[derive(Debug)]
pub struct Executable {
    base: *mut c_void,
    len: usize,
}

// SAFETY: the mapping is read-only after `link` and belongs to nobody else.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

impl Executable {
    /// Links an image at a new address. Helpers are reached through jump slots behind the code: they can be anywhere.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn link(image: &Image, resolve: impl Fn(Symbol) -> Option<u64>) -> Result<Executable, LinkError> {
        let slots = slots(image);
        let slots_at = image.code.len().next_multiple_of(SLOT);
        let len = slots_at + slots.len() * SLOT;
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len.max(1), flags, MapFlags::PRIVATE) }
            .map_err(LinkError::Memory)?;
        let executable = Executable { base, len: len.max(1) };
        let mut bytes = image.code.clone();
        bytes.resize(slots_at, 0xcc);
        for symbol in &slots {
            let address = resolve(*symbol).ok_or(LinkError::Unknown(*symbol))?;
            bytes.extend([0xff, 0x25, 0, 0, 0, 0]);
            bytes.extend(address.to_le_bytes());
            bytes.extend([0xcc, 0xcc]);
        }
        for reloc in &image.relocs {
            let slot = slots.iter().position(|symbol| *symbol == reloc.symbol);
            let target = match (reloc.kind, slot) {
                (RelocKind::Rel32, Some(index)) => base as u64 + (slots_at + index * SLOT) as u64,
                _ if reloc.symbol == Symbol::Image => base as u64,
                _ => resolve(reloc.symbol).ok_or(LinkError::Unknown(reloc.symbol))?,
            };
            apply(&mut bytes, reloc, base as u64, target)?;
        }
        // SAFETY: the mapping has `len` bytes, is writable, and nobody else knows it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), base.cast::<u8>(), bytes.len()) };
        // SAFETY: our own mapping.
        unsafe { mprotect(base, executable.len, MprotectFlags::READ | MprotectFlags::EXEC) }
            .map_err(LinkError::Memory)?;
        Ok(executable)
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    /// Calls the code of an unverified program.
    ///
    /// # Safety
    /// The image is a [`RawCode`](beeline_jit::RawCode)'s, and its program does with these arguments nothing that this process must not do.
    pub unsafe fn call_raw(&self, arguments: [u64; 5], run: &mut RunContext) -> u64 {
        // SAFETY: code of a `RawCode` starts with a function of this type.
        let entry: HelperFunction = unsafe { std::mem::transmute::<*mut c_void, HelperFunction>(self.base) };
        let [r1, r2, r3, r4, r5] = arguments;
        // SAFETY: the caller's promise.
        unsafe { entry(r1, r2, r3, r4, r5, run) }
    }

    /// Calls the code of a verified program.
    ///
    /// # Safety
    /// The image is a [`CodeImage`](beeline_jit::CodeImage)'s, `context` is what its program type demands, the run is complete.
    pub unsafe fn call_program(&self, context: u64, run: &mut RunContext) -> u64 {
        type Entry = unsafe extern "sysv64" fn(u64, *mut RunContext) -> u64;
        // SAFETY: code of a `CodeImage` starts with a function of this type.
        let entry: Entry = unsafe { std::mem::transmute::<*mut c_void, Entry>(self.base) };
        // SAFETY: the caller's promise.
        unsafe { entry(context, run) }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: our own mapping; a call borrows `self`, so none is under way. A failure leaves it mapped.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

/// The symbols that relative calls go to; the index is that of the jump slot.
fn slots(image: &Image) -> Vec<Symbol> {
    let mut symbols = Vec::new();
    for reloc in image.relocs.iter().filter(|reloc| reloc.kind == RelocKind::Rel32) {
        if !symbols.contains(&reloc.symbol) {
            symbols.push(reloc.symbol);
        }
    }
    symbols
}

/// Fills one place in.
fn apply(bytes: &mut [u8], reloc: &Reloc, base: u64, target: u64) -> Result<(), LinkError> {
    let impossible = || LinkError::Impossible(*reloc);
    let at = reloc.offset as usize;
    let value = target.wrapping_add_signed(reloc.addend);
    match reloc.kind {
        RelocKind::Abs64 => {
            let place = bytes.get_mut(at..at + 8).ok_or_else(impossible)?;
            place.copy_from_slice(&value.to_le_bytes());
        }
        RelocKind::Rel32 => {
            let place = bytes.get_mut(at..at + 4).ok_or_else(impossible)?;
            let distance = value.wrapping_sub(base + u64::from(reloc.offset)) as i64;
            let distance = i32::try_from(distance).map_err(|_| impossible())?;
            place.copy_from_slice(&distance.to_le_bytes());
        }
    }
    Ok(())
}
