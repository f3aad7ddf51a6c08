//! `beeline completions`: scripts for shells, from the definition of the command line.

use crate::args::{Cli, Completions};
use crate::context::Context;
use anyhow::Result;
use clap::CommandFactory;

pub(crate) fn run(context: &mut Context, args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "beeline", &mut script);
    Ok(context.out.text(&String::from_utf8(script)?)?)
}
