//! What an instruction does to the state. What it requires before it may do so is in [`require`](crate::require).

pub(crate) mod arithmetic;
pub(crate) mod branch;
pub(crate) mod call;
pub(crate) mod compute;
pub(crate) mod dynptr;
pub(crate) mod iter;
pub(crate) mod jump;
pub(crate) mod memory;
pub(crate) mod object;
pub(crate) mod packet;
pub(crate) mod pointer;
