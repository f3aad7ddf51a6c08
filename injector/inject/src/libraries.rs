//! Follows what a process loads: the follower's side of the [bell](crate::bell).
//!
//! ```text
//! dlopen ─▶ mapped ─▶ loader's hook ─▶ agent rings, waits ─▶ we plan, stop all threads, place, let go ─▶ answer ─▶ constructors
//! dlclose ─▶ unmapped, and the jumps with it ─▶ hook ─▶ answer; what we had mapped for it goes at the next occasion
//! ```

use crate::attach::{Failure, Prepared};
use crate::bell::FollowerBell;
use crate::error::TargetRefused;
use crate::files::MappedFiles;
use crate::generation::Generation;
use crate::report::AttachReport;
use crate::request::Request;
use crate::start::loader_hook;
use crate::sweep::sweep;
use crate::target::{self, remote};
use beeline_abi::bell::thread_of;
use beeline_ptrace::{StoppedProcess, read_status, thread_ids};
use beeline_remote::Process;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// How long the threads of a process get to stop. One that waits for its `vfork`ed child does not stop before that is served, too.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a caller is looked at before it goes on without probes.
const LOOKS_MAX: u32 = 8;
/// How often an attempt is made again because the process changed under it.
const ATTEMPTS_MAX: u32 = 20;

/// What was found at a look.
#[derive(Debug)]
pub(crate) enum Looked {
    /// Nothing is to be done; what is in force.
    Nothing(AttachReport),
    /// Probes were placed.
    Placed(AttachReport),
    /// The process cannot be stopped now.
    Later,
}

/// What is loaded by the processes of one follower.
#[derive(Debug)]
pub(crate) struct Libraries<'a> {
    bell: &'a FollowerBell,
    /// How often callers were looked at that could not be served yet.
    looks: HashMap<u64, u32>,
}

impl<'a> Libraries<'a> {
    pub(crate) fn new(bell: &'a FollowerBell) -> Libraries<'a> {
        Libraries { bell, looks: HashMap::new() }
    }

    /// Serves all who call with what the request says. `tell` hears of every process for which something was done, or could not be.
    pub(crate) fn answer(
        &mut self,
        request: &Request,
        tell: &dyn Fn(i32, Result<AttachReport, TargetRefused>),
    ) {
        let callers = self.bell.callers();
        self.looks.retain(|word, _| callers.iter().any(|caller| caller.1 == *word));
        for (place, word) in callers {
            let mut later = false;
            for (pid, waiting) in processes_of(thread_of(word)) {
                match look(request, self.bell, pid, waiting) {
                    Ok(None | Some(Looked::Nothing(_))) => {}
                    Ok(Some(Looked::Placed(report))) => tell(pid, Ok(report)),
                    Ok(Some(Looked::Later)) => later = true,
                    Err(reason) => tell(pid, Err(reason)),
                }
            }
            let looks = self.looks.entry(word).or_default();
            *looks += 1;
            if !later || *looks >= LOOKS_MAX {
                self.bell.answer(place, word);
            }
        }
    }
}

/// Places what is missing in a process, unless its loader is at work; its thread `waiting` waits for us.
fn look(
    request: &Request,
    bell: &FollowerBell,
    pid: i32,
    waiting: i32,
) -> Result<Option<Looked>, TargetRefused> {
    let process = target::open_traced(pid)?;
    if !is_loaded(&process)? {
        return Ok(None);
    }
    put_into(&process, request, bell, &[waiting]).map(Some)
}

/// Brings a process that this OS thread follows to what the request says. Its threads `waiting` wait for us.
pub(crate) fn put_into(
    process: &Process,
    request: &Request,
    bell: &FollowerBell,
    waiting: &[i32],
) -> Result<Looked, TargetRefused> {
    let mut not_complete = None;
    for _ in 0..ATTEMPTS_MAX {
        let prepared = Prepared::new(process, request, None)?.followed_by(Some(bell));
        let prepared = prepared.without_made_code(not_complete.as_ref());
        let report = |planned: &_, threads, stopped| AttachReport {
            not_complete: not_complete.clone(),
            ..prepared.report(planned, threads, stopped)
        };
        let mut planned = match prepared.plan() {
            Err(TargetRefused::NotComplete { reason, .. }) => {
                not_complete = Some(reason);
                continue;
            }
            other => other?,
        };
        if prepared.is_empty(&planned) {
            return Ok(Looked::Nothing(report(&planned, 0, Duration::ZERO)));
        }
        let generation = Generation::build(prepared.ingredients(), &mut planned)?;
        let Some(mut stopped) = StoppedProcess::stop_followed(process.pid(), PATIENCE)? else {
            return Ok(Looked::Later);
        };
        let threads = stopped.threads().len();
        let result = prepared.apply(&mut planned, generation, &mut stopped);
        if result.is_ok() {
            // What cannot be taken out stays until the process is detached.
            let _ = sweep(process, &mut stopped, waiting);
        }
        let time = stopped.resume_followed();
        match result {
            Ok(()) => return Ok(Looked::Placed(report(&planned, threads, time))),
            Err(Failure::Refused(TargetRefused::NotComplete { reason, .. })) => not_complete = Some(reason),
            Err(Failure::Again | Failure::InTheWay | Failure::OtherKey(_)) => {}
            Err(Failure::Refused(reason)) => return Err(reason),
        }
    }
    Ok(Looked::Later)
}

/// Follows a process no more; false when its threads cannot be had now.
pub(crate) fn release(pid: i32) -> Result<bool, TargetRefused> {
    let stopped = StoppedProcess::stop_followed(pid, PATIENCE)?;
    Ok(stopped.map(StoppedProcess::release).is_some())
}

/// The loader is between two states: it calls again when the list of libraries is whole.
fn is_loaded(process: &Process) -> Result<bool, TargetRefused> {
    let maps = process.maps().map_err(|error| remote(process.pid(), error))?;
    let hook = loader_hook(process, &MappedFiles::of(&maps));
    Ok(hook.is_none_or(|hook| hook.is_consistent(process)))
}

/// The processes that we trace and that have a thread with this id in their own pid namespace, with its id in ours. Mostly it
/// is the same.
fn processes_of(thread: u32) -> Vec<(i32, i32)> {
    let ours = nix::unistd::gettid().as_raw();
    let is_it = |tid: i32| id_in_its_namespace(tid) == Some(thread);
    if let Ok(tid) = i32::try_from(thread)
        && let Ok(status) = read_status(tid)
        && status.tracer == ours
        && is_it(tid)
    {
        return vec![(status.tgid, tid)];
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let traced = ids.filter(|&pid| read_status(pid).is_ok_and(|status| status.tracer == ours));
    let threads = traced.flat_map(|pid| {
        let all = thread_ids(pid).unwrap_or_default();
        all.into_iter().map(move |tid| (pid, tid))
    });
    threads.filter(|&(_, tid)| is_it(tid)).collect()
}

/// The id of a thread in the innermost pid namespace that it is in.
fn id_in_its_namespace(tid: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let ids = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().next_back()?.parse().ok()
}
