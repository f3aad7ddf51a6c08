//! What comes out: machine code of all subprograms in one piece, with what is left open for the linker.

use beeline_abi::code::Reloc;

/// Position-independent machine code of one program. The main program starts at offset 0.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// The machine code. It may be placed at any address that is a multiple of [`Image::ALIGNMENT`].
    pub code: Vec<u8>,
    /// What depends on the process.
    pub relocs: Vec<Reloc>,
    /// One for each subprogram, in order of `offset`.
    pub functions: Vec<Function>,
    /// Where the code of each instruction starts, in order of `offset`.
    pub places: Vec<Place>,
}

/// Machine code of one subprogram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    /// First instruction slot of the subprogram.
    pub start: u32,
    /// Its name, where one is known.
    pub name: String,
    /// Byte offset in the image.
    pub offset: u32,
    /// Bytes, without the padding behind them.
    pub len: u32,
    /// Bytes of these that are instructions; constants follow.
    pub text_len: u32,
}

/// Where machine code of an instruction starts. An instruction can have several pieces, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Byte offset in the image.
    pub offset: u32,
    /// Instruction slot.
    pub pc: u32,
}

impl Image {
    /// Alignment that the code expects of its address.
    pub const ALIGNMENT: u32 = 16;
}

/// The code of a verified program. Only [`compile`](crate::compile) makes one.
///
/// Its entry is `extern "sysv64" fn(context: *mut u8, run: *mut RunContext) -> u64`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeImage {
    pub(crate) image: Image,
}

impl CodeImage {
    /// The code and what belongs to it.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The same, given away.
    pub fn into_image(self) -> Image {
        self.image
    }
}

/// The code of a program that nobody verified: for conformance tests. The store does not take it.
///
/// Its entry is `extern "sysv64" fn(r1, r2, r3, r4, r5: u64, run: *mut RunContext) -> u64`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawCode {
    pub(crate) image: Image,
}

impl RawCode {
    /// The code and what belongs to it.
    pub fn image(&self) -> &Image {
        &self.image
    }
}
