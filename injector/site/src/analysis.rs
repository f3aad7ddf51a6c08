//! Where execution can arrive, for a whole object: what a window must not contain.
//!
//! All executable sections are decoded once, linearly, starting afresh at each symbol and unwind entry. Everything that could be an
//! address of code is taken for one; a false target only costs a site, a missed one would cost the process:
//!
//! - targets of direct jumps and calls,
//! - addresses taken by `lea`, by immediates where code lies at fixed addresses, and by offsets from the global offset table,
//! - jump tables: offsets of 32 or 64 bits from their own start, or from a label whose address the same function takes (`&&label`
//!   of GNU C), and absolute words in data,
//! - what dynamic relocations store, and landing pads of exceptions,
//! - the place in Go's `goexit` that its runtime computes.
//!
//! A jump to a computed address whose table is not found leaves its function *opaque*: any instruction may be a target there.
//!
//! What may be data by chance, immediates, tables and words, leads only to where an instruction begins: elsewhere it is no address of
//! code, and a table ends.
//!
//! The same pass notes the padding behind code that does not go on: there is room for jumps that do not fit elsewhere.

use crate::Binary;
use crate::binary::Section;
use crate::jumps::{Computed, computed, may_be_computed};
use crate::plan::{ends_flow, is_padding};
use crate::tables::{self, Entries, Opaque};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::ops::Range;

/// Where goroutines return to at their end: behind the first byte of this function, an address that Go's runtime computes (`newproc1`
/// in its `proc.go`, `goexit` in its `asm_amd64.s`).
const GO_EXITS: [&str; 2] = ["runtime.goexit", "runtime.goexit.abi0"];

/// Bytes of code from which on two threads decode it: a tenth of a millisecond.
const SHARED_MIN: usize = 32 << 10;

/// One bit for each byte of an executable section.
#[derive(Debug, Default)]
struct Marks {
    start: u64,
    len: u64,
    bits: Vec<u64>,
}

impl Marks {
    fn new(start: u64, len: u64) -> Marks {
        Marks { start, len, bits: vec![0; len.div_ceil(64) as usize] }
    }

    /// False when `vaddr` is not in this section.
    fn set(&mut self, vaddr: u64) -> bool {
        let at = vaddr.wrapping_sub(self.start);
        if at >= self.len {
            return false;
        }
        self.bits[(at / 64) as usize] |= 1 << (at % 64);
        true
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        let words = self.bits.iter().zip((self.start..).step_by(64));
        words.filter(|&(&word, _)| word != 0).flat_map(|(&word, first)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| first + bit)
        })
    }

    fn covers(&self, vaddr: u64) -> bool {
        vaddr.wrapping_sub(self.start) < self.len
    }

    fn get(&self, vaddr: u64) -> bool {
        let at = vaddr.wrapping_sub(self.start);
        at < self.len && self.bits[(at / 64) as usize] >> (at % 64) & 1 != 0
    }
}

/// A set of code addresses.
#[derive(Debug)]
struct Addresses(Vec<Marks>);

impl Addresses {
    fn of(sections: &[&Section]) -> Addresses {
        Addresses(sections.iter().map(|s| Marks::new(s.vaddr, s.bytes.len() as u64)).collect())
    }

    fn insert(&mut self, vaddr: u64) -> bool {
        self.0.iter_mut().any(|m| m.set(vaddr))
    }

    fn contains(&self, vaddr: u64) -> bool {
        self.0.iter().any(|m| m.get(vaddr))
    }

    /// It lies in one of the sections.
    fn covers(&self, vaddr: u64) -> bool {
        self.0.iter().any(|m| m.covers(vaddr))
    }

    /// Adds those of another set over the same sections.
    fn merge(&mut self, other: &Addresses) {
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            ours.bits.iter_mut().zip(&theirs.bits).for_each(|(ours, theirs)| *ours |= theirs);
        }
    }

    /// A section ends there.
    fn ends_at(&self, vaddr: u64) -> bool {
        self.0.iter().any(|m| m.start + m.len == vaddr)
    }
}

/// Where execution can arrive.
#[derive(Debug)]
pub(crate) struct Analysis {
    /// Anything at all refers to it.
    targets: Addresses,
    /// It is called, or its address is taken.
    called: Addresses,
    /// A conditional branch goes there.
    conditional: Addresses,
    /// A jump from the code between this address and the next known start goes there.
    looped: Addresses,
    /// An instruction begins there, or nobody knows: in a piece of code that does not decode to its end.
    instructions: Addresses,
    /// Starts of pieces of code: symbols and unwind entries, in order.
    starts: Vec<u64>,
    /// Addresses that code takes.
    taken: Vec<u64>,
    /// Data addresses that code takes.
    tables: Vec<u64>,
    /// Runs of padding behind code that does not go on: nothing reaches them as far as the decoder sees.
    fillers: Vec<Range<u64>>,
    /// Constants of 64 bits: in code for any address, distances from the global offset table.
    distances: Vec<u64>,
    /// Where that table may be.
    offset_tables: Vec<u64>,
    /// In code for fixed addresses, displacements of the piece that is being decoded.
    parts: Vec<u64>,
    /// Pieces of code with labels, or with computed jumps.
    pieces: Vec<Piece>,
    /// Code in which a computed jump was not understood.
    opaque: Vec<Opaque>,
}

/// What matters of a piece of code for its computed jumps.
#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    /// Addresses in it that it takes.
    labels: Vec<u64>,
    /// The others.
    tables: Vec<u64>,
    /// Addresses that may be those of tables, or be in the middle of one.
    parts: Vec<u64>,
    jumps: Vec<Computed>,
}

impl Analysis {
    pub(crate) fn of(binary: &Binary) -> Analysis {
        let sections: Vec<&Section> = binary.sections().iter().filter(|s| s.executable).collect();
        let mut analysis = Analysis::empty(&sections, starts(binary));
        analysis.offset_tables = binary.offset_tables();
        analysis.sweep_all(binary, &sections);
        analysis.sort_taken(binary);
        analysis.fillers.sort_unstable_by_key(|filler| filler.start);
        analysis.read_tables(binary);
        analysis.read_pieces(binary);
        if binary.is_fixed() {
            analysis.read_words(binary);
        }
        let stored = binary.dynamic().stored.iter().map(|&(_, target)| target);
        for target in stored.chain([binary.entry()]) {
            if analysis.targets.insert(target) {
                analysis.called.insert(target);
            }
        }
        for &pad in binary.unwind().landing_pads() {
            analysis.targets.insert(pad);
        }
        for name in GO_EXITS {
            for symbol in binary.symbols().named(name) {
                analysis.targets.insert(symbol.vaddr + 1);
            }
        }
        analysis
    }

    fn empty(sections: &[&Section], starts: Vec<u64>) -> Analysis {
        Analysis {
            targets: Addresses::of(sections),
            called: Addresses::of(sections),
            conditional: Addresses::of(sections),
            looped: Addresses::of(sections),
            instructions: Addresses::of(sections),
            starts,
            taken: Vec::new(),
            tables: Vec::new(),
            fillers: Vec::new(),
            distances: Vec::new(),
            offset_tables: Vec::new(),
            parts: Vec::new(),
            pieces: Vec::new(),
            opaque: Vec::new(),
        }
    }

    /// The first address in `range` at which execution can arrive by a jump.
    pub(crate) fn first_target_in(&self, mut range: Range<u64>) -> Option<u64> {
        range.find(|&v| self.targets.contains(v))
    }

    /// Addresses at which execution can arrive by a jump.
    pub(crate) fn targets(&self) -> impl Iterator<Item = u64> {
        self.targets.0.iter().flat_map(Marks::iter)
    }

    /// The first start of other code in `range`.
    pub(crate) fn first_start_in(&self, range: Range<u64>) -> Option<u64> {
        let at = self.starts.partition_point(|&s| s < range.start);
        self.starts.get(at).copied().filter(|&s| s < range.end)
    }

    /// Padding in `range` that never runs: behind code that does not go on, up to where other code starts or is jumped to.
    pub(crate) fn padding_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let first = self.fillers.partition_point(|filler| filler.end <= range.start);
        let near = self.fillers[first..].iter().take_while(move |filler| filler.start < range.end);
        near.filter(|filler| self.is_padding(filler)).cloned()
    }

    fn is_padding(&self, filler: &Range<u64>) -> bool {
        let ends_at_code = self.targets.contains(filler.end)
            || self.starts.binary_search(&filler.end).is_ok()
            || self.targets.ends_at(filler.end);
        ends_at_code
            && self.first_target_in(filler.clone()).is_none()
            && self.first_start_in(filler.clone()).is_none()
    }

    /// The last start at or before `vaddr`.
    pub(crate) fn start_before(&self, vaddr: u64) -> Option<u64> {
        let behind = self.starts.partition_point(|&s| s <= vaddr);
        self.starts.get(behind.checked_sub(1)?).copied()
    }

    /// It is called somewhere, or its address is taken.
    pub(crate) fn is_called(&self, vaddr: u64) -> bool {
        self.called.contains(vaddr)
    }

    /// A conditional branch goes there.
    pub(crate) fn is_conditional_target(&self, vaddr: u64) -> bool {
        self.conditional.contains(vaddr)
    }

    /// The code that starts there jumps back to its start.
    pub(crate) fn is_looped(&self, vaddr: u64) -> bool {
        self.looped.contains(vaddr)
    }

    /// The code around `vaddr` that a jump in it makes opaque; not where a function begins.
    pub(crate) fn opaque_at(&self, vaddr: u64) -> Option<&Opaque> {
        self.opaque.iter().find(|opaque| opaque.range.contains(&vaddr) && opaque.range.start != vaddr)
    }

    /// Decodes all code: half of it by another thread where there is much of it. Pieces do not depend on each other.
    fn sweep_all(&mut self, binary: &Binary, sections: &[&Section]) {
        let pieces: Vec<(u64, &[u8])> =
            sections.iter().flat_map(|section| self.divided(binary, section)).collect();
        let len: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut passed = 0;
        let middle = pieces.iter().position(|(_, bytes)| {
            passed += bytes.len();
            passed > len / 2
        });
        let middle = middle.filter(|_| len >= SHARED_MIN).unwrap_or(pieces.len());
        let (first, second) = pieces.split_at(middle);
        let fixed = binary.is_fixed();
        std::thread::scope(|scope| {
            let mut other = Analysis::empty(sections, Vec::new());
            other.offset_tables.clone_from(&self.offset_tables);
            let helper = std::thread::Builder::new().spawn_scoped(scope, move || {
                second.iter().for_each(|(start, bytes)| other.sweep(bytes, *start, fixed));
                other
            });
            first.iter().for_each(|(start, bytes)| self.sweep(bytes, *start, fixed));
            match helper.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(other)) => self.merge(other),
                // No thread is to be had.
                _ => second.iter().for_each(|(start, bytes)| self.sweep(bytes, *start, fixed)),
            }
        });
    }

    fn merge(&mut self, other: Analysis) {
        self.targets.merge(&other.targets);
        self.called.merge(&other.called);
        self.conditional.merge(&other.conditional);
        self.looped.merge(&other.looped);
        self.instructions.merge(&other.instructions);
        self.taken.extend(other.taken);
        self.tables.extend(other.tables);
        self.fillers.extend(other.fillers);
        self.distances.extend(other.distances);
        self.pieces.extend(other.pieces);
    }

    /// The code of a section, divided at the known starts: addresses and bytes.
    fn divided<'b>(&self, binary: &'b Binary, section: &Section) -> Vec<(u64, &'b [u8])> {
        let end = section.vaddr.saturating_add(section.bytes.len() as u64);
        let bytes = &binary.data()[section.bytes.clone()];
        let first = self.starts.partition_point(|&s| s <= section.vaddr);
        let last = self.starts.partition_point(|&s| s < end);
        let inner = self.starts[first..last.max(first)].iter().copied();
        let mut from = section.vaddr;
        let mut pieces = Vec::with_capacity(last.saturating_sub(first) + 1);
        for to in inner.chain([end]) {
            pieces.push((from, &bytes[(from - section.vaddr) as usize..(to - section.vaddr) as usize]));
            from = to;
        }
        pieces
    }

    /// Decodes one piece of code. Bytes that are no instruction are data, or a desynchronised decoder: go on at the next byte.
    fn sweep(&mut self, bytes: &[u8], start: u64, fixed: bool) {
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let before = (self.taken.len(), self.distances.len());
        let (mut decodes, mut may_compute) = (true, false);
        let end = start + bytes.len() as u64;
        let mut filler: Option<Range<u64>> = None;
        // Those of the section that the piece lies in.
        let section = self.instructions.0.iter().position(|marks| marks.covers(start)).unwrap_or_default();
        let mut instructions = std::mem::take(&mut self.instructions.0[section]);
        while decoder.can_decode() {
            let at = decoder.position();
            decoder.decode_out(&mut instruction);
            filler = self.follow_filler(filler, &instruction);
            if instruction.is_invalid() {
                // In range: `at` is the position of a byte that exists.
                let _ = decoder.set_position(at + 1);
                decoder.set_ip(start + at as u64 + 1);
                decodes = false;
                continue;
            }
            instructions.set(instruction.ip());
            self.visit(&instruction, start, fixed);
            may_compute |= may_be_computed(&instruction);
        }
        self.fillers.extend(filler.filter(|filler| !filler.is_empty()));
        if !decodes {
            for vaddr in start..end {
                instructions.set(vaddr);
            }
        }
        self.instructions.0[section] = instructions;
        let jumps = if may_compute { jumps_in(bytes, start) } else { Vec::new() };
        self.note_piece(start..end, before, jumps);
    }

    /// Keeps what the piece that was decoded last refers to; `before`: how many addresses and distances there were before it.
    fn note_piece(&mut self, range: Range<u64>, before: (usize, usize), jumps: Vec<Computed>) {
        let is_label = |vaddr: &u64| range.contains(vaddr) && *vaddr != range.start;
        let (labels, tables): (Vec<u64>, Vec<u64>) =
            self.taken[before.0..].iter().partition(|it| is_label(it));
        let mut parts = std::mem::take(&mut self.parts);
        if jumps.is_empty() && (labels.is_empty() || tables.is_empty()) {
            return;
        }
        parts.extend(self.distances[before.1..].iter().flat_map(|&distance| self.at_distance(distance)));
        self.pieces.push(Piece { range, labels, tables, parts, jumps });
    }

    /// Addresses at this distance from the global offset table.
    fn at_distance(&self, distance: u64) -> impl Iterator<Item = u64> + use<'_> {
        self.offset_tables.iter().map(move |table| table.wrapping_add(distance))
    }

    /// Carries a run of padding on, which begins behind an instruction that does not go on; notes it when it is over.
    fn follow_filler(&mut self, filler: Option<Range<u64>>, instruction: &Instruction) -> Option<Range<u64>> {
        if !instruction.is_invalid() {
            if let Some(filler) = filler.clone().filter(|_| is_padding(instruction)) {
                return Some(filler.start..instruction.next_ip());
            }
            if ends_flow(instruction) {
                self.fillers.extend(filler.filter(|filler| !filler.is_empty()));
                return Some(instruction.next_ip()..instruction.next_ip());
            }
        }
        self.fillers.extend(filler.filter(|filler| !filler.is_empty()));
        None
    }

    fn visit(&mut self, instruction: &Instruction, start: u64, fixed: bool) {
        if instruction.op_count() == 0 {
            return;
        }
        if instruction.op0_kind() == OpKind::NearBranch64 {
            let target = instruction.near_branch_target();
            self.targets.insert(target);
            match instruction.flow_control() {
                FlowControl::Call => {
                    self.called.insert(target);
                }
                FlowControl::ConditionalBranch => {
                    self.conditional.insert(target);
                }
                _ => {}
            }
            if target == start && instruction.flow_control() != FlowControl::Call {
                self.looped.insert(target);
            }
            return;
        }
        if is_lea_rip(instruction) {
            self.taken.push(instruction.ip_rel_memory_address());
        } else if fixed {
            self.visit_fixed(instruction);
        } else if instruction.code() == Code::Mov_r64_imm64 {
            self.distances.push(instruction.immediate64());
        }
    }

    /// Where code lies at fixed addresses, a constant may be one.
    fn visit_fixed(&mut self, instruction: &Instruction) {
        let last = instruction.op_count() - 1;
        if matches!(
            instruction.op_kind(last),
            OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
        ) {
            self.taken.push(instruction.immediate(last));
        }
        if instruction.code() == Code::Lea_r64_m || instruction.code() == Code::Lea_r32_m {
            self.taken.push(instruction.memory_displacement64());
        } else if instruction.memory_displ_size() > 1 && instruction.memory_base() != Register::RIP {
            self.parts.push(instruction.memory_displacement64());
        }
    }

    /// Code takes these addresses: execution may arrive there, and jump tables may be there.
    fn sort_taken(&mut self, binary: &Binary) {
        let mut taken = std::mem::take(&mut self.taken);
        let distances = std::mem::take(&mut self.distances);
        let code = distances.iter().flat_map(|&distance| self.at_distance(distance));
        taken.extend(code.filter(|&vaddr| self.targets.covers(vaddr)));
        taken.sort_unstable();
        taken.dedup();
        for vaddr in taken {
            if self.instructions.contains(vaddr) {
                self.targets.insert(vaddr);
                self.called.insert(vaddr);
            }
            self.tables.extend(binary.section_at(vaddr).map(|_| vaddr));
        }
    }

    /// Tables of offsets from their own start, as GCC and LLVM write them for position-independent code.
    fn read_tables(&mut self, binary: &Binary) {
        for i in 0..self.tables.len() {
            let table = self.tables[i];
            self.read_table(binary, table, table);
        }
    }

    /// Tables that only the code shows that uses them: offsets from a label, as in glibc's `vfprintf`, and what lies at a distance from
    /// the global offset table.
    fn read_pieces(&mut self, binary: &Binary) {
        for mut piece in std::mem::take(&mut self.pieces) {
            for jump in &piece.jumps {
                if jump.is_loaded {
                    jump.bases.iter().for_each(|&table| self.read_table(binary, table, 0));
                    continue;
                }
                piece.labels.extend(jump.bases.iter().filter(|&&base| self.instructions.contains(base)));
            }
            for addresses in [&mut piece.labels, &mut piece.tables, &mut piece.parts] {
                addresses.sort_unstable();
                addresses.dedup();
            }
            for &table in &piece.parts {
                self.read_table(binary, table, table);
            }
            for &table in piece.tables.iter().chain(&piece.parts) {
                piece.labels.iter().for_each(|&label| self.read_table(binary, table, label));
            }
            for jump in &piece.jumps {
                self.opaque.extend(self.not_understood(binary, &piece, jump));
            }
        }
    }

    /// One table, with offsets from `base`.
    fn read_table(&mut self, binary: &Binary, table: u64, base: u64) {
        for entries in Entries::ALL {
            let found: Vec<u64> = self.entries(binary, table, base, entries).collect();
            for target in found {
                self.targets.insert(target);
            }
        }
    }

    /// Where a table leads. It ends at the first entry that leads to no instruction, and where the next begins.
    fn entries<'b>(
        &'b self,
        binary: &'b Binary,
        table: u64,
        base: u64,
        entries: Entries,
    ) -> impl Iterator<Item = u64> + use<'b> {
        let behind = self.tables.partition_point(|&t| t <= table);
        let room = self.tables.get(behind).map_or(usize::MAX, |&next| (next - table) as usize);
        tables::targets(binary, table, base, entries, room, |target| self.instructions.contains(target))
    }

    /// The function that the jump makes opaque, when no table is found that it uses.
    fn not_understood(&self, binary: &Binary, piece: &Piece, jump: &Computed) -> Option<Opaque> {
        let function = binary.function_at(jump.at).map(|function| function.start..function.end);
        let function = function.unwrap_or_else(|| piece.range.clone());
        let range = function.start.min(piece.range.start)..function.end.max(piece.range.end);
        let is_inside = |vaddr: &u64| range.contains(vaddr) && *vaddr != range.start;
        let leading = |table: u64, base: u64| {
            let counts = Entries::ALL.map(|entries| {
                self.entries(binary, table, base, entries).filter(|target| range.contains(target)).count()
            });
            counts[0].max(counts[1])
        };
        let outside: Vec<u64> =
            piece.tables.iter().chain(&piece.parts).copied().filter(|it| !is_inside(it)).collect();
        let understood = match &jump.bases[..] {
            bases if jump.is_loaded => !bases.iter().any(is_inside),
            [] => outside.iter().any(|&table| {
                let bases = piece.labels.iter().chain([&table]);
                bases.into_iter().any(|&base| leading(table, base) > 1)
            }),
            bases => bases.iter().any(|&base| {
                !is_inside(&base) && leading(base, base) > 0
                    || self.instructions.contains(base)
                        && outside.iter().any(|&table| leading(table, base) > 0)
            }),
        };
        let has_data = jump.bases.iter().any(is_inside);
        (!understood).then_some(Opaque { range, jump: jump.at, has_data })
    }

    /// Absolute words in data, which in an object at fixed addresses need no relocation.
    fn read_words(&mut self, binary: &Binary) {
        for section in binary.sections().iter().filter(|s| s.may_hold_words()) {
            let skip = (section.vaddr.wrapping_neg() % 8) as usize;
            let bytes = binary.data()[section.bytes.clone()].get(skip..).unwrap_or_default();
            for word in bytes.chunks_exact(8) {
                let value = word.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
                if self.instructions.contains(value) {
                    self.targets.insert(value);
                    self.called.insert(value);
                }
            }
        }
    }
}

fn jumps_in(bytes: &[u8], start: u64) -> Vec<Computed> {
    let code: Vec<Instruction> =
        Decoder::with_ip(64, bytes, start, DecoderOptions::NONE).into_iter().collect();
    computed(&code)
}

fn is_lea_rip(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand()
}

fn starts(binary: &Binary) -> Vec<u64> {
    let symbols = binary.symbols().iter().map(|s| s.vaddr);
    let mut starts: Vec<u64> = symbols.chain(binary.unwind().functions().map(|f| f.start)).collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}
