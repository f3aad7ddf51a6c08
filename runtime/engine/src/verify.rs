//! The verifier's verdict on a file, without loading it.

use crate::load::{parse, prove};
use crate::translate;
use crate::{EngineError, HostFunctionSpec};
use beeline_store::VerifierStats;
use std::path::Path;

/// What the verifier says about one program.
#[derive(Debug)]
pub struct Verdict {
    /// The program.
    pub program: String,
    /// Its section.
    pub section: String,
    /// Instructions.
    pub insns: usize,
    /// What it took to accept it, or why it is refused.
    pub result: Result<VerifierStats, EngineError>,
    /// Bytes of stack over all frames of an accepted program, in the worst case.
    pub stack_bytes: u32,
    /// The line of source of the instruction where a program is rejected: `text @ file.c:12`.
    pub source_line: Option<String>,
    /// The log, in the kernel's form; empty for an accepted program unless asked for.
    pub log: String,
}

/// Verifies every program of an object file, those of `SEC("?...")` left out. `log_level` is as in `bpf_attr`: bits 1 (the
/// path that fails), 2 (every path), 4 (statistics).
///
/// # Errors
/// When the file cannot be read or is no object, or a host function is registered that it does not call; that a program is refused is in its [`Verdict`].
pub fn verify(
    path: &Path,
    btf: Option<&Path>,
    host_functions: &[HostFunctionSpec],
    log_level: u32,
) -> Result<Vec<Verdict>, EngineError> {
    let bytes = std::fs::read(path).map_err(|source| EngineError::Read { path: path.into(), source })?;
    let (object, _) = parse(&bytes, path, btf, host_functions)?;
    let cpus = beeline_store::possible_cpus()?;
    let options = beeline_verifier::Options { log_level, ..beeline_verifier::Options::default() };
    let wanted = object.programs.iter().filter(|program| program.autoload);
    let verdict = |def: &beeline_object::ProgramDef| {
        let mut verdict = Verdict {
            program: def.name.clone(),
            section: def.section.clone(),
            insns: def.insns.len(),
            result: Ok(beeline_store::VerifierStats::default()),
            stack_bytes: 0,
            source_line: None,
            log: String::new(),
        };
        verdict.result = match prove(&object, def, cpus, &options) {
            Ok((verified, stats)) => {
                verdict.stack_bytes = verified.stats().stack_bytes;
                verdict.log = verified.log().to_owned();
                Ok(stats)
            }
            Err(error) => {
                if let EngineError::Rejected { rejection, .. } = &error {
                    verdict.log = rejection.log.clone();
                    verdict.source_line = line_at(&translate::lines(&object, def), rejection.pc);
                }
                Err(error)
            }
        };
        verdict
    };
    Ok(wanted.map(verdict).collect())
}

/// The last line of source that begins at or before the instruction.
fn line_at(lines: &[(u32, String)], pc: usize) -> Option<String> {
    let before = lines.partition_point(|(at, _)| *at as usize <= pc);
    before.checked_sub(1).map(|line| lines[line].1.clone())
}
