//! `beeline link`: list links, turn them on and off.

use super::load::{kind_name, place, place_name, places_json};
use crate::args::Link;
use crate::bridge::resync;
use crate::context::Context;
use crate::output::table::Table;
use crate::resolve;
use anyhow::Result;
use beeline_engine::LinkEntry;
use beeline_inject::Attached;
use serde_json::{Value, json};

pub(crate) fn run(context: &mut Context, command: &Link) -> Result<()> {
    match command {
        Link::List(which) => list(context, &which.which),
        Link::Show(which) => show(context, &which.which),
        Link::Enable(one) => set(context, &one.link, true),
        Link::Disable(one) => set(context, &one.link, false),
        Link::Update(args) => update(context, &args.link, &args.program),
        Link::Detach(one) => detach(context, &one.link),
    }
}

fn found(context: &Context, words: &[String]) -> Result<Vec<LinkEntry>> {
    match context.existing()? {
        Some(engine) => resolve::links(context, &engine, words),
        None if words.is_empty() => Ok(Vec::new()),
        None => Err(context.nothing_loaded()),
    }
}

fn list(context: &mut Context, words: &[String]) -> Result<()> {
    let links = found(context, words)?;
    if context.json {
        return Ok(context.out.json(&links.iter().map(to_json).collect())?);
    }
    if links.is_empty() {
        return context.nothing_to_list("links");
    }
    let mut table = Table::new(&["ID>", "NAME", "OBJECT", "TYPE", "ENABLED", "MISSED>", "TARGET"]);
    for LinkEntry { object, file, .. } in &links {
        table.row([
            file.link.id.to_string(),
            file.link.name.clone(),
            object.clone(),
            kind_name(file.link.kind, &file.link.target).into(),
            if file.is_enabled() { "yes" } else { "no" }.into(),
            file.missed().to_string(),
            place(&file.link.target),
        ]);
    }
    Ok(context.out.text(&table.text())?)
}

fn show(context: &mut Context, words: &[String]) -> Result<()> {
    let links = found(context, words)?;
    let attached = attached(context)?;
    if context.json {
        let whole = |entry: &LinkEntry| {
            let mut value = to_json(entry);
            let processes = by_process(&attached, entry.file.link.id).into_iter();
            let counted = entry.file.link.count_hits;
            value["processes"] = processes
                .map(|(pid, places, hits, missed)| {
                    json!({"pid": pid, "places": places, "hits": counted.then_some(hits), "missed": missed})
                })
                .collect();
            value
        };
        return Ok(context.out.json(&links.iter().map(whole).collect())?);
    }
    for LinkEntry { object, program, file } in &links {
        let (out, link) = (&mut context.out, &file.link);
        out.line(format_args!(
            "{}: {}  name {}  prog {} ({program})",
            link.id,
            kind_name(link.kind, &link.target),
            link.name,
            link.prog_id
        ))?;
        out.line(format_args!("\tobject {object}  target {}", place(&link.target)))?;
        let build_id = match link.target.build_id.as_slice() {
            [] => "none".to_owned(),
            bytes => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        out.line(format_args!("\tbuild-id {build_id}"))?;
        for place in &link.target.places {
            let semaphore = place.semaphore.map(|at| format!("  semaphore {at:#x}")).unwrap_or_default();
            let (name, at, cookie) = (place_name(place), place.file_offset, place.cookie);
            out.line(format_args!("\tat {name}  file offset {at:#x}  cookie {cookie:#x}{semaphore}"))?;
        }
        let enabled = if file.is_enabled() { "enabled" } else { "disabled" };
        let pid = link.pid.map(|pid| format!("  pid {pid}")).unwrap_or_default();
        let hits = if link.count_hits { format!("  hits {}", file.hits()) } else { String::new() };
        let owner = file.owner().map(|tid| format!("  owner {tid}")).unwrap_or_default();
        out.line(format_args!("\t{enabled}{hits}  missed {}{pid}{owner}", file.missed()))?;
        for (pid, places, hits, missed) in by_process(&attached, link.id) {
            let hits = if link.count_hits { format!("  hits {hits}") } else { String::new() };
            let plural = if places == 1 { "" } else { "s" };
            out.line(format_args!("\tprocess {pid}: {places} place{plural}{hits}  missed {missed}"))?;
        }
    }
    Ok(())
}

fn set(context: &mut Context, words: &[String], enabled: bool) -> Result<()> {
    if words.is_empty() {
        anyhow::bail!("say which link");
    }
    let done = if enabled { "enabled" } else { "disabled" };
    let links = found(context, words)?;
    for entry in &links {
        entry.file.set_enabled(enabled);
        if !context.json {
            context.out.line(format_args!("{done} {}/{}", entry.object, entry.file.link.name))?;
        }
    }
    if context.json {
        context.out.json(&links.iter().map(to_json).collect())?;
    }
    Ok(())
}

fn update(context: &mut Context, link: &str, program: &str) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let program = resolve::program(&engine, &[program.to_owned()])?;
    let links = resolve::links(context, &engine, &[link.to_owned()])?;
    let [entry] = links.as_slice() else {
        anyhow::bail!("{} links are called {link}; say OBJECT/NAME or the id", links.len());
    };
    engine.update_link(entry, &program)?;
    let id = entry.file.link.id;
    let processes = resync(&engine, Some(&[id]));
    if context.json {
        context.out.json(&json!({"link": id, "prog_id": program.program.id, "processes": processes}))?;
    } else {
        let (object, name) = (&entry.object, &entry.file.link.name);
        let to = format!("{}/{} (id {})", program.object, program.program.name, program.program.id);
        let count = processes.len();
        let plural = if count == 1 { "" } else { "es" };
        context.out.line(format_args!("{object}/{name} runs {to} now, in {count} process{plural}"))?;
    }
    Ok(())
}

fn detach(context: &mut Context, words: &[String]) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let links = resolve::links(context, &engine, words)?;
    for entry in &links {
        engine.remove_link(entry)?;
        if !context.json {
            context.out.line(format_args!("detached {}/{}", entry.object, entry.file.link.name))?;
        }
    }
    let ids: Vec<u32> = links.iter().map(|entry| entry.file.link.id).collect();
    let processes = resync(&engine, Some(&ids));
    if context.json {
        context.out.json(&json!({"links": ids, "processes": processes}))?;
    }
    Ok(())
}

/// What each process that carries a link knows of it: process id, places, hits, missed hits.
fn by_process(attached: &[Attached], link: u32) -> Vec<(i32, usize, u64, u64)> {
    let of = |it: &Attached| {
        let here = it.sites.iter().flat_map(|site| &site.counts).filter(|it| it.link_id == link);
        let sum = here.fold((0, 0, 0), |sum, it| (sum.0 + 1, sum.1 + it.hits, sum.2 + it.missed));
        (sum.0 > 0).then_some((it.pid, sum.0, sum.1, sum.2))
    };
    attached.iter().filter_map(of).collect()
}

/// The processes that carry links of this store.
fn attached(context: &Context) -> Result<Vec<Attached>> {
    let Some(engine) = context.existing()? else { return Ok(Vec::new()) };
    let ours = engine.store().uuid();
    Ok(beeline_inject::attached_processes().into_iter().filter(|it| it.store_uuid == ours).collect())
}

fn to_json(entry: &LinkEntry) -> Value {
    let link = &entry.file.link;
    // The first place by itself too: mostly it is the only one.
    let first = link.target.places.first();
    json!({
        "id": link.id,
        "type": kind_name(link.kind, &link.target),
        "name": link.name,
        "object": entry.object,
        "prog_id": link.prog_id,
        "prog": entry.program,
        "path": link.target.path,
        "symbol": first.and_then(|place| place.symbol.as_ref()),
        "offset": first.map(|place| place.offset),
        "file_offset": first.map(|place| place.file_offset),
        "cookie": first.map(|place| place.cookie),
        "places": places_json(&link.target),
        "build_id": link.target.build_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "pid": link.pid,
        "hits": link.count_hits.then(|| entry.file.hits()),
        "enabled": entry.file.is_enabled(),
        "missed": entry.file.missed(),
        "owner": entry.file.owner(),
    })
}
