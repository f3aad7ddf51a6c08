//! `beeline detach`: probes out of processes.

use super::attach::process_error;
use crate::args::Detach;
use crate::context::Context;
use crate::output::progress::Progress;
use crate::output::time::nanoseconds;
use crate::output::{self, warn};
use anyhow::{Result, anyhow, bail};
use beeline_inject::{DetachOptions, DetachReport};
use serde_json::{Value, json};

pub(crate) fn run(context: &mut Context, args: &Detach) -> Result<()> {
    let pids =
        if args.all { all(context)? } else { args.pids.iter().chain(&args.pid_option).copied().collect() };
    let mut reports = Vec::new();
    let mut failed = Vec::new();
    for pid in pids {
        match detach(context, pid) {
            Ok(report) => reports.push(report),
            Err(error) => failed.push(error),
        }
    }
    if context.json {
        context.out.json(&Value::Array(reports))?;
    }
    context.out.flush()?;
    let Some(last) = failed.pop() else { return Ok(()) };
    failed.iter().for_each(output::error);
    Err(last)
}

/// The processes that carry probes of this store.
fn all(context: &Context) -> Result<Vec<u32>> {
    let Some(engine) = context.existing()? else { return Ok(Vec::new()) };
    let ours = engine.store().uuid();
    let attached = beeline_inject::attached_processes().into_iter().filter(|it| it.store_uuid == ours);
    Ok(attached.filter_map(|it| u32::try_from(it.pid).ok()).collect())
}

fn detach(context: &mut Context, pid: u32) -> Result<Value> {
    let target =
        i32::try_from(pid).ok().filter(|&pid| pid > 0).ok_or_else(|| anyhow!("{pid} is no process id"))?;
    if let Some(engine) = context.existing()? {
        let released = beeline_inject::release_followed(target, engine.store().uuid());
        if process_error(released, "detach from", target)? && context.verbose > 0 {
            output::say(&format!("process {pid} is not followed any more"));
        }
    }
    let progress = Progress::begin(format!("waiting for the threads of process {pid}"));
    let result = beeline_inject::detach(target, &DetachOptions::default());
    drop(progress);
    let report = process_error(result, "detach from", target)?;
    if let Some(engine) = context.existing()? {
        engine.store().forget_process(pid).unwrap_or_else(warn);
    }
    let DetachReport { restored, foreign, returns, stopped, left, .. } = &report;
    for address in foreign {
        warn(format_args!(
            "at {address:#x} of process {pid} stood somebody else's bytes; they were left alone"
        ));
    }
    let time = nanoseconds(u64::try_from(stopped.as_nanos()).unwrap_or(u64::MAX));
    if !context.json {
        let plural = if *restored == 1 { "" } else { "s" };
        context.out.line(format_args!(
            "detached from {pid}: {restored} site{plural} restored; it stood still for {time}"
        ))?;
    }
    if let Some(left) = left {
        bail!(
            "process {pid} has no probes any more, but our code is still mapped in it: {left}; detach again later"
        );
    }
    Ok(json!({
        "pid": pid,
        "restored": restored,
        "foreign": foreign,
        "returns": returns,
        "stopped_ns": u64::try_from(stopped.as_nanos()).unwrap_or(u64::MAX),
        "left": left,
    }))
}
