//! What an instruction requires before it may do anything. What it then does is in [`effect`](crate::effect).

pub(crate) mod advice;
pub(crate) mod arguments;
pub(crate) mod dynptr;
pub(crate) mod exit;
pub(crate) mod global;
pub(crate) mod host;
pub(crate) mod iter;
pub(crate) mod lock;
pub(crate) mod map;
pub(crate) mod memory;
pub(crate) mod object;
pub(crate) mod pointer;
pub(crate) mod program;
pub(crate) mod register;
pub(crate) mod stack;
pub(crate) mod stack_depth;
