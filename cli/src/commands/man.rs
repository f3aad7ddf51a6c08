//! `beeline man`: manual pages, from the definition of the command line.

use crate::args::{Cli, Man};
use crate::context::Context;
use anyhow::{Context as _, Result};
use clap::CommandFactory;

pub(crate) fn run(context: &mut Context, args: &Man) -> Result<()> {
    let Some(directory) = &args.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return Ok(context.out.text(&String::from_utf8(page)?)?);
    };
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(Cli::command(), directory)
    };
    write().with_context(|| format!("cannot write man pages to {}", directory.display()))
}
