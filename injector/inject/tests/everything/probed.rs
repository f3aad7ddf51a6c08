//! `run`: starts a program with probes on every function of some files, waits for it, and writes down what happened.

use crate::support::Store;
use beeline_inject::{BreakpointUse, Ended, Location, ProbeKind, ProbeState, StartCommand, start};
use beeline_site::{Binary, find_library, resolve};
use iced_x86::{Decoder, DecoderOptions};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The first argument that makes this binary do this.
pub(crate) const COMMAND: &str = "run";
/// Its exit status when the program could not be started.
pub(crate) const NOT_STARTED: u8 = 99;

/// `run [--entry] [--return] [--inside STEP] [--breakpoints] [--heavy] [--file NAME]... [--sample NAME]... [--only FROM..TO] --report FILE -- PROGRAM ...`
#[derive(Default)]
struct Options {
    entry: bool,
    returns: bool,
    /// Every so many instructions, a probe in the middle of functions.
    inside: Option<usize>,
    /// All of them are breakpoints.
    breakpoints: bool,
    /// Programs that want all of the context and change every register that they may change.
    heavy: bool,
    /// Files whose functions are probed: paths, or names as the loader knows them.
    files: Vec<PathBuf>,
    /// Functions that are counted for themselves.
    samples: Vec<String>,
    /// Which of all functions, by number: to find the one that does harm.
    only: Option<(usize, usize)>,
    report: PathBuf,
    command: Vec<OsString>,
}

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let options = parse(arguments);
    let mut probes = Probes::new(&options);
    for file in &options.files {
        if let Err(reason) = probes.add_file(file, &options) {
            eprintln!("{}: {reason}", file.display());
            return ExitCode::from(NOT_STARTED);
        }
    }
    let command = StartCommand {
        program: options.command[0].clone().into(),
        arguments: options.command[1..].to_vec(),
        environment: None,
    };
    let started = match start(&command, &probes.store.request) {
        Ok(started) => started,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(NOT_STARTED);
        }
    };
    let placed = probes.placed(&started.report.probes.iter().map(|probe| &probe.state).collect::<Vec<_>>());
    let ended = started.wait();
    let report = format!("{placed}{}", probes.counts());
    std::fs::write(&options.report, report).expect("the report can be written");
    match ended {
        Ok(Ended::Exited(status)) => ExitCode::from(status as u8),
        Ok(Ended::Killed(signal)) => {
            eprintln!("killed by signal {signal}");
            ExitCode::from((128 + signal) as u8)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(NOT_STARTED)
        }
    }
}

fn parse(arguments: &[String]) -> Options {
    let mut options = Options::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().expect("an option has a value").clone();
        match word.as_str() {
            "--entry" => options.entry = true,
            "--return" => options.returns = true,
            "--inside" => options.inside = Some(value().parse().expect("a number")),
            "--breakpoints" => options.breakpoints = true,
            "--heavy" => options.heavy = true,
            "--file" => options.files.push(value().into()),
            "--sample" => options.samples.push(value()),
            "--only" => {
                let text = value();
                let (from, to) = text.split_once("..").expect("a range");
                options.only = Some((from.parse().expect("a number"), to.parse().expect("a number")));
            }
            "--report" => options.report = value().into(),
            "--" => options.command = words.by_ref().map(OsString::from).collect(),
            other => panic!("no option {other}"),
        }
    }
    assert!(!options.command.is_empty(), "a program is wanted");
    options
}

/// The probes of a run.
struct Probes {
    store: Store,
    map: u32,
    programs: [u32; 2],
    /// The links of all functions that are not samples.
    links: Vec<u32>,
    /// Name, kind, counter and link of each sample.
    samples: Vec<(String, ProbeKind, u32, u32)>,
    /// Name of the function of each probe of the request.
    names: Vec<(String, ProbeKind)>,
}

/// Counters: entries, returns, then the samples.
const COUNTERS: u32 = 512;

impl Probes {
    fn new(options: &Options) -> Probes {
        let mut store = Store::new();
        if options.breakpoints {
            store.request.breakpoints = BreakpointUse::Everywhere;
        }
        let map = store.array(COUNTERS);
        let programs = [0, 1].map(|index| {
            if options.heavy { store.clobbering_counter(map, index) } else { store.counter(map, index) }
        });
        Probes { store, map, programs, links: Vec::new(), samples: Vec::new(), names: Vec::new() }
    }

    fn add_file(&mut self, file: &Path, options: &Options) -> Result<(), String> {
        let path = if file.is_absolute() || file.is_file() {
            file.to_path_buf()
        } else {
            find_library(&file.to_string_lossy()).map_err(|error| error.to_string())?
        };
        let path = path.canonicalize().map_err(|error| error.to_string())?;
        let binary = Binary::open(&path).map_err(|error| error.to_string())?;
        let entries: Vec<u64> = binary.functions().iter().map(|function| function.start).collect();
        let chosen = match options.only {
            Some((from, to)) => &entries[from.min(entries.len())..to.min(entries.len())],
            None => &entries[..],
        };
        if options.entry {
            self.add_places(&path, &binary, chosen, ProbeKind::Entry, options);
        }
        if options.returns {
            self.add_places(&path, &binary, chosen, ProbeKind::Return, options);
        }
        if let Some(step) = options.inside {
            self.add_places(&path, &binary, &instructions(&binary, step), ProbeKind::Entry, options);
        }
        Ok(())
    }

    /// A link with all of these places, but for the functions that are counted for themselves.
    fn add_places(
        &mut self,
        path: &Path,
        binary: &Binary,
        places: &[u64],
        kind: ProbeKind,
        options: &Options,
    ) {
        let mut shared = None;
        let mut samples: HashMap<u64, &String> = HashMap::new();
        for name in &options.samples {
            if let Ok(found) = resolve(binary, &Location::Symbol { name: name.clone(), offset: 0 }) {
                samples.insert(found.vaddr, name);
            }
        }
        for &vaddr in places {
            let Some(offset) = binary.file_offset_of(vaddr) else { continue };
            let location = Location::FileOffset(offset);
            let function = binary.function_at(vaddr).filter(|range| !range.name.is_empty());
            let name = function.filter(|range| range.start == vaddr).map(|range| range.name);
            if let Some(&name) = samples.get(&vaddr) {
                let counter = 2 + self.samples.len() as u32;
                let program = self.store.counter(self.map, counter);
                let link = self.store.probe(program, kind, path, location);
                self.samples.push((name.clone(), kind, counter, link));
            } else if let Some(link) = shared {
                self.store.probe_also(link, location);
            } else {
                let program = self.programs[usize::from(kind == ProbeKind::Return)];
                let link = self.store.probe(program, kind, path, location);
                self.links.push(link);
                shared = Some(link);
            }
            self.names.push((name.unwrap_or_else(|| format!("{vaddr:#x}")), kind));
        }
    }

    /// Lines about which probes are in force, and why the others are not.
    fn placed(&self, states: &[&ProbeState]) -> String {
        let mut text = String::new();
        for wanted in [ProbeKind::Entry, ProbeKind::Return] {
            let mut placed = 0;
            let mut refused: BTreeMap<String, Vec<&str>> = BTreeMap::new();
            let mut all = 0;
            for (state, (name, kind)) in states.iter().zip(&self.names) {
                if *kind != wanted {
                    continue;
                }
                all += 1;
                match state {
                    ProbeState::Refused { reason } => {
                        refused.entry(without_numbers(reason, name)).or_default().push(name);
                    }
                    ProbeState::NotMapped { .. } => {
                        refused.entry("not mapped".to_owned()).or_default().push(name);
                    }
                    _ => placed += 1,
                }
            }
            let _ = writeln!(text, "{wanted:?}: {placed} of {all}");
            for (reason, names) in refused {
                let shown = names.iter().take(12).copied().collect::<Vec<_>>().join(" ");
                let _ = writeln!(text, "refused {wanted:?}: {} {reason}: {shown}", names.len());
            }
        }
        text
    }

    fn counts(&self) -> String {
        let missed: u64 = self.links.iter().map(|&link| self.store.missed(link)).sum();
        let (entries, returns) = (self.store.value(self.map, 0), self.store.value(self.map, 1));
        let mut text = format!("hits: {entries} {returns}\nmissed: {missed}\n");
        for (name, kind, counter, link) in &self.samples {
            let (hits, missed) = (self.store.value(self.map, *counter), self.store.missed(*link));
            let _ = writeln!(text, "sample: {name} {kind:?} {hits} {missed}");
        }
        text
    }
}

/// Every `step`th instruction of all functions.
fn instructions(binary: &Binary, step: usize) -> Vec<u64> {
    let mut found = Vec::new();
    for function in binary.functions() {
        let Some(bytes) = binary.bytes_from(function.start) else { continue };
        let bytes = &bytes[..bytes.len().min((function.end - function.start) as usize)];
        let mut decoder = Decoder::with_ip(64, bytes, function.start, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            found.push(instruction.ip());
        }
    }
    found.sort_unstable();
    found.dedup();
    found.into_iter().step_by(step).collect()
}

/// Reasons that differ in addresses and names are the same.
fn without_numbers(reason: &str, name: &str) -> String {
    let reason = reason.replace(&format!("`{name}`"), "it");
    let word = |word: &str| if word.contains("0x") { "…".to_owned() } else { word.to_owned() };
    reason.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
