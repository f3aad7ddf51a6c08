//! `beeline verify`: the verifier's verdict, without loading anything.

use super::load::host_functions;
use crate::args::Verify;
use crate::context::Context;
use crate::output::progress::Progress;
use crate::output::time::nanoseconds;
use anyhow::{Context as _, Result, bail};
use beeline_engine::{EngineError, Verdict};
use serde_json::{Value, json};

pub(crate) fn run(context: &mut Context, args: &Verify) -> Result<()> {
    let hosts = host_functions(&args.host_functions)?;
    let mut reports = Vec::new();
    let mut rejected = 0;
    for file in &args.files {
        let progress = Progress::begin(format!("verifying {}", file.display()));
        let log_level = if args.log { 2 } else { args.log_level.bits() };
        let verdicts = beeline_engine::verify(file, args.btf.as_deref(), &hosts, log_level);
        drop(progress);
        let verdicts = verdicts.with_context(|| format!("cannot verify {}", file.display()))?;
        for verdict in &verdicts {
            rejected += usize::from(verdict.result.is_err());
            match context.json {
                true => reports.push(to_json(file, verdict)),
                false => show(context, verdict)?,
            }
        }
        if verdicts.is_empty() && !context.json {
            context.out.line(format_args!("{}: no programs", file.display()))?;
        }
    }
    if context.json {
        context.out.json(&Value::Array(reports))?;
    }
    context.out.flush()?;
    if rejected > 0 {
        bail!("{rejected} program{} rejected", if rejected == 1 { " is" } else { "s are" });
    }
    Ok(())
}

fn show(context: &mut Context, verdict: &Verdict) -> Result<()> {
    let out = &mut context.out;
    if !verdict.log.is_empty() {
        out.text(&verdict.log)?;
        if !verdict.log.ends_with('\n') {
            out.line("")?;
        }
    }
    let Verdict { program, section, insns, .. } = verdict;
    match &verdict.result {
        Ok(stats) => out.line(format_args!(
            "{program} ({section}): accepted; {insns} insns, {} processed, {} states, {} bytes of stack, {}",
            stats.insns_processed,
            stats.states,
            verdict.stack_bytes,
            nanoseconds(stats.time_ns)
        ))?,
        Err(EngineError::Rejected { rejection, .. }) => {
            let place = verdict.source_line.as_ref().map(|line| format!(" ({line})")).unwrap_or_default();
            let (pc, reason) = (rejection.pc, &rejection.reason);
            out.line(format_args!("{program} ({section}): rejected at insn {pc}{place}: {reason}"))?;
            if let Some(advice) = rejection.advice {
                out.line(format_args!("  {advice}"))?;
            }
        }
        Err(other) => out.line(format_args!("{program} ({section}): {other}"))?,
    }
    Ok(())
}

fn to_json(file: &std::path::Path, verdict: &Verdict) -> Value {
    let mut report = json!({
        "file": file,
        "name": verdict.program,
        "section": verdict.section,
        "insns": verdict.insns,
        "accepted": verdict.result.is_ok(),
    });
    match &verdict.result {
        Ok(stats) => {
            report["verified_insns"] = stats.insns_processed.into();
            report["states"] = stats.states.into();
            report["stack_bytes"] = verdict.stack_bytes.into();
            report["time_ns"] = stats.time_ns.into();
        }
        Err(EngineError::Rejected { rejection, .. }) => {
            report["pc"] = rejection.pc.into();
            report["reason"] = rejection.reason.clone().into();
            report["source_line"] = verdict.source_line.clone().into();
            report["advice"] = rejection.advice.into();
        }
        Err(other) => report["reason"] = other.to_string().into(),
    }
    if !verdict.log.is_empty() {
        report["log"] = verdict.log.clone().into();
    }
    report
}
