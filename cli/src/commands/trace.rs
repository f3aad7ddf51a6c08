//! `beeline trace`: the log of `bpf_trace_printk`, as in `trace_pipe`.

use crate::args::Trace;
use crate::context::Context;
use anyhow::Result;
use beeline_engine::{TraceEvent, TraceLine};
use serde_json::json;
use std::time::Duration;

/// How long to wait before looking again.
const POLL: Duration = Duration::from_millis(20);

pub(crate) fn run(context: &mut Context, args: &Trace) -> Result<()> {
    let mut reader = match context.existing()? {
        Some(engine) => engine.store().trace()?,
        None if args.no_follow => return Ok(()),
        None => context.engine()?.store().trace()?,
    };
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut idle = 0;
    while left > 0 {
        match reader.poll() {
            Some(TraceEvent::Line(line)) => {
                print(context, &line)?;
                left -= 1;
                idle = 0;
            }
            Some(TraceEvent::Lost(count)) => lost(context, count)?,
            // A line that is being written at this moment is waited for, a little.
            None if args.no_follow && idle >= 3 => break,
            None => {
                context.out.flush()?;
                std::thread::sleep(POLL);
                idle += 1;
            }
        }
    }
    Ok(())
}

/// The layout of `trace_pipe` (`Documentation/trace/ftrace.rst`).
fn print(context: &mut Context, line: &TraceLine) -> Result<()> {
    let TraceLine { time_ns, tid, comm, cpu, text } = line;
    if context.json {
        let event = json!({"time_ns": time_ns, "tid": tid, "comm": comm, "cpu": cpu, "text": text});
        return Ok(context.out.json(&event)?);
    }
    let (seconds, micros) = (time_ns / 1_000_000_000, time_ns / 1000 % 1_000_000);
    let task = format!("{comm}-{tid}");
    Ok(context.out.line(format_args!(
        "{task:>23} [{cpu:03}] ..... {seconds:5}.{micros:06}: bpf_trace_printk: {text}"
    ))?)
}

fn lost(context: &mut Context, count: u64) -> Result<()> {
    if context.json {
        return Ok(context.out.json(&json!({ "lost": count }))?);
    }
    Ok(context.out.line(format_args!("[{count} lines lost]"))?)
}
