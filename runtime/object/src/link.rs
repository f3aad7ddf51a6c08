//! Makes a program of a function: appends the subprograms that it needs, in libbpf's order, and resolves calls, maps,
//! data and externs.
//!
//! ```text
//! main | first called | what that calls first | ... | next called by main | ...
//! ```

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use beeline_isa::Insn;
use beeline_isa::opcode as o;

use crate::btf::ext::{Ext, FuncInfo, LineInfo, SectionRecords};
use crate::elf::Elf;
use crate::error::ObjectError;
use crate::externs::{Extern, ExternKind, Ksym};
use crate::program::{Function, FunctionReloc, ProgramDef, RelocKind, Subprogram, function_at};
use crate::relocate::text_section;

/// First id of the invalid helpers that calls of unresolved weak kernel functions become; plus the extern's number.
pub const POISON_KFUNC_BASE: i32 = 2_002_000_000;

/// Instructions of all programs of an object together, subprograms counted in each that has them.
const LINKED_MAX: usize = 16 << 20;

/// What functions are linked with.
pub(crate) struct Linker<'a, 'data> {
    elf: &'a Elf<'data>,
    functions: &'a [Function],
    externs: &'a [Extern],
    /// Index of the `.kconfig` map.
    kconfig_map: Option<usize>,
    /// Index of `.text`.
    text_section: Option<u32>,
    /// `.BTF.ext` by section: functions and lines.
    func_info: HashMap<&'a str, &'a SectionRecords<FuncInfo>>,
    line_info: HashMap<&'a str, &'a SectionRecords<LineInfo>>,
    /// Instructions of the programs linked so far.
    total: Cell<usize>,
}

/// A program being put together.
struct Build<'a> {
    main: &'a Function,
    insns: Vec<Insn>,
    relocs: Vec<FunctionReloc>,
    /// Where each function of the file was put, by index.
    placed: HashMap<usize, usize>,
    subprograms: Vec<Subprogram>,
    func_info: Option<Vec<FuncInfo>>,
    line_info: Option<Vec<LineInfo>>,
}

/// A function whose calls are being resolved, and the next instruction to look at.
struct Frame {
    function: usize,
    base: usize,
    next: usize,
}

impl<'a, 'data> Linker<'a, 'data> {
    /// Prepares to link the functions of one object.
    pub(crate) fn new(
        elf: &'a Elf<'data>,
        functions: &'a [Function],
        externs: &'a [Extern],
        kconfig_map: Option<usize>,
        ext: &'a Ext,
    ) -> Self {
        Linker {
            elf,
            functions,
            externs,
            kconfig_map,
            text_section: text_section(elf),
            func_info: by_section(&ext.func_info),
            line_info: by_section(&ext.line_info),
            total: Cell::new(0),
        }
    }

    /// The program whose entry is function `index`.
    pub(crate) fn link(&self, index: usize) -> Result<ProgramDef, ObjectError> {
        let main = &self.functions[index];
        let mut build = Build {
            main,
            insns: Vec::new(),
            relocs: Vec::new(),
            placed: HashMap::new(),
            subprograms: Vec::new(),
            func_info: Some(Vec::new()),
            line_info: Some(Vec::new()),
        };
        self.append_all(&mut build, index)?;
        let map_refs = self.resolve_data(&mut build)?;
        Ok(ProgramDef {
            insns: build.insns,
            map_refs: map_refs.into_iter().collect(),
            func_info: build.func_info.unwrap_or_default(),
            line_info: build.line_info.unwrap_or_default(),
            subprograms: build.subprograms,
            ..unlinked(main)
        })
    }

    /// Appends `index` and, depth first, everything it calls.
    fn append_all(&self, build: &mut Build<'a>, index: usize) -> Result<(), ObjectError> {
        let mut stack = vec![self.append(build, index)?];
        while let Some(frame) = stack.last_mut() {
            let function = &self.functions[frame.function];
            if frame.next == function.insns.len() {
                stack.pop();
                continue;
            }
            let at = frame.next;
            let Some(callee) = self.callee(build.main, function, at)? else {
                frame.next += 1;
                continue;
            };
            match build.placed.get(&callee).copied() {
                Some(base) => {
                    let here = frame.base + at;
                    build.insns[here].imm = base as i32 - here as i32 - 1;
                    frame.next += 1;
                }
                // The call is looked at again when the callee is in place.
                None => stack.push(self.append(build, callee)?),
            }
        }
        Ok(())
    }

    fn append(&self, build: &mut Build<'a>, index: usize) -> Result<Frame, ObjectError> {
        let function = &self.functions[index];
        let base = build.insns.len();
        self.total.set(self.total.get() + function.insns.len());
        if self.total.get() > LINKED_MAX {
            return Err(ObjectError::TooLarge {
                what: "the length of all programs",
                limit: LINKED_MAX as u64,
            });
        }
        build.insns.extend_from_slice(&function.insns);
        build
            .relocs
            .extend(function.relocs.iter().map(|reloc| FunctionReloc { insn: reloc.insn + base, ..*reloc }));
        // A main program cannot be called: it is not in .text.
        if function.is_subprogram {
            build.placed.insert(index, base);
        }
        build.subprograms.push(Subprogram {
            offset: base as u32,
            len: function.insns.len() as u32,
            name: function.name.clone(),
            global: function.global && !function.hidden,
        });
        self.append_info(build, function, base)?;
        Ok(Frame { function: index, base, next: 0 })
    }

    /// The subprogram that instruction `at` of `function` calls or takes the address of.
    fn callee(&self, main: &Function, function: &Function, at: usize) -> Result<Option<usize>, ObjectError> {
        let insn = function.insns[at];
        let reloc = function.reloc(at);
        let is_call =
            insn.code == o::JMP | o::CALL && insn.src() == o::PSEUDO_CALL && insn.dst() == 0 && insn.off == 0;
        let is_address = insn.is_wide()
            && (insn.src() == o::PSEUDO_FUNC || matches!(reloc, Some(RelocKind::SubprogramAddress(_))));
        if !is_call && !is_address {
            return Ok(None);
        }
        let fail = |reason: String| ObjectError::Program {
            program: main.name.clone(),
            section: main.section_name.clone(),
            reason: format!("instruction {at} of '{}': {reason}", function.name),
        };
        let imm = i64::from(insn.imm);
        let target = match reloc {
            Some(RelocKind::ExternCall(_)) => return Ok(None),
            Some(RelocKind::Call(value)) => (value / 8) as i64 + imm + 1,
            Some(RelocKind::SubprogramAddress(value)) => (value as i64).wrapping_add(imm) / 8,
            Some(_) => return Err(fail("a call with a relocation of another kind".into())),
            None if is_address => return Err(fail("the address of a function without a relocation".into())),
            // To a static function of the same section, relative to where the call is.
            None => (function.offset + at) as i64 + imm + 1,
        };
        let found = self.text_section.zip(usize::try_from(target).ok());
        let found = found.and_then(|(text, target)| function_at(self.functions, text, target));
        found
            .map(Some)
            .ok_or_else(|| fail(format!("it calls instruction {target} of .text, where no function is")))
    }

    /// Appends the function's types and lines, moved to where it is now. What the main program lacks is not collected.
    fn append_info(
        &self,
        build: &mut Build<'a>,
        function: &Function,
        base: usize,
    ) -> Result<(), ObjectError> {
        let is_main = build.subprograms.len() == 1;
        let section = self.elf.section_name(function.section);
        let missing = |what: &str| ObjectError::Program {
            program: function.name.clone(),
            section: function.section_name.clone(),
            reason: format!("section '.BTF.ext' has no {what} for it"),
        };
        if let Some(all) = &mut build.func_info {
            let mut infos = records_of(self.func_info.get(section), function, |info| info.insn_off);
            for info in &mut infos {
                info.insn_off = (info.insn_off / 8 - function.offset as u32) + base as u32;
            }
            match infos.is_empty() {
                true if is_main => build.func_info = None,
                true => return Err(missing("function information")),
                false => all.append(&mut infos),
            }
        }
        if let Some(all) = &mut build.line_info {
            let mut infos = records_of(self.line_info.get(section), function, |info| info.insn_off);
            for info in &mut infos {
                info.insn_off = (info.insn_off / 8 - function.offset as u32) + base as u32;
            }
            match infos.is_empty() {
                true if is_main => build.line_info = None,
                true => return Err(missing("line information")),
                false => all.append(&mut infos),
            }
        }
        Ok(())
    }

    /// Patches every instruction that refers to a map, data or an extern; returns the maps.
    fn resolve_data(&self, build: &mut Build<'a>) -> Result<BTreeSet<u32>, ObjectError> {
        let mut maps = BTreeSet::new();
        for reloc in &build.relocs {
            let fail = |reason: &str| ObjectError::Program {
                program: build.main.name.clone(),
                section: build.main.section_name.clone(),
                reason: format!("instruction {}: {reason}", reloc.insn),
            };
            let (first, second) = build.insns.split_at_mut(reloc.insn + 1);
            let (Some(insn), second) = (first.last_mut(), second.first_mut()) else { continue };
            let mut refer = |insn: &mut Insn, src: u8, map: usize| {
                *insn = Insn { imm: map as i32, ..insn.with_src(src) };
                maps.insert(map as u32);
            };
            match (reloc.kind, second) {
                (RelocKind::Call(_), _) => {}
                (RelocKind::SubprogramAddress(_), _) => *insn = insn.with_src(o::PSEUDO_FUNC),
                (RelocKind::ExternCall(index), _) => *insn = self.extern_call(*insn, index),
                (_, None) => return Err(fail("half of a 64-bit immediate")),
                (RelocKind::Map(map), _) => refer(insn, o::PSEUDO_MAP_FD, map),
                (RelocKind::Data { map, addend }, Some(second)) => {
                    second.imm = insn.imm.wrapping_add(addend as i32);
                    refer(insn, o::PSEUDO_MAP_VALUE, map);
                }
                (RelocKind::ExternValue(index), Some(second)) => match &self.externs[index].kind {
                    ExternKind::Kconfig(var) => {
                        let map = self.kconfig_map.ok_or_else(|| fail("no .kconfig map"))?;
                        refer(insn, o::PSEUDO_MAP_VALUE, map);
                        second.imm = var.offset as i32;
                    }
                    // That it is there is all that a program may ask.
                    ExternKind::Ksym(ksym) if ksym.host.is_some() => (insn.imm, second.imm) = (1, 0),
                    ExternKind::Ksym(ksym) if ksym.type_id != 0 && self.externs[index].is_set => {
                        *insn = Insn { imm: ksym.kernel_id as i32, ..insn.with_src(o::PSEUDO_BTF_ID) };
                        second.imm = 0;
                    }
                    ExternKind::Ksym(ksym) => {
                        insn.imm = ksym.address as i32;
                        second.imm = (ksym.address >> 32) as i32;
                    }
                },
            }
        }
        Ok(maps)
    }

    /// A call of a kernel function; of one that does not exist, an invalid helper that says which.
    fn extern_call(&self, insn: Insn, index: usize) -> Insn {
        match &self.externs[index].kind {
            ExternKind::Ksym(Ksym { host: Some(host), .. }) => {
                Insn { imm: *host as i32, off: o::HOST_CALL, ..insn.with_src(o::PSEUDO_KFUNC_CALL) }
            }
            ExternKind::Ksym(ksym) if self.externs[index].is_set => {
                Insn { imm: ksym.kernel_id as i32, off: 0, ..insn.with_src(o::PSEUDO_KFUNC_CALL) }
            }
            _ => Insn::new(o::JMP | o::CALL, 0, 0, 0, POISON_KFUNC_BASE.wrapping_add(index as i32)),
        }
    }
}

/// A program that is described, but not linked.
pub(crate) fn unlinked(function: &Function) -> ProgramDef {
    let spec = function.spec.as_ref();
    ProgramDef {
        name: function.name.clone(),
        section: function.section_name.clone(),
        spec: function.spec.clone(),
        prog_type: spec.map_or(0, |spec| spec.def.prog_type),
        expected_attach_type: spec.map_or(0, |spec| spec.def.attach_type),
        flags: spec.map_or(0, |spec| spec.prog_flags()),
        insns: function.insns.clone(),
        map_refs: Vec::new(),
        func_info: Vec::new(),
        line_info: Vec::new(),
        subprograms: Vec::new(),
        autoload: function.autoload,
        sleepable: spec.is_some_and(|spec| spec.is_sleepable()),
    }
}

/// The first table of each section.
fn by_section<R>(tables: &[SectionRecords<R>]) -> HashMap<&str, &SectionRecords<R>> {
    let mut found = HashMap::with_capacity(tables.len());
    for table in tables {
        found.entry(table.section.as_str()).or_insert(table);
    }
    found
}

/// The records of a function: those of its section that lie in it, up to the first beyond it.
fn records_of<R: Copy>(
    table: Option<&&SectionRecords<R>>,
    function: &Function,
    offset: impl Fn(&R) -> u32,
) -> Vec<R> {
    let Some(table) = table else { return Vec::new() };
    let (start, end) = (function.offset, function.offset + function.insns.len());
    let insn = |record: &R| (offset(record) / 8) as usize;
    let first =
        if table.is_sorted { table.records.partition_point(|record| insn(record) < start) } else { 0 };
    table.records[first..]
        .iter()
        .take_while(|record| insn(record) < end)
        .filter(|record| insn(record) >= start)
        .copied()
        .collect()
}
