//! What is said of processes that are followed: little, because they share our output.

use super::attach::nothing_placed;
use crate::args::Optional;
use crate::bridge::{Bridged, Names, Placement, Refused, keep, keep_refusal};
use crate::output::{say, warn};
use beeline_engine::Engine;
use beeline_inject::{AttachReport, Followed, Request};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Tells what happens to followed processes, nothing twice.
pub(crate) struct Told<'a> {
    engine: &'a Engine,
    names: Mutex<Names>,
    /// Name of the first of them.
    name: &'a str,
    verbose: u8,
    optional: Optional,
    said: Mutex<HashSet<String>>,
    first: Mutex<bool>,
}

impl<'a> Told<'a> {
    /// For a program that is started, or a process.
    pub(crate) fn new(engine: &'a Engine, bridged: &Bridged, name: &'a str, verbose: u8) -> Told<'a> {
        let names = Mutex::new(bridged.names.clone());
        let optional = Optional::of(&bridged.request);
        Told { engine, names, name, verbose, optional, said: Mutex::default(), first: Mutex::new(true) }
    }

    /// The request of a process from what the store holds now: somebody has asked for it.
    pub(crate) fn renew(&self, pid: i32, objects: &[String]) -> Result<Arc<Request>, String> {
        let Bridged { request, names } = Bridged::plan_again(self.engine, pid, objects, self.optional)
            .map_err(|error| format!("{error:#}"))?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).add(names);
        Ok(request)
    }

    /// Says what matters of an event.
    pub(crate) fn tell(&self, request: &Request, event: &Followed<'_>) {
        match event {
            Followed::Placed(report) | Followed::Loaded(report) => {
                keep(self.engine, report.pid, request, &report.probes)
            }
            Followed::Refused { pid, reason } => {
                keep_refusal(self.engine, *pid, request, reason);
            }
            Followed::NotLoaded { .. } | Followed::NotFollowed { .. } => {}
        }
        match event {
            Followed::Placed(report) => self.placed(request, report),
            Followed::Loaded(report) => self.loaded(request, report),
            Followed::NotFollowed { pid } if self.verbose > 0 => {
                say(&format!("process {pid} traces others itself: what it starts is not followed"));
            }
            Followed::NotFollowed { .. } => {}
            Followed::NotLoaded { pid, reason } if self.is_new(&reason.to_string()) => {
                warn(format_args!("libraries that process {pid} loads get no probes: {reason}"));
            }
            Followed::NotLoaded { .. } => {}
            Followed::Refused { pid, reason } if self.is_new(&reason.to_string()) => {
                warn(format_args!("process {pid} runs without probes: {reason}"));
            }
            Followed::Refused { .. } => {}
        }
    }

    fn placed(&self, request: &Request, report: &AttachReport) {
        let name = self.name;
        let first = self.first.lock().is_ok_and(|mut first| std::mem::take(&mut *first));
        let placement = self.placement(request, report);
        let wants = !request.probes.is_empty() || !request.system_calls.is_empty();
        if first && wants && placement.in_force() == 0 {
            // What it executes later may be another matter.
            warn(format_args!("{name} runs without probes so far: {}", nothing_placed(&placement)));
        } else if self.verbose > 0 {
            say(&format!("{name} runs as process {} with {} probes", report.pid, placement.in_force()));
        }
    }

    fn loaded(&self, request: &Request, report: &AttachReport) {
        let placement = self.placement(request, report);
        if self.verbose > 1 && placement.placed > 0 {
            say(&format!("process {} has loaded libraries with {} probes", report.pid, placement.placed));
        }
    }

    /// What was placed; refusals that are new are said.
    fn placement(&self, request: &Request, report: &AttachReport) -> Placement {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = report.not_complete.as_ref().filter(|reason| self.is_new(reason)) {
            warn(format_args!(
                "of process {} the calls of code made at run time are not traced (--complete): {reason}",
                report.pid
            ));
        }
        let placement = Placement::of(&names, request, &report.probes);
        let is_new = |it: &&Refused| self.is_new(&format!("{} {}", it.link, it.reason));
        let new: Vec<_> = placement.refused.iter().filter(is_new).cloned().collect();
        warn_of_refusals(&new, self.name);
        placement
    }

    fn is_new(&self, text: &str) -> bool {
        self.said.lock().is_ok_and(|mut said| said.insert(text.to_owned()))
    }
}

/// How many refused places of one link are said one by one.
const SAID_MAX: usize = 5;

/// Says which places of links are refused, and why; of many only some.
pub(crate) fn warn_of_refusals(refused: &[Refused], name: &str) {
    let mut links: BTreeMap<&str, usize> = BTreeMap::new();
    for Refused { link, place, reason } in refused {
        let at = place.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
        let said = links.entry(link).or_default();
        *said += 1;
        if *said <= SAID_MAX {
            warn(format_args!("{link}{at} is refused in {name}: {reason}"));
        }
    }
    for (link, places) in links.into_iter().filter(|&(_, places)| places > SAID_MAX) {
        let more = places - SAID_MAX;
        warn(format_args!("{link}: and {more} more places; `beeline link show {link}` lists them"));
    }
}
