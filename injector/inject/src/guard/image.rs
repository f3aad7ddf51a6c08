//! The guard's image: one executable piece without relocations or variables, in front of its block.

use beeline_abi::PAGE_SIZE;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSymbol, elf};

/// The image, as it lies in memory.
#[derive(Debug)]
pub(crate) struct GuardImage {
    bytes: Vec<u8>,
    /// Offset of the word that holds the address of the process's block.
    block: usize,
    /// Offsets of what runs before and behind a system call, and when no program can run there.
    system_call: [u64; 3],
    handler: u64,
    restorer: u64,
}

impl GuardImage {
    /// Reads the image. An error is a defect of the build.
    pub(crate) fn parse(file: &[u8]) -> Result<GuardImage, String> {
        let elf = ElfFile64::<object::Endianness>::parse(file).map_err(|error| error.to_string())?;
        let endian = object::Endianness::Little;
        if elf.dynamic_relocations().is_some_and(|mut relocations| relocations.next().is_some()) {
            return Err("the guard's image has relocations".to_owned());
        }
        let mut bytes = Vec::new();
        for header in elf.elf_program_headers() {
            let writable = header.p_flags(endian).0 & elf::PF_W.0 != 0;
            if header.p_type(endian) != elf::PT_LOAD || writable {
                continue;
            }
            let start = header.p_vaddr(endian) as usize;
            let data = header.data(endian, file).map_err(|()| "a segment lies outside of the file")?;
            bytes.resize((start + data.len()).max(bytes.len()).next_multiple_of(PAGE_SIZE as usize), 0);
            bytes[start..start + data.len()].copy_from_slice(data);
        }
        let symbol = |name: &str| {
            let found = elf.dynamic_symbols().find(|symbol| symbol.name() == Ok(name));
            let address = found.map(|symbol| symbol.address()).filter(|&at| at < bytes.len() as u64);
            address.ok_or(format!("no symbol {name}"))
        };
        Ok(GuardImage {
            block: symbol("beeline_guard_block")? as usize,
            system_call: [
                symbol("beeline_guard_enter")?,
                symbol("beeline_guard_exit")?,
                symbol("beeline_guard_missed")?,
            ],
            handler: symbol("beeline_guard_trap")?,
            restorer: symbol("beeline_guard_restorer")?,
            bytes,
        })
    }

    /// Bytes of it; the block follows.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The image for the block at `block`.
    pub(crate) fn for_block(&self, block: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[self.block..self.block + 8].copy_from_slice(&block.to_le_bytes());
        bytes
    }

    /// What the gates of system calls call, for the block at `block`.
    pub(crate) fn system_call(&self, block: u64) -> [u64; 3] {
        self.system_call.map(|offset| block - self.len() + offset)
    }

    pub(crate) fn handler(&self, block: u64) -> u64 {
        block - self.len() + self.handler
    }

    pub(crate) fn restorer(&self, block: u64) -> u64 {
        block - self.len() + self.restorer
    }
}
