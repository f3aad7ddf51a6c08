//! What surrounds a program: helpers and maps.

use crate::error::{Stop, TrapKind};
use crate::memory::Memory;
use beeline_abi::run::RunContext;

/// One call of a helper.
#[derive(Clone, Copy, Debug)]
pub struct HelperCall {
    /// The helper's number.
    pub id: i32,
    /// r1 to r5. A callback is a number from [`FUNCTION_BASE`](crate::FUNCTION_BASE) on.
    pub arguments: [u64; 5],
    /// The run that was given to [`run`](crate::run).
    pub run: *mut RunContext,
}

/// What a helper call leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// r0 gets this and execution goes on.
    Value(u64),
    /// The function that called returns this: a tail call that succeeded.
    Return(u64),
    /// The whole program ends with this.
    Exit(u64),
}

/// The running program as a helper sees it.
pub trait Environment {
    /// The memory of the run.
    fn memory(&mut self) -> &mut dyn Memory;

    /// Runs a callback of the program.
    ///
    /// # Errors
    /// [`Stop`] when the callback, and with it the program, ends. The helper passes it on.
    fn callback(&mut self, function: u64, arguments: [u64; 5]) -> Result<u64, Stop>;

    /// A trap at the instruction that called.
    fn trap(&self, kind: TrapKind) -> Stop;
}

/// Helpers and maps of one program.
pub trait Host {
    /// The address that the program gets for `struct bpf_map *` of its map `map`; none: there is no such map.
    fn map_handle(&self, map: u32) -> Option<u64>;

    /// The address of the first byte of that map's data; none: it has none.
    fn map_data(&self, map: u32) -> Option<u64>;

    /// Calls a helper.
    ///
    /// # Errors
    /// [`Stop`] when the program cannot go on: made by [`Environment::trap`], or passed on from a callback.
    fn call(&self, call: &HelperCall, environment: &mut dyn Environment) -> Result<Outcome, Stop>;
}

/// A host without helpers and maps.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn map_handle(&self, _map: u32) -> Option<u64> {
        None
    }

    fn map_data(&self, _map: u32) -> Option<u64> {
        None
    }

    fn call(&self, call: &HelperCall, environment: &mut dyn Environment) -> Result<Outcome, Stop> {
        Err(environment.trap(TrapKind::UnknownHelper(i64::from(call.id))))
    }
}
