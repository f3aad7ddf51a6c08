//! The corpus: `cases/*.bpf`, each case with what must come out, on both engines.

use crate::surroundings::Surroundings;
use beeline_isa::Insn;
use beeline_isa::disasm::{Line, NoNames};
use beeline_vm::assemble::assemble;
use beeline_vm::engine::{Engine, Machine};
use beeline_vm::hex;
use std::path::PathBuf;

/// One case of the corpus.
#[derive(Default)]
pub(crate) struct Case {
    pub(crate) name: String,
    program: String,
    memory: Vec<u8>,
    after: Option<Vec<u8>>,
    result: Option<u64>,
    refused: Option<String>,
}

impl Case {
    pub(crate) fn insns(&self) -> Vec<Insn> {
        assemble(&self.program).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// What comes out is not what must.
    fn check(&self, engine: Engine) -> Result<(), String> {
        let mut surroundings = Surroundings::new();
        let mut memory = self.memory.clone();
        // SAFETY: the corpus' programs touch the buffer, the maps and their stack only, and end.
        let machine = unsafe { Machine::new(engine, &self.insns(), surroundings.setup()) };
        let result = machine.and_then(|machine| machine.run(&mut memory));
        match (&self.refused, result) {
            (None, Ok(r0)) if Some(r0) != self.result => Err(format!("r0 = {r0:#x}")),
            (None, Ok(_)) if self.after.as_ref().is_some_and(|after| *after != memory) => {
                Err(format!("memory {memory:02x?}"))
            }
            (None, Ok(_)) => Ok(()),
            (None, Err(error)) => Err(error.to_string()),
            (Some(_), Ok(r0)) => Err(format!("r0 = {r0:#x}, but should be refused")),
            (Some(reason), Err(error)) if error.to_string().contains(reason) => Ok(()),
            (Some(_), Err(error)) => Err(format!("refused: {error}")),
        }
    }
}

/// All cases of all files.
pub(crate) fn corpus() -> Vec<Case> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
        read(&stem, &std::fs::read_to_string(&file).expect("a text"), &mut cases);
    }
    cases
}

fn read(stem: &str, text: &str, cases: &mut Vec<Case>) {
    let bytes = |text| hex::bytes(text).unwrap_or_else(|error| panic!("{stem}: {text}: {error}"));
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("case ") {
            cases.push(Case { name: format!("{stem}: {name}"), ..Case::default() });
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        match line.split_once(' ') {
            Some(("result", number)) => case.result = Some(number_of(number)),
            Some(("memory", digits)) => case.memory = bytes(digits),
            Some(("after", digits)) => case.after = Some(bytes(digits)),
            Some(("refused", reason)) => case.refused = Some(reason.to_owned()),
            _ => case.program.extend([line, "\n"]),
        }
    }
}

fn number_of(text: &str) -> u64 {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn check_all(engine: Engine) {
    let cases = corpus();
    assert!(cases.len() > 100, "the corpus is not all there");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| case.check(engine).err().map(|reason| format!("{}: {reason}", case.name)))
        .collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn interpreter_gives_the_expected_results() {
    check_all(Engine::Interpreter);
}

#[test]
fn compiler_gives_the_expected_results() {
    check_all(Engine::Compiled);
}

#[test]
fn every_case_says_what_it_expects() {
    for case in corpus() {
        assert!(case.result.is_some() != case.refused.is_some(), "{}", case.name);
    }
}

/// What the disassembler prints, the assembler reads back.
#[test]
fn text_and_instructions_are_equivalent() {
    for case in corpus() {
        let insns = case.insns();
        let mut pc = 0;
        while pc < insns.len() {
            let slots = if insns[pc].is_wide() { 2 } else { 1 };
            let text = Line::new(&insns, pc, &NoNames).to_string();
            assert_eq!(assemble(&text).as_deref(), Ok(&insns[pc..pc + slots]), "{}: {text}", case.name);
            pc += slots;
        }
    }
}
