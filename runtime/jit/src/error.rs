//! Why a program cannot be compiled.

use beeline_isa::DecodeError;

/// Why a program cannot be compiled. `pc` is the instruction slot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompileError {
    /// A slot that is reached is not an instruction.
    #[error("instruction {pc}: {source}")]
    Undecodable {
        /// Where.
        pc: u32,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// An instruction that the compiler has no code for.
    #[error("instruction {pc}: {what} is not supported")]
    Unsupported {
        /// Where.
        pc: u32,
        /// What it is.
        what: &'static str,
    },
    /// A helper that only a kernel can serve: it changes packets of a network stack, reads hardware counters or the like.
    #[error("instruction {pc}: helper {name} can be verified, but not run in userspace")]
    KernelOnly {
        /// Where.
        pc: u32,
        /// The helper.
        name: &'static str,
    },
    /// A jump, call or callback reference leaves the program or the subprogram, or goes into the middle of something.
    #[error("instruction {pc}: jump to {target} leaves its subprogram")]
    BadTarget {
        /// Where.
        pc: u32,
        /// The slot aimed at.
        target: i64,
    },
    /// Execution can run past the last instruction of a subprogram.
    #[error("instruction {pc}: execution falls off the end of its subprogram")]
    FallsOffEnd {
        /// The last instruction.
        pc: u32,
    },
    /// A map index beyond the program's map list.
    #[error("instruction {pc}: the program has no map {map}")]
    NoMap {
        /// Where.
        pc: u32,
        /// The index.
        map: u32,
    },
    /// No code can be made for this machine.
    #[error("no code generator for this machine: {0}")]
    Machine(String),
    /// The code generator failed or left something open that cannot be linked: our bug.
    #[error("code generator, subprogram at instruction {start}: {reason}")]
    Backend {
        /// First slot of the subprogram.
        start: u32,
        /// What it said.
        reason: String,
    },
}

impl CompileError {
    pub(crate) fn undecodable(pc: usize, source: DecodeError) -> CompileError {
        CompileError::Undecodable { pc: pc as u32, source }
    }
}
