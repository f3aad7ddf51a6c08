//! `beeline ps`: the processes that carry probes.

use crate::context::Context;
use crate::output::table::Table;
use anyhow::Result;
use beeline_inject::Attached;
use serde_json::{Value, json};

pub(crate) fn run(context: &mut Context) -> Result<()> {
    let ours = context.existing()?.map(|engine| engine.store().uuid());
    let attached = beeline_inject::attached_processes();
    if context.json {
        return Ok(context.out.json(&attached.iter().map(|it| to_json(it, ours)).collect())?);
    }
    if attached.is_empty() {
        return context.nothing_to_list("attached processes");
    }
    let mut table = Table::new(&[
        "PID>",
        "COMMAND",
        "STORE",
        "SITES>",
        "LINKS>",
        "PROGRAMS>",
        "MAPS>",
        "THREADS>",
        "MEMORY>",
        "",
    ]);
    for it in &attached {
        let store = if Some(it.store_uuid) == ours { "this" } else { "another" };
        table.row([
            it.pid.to_string(),
            command(it.pid),
            store.into(),
            it.sites.len().to_string(),
            it.links().len().to_string(),
            it.programs.len().to_string(),
            it.maps.len().to_string(),
            it.threads.to_string(),
            format!("{} kB", it.mapped_bytes / 1024),
            if it.incomplete { "interrupted: attach or detach again" } else { "" }.into(),
        ]);
    }
    Ok(context.out.text(&table.text())?)
}

/// The name of a process, empty when it is gone.
fn command(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn to_json(it: &Attached, ours: Option<[u64; 2]>) -> Value {
    json!({
        "pid": it.pid,
        "command": command(it.pid),
        "this_store": Some(it.store_uuid) == ours,
        "incomplete": it.incomplete,
        "sites": it.sites.iter().map(|site| json!({
            "address": format!("{:#x}", site.address),
            "links": site.links,
            "in_place": site.in_place,
        })).collect::<Vec<_>>(),
        "links": it.links(),
        "programs": it.programs,
        "maps": it.maps,
        "threads": it.threads,
        "bytes_mapped": it.mapped_bytes,
    })
}
