//! The verifier's verdict on a file, without loading it.

use crate::EngineError;
use crate::load::{parse, prove};
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
    /// The log, in the kernel's style; empty for an accepted program unless asked for.
    pub log: String,
}

/// Verifies every program of an object file, those of `SEC("?...")` left out.
///
/// # Errors
/// When the file cannot be read or is no object; that a program is refused is in its [`Verdict`].
pub fn verify(path: &Path, btf: Option<&Path>, with_log: bool) -> Result<Vec<Verdict>, EngineError> {
    let bytes = std::fs::read(path).map_err(|source| EngineError::Read { path: path.into(), source })?;
    let (object, _) = parse(&bytes, path, btf)?;
    let cpus = beeline_store::possible_cpus()?;
    let log_level = if with_log { 2 } else { 0 };
    let options = beeline_verifier::Options { log_level, ..beeline_verifier::Options::default() };
    let wanted = object.programs.iter().filter(|program| program.autoload);
    let verdict = |def: &beeline_object::ProgramDef| {
        let (result, log) = match prove(&object, def, cpus, &options) {
            Ok((verified, stats)) => (Ok(stats), verified.log().to_owned()),
            Err(EngineError::Rejected { program, rejection }) => {
                let log = rejection.log.clone();
                (Err(EngineError::Rejected { program, rejection }), log)
            }
            Err(error) => (Err(error), String::new()),
        };
        Verdict {
            program: def.name.clone(),
            section: def.section.clone(),
            insns: def.insns.len(),
            result,
            log,
        }
    };
    Ok(wanted.map(verdict).collect())
}
