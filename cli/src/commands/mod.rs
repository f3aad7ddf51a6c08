//! The commands, one file each.

mod attach;
mod completions;
mod detach;
mod events;
mod follow;
mod gdb;
mod link;
pub(crate) mod load;
mod man;
mod map;
mod prog;
mod ps;
mod stacks;
mod start;
mod trace;
mod unload;
mod verify;

use crate::args::Command;
use crate::context::Context;
use anyhow::Result;
use std::process::ExitCode;

/// Runs a command. The status of all but `start` is success, unless there is an error.
pub(crate) fn run(context: &mut Context, command: &Command) -> Result<ExitCode> {
    match command {
        Command::Load(args) => load::run(context, args),
        Command::Unload(args) => unload::run(context, args),
        Command::Start(args) => return start::run(context, args),
        Command::Attach(args) => attach::run(context, args),
        Command::Detach(args) => detach::run(context, args),
        Command::Ps => ps::run(context),
        Command::Prog(args) => prog::run(context, args),
        Command::Map(args) => map::run(context, args),
        Command::Link(args) => link::run(context, args),
        Command::Events(args) => events::run(context, args),
        Command::Trace(args) => trace::run(context, args),
        Command::Verify(args) => verify::run(context, args),
        Command::Gdb => gdb::run(context),
        Command::Completions(args) => completions::run(context, args),
        Command::Man(args) => man::run(context, args),
    }?;
    Ok(ExitCode::SUCCESS)
}
