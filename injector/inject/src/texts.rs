//! The tables by which programs walk stacks: one for each file that the process executes, if a program of it asks for stacks.
//!
//! ```text
//! area, read-only:   UnwindTexts in order of address | rows of a file | rows of a file | …
//! ```
//!
//! A later attach keeps what it finds for the same files, and adds what is new; what was unmapped leaves the list.

use crate::error::TargetRefused;
use crate::existing::{Existing, is_ours};
use crate::ingredients::Ingredients;
use crate::space::{MemoryFile, Space};
use crate::wire::Wire;
use beeline_abi::code::Symbol;
use beeline_abi::process::Region;
use beeline_abi::unwind::{BUILD_ID_MAX, UnwindRow, UnwindText};
use beeline_frames::Rows;
use beeline_remote::Mapping;
use beeline_site::Binary;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// Ids of `bpf_get_stackid` and `bpf_get_stack`.
const STACK_HELPERS: [u32; 2] = [27, 67];

thread_local! {
    /// Rows of files that this tracer has made, by build id.
    static MADE: RefCell<HashMap<Vec<u8>, Rc<Rows>>> = RefCell::default();
}

/// Files whose rows are kept.
const MADE_MAX: usize = 64;

/// Where the tables are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Texts {
    /// Address of the list, 0 = none.
    pub(crate) address: u64,
    /// Its entries.
    pub(crate) count: u32,
}

/// Tables that have to go into the process.
pub(crate) struct NewTexts {
    pub(crate) texts: Texts,
    pub(crate) region: Region,
    /// Where they lie in the memory file.
    pub(crate) offset: u64,
}

/// A file's entry, and rows that are not in the process yet.
struct Planned {
    text: UnwindText,
    rows: Option<Rc<Rows>>,
}

/// Makes the tables, where they are wanted and others than those that are there.
pub(crate) fn make(
    given: &Ingredients<'_>,
    space: &mut Space<'_>,
    memory: &mut MemoryFile,
    range: Range<u64>,
) -> Result<Result<NewTexts, Texts>, TargetRefused> {
    let known = given.existing.map_or(Texts::default(), |existing| Texts {
        address: existing.head.texts,
        count: existing.head.text_count,
    });
    if known.address == 0 && !wanted(given) {
        return Ok(Err(known));
    }
    let mut planned = plan(given);
    let same = |existing: &Existing| existing.texts.iter().eq(planned.iter().map(|it| &it.text));
    if given.existing.is_some_and(same) {
        return Ok(Err(known));
    }
    let list_len = (planned.len() * UnwindText::LEN) as u64;
    let rows_len = |rows: &Rows| (rows.rows.len() * size_of::<UnwindRow>()) as u64;
    let mut len = list_len.next_multiple_of(64);
    let mut pieces: Vec<(u64, Rc<Rows>)> = Vec::new();
    for planned in &planned {
        let Some(rows) = &planned.rows else { continue };
        if !pieces.iter().any(|(_, known)| Rc::ptr_eq(known, rows)) {
            pieces.push((len, Rc::clone(rows)));
            len += rows_len(rows).next_multiple_of(64);
        }
    }
    let region = space.take(len.max(1), range, "tables for walking stacks")?;
    let offset = memory.add(region.len)?;
    for planned in &mut planned {
        let Some(rows) = &planned.rows else { continue };
        let piece = pieces.iter().find(|(_, known)| Rc::ptr_eq(known, rows));
        planned.text.rows = region.start + piece.map_or(0, |(at, _)| *at);
    }
    let list: Vec<u8> = planned.iter().flat_map(|it| it.text.to_bytes()).collect();
    memory.write(offset, &list)?;
    for (at, rows) in &pieces {
        memory.write(offset + at, &row_bytes(&rows.rows))?;
    }
    let texts = Texts { address: region.start, count: planned.len() as u32 };
    Ok(Ok(NewTexts { texts, region, offset }))
}

/// A program of the request looks at stacks.
fn wanted(given: &Ingredients<'_>) -> bool {
    let relocs = given.request.programs.iter().flat_map(|program| &program.relocs);
    relocs.into_iter().any(|reloc| matches!(reloc.symbol, Symbol::Helper(id) if STACK_HELPERS.contains(&id)))
}

/// An entry for each executable mapping of a file.
fn plan(given: &Ingredients<'_>) -> Vec<Planned> {
    let mut planned = Vec::new();
    for file in given.files.iter() {
        if file.mappings.iter().any(is_ours) {
            continue;
        }
        let Ok(binary) = file.binary(given.process) else { continue };
        for mapping in &file.mappings {
            planned.extend(known(given.existing, binary, mapping).or_else(|| new(binary, mapping)));
        }
    }
    planned.sort_by_key(|it| it.text.start);
    planned
}

/// The entry of a mapping of which the process has the rows.
fn known(existing: Option<&Existing>, binary: &Binary, mapping: &Mapping) -> Option<Planned> {
    let wanted = entry(binary, mapping);
    let same = |text: &&UnwindText| {
        let parts = |it: &UnwindText| (it.device, it.inode, it.file_offset, it.build_id_len, it.build_id);
        parts(text) == parts(&wanted) && (wanted.build_id_len != 0 || text.start == wanted.start)
    };
    let text = existing?.texts.iter().find(same)?;
    let base = text.base.wrapping_sub(text.start).wrapping_add(wanted.start);
    let text = UnwindText { base, rows: text.rows, row_count: text.row_count, ..wanted };
    Some(Planned { text, rows: None })
}

fn new(binary: &Binary, mapping: &Mapping) -> Option<Planned> {
    let rows = rows_of(binary);
    let base = rows.base_in(binary, mapping.start, mapping.offset, mapping.len())?;
    let text = UnwindText { base, row_count: rows.rows.len() as u32, ..entry(binary, mapping) };
    Some(Planned { text, rows: (text.row_count != 0).then_some(rows) })
}

/// An entry without rows.
fn entry(binary: &Binary, mapping: &Mapping) -> UnwindText {
    let id = binary.build_id().filter(|id| id.len() <= BUILD_ID_MAX).unwrap_or_default();
    let mut build_id = [0; BUILD_ID_MAX];
    build_id[..id.len()].copy_from_slice(id);
    UnwindText {
        start: mapping.start,
        end: mapping.end,
        file_offset: mapping.offset,
        build_id_len: id.len() as u32,
        build_id,
        device: mapping.device,
        inode: mapping.inode,
        ..UnwindText::default()
    }
}

fn rows_of(binary: &Binary) -> Rc<Rows> {
    let Some(id) = binary.build_id() else { return Rc::new(Rows::of(binary)) };
    if let Some(made) = MADE.with_borrow(|made| made.get(id).cloned()) {
        return made;
    }
    let rows = Rc::new(Rows::of(binary));
    MADE.with_borrow_mut(|made| {
        if made.len() >= MADE_MAX {
            made.clear();
        }
        made.insert(id.to_vec(), Rc::clone(&rows));
    });
    rows
}

fn row_bytes(rows: &[UnwindRow]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(rows));
    for UnwindRow { start, cfa_offset, rbp_offset, cfa, rbp } in rows {
        bytes.extend_from_slice(&start.to_le_bytes());
        bytes.extend_from_slice(&cfa_offset.to_le_bytes());
        bytes.extend_from_slice(&rbp_offset.to_le_bytes());
        bytes.extend_from_slice(&[*cfa, *rbp]);
    }
    bytes
}
