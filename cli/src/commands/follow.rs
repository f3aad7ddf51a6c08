//! What is said of processes that are followed: little, because they share our output.

use super::attach::nothing_placed;
use crate::bridge::{Bridged, Placement, keep, keep_refusal};
use crate::output::{say, warn};
use beeline_engine::Engine;
use beeline_inject::{AttachReport, Followed};
use std::collections::HashSet;
use std::sync::Mutex;

/// Tells what happens to followed processes, nothing twice.
pub(crate) struct Told<'a> {
    engine: &'a Engine,
    bridged: &'a Bridged,
    /// Name of the first of them.
    name: &'a str,
    verbose: u8,
    said: Mutex<HashSet<String>>,
    first: Mutex<bool>,
}

impl<'a> Told<'a> {
    /// For a program that is started, or a process.
    pub(crate) fn new(engine: &'a Engine, bridged: &'a Bridged, name: &'a str, verbose: u8) -> Told<'a> {
        Told { engine, bridged, name, verbose, said: Mutex::default(), first: Mutex::new(true) }
    }

    /// Says what matters of an event.
    pub(crate) fn tell(&self, event: &Followed<'_>) {
        match event {
            Followed::Placed(report) | Followed::Loaded(report) => {
                keep(self.engine, report.pid, &self.bridged.request, &report.probes)
            }
            Followed::Refused { pid, reason } => {
                keep_refusal(self.engine, *pid, &self.bridged.request, reason);
            }
            Followed::NotLoaded { .. } => {}
        }
        match event {
            Followed::Placed(report) => self.placed(report),
            Followed::Loaded(report) => self.loaded(report),
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

    fn placed(&self, report: &AttachReport) {
        let name = self.name;
        let first = self.first.lock().is_ok_and(|mut first| std::mem::take(&mut *first));
        let placement = Placement::of(self.bridged, &report.probes);
        for (link, reason) in &placement.refused {
            if self.is_new(&format!("{link} {reason}")) {
                warn(format_args!("{link} is refused in {name}: {reason}"));
            }
        }
        if first && placement.in_force() == 0 {
            // What it executes later may be another matter.
            warn(format_args!("{name} runs without probes so far: {}", nothing_placed(&placement)));
        } else if self.verbose > 0 {
            say(&format!("{name} runs as process {} with {} probes", report.pid, placement.in_force()));
        }
    }

    fn loaded(&self, report: &AttachReport) {
        let name = self.name;
        let placement = Placement::of(self.bridged, &report.probes);
        for (link, reason) in &placement.refused {
            if self.is_new(&format!("{link} {reason}")) {
                warn(format_args!("{link} is refused in {name}: {reason}"));
            }
        }
        if self.verbose > 1 && placement.placed > 0 {
            say(&format!("process {} has loaded libraries with {} probes", report.pid, placement.placed));
        }
    }

    fn is_new(&self, text: &str) -> bool {
        self.said.lock().is_ok_and(|mut said| said.insert(text.to_owned()))
    }
}
