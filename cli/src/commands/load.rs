//! `beeline load`: from object files to the store.

use crate::args::Load;
use crate::context::Context;
use crate::output::progress::Progress;
use crate::output::time::nanoseconds;
use crate::output::{say, warn};
use anyhow::{Result, bail};
use beeline_engine::{
    AttachSpec, CallContext, Engine, EngineError, HostFunctionSpec, LoadOptions, Loaded, LoadedProgram,
    ProbeKind, Target, TargetForm, TargetPlace, system_call_by_number,
};
use serde_json::{Value, json};
use std::path::Path;

pub(crate) fn run(context: &mut Context, args: &Load) -> Result<()> {
    let for_one = args.name.is_some() || !args.attach.is_empty() || !args.host_functions.is_empty();
    if args.files.len() > 1 && for_one {
        bail!("--name, --attach and --host-function are for one file; load the files one by one");
    }
    let attach = args.attach.iter().map(|text| text.parse()).collect::<Result<Vec<AttachSpec>, _>>()?;
    let options = LoadOptions {
        name: args.name.clone(),
        btf: args.btf.clone(),
        attach,
        host_functions: host_functions(&args.host_functions)?,
        pid: args.pid,
        cookie: args
            .cookie
            .iter()
            .filter(|it| it.program.is_none())
            .map(|it| it.value)
            .next_back()
            .unwrap_or(0),
        program_cookies: args.cookie.iter().filter_map(|it| Some((it.program.clone()?, it.value))).collect(),
        count_hits: args.count_hits,
        allow_override: args.allow_override,
        own: args.own,
    };
    if let Some(pid) = args.pid
        && !Path::new("/proc").join(pid.to_string()).exists()
    {
        bail!("--pid: there is no process {pid}");
    }
    let engine = context.engine()?;
    let mut owned = Vec::new();
    let mut reports = Vec::new();
    for file in &args.files {
        let loaded = load(context, &engine, file, &options)?;
        match context.json {
            true => reports.push(to_json(&loaded)),
            false => show(context, &loaded)?,
        }
        for program in &loaded.programs {
            if let Some(reason) = &program.unattached {
                warn(format_args!("{} has no probe: {reason}", program.name));
            }
            if program.links.iter().any(|(_, _, target)| is_never_seen(target)) {
                warn(format_args!("{} will never run: rt_sigreturn is not traced", program.name));
            }
        }
        owned.extend(loaded.ownership.clone());
        // What was loaded is loaded, even if a later file fails.
        context.out.flush()?;
    }
    if context.json {
        context.out.json(&Value::Array(reports))?;
    }
    if !owned.is_empty() {
        context.out.flush()?;
        if context.verbose > 0 {
            say("the links end with this process");
        }
        // A signal ends it: nothing has to be done then that could be left undone.
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

/// No place at which the call is made can be traced: the kernel and unwinders know it by its bytes.
fn is_never_seen(target: &Target) -> bool {
    const RT_SIGRETURN: u32 = 15;
    matches!(target.form, TargetForm::SystemCall { number: Some(RT_SIGRETURN), .. })
}

/// Functions of the targets, as they are registered.
pub(crate) fn host_functions(texts: &[String]) -> Result<Vec<HostFunctionSpec>> {
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

fn load(context: &Context, engine: &Engine, file: &Path, options: &LoadOptions) -> Result<Loaded> {
    let progress = Progress::begin(format!("verifying and compiling {}", file.display()));
    let result = engine.load(file, options);
    drop(progress);
    result.map_err(|error| {
        if let EngineError::Rejected { program, rejection } = &error {
            show_log(context, program, &rejection.log);
            rejection.advice.into_iter().for_each(say);
        }
        if let EngineError::NoRight { .. } = &error {
            say("--allow-override lets its programs change system calls");
        }
        anyhow::Error::new(error).context(format!("cannot load {}", file.display()))
    })
}

/// The end of the verifier's log, or all of it with `-v`.
fn show_log(context: &Context, program: &str, log: &str) {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    let from = if context.verbose > 0 { 0 } else { lines.len().saturating_sub(LINES) };
    say(&format!("-- verifier's log of {program} --"));
    if from > 0 {
        say(&format!("... ({from} lines before, see them with -v)"));
    }
    lines[from..].iter().for_each(|line| say(line));
    say("--");
}

fn show(context: &mut Context, loaded: &Loaded) -> Result<()> {
    let out = &mut context.out;
    out.line(format_args!("loaded {} (id {})", loaded.name, loaded.id))?;
    for map in &loaded.maps {
        let reused = if map.reused { ", pinned: shared with others" } else { "" };
        out.line(format_args!("  map   {:<6} {}  {}{reused}", map.id, map.name, map.type_name))?;
    }
    for program in &loaded.programs {
        let LoadedProgram { id, name, section, insns, code_len, verified, .. } = program;
        let time = nanoseconds(verified.time_ns);
        out.line(format_args!(
            "  prog  {id:<6} {name}  {section}  {insns} insns, {code_len} bytes, verified in {time}"
        ))?;
        for (id, kind, target) in &program.links {
            out.line(format_args!("  link  {id:<6} {} {}", kind_name(*kind, target), place(*kind, target)))?;
        }
    }
    for skipped in &loaded.skipped {
        out.line(format_args!("  left out: {skipped} (SEC(\"?...\"))"))?;
    }
    Ok(())
}

/// `uprobe`, `uretprobe.multi`, `usdt` and so on.
pub(crate) fn kind_name(kind: ProbeKind, target: &Target) -> &'static str {
    let several = matches!(target.form, TargetForm::Pattern(_)) || target.places.len() > 1;
    match (&target.form, kind) {
        (TargetForm::Usdt { .. }, _) => "usdt",
        (TargetForm::SystemCall { context: CallContext::Record, .. }, _) => "tracepoint",
        (TargetForm::SystemCall { context: CallContext::Raw, .. }, _) => "raw_tracepoint",
        (TargetForm::SystemCall { .. }, ProbeKind::Entry) => "ksyscall",
        (TargetForm::SystemCall { .. }, ProbeKind::Return) => "kretsyscall",
        (_, ProbeKind::Entry) if several => "uprobe.multi",
        (_, ProbeKind::Entry) => "uprobe",
        (_, ProbeKind::Return) if several => "uretprobe.multi",
        (_, ProbeKind::Session) => "uprobe.session",
        (_, ProbeKind::Return) => "uretprobe",
    }
}

/// `PATH:SYMBOL+OFFSET`, `PATH:PATTERN (n places)`, `PATH:PROVIDER:NAME`, `syscalls:sys_enter_NAME`.
pub(crate) fn place(kind: ProbeKind, target: &Target) -> String {
    let path = target.path.display();
    let count = match target.places.len() {
        1 => String::new(),
        places => format!(" ({places} places)"),
    };
    match (&target.form, target.places.as_slice()) {
        (TargetForm::SystemCall { number, context }, _) => call_place(kind, *number, *context),
        (TargetForm::Usdt { provider, name }, _) => format!("{path}:{provider}:{name}{count}"),
        (TargetForm::Pattern(pattern), _) => format!("{path}:{pattern}{count}"),
        (TargetForm::Places, places) => {
            const SHOWN_MAX: usize = 4;
            let mut names: Vec<String> = places.iter().take(SHOWN_MAX).map(place_name).collect();
            if places.len() > SHOWN_MAX {
                names.push("...".into());
            }
            format!("{path}:{}{count}", names.join(","))
        }
    }
}

/// The tracepoint or the kernel's function.
fn call_place(kind: ProbeKind, number: Option<u32>, context: CallContext) -> String {
    let when = match kind {
        ProbeKind::Entry => "sys_enter",
        ProbeKind::Return | ProbeKind::Session => "sys_exit",
    };
    let name = number.map(|number| match system_call_by_number(number) {
        Some(call) => call.name.to_owned(),
        None => number.to_string(),
    });
    match (context, name) {
        (CallContext::Record, Some(name)) => format!("syscalls:{when}_{name}"),
        (CallContext::Record, None) => format!("raw_syscalls:{when}"),
        (CallContext::Raw, _) => when.to_owned(),
        (CallContext::Registers, name) => name.unwrap_or_default(),
    }
}

/// `SYMBOL+OFFSET` or an offset in the file.
pub(crate) fn place_name(place: &TargetPlace) -> String {
    match (&place.symbol, place.offset) {
        (Some(symbol), 0) => symbol.clone(),
        (Some(symbol), offset) => format!("{symbol}+{offset:#x}"),
        (None, offset) => format!("{offset:#x}"),
    }
}

/// The places of a link, for JSON.
pub(crate) fn places_json(target: &Target) -> Value {
    let place = |place: &TargetPlace| {
        json!({
            "symbol": place.symbol,
            "offset": place.offset,
            "file_offset": place.file_offset,
            "cookie": place.cookie,
            "semaphore": place.semaphore,
        })
    };
    target.places.iter().map(place).collect()
}

fn to_json(loaded: &Loaded) -> Value {
    let map = |map: &beeline_engine::LoadedMap| json!({"id": map.id, "name": map.name, "type": map.type_name, "reused": map.reused});
    let link = |(id, kind, target): &(u32, ProbeKind, Target)| {
        // The first place by itself too: mostly it is the only one.
        let first = target.places.first();
        json!({
            "id": id,
            "type": kind_name(*kind, target),
            "path": target.path,
            "symbol": first.and_then(|place| place.symbol.as_ref()),
            "offset": first.map(|place| place.offset),
            "places": places_json(target),
        })
    };
    let program = |program: &LoadedProgram| {
        json!({
            "id": program.id,
            "name": program.name,
            "section": program.section,
            "insns": program.insns,
            "bytes_jited": program.code_len,
            "verified_insns": program.verified.insns_processed,
            "links": program.links.iter().map(link).collect::<Vec<_>>(),
            "unattached": program.unattached,
        })
    };
    json!({
        "id": loaded.id,
        "name": loaded.name,
        "maps": loaded.maps.iter().map(map).collect::<Vec<_>>(),
        "programs": loaded.programs.iter().map(program).collect::<Vec<_>>(),
        "skipped": loaded.skipped,
    })
}
