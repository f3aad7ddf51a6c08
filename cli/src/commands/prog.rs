//! `beeline prog`: list, show, dump and run programs.

use super::load::{place_name, places_json};
use crate::args::{Prog, ProgDump, ProgJited, ProgRun, ProgXlated};
use crate::context::Context;
use crate::output::hex;
use crate::output::table::Table;
use crate::output::time::{age, nanoseconds, utc};
use crate::resolve;
use anyhow::{Context as _, Result, bail};
use beeline_engine::{HostFunction, ProgramEntry, program_type_name};
use serde_json::{Value, json};
use std::io::Read as _;

pub(crate) fn run(context: &mut Context, command: &Prog) -> Result<()> {
    match command {
        Prog::List(which) => list(context, &which.which),
        Prog::Show(which) => show(context, &which.which),
        Prog::Dump(ProgDump::Xlated(args)) => xlated(context, args),
        Prog::Dump(ProgDump::Jited(args)) => jited(context, args),
        Prog::Run(args) => test_run(context, args),
    }
}

fn found(context: &Context, words: &[String]) -> Result<Vec<ProgramEntry>> {
    match context.existing()? {
        Some(engine) => resolve::programs(context, &engine, words),
        None if words.is_empty() => Ok(Vec::new()),
        None => Err(context.nothing_loaded()),
    }
}

fn list(context: &mut Context, words: &[String]) -> Result<()> {
    let programs = found(context, words)?;
    if context.json {
        return Ok(context.out.json(&programs.iter().map(to_json).collect())?);
    }
    if programs.is_empty() {
        return context.nothing_to_list("programs");
    }
    let mut table = Table::new(&["ID>", "NAME", "OBJECT", "TYPE", "SECTION", "INSNS>", "BYTES>", "LOADED"]);
    for ProgramEntry { object, program } in programs {
        table.row([
            program.id.to_string(),
            program.name,
            object,
            program_type_name(program.prog_type).to_owned(),
            program.section,
            program.insns.len().to_string(),
            program.code.len().to_string(),
            format!("{} ago", age(program.loaded_at)),
        ]);
    }
    Ok(context.out.text(&table.text())?)
}

fn show(context: &mut Context, words: &[String]) -> Result<()> {
    let programs = found(context, words)?;
    if context.json {
        return Ok(context.out.json(&programs.iter().map(to_json).collect())?);
    }
    for ProgramEntry { object, program } in &programs {
        let out = &mut context.out;
        let gpl = if is_gpl(&program.license) { "  gpl" } else { "" };
        out.line(format_args!(
            "{}: {}  name {}  tag {}{gpl}",
            program.id,
            program_type_name(program.prog_type).to_owned(),
            program.name,
            hex::tag(program.tag)
        ))?;
        out.line(format_args!("\tobject {object}  section {}", program.section))?;
        out.line(format_args!("\tloaded_at {}  uid {}", utc(program.loaded_at), program.uid))?;
        let (xlated, jited) = (program.insns.len() * 8, program.code.len());
        let maps: Vec<String> = program.map_ids.iter().map(u32::to_string).collect();
        let maps = if maps.is_empty() { String::new() } else { format!("  map_ids {}", maps.join(",")) };
        out.line(format_args!("\txlated {xlated}B  jited {jited}B{maps}"))?;
        let verified = program.verified;
        out.line(format_args!(
            "\tverified: {} insns processed, {} states, {}",
            verified.insns_processed,
            verified.states,
            nanoseconds(verified.time_ns)
        ))?;
        let needs = program.needs;
        let mut wants = vec![format!("{}B stack", needs.stack_bytes)];
        wants.push(format!("{} registers of the context", needs.context.0.count_ones()));
        wants.extend(needs.cpu.then(|| "its CPU's data".to_owned()));
        wants.extend(needs.tail_calls.then(|| "tail calls".to_owned()));
        out.line(format_args!("\tuses {}", wants.join(", ")))?;
        for function in &program.host_functions {
            out.line(format_args!("\tcalls {}", host_function(function)))?;
        }
    }
    Ok(())
}

/// `NAME = PATH:SYMBOL`, of a function of the target that a program calls.
pub(crate) fn host_function(function: &HostFunction) -> String {
    let place = function.target.places.first().map(place_name).unwrap_or_default();
    format!("host function {} = {}:{place}", function.name, function.target.path.display())
}

/// The same for JSON.
pub(crate) fn host_functions_json(functions: &[HostFunction]) -> Value {
    let json = |it: &HostFunction| json!({"name": it.name, "path": it.target.path, "places": places_json(&it.target)});
    functions.iter().map(json).collect()
}

fn to_json(entry: &ProgramEntry) -> Value {
    let program = &entry.program;
    json!({
        "id": program.id,
        "type": program_type_name(program.prog_type),
        "name": program.name,
        "tag": hex::tag(program.tag),
        "gpl_compatible": is_gpl(&program.license),
        "object": entry.object,
        "section": program.section,
        "loaded_at": program.loaded_at,
        "uid": program.uid,
        "bytes_xlated": program.insns.len() * 8,
        "jited": true,
        "bytes_jited": program.code.len(),
        "map_ids": program.map_ids,
        "verified_insns": program.verified.insns_processed,
        "needs_cpu": program.needs.cpu,
        "stack_bytes": program.needs.stack_bytes,
        "host_functions": host_functions_json(&program.host_functions),
    })
}

/// `include/linux/license.h`.
fn is_gpl(license: &str) -> bool {
    ["GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"]
        .contains(&license)
}

fn xlated(context: &mut Context, args: &ProgXlated) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let entry = resolve::program(&engine, &args.program)?;
    let lines = engine.xlated(&entry.program)?;
    if context.json {
        let line =
            |it: &beeline_engine::XlatedLine| json!({"pc": it.pc, "disasm": it.text, "src": it.source});
        return Ok(context.out.json(&lines.iter().map(line).collect())?);
    }
    for line in lines {
        if let Some(name) = &line.function {
            context.out.line(format_args!("{name}:"))?;
        }
        if args.linum
            && let Some(source) = &line.source
        {
            context.out.line(format_args!("; {source}"))?;
        }
        context.out.line(format_args!("{:4}: {}", line.pc, line.text))?;
        if args.opcodes {
            context.out.line(format_args!("       {}", hex::plain(&line.bytes, "       ")))?;
        }
    }
    Ok(())
}

fn jited(context: &mut Context, args: &ProgJited) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let entry = resolve::program(&engine, &args.program)?;
    let lines = engine.jited(&entry.program)?;
    if context.json {
        let line = |it: &beeline_engine::JitedLine| json!({"offset": it.offset, "disasm": it.text, "pc": it.pc, "bytes": hex::json(&it.bytes)});
        return Ok(context.out.json(&lines.iter().map(line).collect())?);
    }
    for line in lines {
        if let Some(name) = &line.function {
            context.out.line(format_args!("{name}:"))?;
        }
        let bytes =
            if args.opcodes { format!("{:<24} ", hex::plain(&line.bytes, "")) } else { String::new() };
        let pc = line.pc.map(|pc| format!("  ; insn {pc}")).unwrap_or_default();
        context.out.line(format_args!("{:5x}: {bytes}{}{pc}", line.offset, line.text))?;
    }
    Ok(())
}

fn test_run(context: &mut Context, args: &ProgRun) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let entry = resolve::program(&engine, &args.program)?;
    let input = match &args.ctx_in {
        Some(path) => read_context(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => Vec::new(),
    };
    let options =
        beeline_engine::RunOptions { context: input, repeat: args.repeat, interpreter: args.interpreter };
    let run = engine.test_run(&entry.program, &options)?;
    if context.json {
        return Ok(context.out.json(&json!({"retval": run.result, "duration": run.ns_per_run}))?);
    }
    Ok(context.out.line(format_args!(
        "Return value: {}, duration{}: {}ns",
        run.result,
        if args.repeat > 1 { " (average)" } else { "" },
        run.ns_per_run
    ))?)
}

/// Most bytes of a context: no program type has a larger one.
const CONTEXT_MAX: u64 = 1 << 16;

/// Reads a context's bytes from a file, which may be a device that never ends.
fn read_context(path: &std::path::Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(CONTEXT_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > CONTEXT_MAX {
        bail!("it has more than {CONTEXT_MAX} bytes, and no context has");
    }
    Ok(bytes)
}
