//! The reference interpreter.
//!
//! What an instruction does is said here in the plainest way; the compiler must agree with it. Memory, helpers and maps
//! are the caller's: a [`Memory`] says what an address is, a [`Host`] what a helper does.
//!
//! | | |
//! |---|---|
//! | [`Program`] | decoded instructions |
//! | [`run`] | executes them; [`run_watched`] with somebody who looks on |
//! | [`memory::Trusted`] | every address is what it says: for verified programs |
//! | [`memory::Checked`] | every access is looked up in a list of regions: for programs under suspicion |
//! | [`memory::Native`] | the host whose helpers are functions of this process |
//!
//! **Architecture Invariant:** `unsafe` is in [`memory`] only.
#![deny(unsafe_code)]

pub mod alu;
mod error;
mod host;
mod machine;
#[expect(unsafe_code, reason = "the one module that touches raw addresses")]
pub mod memory;
mod program;

pub use error::{Stop, Trap, TrapKind};
pub use host::{Environment, HelperCall, Host, NoHost, Outcome};
pub use machine::{FUNCTION_BASE, LOOPS_MAX, Limits, Watch, run, run_watched};
pub use memory::{AccessError, Memory};
pub use program::Program;
