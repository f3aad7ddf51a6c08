//! `beeline attach`: probes into running processes.

use super::follow::Told;
use crate::args::Attach;
use crate::bridge::{Bridged, Placement, keep, keep_refusal};
use crate::context::Context;
use crate::output::progress::Progress;
use crate::output::time::nanoseconds;
use crate::output::{self, warn};
use anyhow::{Context as _, Error, Result, anyhow, bail};
use beeline_engine::{Engine, PlanFilter};
use beeline_inject::AttachReport;
use serde_json::{Value, json};
use std::path::PathBuf;

pub(crate) fn run(context: &mut Context, args: &Attach) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let mut reports = Vec::new();
    let mut failed = Vec::new();
    for &pid in args.pids.iter().chain(&args.pid_option) {
        match attach(context, &engine, pid, args) {
            Ok(report) => reports.push(report),
            Err(error) => failed.push(error),
        }
    }
    if context.json {
        context.out.json(&Value::Array(reports))?;
    }
    context.out.flush()?;
    if args.follow {
        failed.extend(follow(context, &engine, args));
    }
    let Some(last) = failed.pop() else { return Ok(()) };
    failed.iter().for_each(output::error);
    Err(last)
}

/// Follows all processes until they have ended; what failed.
fn follow(context: &mut Context, engine: &Engine, args: &Attach) -> Vec<Error> {
    let plan = |pid: u32| {
        let filter = PlanFilter { pid: Some(pid), objects: args.object.clone(), ..PlanFilter::default() };
        let mut bridged = Bridged::plan(context, engine, &filter)?;
        bridged.request.breakpoints = args.optional.breakpoint_use();
        Ok((i32::try_from(pid)?, bridged))
    };
    let pids = args.pids.iter().chain(&args.pid_option).copied();
    let (planned, mut failed): (Vec<_>, Vec<_>) = pids.map(plan).partition(Result::is_ok);
    let planned: Vec<(i32, Bridged)> = planned.into_iter().flatten().collect();
    let verbose = context.verbose;
    let follow = |(pid, bridged): &(i32, Bridged)| -> Result<()> {
        let name = format!("process {pid}");
        let told = Told::new(engine, bridged, &name, verbose);
        beeline_inject::attach_followed(*pid, &bridged.request, &|event| told.tell(&event))
            .with_context(|| format!("cannot follow process {pid}"))
    };
    let follow = &follow;
    std::thread::scope(|scope| {
        let running: Vec<_> = planned.iter().map(|one| scope.spawn(move || follow(one))).collect();
        for follower in running {
            let result = follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            failed.extend(result.err().map(Err));
        }
    });
    failed.into_iter().filter_map(Result::err).collect()
}

fn attach(context: &mut Context, engine: &Engine, pid: u32, args: &Attach) -> Result<Value> {
    let cannot = |error: Error| error.context(format!("cannot attach to process {pid}"));
    let target = i32::try_from(pid)
        .ok()
        .filter(|&pid| pid > 0)
        .ok_or_else(|| cannot(anyhow!("{pid} is no process id")))?;
    let filter = PlanFilter { pid: Some(pid), objects: args.object.clone(), links: None };
    let mut bridged = Bridged::plan(context, engine, &filter).map_err(cannot)?;
    bridged.request.breakpoints = args.optional.breakpoint_use();
    let progress = Progress::begin(format!("looking at the files of process {pid}"));
    let result = beeline_inject::attach(target, &bridged.request);
    drop(progress);
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            keep_refusal(engine, target, &bridged.request, &error);
            return Err(cannot(error.into()));
        }
    };
    keep(engine, target, &bridged.request, &report.probes);
    let placement = Placement::of(&bridged, &report.probes);
    if !context.json {
        show(context, &report, &placement, args.follow)?;
        context.out.flush()?;
    }
    for (link, reason) in &placement.refused {
        warn(format_args!("{link} is refused in process {pid}: {reason}"));
    }
    if placement.in_force() == 0 {
        return Err(cannot(anyhow!("{}", nothing_placed(&placement))));
    }
    if !placement.refused.is_empty() {
        let (refused, all) = (placement.refused.len(), report.probes.len());
        bail!("process {pid} carries the other probes, but {refused} of {all} were refused");
    }
    Ok(to_json(&report, &placement))
}

/// A file that the process has not mapped.
fn absent(placement: &Placement, file: &PathBuf) -> String {
    let other = placement.others.contains(file);
    let why =
        if other { " (it has another file of that name: replaced since, or in another mount)" } else { "" };
    format!("{}{why}", file.display())
}

/// Why a process carries no probe now.
pub(crate) fn nothing_placed(placement: &Placement) -> String {
    if !placement.refused.is_empty() {
        return "every probe was refused".into();
    }
    let files: Vec<String> = placement.not_mapped.iter().map(|file| absent(placement, file)).collect();
    format!("it uses none of the probed files: {}", files.join(", "))
}

fn show(context: &mut Context, report: &AttachReport, placement: &Placement, follows: bool) -> Result<()> {
    let AttachReport { pid, threads, stopped, .. } = report;
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut parts = vec![plural(placement.placed, "probe")];
    if placement.already > 0 {
        parts.push(format!("{} were in force", placement.already));
    }
    if !placement.not_mapped.is_empty() {
        parts.push(plural(placement.not_mapped.len(), "probed file") + " not mapped");
        if !follows {
            parts.push("what it loads later gets its probes with --follow".to_owned());
        }
    }
    let time = nanoseconds(u64::try_from(stopped.as_nanos()).unwrap_or(u64::MAX));
    context.out.line(format_args!(
        "attached to {pid}: {}; {} stood still for {time}",
        parts.join(", "),
        plural(*threads, "thread")
    ))?;
    if context.verbose > 0 {
        for file in &placement.not_mapped {
            output::say(&format!("  not mapped: {}", absent(placement, file)));
        }
    }
    Ok(())
}

fn to_json(report: &AttachReport, placement: &Placement) -> Value {
    json!({
        "pid": report.pid,
        "placed": placement.placed,
        "already_in_force": placement.already,
        "not_mapped": placement.not_mapped,
        "refused": placement.refused.iter().map(|(link, reason)| json!({"link": link, "reason": reason})).collect::<Vec<_>>(),
        "threads": report.threads,
        "stopped_ns": u64::try_from(report.stopped.as_nanos()).unwrap_or(u64::MAX),
    })
}

/// For commands that only need the context of an error.
pub(crate) fn process_error<T>(
    result: Result<T, beeline_inject::TargetRefused>,
    what: &str,
    pid: i32,
) -> Result<T> {
    result.with_context(|| format!("cannot {what} process {pid}"))
}
