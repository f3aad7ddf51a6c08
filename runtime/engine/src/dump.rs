//! Programs as text: their instructions, and their machine code.

use crate::{Engine, EngineError};
use beeline_helpers::HOST_FUNCTION_BASE;
use beeline_isa::disasm::{Line, Names};
use beeline_store::Program;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, SymbolResolver, SymbolResult};
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// One instruction of `dump xlated`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XlatedLine {
    /// Its slot.
    pub pc: u32,
    /// The function that begins here.
    pub function: Option<String>,
    /// The source line that begins here.
    pub source: Option<String>,
    /// The instruction as the kernel writes it.
    pub text: String,
    /// Its 8 or 16 bytes.
    pub bytes: Vec<u8>,
}

/// One instruction of `dump jited`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JitedLine {
    /// Its offset in the program's code.
    pub offset: u32,
    /// The function that begins here.
    pub function: Option<String>,
    /// The slot of the eBPF instruction whose code begins here.
    pub pc: Option<u32>,
    /// The instruction.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

struct StoreNames<'a> {
    program: &'a Program,
}

impl Names for StoreNames<'_> {
    fn helper(&self, id: i32) -> Option<&str> {
        let id = u32::try_from(id).ok()?;
        if let Some(index) = id.checked_sub(HOST_FUNCTION_BASE) {
            return self.program.host_functions.get(index as usize).map(|function| function.name.as_str());
        }
        beeline_helpers::table::by_id(id).map(|helper| helper.proto.name)
    }

    fn function(&self, start: u32) -> Option<&str> {
        self.program.subprograms.iter().find(|(at, _)| *at == start).map(|(_, name)| name.as_str())
    }

    fn map(&self, index: u32, out: &mut dyn Write) -> fmt::Result {
        match self.program.map_ids.get(index as usize) {
            Some(id) => write!(out, "map[id:{id}]"),
            None => write!(out, "map[idx:{index}]"),
        }
    }
}

impl Engine {
    /// A program's verified instructions.
    ///
    /// # Errors
    /// None today; what is not an instruction is printed as such.
    pub fn xlated(&self, program: &Program) -> Result<Vec<XlatedLine>, EngineError> {
        let names = StoreNames { program };
        let functions: BTreeMap<_, _> = program.subprograms.iter().cloned().collect();
        let sources: BTreeMap<_, _> = program.lines.iter().cloned().collect();
        let mut lines = Vec::new();
        let mut pc = 0;
        while let Some(insn) = program.insns.get(pc) {
            let slots = if insn.is_wide() { 2 } else { 1 };
            let slots = slots.min(program.insns.len() - pc);
            let start = pc as u32;
            lines.push(XlatedLine {
                pc: start,
                function: functions.get(&start).cloned(),
                source: sources.get(&start).cloned(),
                text: Line::new(&program.insns, pc, &names).to_string(),
                bytes: program.insns[pc..pc + slots].iter().flat_map(|insn| insn.to_bytes()).collect(),
            });
            pc += slots;
        }
        Ok(lines)
    }

    /// A program's machine code as it lies in the store, before it is linked into a process.
    ///
    /// # Errors
    /// None today; bytes that are no instruction are printed as such.
    pub fn jited(&self, program: &Program) -> Result<Vec<JitedLine>, EngineError> {
        let functions: BTreeMap<_, _> =
            program.functions.iter().map(|it| (it.offset, it.name.clone())).collect();
        let places: BTreeMap<u32, u32> =
            program.code_offsets.iter().map(|&(pc, offset)| (offset, pc)).collect();
        let mut formatter = IntelFormatter::with_options(Some(Box::new(Relocated::of(program))), None);
        formatter.options_mut().set_hex_prefix("0x");
        formatter.options_mut().set_hex_suffix("");
        formatter.options_mut().set_branch_leading_zeros(false);
        formatter.options_mut().set_space_after_operand_separator(true);
        let mut lines = Vec::new();
        for instruction in Decoder::new(64, &program.code, DecoderOptions::NONE) {
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            let (offset, len) = (instruction.ip() as u32, instruction.len());
            lines.push(JitedLine {
                offset,
                function: functions.get(&offset).cloned(),
                pc: places.get(&offset).copied(),
                text,
                bytes: program.code[offset as usize..offset as usize + len].to_vec(),
            });
        }
        Ok(lines)
    }
}

/// Names for the operands that are filled in when the code is linked.
struct Relocated {
    names: BTreeMap<u32, String>,
}

impl Relocated {
    fn of(program: &Program) -> Relocated {
        use beeline_abi::code::Symbol;
        let map = |index: u32| program.map_ids.get(index as usize).copied().unwrap_or(index);
        let name = |symbol| match symbol {
            Symbol::MapHandle(index) => format!("map[id:{}]", map(index)),
            Symbol::MapData(index) => format!("map[id:{}][0]", map(index)),
            Symbol::Helper(id) => {
                let found = beeline_helpers::table::by_id(id).map(|helper| helper.proto.name.to_owned());
                found.unwrap_or_else(|| format!("helper#{id}"))
            }
            Symbol::HostFunction(index) => match program.host_functions.get(index as usize) {
                Some(function) => format!("host:{}", function.name),
                None => format!("host#{index}"),
            },
            Symbol::Image => "image".into(),
        };
        Relocated { names: program.relocs.iter().map(|it| (it.offset, name(it.symbol))).collect() }
    }
}

impl SymbolResolver for Relocated {
    fn symbol(
        &mut self,
        instruction: &iced_x86::Instruction,
        _operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let (start, end) = (instruction.ip() as u32, instruction.next_ip() as u32);
        let (_, name) = self.names.range(start..end).next()?;
        Some(SymbolResult::with_str(address, name))
    }
}
