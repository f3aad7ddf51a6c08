//! `beeline link`: list links, turn them on and off.

use super::load::{kind_name, place, place_name, places_json};
use super::prog::{host_function, host_functions_json};
use crate::args::Link;
use crate::bridge::{Resynced, resync};
use crate::context::Context;
use crate::output::say;
use crate::output::table::Table;
use crate::resolve;
use anyhow::{Result, bail};
use beeline_engine::{
    EngineError, Link as StoredLink, LinkEntry, LinkOutcome, ProcessRecord, RefusedPlace, TargetForm,
};
use beeline_inject::Attached;
use serde_json::{Value, json};
use std::collections::BTreeMap;

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
            place(file.link.kind, &file.link.target),
        ]);
    }
    Ok(context.out.text(&table.text())?)
}

fn show(context: &mut Context, words: &[String]) -> Result<()> {
    let links = found(context, words)?;
    let processes = Processes::of(context)?;
    let programs = match context.existing()? {
        Some(engine) => engine.programs()?.items,
        None => Vec::new(),
    };
    let hosts_of = |link: &StoredLink| {
        let program = programs.iter().find(|entry| entry.program.id == link.prog_id);
        program.map_or(&[][..], |entry| &entry.program.host_functions)
    };
    if context.json {
        let whole = |entry: &LinkEntry| {
            let mut value = to_json(entry);
            let link = &entry.file.link;
            value["host_functions"] = host_functions_json(hosts_of(link));
            value["processes"] = processes.of_link(link.id).iter().map(|it| it.to_json(link)).collect();
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
        out.line(format_args!("\tobject {object}  target {}", place(link.kind, &link.target)))?;
        if !is_call(link) {
            let build_id = match link.target.build_id.as_slice() {
                [] => "none".to_owned(),
                bytes => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            };
            out.line(format_args!("\tbuild-id {build_id}"))?;
        }
        for place in &link.target.places {
            if is_call(link) {
                out.line(format_args!("\tat every such call  cookie {:#x}", place.cookie))?;
                continue;
            }
            let semaphore = place.semaphore.map(|at| format!("  semaphore {at:#x}")).unwrap_or_default();
            let (name, at, cookie) = (place_name(place), place.file_offset, place.cookie);
            out.line(format_args!("\tat {name}  file offset {at:#x}  cookie {cookie:#x}{semaphore}"))?;
        }
        for function in hosts_of(link) {
            out.line(format_args!("\tcalls {}", host_function(function)))?;
        }
        let enabled = if file.is_enabled() { "enabled" } else { "disabled" };
        let pid = link.pid.map(|pid| format!("  pid {pid}")).unwrap_or_default();
        let hits = if link.count_hits { format!("  hits {}", file.hits()) } else { String::new() };
        let owner = file.owner().map(|tid| format!("  owner {tid}")).unwrap_or_default();
        let changes = if link.may_override { "  may change system calls" } else { "" };
        out.line(format_args!("\t{enabled}{hits}  missed {}{pid}{owner}{changes}", file.missed()))?;
        for process in processes.of_link(link.id) {
            for text in process.lines(link) {
                out.line(format_args!("\t{text}"))?;
            }
        }
    }
    Ok(())
}

fn set(context: &mut Context, words: &[String], enabled: bool) -> Result<()> {
    if words.is_empty() {
        bail!("say which link");
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
        bail!("{} links are called {link}; say OBJECT/NAME or the id", links.len());
    };
    engine.update_link(entry, &program).inspect_err(|error| {
        if let EngineError::NoRight { .. } = error {
            say("a link has that right when it is loaded with --allow-override");
        }
    })?;
    let id = entry.file.link.id;
    let Resynced { done: processes, left } = resync(&engine, Some(&[id]));
    if context.json {
        context.out.json(
            &json!({"link": id, "prog_id": program.program.id, "processes": processes, "left": left}),
        )?;
    } else {
        let (object, name) = (&entry.object, &entry.file.link.name);
        let to = format!("{}/{} (id {})", program.object, program.program.name, program.program.id);
        let count = processes.len();
        let plural = if count == 1 { "" } else { "es" };
        context.out.line(format_args!("{object}/{name} runs {to} now, in {count} process{plural}"))?;
    }
    if !left.is_empty() {
        let pids: Vec<String> = left.iter().map(i32::to_string).collect();
        bail!(
            "still with the program as it was: process {}; update the link again, to the same program",
            pids.join(", ")
        );
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
    let processes = resync(&engine, Some(&ids)).done;
    if context.json {
        context.out.json(&json!({"links": ids, "processes": processes}))?;
    }
    Ok(())
}

/// The processes of this store, as they say themselves, and what is known of them.
struct Processes {
    attached: Vec<Attached>,
    records: Vec<ProcessRecord>,
}

/// A link in one process.
struct InProcess<'a> {
    pid: i32,
    /// Places at which it is in force.
    places: usize,
    /// Those of them that are an `int3`.
    breakpoints: usize,
    hits: u64,
    missed: u64,
    /// What became of it there when it was attached.
    outcome: Option<&'a LinkOutcome>,
}

impl Processes {
    fn of(context: &Context) -> Result<Processes> {
        let Some(engine) = context.existing()? else {
            return Ok(Processes { attached: Vec::new(), records: Vec::new() });
        };
        let ours = engine.store().uuid();
        let attached = beeline_inject::attached_processes().into_iter().filter(|it| it.store_uuid == ours);
        Ok(Processes { attached: attached.collect(), records: engine.store().processes()? })
    }

    /// Each process that carries the link, or was to.
    fn of_link(&self, link: u32) -> Vec<InProcess<'_>> {
        let mut found: BTreeMap<i32, InProcess<'_>> = BTreeMap::new();
        let none = |pid| InProcess { pid, places: 0, breakpoints: 0, hits: 0, missed: 0, outcome: None };
        for attached in &self.attached {
            for site in attached.sites.iter().filter(|site| site.links.contains(&link)) {
                let here = found.entry(attached.pid).or_insert_with(|| none(attached.pid));
                here.places += 1;
                here.breakpoints += usize::from(site.is_breakpoint);
                for counts in site.counts.iter().filter(|it| it.link_id == link) {
                    here.hits += counts.hits;
                    here.missed += counts.missed;
                }
            }
        }
        for record in &self.records {
            let Ok(pid) = i32::try_from(record.pid) else { continue };
            if let Some(outcome) = record.links.iter().find(|it| it.link_id == link) {
                found.entry(pid).or_insert_with(|| none(pid)).outcome = Some(outcome);
            }
        }
        found.into_values().collect()
    }
}

impl InProcess<'_> {
    fn refused(&self) -> &[RefusedPlace] {
        self.outcome.map_or(&[], |outcome| &outcome.refused)
    }

    fn state(&self) -> &'static str {
        match self.outcome {
            _ if self.places > 0 => "in force",
            Some(outcome) if !outcome.refused.is_empty() => "refused",
            Some(outcome) if outcome.in_force > 0 => "not in force any more",
            _ => "not mapped",
        }
    }

    fn lines(&self, link: &StoredLink) -> Vec<String> {
        let InProcess { pid, places, hits, missed, .. } = self;
        let mut lines = Vec::new();
        if *places > 0 {
            let hits = if link.count_hits { format!("  hits {hits}") } else { String::new() };
            let plural = if *places == 1 { "" } else { "s" };
            let breakpoints = match self.breakpoints {
                0 => String::new(),
                count => format!(" ({count} int3)"),
            };
            // How many calls are traced, `ps -v` tells: all links have the same.
            let what = if is_call(link) {
                "in force".to_owned()
            } else {
                format!("{places} place{plural}{breakpoints}")
            };
            lines.push(format!("process {pid}: {what}{hits}  missed {missed}"));
        } else if self.refused().is_empty() {
            lines.push(format!("process {pid}: {}", self.state()));
        }
        let refused = |refused: &RefusedPlace| {
            let at = place_of(link, refused).map(|name| format!(" at {name}")).unwrap_or_default();
            format!("process {pid}: refused{at}: {}", refused.reason)
        };
        lines.extend(self.refused().iter().map(refused));
        lines
    }

    fn to_json(&self, link: &StoredLink) -> Value {
        let refused = |refused: &RefusedPlace| {
            json!({
                "place": place_of(link, refused),
                "file_offset": refused.file_offset,
                "reason": refused.reason,
            })
        };
        json!({
            "pid": self.pid,
            "state": self.state(),
            "places": (!is_call(link)).then_some(self.places),
            "breakpoints": self.breakpoints,
            "hits": link.count_hits.then_some(self.hits),
            "missed": self.missed,
            "not_mapped": self.outcome.map_or(0, |outcome| outcome.not_mapped),
            "refused": self.refused().iter().map(refused).collect::<Vec<_>>(),
        })
    }
}

/// The link is for system calls: it is in no file.
fn is_call(link: &StoredLink) -> bool {
    matches!(link.target.form, TargetForm::SystemCall { .. })
}

/// The name of a refused place of a link.
fn place_of(link: &StoredLink, refused: &RefusedPlace) -> Option<String> {
    let place = link.target.places.iter().find(|place| Some(place.file_offset) == refused.file_offset)?;
    Some(place_name(place))
}

fn to_json(entry: &LinkEntry) -> Value {
    let link = &entry.file.link;
    // The first place by itself too: mostly it is the only one.
    let first = link.target.places.first();
    let in_file = first.filter(|_| !is_call(link));
    json!({
        "id": link.id,
        "type": kind_name(link.kind, &link.target),
        "name": link.name,
        "object": entry.object,
        "prog_id": link.prog_id,
        "prog": entry.program,
        "path": link.target.path,
        "symbol": first.and_then(|place| place.symbol.as_ref()),
        "offset": in_file.map(|place| place.offset),
        "file_offset": in_file.map(|place| place.file_offset),
        "cookie": first.map(|place| place.cookie),
        "places": places_json(&link.target),
        "build_id": link.target.build_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "pid": link.pid,
        "may_override": link.may_override,
        "hits": link.count_hits.then(|| entry.file.hits()),
        "enabled": entry.file.is_enabled(),
        "missed": entry.file.missed(),
        "owner": entry.file.owner(),
    })
}
