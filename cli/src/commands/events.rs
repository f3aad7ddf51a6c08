//! `beeline events`: follows a ring buffer or perf event array.

use crate::args::Events;
use crate::context::Context;
use crate::output::{hex, value, warn};
use crate::resolve;
use anyhow::{Context as _, Result, bail};
use beeline_engine::{Event, Types, map_type_name};
use serde_json::{Value, json};
use std::time::Duration;

/// How long to sleep at most before looking again.
const WAIT: Duration = Duration::from_millis(250);

pub(crate) fn run(context: &mut Context, args: &Events) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let map = resolve::only_map(&engine, &args.map)?;
    let types = engine.map_types(&map)?;
    let event_type = match &args.type_name {
        Some(name) => {
            let Some(types) = types.types() else { bail!("map {} has no BTF to find {name} in", map.name) };
            let Some(id) = types.find(name) else {
                bail!(
                    "there is no type {name} in the BTF of map {}; its structs are: {}",
                    map.name,
                    types.struct_names().join(", ")
                )
            };
            Some(id)
        }
        None => types.value_type(),
    };
    let typed = types.types().zip(event_type);
    let mut reader = map.file.events().with_context(|| {
        let kind = map_type_name(map.file.shape().map_type);
        format!("map {} ({kind}) has no events: it is neither a ring buffer nor a perf event array", map.name)
    })?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        match reader.poll() {
            Some(event) => {
                left -= u64::from(print(context, &event, typed)?);
            }
            None if args.no_follow => break,
            None => {
                context.out.flush()?;
                reader.wait(WAIT);
            }
        }
    }
    Ok(())
}

/// Prints an event. True when it counts.
fn print(context: &mut Context, event: &Event, typed: Option<(&Types, u32)>) -> Result<bool> {
    match event {
        Event::Record { cpu, data } => {
            let formatted = typed.and_then(|(types, id)| types.format(id, data)).map(|it| value::json(&it));
            record(context, *cpu, data, formatted)?;
            return Ok(true);
        }
        Event::Lost { cpu, count } if context.json => {
            context.out.json(&json!({"cpu": cpu, "lost": count}))?
        }
        Event::Lost { cpu, count } => warn(format_args!("{count} events of CPU {cpu} were lost")),
        Event::Corrupt { cpu } => warn(format_args!("the ring of CPU {cpu} was damaged, and emptied")),
    }
    Ok(false)
}

fn record(context: &mut Context, cpu: u32, data: &[u8], formatted: Option<Value>) -> Result<()> {
    if context.json {
        let event = match formatted {
            Some(formatted) => json!({"cpu": cpu, "value": formatted}),
            None => json!({"cpu": cpu, "data": hex::json(data)}),
        };
        return Ok(context.out.json(&event)?);
    }
    match formatted {
        Some(formatted) => context.out.line(formatted)?,
        None => context.out.text(&hex::dump(data))?,
    }
    Ok(())
}
