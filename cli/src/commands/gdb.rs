//! `beeline gdb`: a script for gdb, so that it goes through probed frames.

use crate::context::Context;
use anyhow::Result;

pub(crate) fn run(context: &mut Context) -> Result<()> {
    Ok(context.out.text(&beeline_inject::gdb_script())?)
}
