//! `beeline start`: a command with the probes in it from the beginning, and in what its children execute.

use super::attach::nothing_placed;
use super::follow::{Told, warn_of_refusals};
use crate::args::Start;
use crate::bridge::{Bridged, Placement, keep};
use crate::context::Context;
use crate::output::{say, warn};
use anyhow::{Context as _, Result, anyhow};
use beeline_inject::{Errands, Followed, Request, StartCommand};
use std::process::ExitCode;

/// Runs the command, and ends as it does: its output is the only output.
pub(crate) fn run(context: &mut Context, args: &Start) -> Result<ExitCode> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let bridged = Bridged::plan_to_start(context, &engine, args.optional)?;
    let (program, arguments) = args.command.split_first().ok_or_else(|| anyhow!("there is no command"))?;
    let command = StartCommand { program: program.into(), arguments: arguments.to_vec(), environment: None };
    let name = program.to_string_lossy();
    if !args.no_follow {
        let told = Told::new(&engine, &bridged, &name, context.verbose);
        let (errands, renew) = (Errands::default(), |pid| told.renew(pid, &[]));
        let follow = || {
            let tell = |request: &Request, event: Followed<'_>| told.tell(request, &event);
            beeline_inject::start_followed(&command, &bridged.request, &errands, &tell)
        };
        let ended = beeline_inject::attended(&[&errands], &renew, follow)
            .with_context(|| format!("cannot start {name}"))?;
        return Ok(ExitCode::from(u8::try_from(ended.exit_code() & 0xff).unwrap_or(u8::MAX)));
    }
    let started =
        beeline_inject::start(&command, &bridged.request).with_context(|| format!("cannot start {name}"))?;
    keep(&engine, started.pid, &bridged.request, &started.report.probes);
    let placement = Placement::of(&bridged.names, &bridged.request, &started.report.probes);
    warn_of_refusals(&placement.refused, &name);
    if placement.in_force() == 0 {
        warn(format_args!("{name} runs without probes: {}", nothing_placed(&placement)));
    } else if context.verbose > 0 {
        say(&format!("{name} runs as process {} with {} probes", started.pid, placement.in_force()));
    }
    // The request holds descriptors of the store; the command runs on without them.
    drop(bridged);
    let ended = started.wait().with_context(|| format!("cannot wait for {name}"))?;
    Ok(ExitCode::from(u8::try_from(ended.exit_code() & 0xff).unwrap_or(u8::MAX)))
}
