//! Why a program is refused, inside the verifier.

/// An instruction and a sentence; becomes a [`Rejection`](crate::Rejection) with the log.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The instruction.
    pub(crate) pc: usize,
    /// In the kernel's words where it has them.
    pub(crate) reason: String,
}

/// What a rule says: the reason alone. The instruction is the one being looked at.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Returns from a rule with a reason.
macro_rules! refuse {
    ($($arg:tt)*) => { return Err(format!($($arg)*)) };
}
pub(crate) use refuse;

impl Refusal {
    pub(crate) fn at(pc: usize, reason: impl Into<String>) -> Refusal {
        Refusal { pc, reason: reason.into() }
    }
}
