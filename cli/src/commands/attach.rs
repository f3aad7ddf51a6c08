//! `beeline attach`: probes into running processes.

use super::follow::{Told, warn_of_refusals};
use crate::args::Attach;
use crate::bridge::{Bridged, Placement, Refused, keep, keep_refusal};
use crate::context::Context;
use crate::output;
use crate::output::progress::Progress;
use crate::output::time::nanoseconds;
use anyhow::{Context as _, Error, Result, anyhow, bail};
use beeline_engine::{Engine, PlanFilter};
use beeline_inject::{AttachReport, Errands, Followed, Renewed, Request};
use serde_json::{Value, json};
use std::path::PathBuf;

pub(crate) fn run(context: &mut Context, args: &Attach) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let mut reports = Vec::new();
    let mut failed = Vec::new();
    for &pid in args.pids.iter().chain(&args.pid_option) {
        failed.extend(attach(context, &engine, pid, args, &mut reports).err());
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
        let bridged = Bridged::plan(context, engine, &filter, args.optional)?;
        Ok((i32::try_from(pid)?, bridged))
    };
    let pids = args.pids.iter().chain(&args.pid_option).copied();
    let (planned, mut failed): (Vec<_>, Vec<_>) = pids.map(plan).partition(Result::is_ok);
    let planned: Vec<(i32, Bridged)> = planned.into_iter().flatten().collect();
    let verbose = context.verbose;
    let names: Vec<String> = planned.iter().map(|(pid, _)| format!("process {pid}")).collect();
    let told: Vec<Told<'_>> = planned
        .iter()
        .zip(&names)
        .map(|((_, bridged), name)| Told::new(engine, bridged, name, verbose))
        .collect();
    let errands: Vec<Errands> = planned.iter().map(|_| Errands::default()).collect();
    let follow = |index: usize| -> Result<()> {
        let ((pid, bridged), told) = (&planned[index], &told[index]);
        let tell = |request: &Request, event: Followed<'_>| told.tell(request, &event);
        beeline_inject::attach_followed(*pid, &bridged.request, &errands[index], &tell)
            .with_context(|| format!("cannot follow process {pid}"))
    };
    // All of them have the same store and objects.
    let renew = |pid| match told.first() {
        Some(told) => told.renew(pid, &args.object),
        None => Err("nothing is followed".to_owned()),
    };
    let all: Vec<&Errands> = errands.iter().collect();
    let follow_all = || {
        std::thread::scope(|scope| {
            let follow = &follow;
            let running: Vec<_> =
                (0..planned.len()).map(|index| scope.spawn(move || follow(index))).collect();
            for follower in running {
                let result = follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                failed.extend(result.err().map(Err));
            }
        });
    };
    beeline_inject::attended(&all, &renew, follow_all);
    failed.into_iter().filter_map(Result::err).collect()
}

/// Attaches to one process; what became of it is added to `reports`.
fn attach(
    context: &mut Context,
    engine: &Engine,
    pid: u32,
    args: &Attach,
    reports: &mut Vec<Value>,
) -> Result<()> {
    let cannot = |error: Error| error.context(format!("cannot attach to process {pid}"));
    let target = i32::try_from(pid)
        .ok()
        .filter(|&pid| pid > 0)
        .ok_or_else(|| cannot(anyhow!("{pid} is no process id")))?;
    let renewed = beeline_inject::renew_followed(target, engine.store().uuid());
    if let Some(renewed) = renewed.map_err(|error| cannot(error.into()))? {
        return by_follower(context, pid, &renewed, reports);
    }
    let filter = PlanFilter { pid: Some(pid), objects: args.object.clone(), links: None };
    let bridged = Bridged::plan(context, engine, &filter, args.optional).map_err(cannot)?;
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
    let placement = Placement::of(&bridged.names, &bridged.request, &report.probes);
    reports.push(to_json(&report, &placement));
    warn_of_refusals(&placement.refused, &format!("process {pid}"));
    let nothing = placement.in_force() == 0;
    if nothing && args.follow && placement.refused.is_empty() {
        // What it executes or loads later may be another matter; who follows it says so.
        return Ok(());
    }
    if nothing {
        return Err(cannot(anyhow!("{}", nothing_placed(&placement))));
    }
    if !context.json {
        show(context, &report, &placement, args.follow)?;
        context.out.flush()?;
    }
    if !placement.refused.is_empty() {
        let (refused, all) = (placement.refused.len(), report.probes.len());
        bail!("process {pid} carries the other probes, but {refused} of {all} were refused");
    }
    Ok(())
}

/// What the follower of a process has done for us. It has said which places were refused, and kept it.
fn by_follower(context: &mut Context, pid: u32, renewed: &Renewed, reports: &mut Vec<Value>) -> Result<()> {
    let Renewed { placed, already, refused, threads, stopped_ns } = *renewed;
    reports.push(json!({
        "pid": pid,
        "placed": placed,
        "already_in_force": already,
        "refused_places": refused,
        "threads": threads,
        "stopped_ns": stopped_ns,
        "by_follower": true,
    }));
    if !context.json {
        let plural = if placed == 1 { "" } else { "s" };
        context.out.line(format_args!(
            "attached to {pid} by its follower: {placed} probe{plural}, {already} were in force; it stood still for {}",
            nanoseconds(stopped_ns)
        ))?;
    }
    if refused > 0 {
        bail!("{refused} probes were refused in process {pid}; `beeline link show` says why");
    }
    Ok(())
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
        "refused": refused_json(&placement.refused),
        "threads": report.threads,
        "stopped_ns": u64::try_from(report.stopped.as_nanos()).unwrap_or(u64::MAX),
    })
}

fn refused_json(refused: &[Refused]) -> Value {
    let one = |it: &Refused| json!({"link": it.link, "place": it.place, "reason": it.reason});
    refused.iter().map(one).collect()
}

/// For commands that only need the context of an error.
pub(crate) fn process_error<T>(
    result: Result<T, beeline_inject::TargetRefused>,
    what: &str,
    pid: i32,
) -> Result<T> {
    result.with_context(|| format!("cannot {what} process {pid}"))
}
