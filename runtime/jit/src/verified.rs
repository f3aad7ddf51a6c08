//! From what the verifier proved to what the compiler compiles.

use crate::code::{CallFacts, Code, Conformance, Subprogram};
use crate::error::CompileError;
use beeline_helpers::proto::ArgKind;
use beeline_helpers::{kernel_only, table};
use beeline_verifier::Verified;
use std::collections::BTreeMap;

/// How to compile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompileOptions {
    /// Array look-ups, the CPU number and loops are compiled in place instead of calling the helper. On but for tests.
    pub inline: bool,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions { inline: true }
    }
}

/// The compiler's view of a verified program.
pub(crate) fn code<'a>(verified: &'a Verified, options: &CompileOptions) -> Code<'a> {
    let insns = verified.insns();
    Code {
        insns,
        subprograms: subprograms(verified),
        maps: verified.program().maps.iter().map(|map| map.shape).collect(),
        calls: calls(verified),
        constant_loads: (0..insns.len() as u32).filter(|&pc| verified.loads_constant(pc as usize)).collect(),
        dead: (0..insns.len()).map(|pc| !verified.is_live(pc)).collect(),
        owns_cpu: verified.needs().cpu,
        helper_arguments,
        inline: options.inline,
        conformance: Conformance::default(),
    }
}

fn subprograms(verified: &Verified) -> Vec<Subprogram> {
    let given = verified.subprograms().iter();
    given
        .map(|subprogram| Subprogram {
            start: subprogram.start,
            end: subprogram.end,
            stack_bytes: subprogram.stack_bytes,
            name: subprogram.name.clone(),
        })
        .collect()
}

fn calls(verified: &Verified) -> BTreeMap<u32, CallFacts> {
    let slots = 0..verified.insns().len();
    slots
        .filter_map(|pc| {
            let call = verified.call(pc)?;
            let key = call.constant_key.and_then(|key| u32::try_from(key).ok());
            Some((pc as u32, CallFacts { map: call.map, callback: call.callback, key }))
        })
        .collect()
}

/// Every helper that is called exists here.
pub(crate) fn check_helpers(verified: &Verified) -> Result<(), CompileError> {
    for pc in 0..verified.insns().len() {
        let Some(call) = verified.call(pc) else { continue };
        let id = call.helper as u32;
        if table::by_id(id).is_none() {
            let proto = kernel_only::proto(id, verified.program().prog_type.0);
            let name = proto.map_or("unknown", |proto| proto.name);
            return Err(CompileError::KernelOnly { pc: pc as u32, name });
        }
    }
    Ok(())
}

/// `bpf_trace_printk`: what its format asks for is in r3 to r5, of which the prototype says nothing.
const TRACE_PRINTK: u32 = 6;

/// As many as the prototype has; all five for a helper that has none, or that takes as many as it is given.
fn helper_arguments(id: u32) -> u8 {
    match table::by_id(id) {
        Some(_) if id == TRACE_PRINTK => 5,
        Some(helper) => helper.proto.args.iter().filter(|&&kind| kind != ArgKind::None).count() as u8,
        None => 5,
    }
}
