//! Helpers that need no call: look-ups in arrays, the CPU number, reads of the stack, loops, the jump of a tail call.

use super::call::helper;
use super::jump::LOOPS_MAX;
use super::memory::ACCESS;
use super::{Body, Known, external};
use crate::error::CompileError;
use beeline_abi::PAGE_SIZE;
use beeline_abi::errno::{E2BIG, EINVAL};
use beeline_abi::map::{MapShape, MapType};
use beeline_abi::run::RunContext;
use beeline_isa::{Reg, Size};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I16, I32, I64};
use cranelift_codegen::ir::{AbiParam, InstBuilder, InstructionData, Opcode, Signature, Type, Value};
use cranelift_codegen::isa::CallConv;

/// Byte offset of the CPU number in the run.
const RUN_CPU: usize =
    core::mem::offset_of!(RunContext, access) + core::mem::offset_of!(beeline_abi::map::Access, cpu);

/// Of the session whose program runs: where its word is, and whether the function returns.
const RUN_SESSION: usize = core::mem::offset_of!(RunContext, session);
const RUN_SESSION_COOKIES: usize = core::mem::offset_of!(RunContext, session_cookies);

impl Body<'_, '_> {
    /// Translates a helper call without a call, where that is possible. False: it is not.
    pub(super) fn inline_helper(&mut self, id: i32) -> Result<bool, CompileError> {
        if id == helper::TAIL_CALL {
            return self.tail_call().map(|()| true);
        }
        if !self.code.inline {
            return Ok(false);
        }
        match id {
            helper::MAP_LOOKUP_ELEM => self.inline_lookup(),
            helper::GET_SMP_PROCESSOR_ID if self.code.owns_cpu => {
                let cpu = self.load_field32(self.run, RUN_CPU);
                self.set(Reg::R0, cpu)?;
                Ok(true)
            }
            helper::LOOP => self.inline_loop(),
            helper::PROBE_READ | helper::PROBE_READ_USER => self.inline_probe_read(id),
            id if id as u32 == helper::PROBE_READ_KERNEL => self.inline_probe_read(id),
            helper::SESSION_IS_RETURN => {
                let session = self.load_field64(self.run, RUN_SESSION);
                let is_return = self.builder.ins().band_imm_u(session, 1);
                self.set(Reg::R0, is_return)?;
                Ok(true)
            }
            helper::SESSION_COOKIE => self.inline_session_cookie().map(|()| true),
            _ => Ok(false),
        }
    }

    /// `bpf_probe_read(target, size, source)` and its variants, for a size that an instruction has: what lies on the stack, between this
    /// frame and the end of its page, is there for certain, as it is to the helper. All else is the helper's.
    fn inline_probe_read(&mut self, id: i32) -> Result<bool, CompileError> {
        let size = self.get(Reg::R2);
        let Some((bytes, ty)) = self.number(size).and_then(access_type) else { return Ok(false) };
        let (target, source) = (self.get(Reg::R1), self.get(Reg::R3));
        self.frame_values.clear();
        let sp = self.builder.ins().get_stack_pointer(I64);
        let last = self.builder.ins().bor_imm_u(sp, PAGE_SIZE as i64 - 1);
        let greatest = self.builder.ins().iadd_imm_s(last, 1 - bytes);
        let above = self.builder.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, source, sp);
        let within = self.builder.ins().icmp(IntCC::UnsignedLessThanOrEqual, source, greatest);
        let is_there = self.builder.ins().band(above, within);
        let [direct, call, done] = [(); 3].map(|()| self.builder.create_block());
        let result = self.builder.append_block_param(done, I64);
        self.builder.set_cold_block(call);
        self.builder.ins().brif(is_there, direct, &[], call, &[]);

        self.builder.switch_to_block(direct);
        self.builder.seal_block(direct);
        self.builder.ins().sequence_point();
        let value = self.builder.ins().load(ty, ACCESS, source, 0);
        self.builder.ins().store(ACCESS, value, target, 0);
        let zero = self.constant(I64, 0);
        self.builder.ins().jump(done, &[zero.into()]);

        self.builder.switch_to_block(call);
        self.builder.seal_block(call);
        let error = self.call_helper_plain(id)?;
        self.builder.ins().jump(done, &[error.into()]);

        self.builder.switch_to_block(done);
        self.builder.seal_block(done);
        self.set(Reg::R0, result)?;
        Ok(true)
    }

    /// The number that a value is on every path, where that is plain to see.
    fn number(&self, value: Value) -> Option<i64> {
        let dfg = &self.builder.func.dfg;
        match dfg.insts[dfg.value_def(dfg.resolve_aliases(value)).inst()?] {
            InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits()),
            _ => None,
        }
    }

    /// r0 = the address of the session's word; in a test run, of the first.
    fn inline_session_cookie(&mut self) -> Result<(), CompileError> {
        let session = self.load_field64(self.run, RUN_SESSION);
        let word = self.builder.ins().band_imm_u(session, !1i64);
        let first = self.builder.ins().iadd_imm_u(self.run, RUN_SESSION_COOKIES as i64);
        let cookie = self.builder.ins().select(word, word, first);
        self.set(Reg::R0, cookie)
    }

    /// The map in r1, when it is the same on every path.
    fn constant_map(&mut self) -> Option<(u32, MapShape)> {
        let handle = self.get(Reg::R1);
        let index = match self.known(handle) {
            Some(Known::Map(index)) => Some(index),
            _ => self.code.call_facts(self.pc).map,
        }?;
        Some((index, *self.code.maps.get(index as usize)?))
    }

    fn inline_lookup(&mut self) -> Result<bool, CompileError> {
        let Some((map, shape)) = self.constant_map() else { return Ok(false) };
        let Some(strides) = Strides::of(&shape, self.code.owns_cpu) else { return Ok(false) };
        let value = match self.code.call_facts(self.pc).key {
            Some(key) if key < shape.max_entries => {
                let offset = i64::from(key) * strides.element as i64;
                let address = self.element(map, offset, &strides);
                self.known.insert(address, Known::NonNull);
                address
            }
            Some(_) => self.constant(I64, 0),
            None => self.checked_element(map, &shape, &strides),
        };
        self.set(Reg::R0, value)?;
        Ok(true)
    }

    /// The address of the element at a constant offset, on the run's own CPU.
    fn element(&mut self, map: u32, offset: i64, strides: &Strides) -> Value {
        let data = self.symbol(external::MAP_DATA, map, offset);
        let Some(cpu_stride) = strides.cpu else { return data };
        let cpu = self.load_field32(self.run, RUN_CPU);
        let skipped = self.builder.ins().imul_imm_u(cpu, cpu_stride as i64);
        self.builder.ins().iadd(data, skipped)
    }

    /// The address of the element whose index r2 points to, or null when there is none.
    fn checked_element(&mut self, map: u32, shape: &MapShape, strides: &Strides) -> Value {
        let key = self.get(Reg::R2);
        let index = match self.frame_place(key, 0, 4) {
            Some(place) => self.load_frame(Size::W, false, place),
            None => {
                self.builder.ins().sequence_point();
                self.load_field32(key, 0)
            }
        };
        let exists =
            self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, index, i64::from(shape.max_entries));
        let offset = self.builder.ins().imul_imm_u(index, strides.element as i64);
        let first = self.element(map, 0, strides);
        let address = self.builder.ins().iadd(first, offset);
        let null = self.constant(I64, 0);
        let found = self.builder.ins().select(exists, address, null);
        self.known.insert(found, Known::Found { exists, address });
        found
    }

    /// r0 = the other program's result, returned at once; on failure execution goes on with r0 = 0.
    ///
    /// The helper makes the checks and counts; it gives the address of the other program's entry, or 0.
    fn tail_call(&mut self) -> Result<(), CompileError> {
        let entry = self.call_helper_plain(helper::TAIL_CALL)?;
        let (found, failed) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(entry, found, &[], failed, &[]);

        self.builder.switch_to_block(found);
        self.builder.seal_block(found);
        let mut signature = Signature::new(CallConv::SystemV);
        signature.params.extend([AbiParam::new(I64); 2]);
        signature.returns.push(AbiParam::new(I64));
        let signature = self.builder.import_signature(signature);
        let context = self.get(Reg::R1);
        let call = self.builder.ins().call_indirect(signature, entry, &[context, self.run]);
        let result = self.builder.inst_results(call)[0];
        self.builder.ins().return_(&[result]);

        self.builder.switch_to_block(failed);
        self.builder.seal_block(failed);
        let zero = self.constant(I64, 0);
        self.set(Reg::R0, zero)
    }

    /// `bpf_loop(nr, callback, context, flags)` with a callback that is known: a native loop.
    fn inline_loop(&mut self) -> Result<bool, CompileError> {
        let callback = self.get(Reg::R2);
        let known = self.known_function(callback).or(self.code.call_facts(self.pc).callback);
        let Some(index) = known else { return Ok(false) };
        self.frame_values.clear();
        let done = self.builder.create_block();
        let result = self.builder.append_block_param(done, I64);
        let count = self.loop_count(done);
        self.loop_body(index, count, done);
        self.builder.switch_to_block(done);
        self.builder.seal_block(done);
        self.set(Reg::R0, result)?;
        Ok(true)
    }

    /// The number of iterations; goes to `done` with -EINVAL or -E2BIG where the helper would.
    fn loop_count(&mut self, done: cranelift_codegen::ir::Block) -> Value {
        let flags = self.get(Reg::R4);
        let (no_flags, go) = (self.builder.create_block(), self.builder.create_block());
        let invalid = self.constant(I64, -EINVAL);
        self.builder.ins().brif(flags, done, &[invalid.into()], no_flags, &[]);
        self.builder.switch_to_block(no_flags);
        self.builder.seal_block(no_flags);
        let count = self.get(Reg::R1);
        let low = self.builder.ins().ireduce(I32, count);
        let count = self.builder.ins().uextend(I64, low);
        let too_many = self.builder.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, count, LOOPS_MAX);
        let too_big = self.constant(I64, -E2BIG);
        self.builder.ins().brif(too_many, done, &[too_big.into()], go, &[]);
        self.builder.switch_to_block(go);
        self.builder.seal_block(go);
        count
    }

    /// Calls the callback with 0, 1, ... until it returns non-zero; `done` gets the number of calls.
    fn loop_body(&mut self, callback: usize, count: Value, done: cranelift_codegen::ir::Block) {
        let context = self.get(Reg::R3);
        let (head, step) = (self.builder.create_block(), self.builder.create_block());
        let index = self.builder.append_block_param(head, I64);
        let zero = self.constant(I64, 0);
        self.builder.ins().jump(head, &[zero.into()]);

        self.builder.switch_to_block(head);
        let more = self.builder.ins().icmp(IntCC::UnsignedLessThan, index, count);
        self.builder.ins().brif(more, step, &[], done, &[index.into()]);

        self.builder.switch_to_block(step);
        self.builder.seal_block(step);
        let function = self.own_function(callback);
        let run = self.run;
        // A callback of bpf_loop has two arguments.
        let arguments = [index, context, run, run, run, run];
        let call = self.builder.ins().call(function, &arguments);
        let stop = self.builder.inst_results(call)[0];
        let next = self.builder.ins().iadd_imm_s(index, 1);
        self.builder.ins().brif(stop, done, &[next.into()], head, &[next.into()]);
        self.builder.seal_block(head);
    }
}

/// The type of a value of so many bytes.
fn access_type(bytes: i64) -> Option<(i64, Type)> {
    let ty = match bytes {
        1 => I8,
        2 => I16,
        4 => I32,
        8 => I64,
        _ => return None,
    };
    Some((bytes, ty))
}

/// Distances in the data region of a map whose look-up is inlined.
struct Strides {
    /// Bytes from one element to the next.
    element: u64,
    /// Bytes from one CPU's elements to the next CPU's, for a per-CPU array.
    cpu: Option<u64>,
}

impl Strides {
    /// As `beeline_maps` lays the type out; none for types that need the helper.
    fn of(shape: &MapShape, owns_cpu: bool) -> Option<Strides> {
        let per_cpu = match shape.map_type {
            MapType::ARRAY => false,
            MapType::PERCPU_ARRAY if owns_cpu => true,
            _ => return None,
        };
        let layout = beeline_maps::layout::layout(shape).ok()?;
        Some(Strides { element: layout.stride, cpu: per_cpu.then_some(layout.cpu_stride) })
    }
}
