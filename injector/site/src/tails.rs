//! Functions that end with a jump to another function: what that one does with its return address, it does with theirs.

use crate::binary::Binary;
use crate::plan::ends_flow;
use crate::returns::{known, reads_its_return_address};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use std::collections::HashSet;

/// Most functions that are followed from one.
const FOLLOWED_MAX: usize = 16;
/// Most instructions of an entry of a linkage table up to its jump.
const LINKAGE_MAX: usize = 4;

/// The function that the one at `vaddr` jumps to, which does something with its return address: its name, and what.
pub(crate) fn jumps_to(binary: &Binary, vaddr: u64) -> Option<(String, &'static str)> {
    let mut open = vec![vaddr];
    let mut seen = HashSet::from([vaddr]);
    while let Some(at) = open.pop() {
        for tail in tails(binary, at) {
            let target = match tail {
                Tail::Import(name) => match known(&name) {
                    Some(why) => return Some((name, why)),
                    None => continue,
                },
                Tail::Own(target) => target,
            };
            match arrival(binary, target) {
                Arrival::Entry => {
                    if let Some(found) = kept(binary, target) {
                        return Some(found);
                    }
                }
                Arrival::Part => {}
                Arrival::Inside => continue,
            }
            if seen.len() < FOLLOWED_MAX && seen.insert(target) {
                open.push(target);
            }
        }
    }
    None
}

/// What a jump leads to.
enum Arrival {
    /// A function: the stack is as at a call.
    Entry,
    /// A part of a function that the compiler has put elsewhere: it has a frame, and its first word is no return address.
    Part,
    /// The middle of a function, whither such a part goes back.
    Inside,
}

fn arrival(binary: &Binary, target: u64) -> Arrival {
    if binary.unwind().is_fragment(target)
        || binary.symbols().names_at(target).any(|name| name.contains(".cold"))
    {
        return Arrival::Part;
    }
    match binary.unwind().covering(target) {
        Some(range) if range.start != target => Arrival::Inside,
        _ => Arrival::Entry,
    }
}

/// Where a function goes on by a jump.
enum Tail {
    /// In another object, or wherever the loader finds this name.
    Import(String),
    Own(u64),
}

fn kept(binary: &Binary, vaddr: u64) -> Option<(String, &'static str)> {
    let named = binary.symbols().names_at(vaddr).find_map(|name| Some((name.to_owned(), known(name)?)));
    named.or_else(|| {
        let why = reads_its_return_address(binary, vaddr)?;
        let name = binary.function_at(vaddr).map(|function| function.name).filter(|name| !name.is_empty());
        Some((name.unwrap_or_else(|| format!("{vaddr:#x}")), why))
    })
}

/// The jumps out of the function around `vaddr`.
fn tails(binary: &Binary, vaddr: u64) -> Vec<Tail> {
    let Some(bytes) = binary.bytes_from(vaddr) else { return Vec::new() };
    let function = binary.function_at(vaddr).map(|function| function.start..function.end);
    let len = function.as_ref().map_or(bytes.len(), |function| (function.end - vaddr) as usize);
    let is_inside = |target: u64| function.as_ref().is_some_and(|function| function.contains(&target));
    let mut tails = Vec::new();
    for instruction in
        Decoder::with_ip(64, &bytes[..len.min(bytes.len())], vaddr, DecoderOptions::NONE).iter()
    {
        let target = match instruction.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
                if instruction.op0_kind() == OpKind::NearBranch64 =>
            {
                let target = instruction.near_branch_target();
                (!is_inside(target)).then(|| through_linkage(binary, target).unwrap_or(Tail::Own(target)))
            }
            _ => slot(&instruction).and_then(|slot| behind(binary, slot)),
        };
        tails.extend(target);
        if instruction.is_invalid() || function.is_none() && ends_flow(&instruction) {
            break;
        }
    }
    tails
}

/// The word that the instruction jumps to the address in.
fn slot(instruction: &Instruction) -> Option<u64> {
    let jumps = instruction.flow_control() == FlowControl::IndirectBranch;
    (jumps && instruction.is_ip_rel_memory_operand()).then(|| instruction.ip_rel_memory_address())
}

/// What the loader puts into the word.
fn behind(binary: &Binary, slot: u64) -> Option<Tail> {
    let own = binary.dynamic().stored_at(slot).map(Tail::Own);
    own.or_else(|| binary.dynamic().name_at(binary, slot).map(Tail::Import))
}

fn through_linkage(binary: &Binary, vaddr: u64) -> Option<Tail> {
    let decoder = Decoder::with_ip(64, binary.bytes_from(vaddr)?, vaddr, DecoderOptions::NONE);
    let mut first = decoder.into_iter().take(LINKAGE_MAX);
    let end = first.find(|instruction| instruction.is_invalid() || ends_flow(instruction))?;
    behind(binary, slot(&end)?)
}
