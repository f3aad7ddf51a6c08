//! `beeline unload`: objects out of the store.

use crate::args::Unload;
use crate::bridge::resync;
use crate::context::Context;
use anyhow::{Context as _, Result};

pub(crate) fn run(context: &mut Context, args: &Unload) -> Result<()> {
    let Some(engine) = context.existing()? else {
        return if args.all { Ok(()) } else { Err(context.nothing_loaded()) };
    };
    let names = if args.all { engine.unload_all()? } else { args.names.clone() };
    for name in &names {
        if !args.all {
            engine.unload(name).with_context(|| format!("cannot unload {name}"))?;
        }
        if !context.json {
            context.out.line(format_args!("unloaded {name}"))?;
        }
    }
    // The links are off everywhere by now; this takes their jumps out.
    resync(&engine, None);
    if context.json {
        context.out.json(&serde_json::json!({ "unloaded": names }))?;
    }
    Ok(())
}
