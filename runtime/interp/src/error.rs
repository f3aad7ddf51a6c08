//! Why a run ended before its time.

use crate::memory::AccessError;
use beeline_isa::DecodeError;

/// A run that could not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("instruction {pc}: {kind}")]
pub struct Trap {
    /// The instruction slot.
    pub pc: u32,
    /// What happened there.
    #[source]
    pub kind: TrapKind,
}

/// What stopped a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrapKind {
    /// The slot is not an instruction.
    #[error("{0}")]
    Undecodable(DecodeError),
    /// Execution left the program.
    #[error("execution leaves the program")]
    OutOfProgram,
    /// A memory access that the memory refuses.
    #[error("{0}")]
    Access(AccessError),
    /// The limit of instructions is reached.
    #[error("instruction limit reached")]
    Budget,
    /// No helper has this number.
    #[error("unknown helper {0}")]
    UnknownHelper(i64),
    /// The program has no map with this index.
    #[error("the program has no map {0}")]
    NoMap(u32),
    /// A write to r10.
    #[error("frame pointer is read only")]
    FramePointer,
    /// Whoever looks on ended the run.
    #[error("stopped by its watch")]
    Watched,
    /// An instruction that no run can execute here.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// What ends a run from within: its regular end by a helper, or a trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The whole program ends with this result.
    Exit(u64),
    /// It cannot go on.
    Trap(Trap),
}

impl From<Trap> for Stop {
    fn from(trap: Trap) -> Stop {
        Stop::Trap(trap)
    }
}
