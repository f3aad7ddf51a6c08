//! `beeline ps`: the processes that carry probes.

use crate::context::Context;
use crate::output::table::Table;
use anyhow::Result;
use beeline_inject::{Attached, CallCoverage, call_coverage};
use serde_json::{Value, json};

pub(crate) fn run(context: &mut Context) -> Result<()> {
    let ours = context.existing()?.map(|engine| engine.store().uuid());
    let attached = beeline_inject::attached_processes();
    if context.json {
        return Ok(context.out.json(
            &attached.iter().map(|it| to_json(it, ours, coverage(context.verbose, it).as_ref())).collect(),
        )?);
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
    context.out.text(&table.text())?;
    for it in &attached {
        let breakpoints = it.sites.iter().filter(|site| site.is_breakpoint).count();
        if context.verbose > 0 && breakpoints > 0 {
            let plural = if breakpoints == 1 { "site is an int3" } else { "sites are int3" };
            context.out.line(format_args!(
                "process {}: {breakpoints} {plural}; SIGTRAP is kept deliverable",
                it.pid
            ))?;
        }
        if let Some(coverage) = coverage(context.verbose, it) {
            show_calls(context, it.pid, &coverage)?;
        }
    }
    Ok(())
}

/// What of the process's system calls is traced; none when nothing is, or nobody wants to know.
fn coverage(verbose: u8, it: &Attached) -> Option<CallCoverage> {
    // It is found out from the files of the process, which takes a moment.
    let found = if verbose > 0 { call_coverage(it.pid).ok() } else { None };
    found.filter(|found| found.patched > 0)
}

fn show_calls(context: &mut Context, pid: i32, coverage: &CallCoverage) -> Result<()> {
    let CallCoverage { found, patched, unwanted, refused, unread, dispatched } = coverage;
    let out = &mut context.out;
    let unwanted = if *unwanted > 0 { format!(", {unwanted} wanted by nobody") } else { String::new() };
    out.line(format_args!(
        "process {pid}: {found} system calls found, {patched} traced, {} refused{unwanted}",
        refused.len()
    ))?;
    if let Some((calls, missed)) = dispatched {
        out.line(format_args!(
            "process {pid}: calls of code made at run time are traced: {calls} so far, {missed} missed; SIGSYS is kept deliverable"
        ))?;
    }
    for (address, reason) in refused {
        out.line(format_args!("  {address:#x}  {reason}"))?;
    }
    for (file, reason) in unread {
        out.line(format_args!("  {file}: {reason}"))?;
    }
    Ok(())
}

fn calls_json(coverage: &CallCoverage) -> Value {
    let CallCoverage { found, patched, unwanted, refused, unread, dispatched } = coverage;
    json!({
        "found": found,
        "patched": patched,
        "unwanted": unwanted,
        "refused": refused.iter().map(|(address, reason)| json!({
            "address": format!("{address:#x}"),
            "reason": reason,
        })).collect::<Vec<_>>(),
        "unread": unread.iter().map(|(file, reason)| json!({"file": file, "reason": reason})).collect::<Vec<_>>(),
        "dispatched": dispatched.map(|(calls, missed)| json!({"calls": calls, "missed": missed})),
    })
}

/// The name of a process, empty when it is gone.
fn command(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn to_json(it: &Attached, ours: Option<[u64; 2]>, calls: Option<&CallCoverage>) -> Value {
    let mut value = json!({
        "pid": it.pid,
        "command": command(it.pid),
        "this_store": Some(it.store_uuid) == ours,
        "incomplete": it.incomplete,
        "sites": it.sites.iter().map(|site| json!({
            "address": format!("{:#x}", site.address),
            "links": site.links,
            "in_place": site.in_place,
            "breakpoint": site.is_breakpoint,
        })).collect::<Vec<_>>(),
        "links": it.links(),
        "programs": it.programs,
        "maps": it.maps,
        "threads": it.threads,
        "bytes_mapped": it.mapped_bytes,
    });
    if let Some(calls) = calls {
        value["system_calls"] = calls_json(calls);
    }
    value
}
