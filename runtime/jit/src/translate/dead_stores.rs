//! Stores into a frame that nobody reads.
//!
//! Keys of look-ups are put on the stack. Where the look-up is compiled in place nobody takes them from there, and neither the stores
//! nor the frame are needed. Cranelift does not find that out: to it any memory may be read by anyone.

use cranelift_codegen::ir::{Function, Inst, InstructionData, Opcode, StackSlot, Value};
use std::collections::HashSet;

/// Takes out the stores into `frame`, and the frame itself, when nothing is read from it and no address of it is used otherwise.
pub(super) fn remove(function: &mut Function, frame: StackSlot) {
    let Some(stores) = stores_alone(function, frame) else { return };
    for store in stores {
        function.layout.remove_inst(store);
    }
    function.sized_stack_slots[frame].size = 0;
}

/// The stores into `frame`, when its addresses are used for nothing else.
fn stores_alone(function: &Function, frame: StackSlot) -> Option<Vec<Inst>> {
    let addresses = addresses(function, frame);
    let is_address = |value: Value| addresses.contains(&function.dfg.resolve_aliases(value));
    let mut stores = Vec::new();
    for inst in instructions(function) {
        match function.dfg.insts[inst] {
            InstructionData::Store { args: [value, address], .. }
                if is_address(address) && !is_address(value) =>
            {
                stores.push(inst);
            }
            _ if makes_address(function, inst, frame, &addresses) => {}
            _ if function.dfg.inst_values(inst).any(is_address) => return None,
            _ => {}
        }
    }
    Some(stores)
}

fn instructions(function: &Function) -> impl Iterator<Item = Inst> {
    function.layout.blocks().flat_map(|block| function.layout.block_insts(block))
}

/// All values that are addresses in `frame`, but for those that go through a block's parameters.
fn addresses(function: &Function, frame: StackSlot) -> HashSet<Value> {
    let mut found = HashSet::new();
    loop {
        // A block may stand before the one that all ways to it lead through.
        let before = found.len();
        for inst in instructions(function) {
            if makes_address(function, inst, frame, &found) {
                found.extend(function.dfg.inst_results(inst));
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// The instruction computes an address in `frame`.
fn makes_address(function: &Function, inst: Inst, frame: StackSlot, known: &HashSet<Value>) -> bool {
    let dfg = &function.dfg;
    match dfg.insts[inst] {
        InstructionData::StackAddr { stack_slot, .. } => stack_slot == frame,
        InstructionData::Binary { opcode: Opcode::Iadd, args } => {
            args.iter().any(|&value| known.contains(&dfg.resolve_aliases(value)))
        }
        _ => false,
    }
}
