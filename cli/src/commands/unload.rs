//! `beeline unload`: objects out of the store.

use crate::args::Unload;
use crate::context::Context;
use anyhow::{Context as _, Result};

pub(crate) fn run(context: &mut Context, args: &Unload) -> Result<()> {
    let Some(engine) = context.existing()? else {
        return if args.all { Ok(()) } else { Err(context.nothing_loaded()) };
    };
    let names = if args.all { engine.store().object_names()? } else { args.names.clone() };
    for name in &names {
        engine.unload(name).with_context(|| format!("cannot unload {name}"))?;
        if !context.json {
            context.out.line(format_args!("unloaded {name}"))?;
        }
    }
    if context.json {
        context.out.json(&serde_json::json!({ "unloaded": names }))?;
    }
    Ok(())
}
