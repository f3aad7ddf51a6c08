//! Helpers, subprograms, return.

use super::{Body, Known, external};
use crate::error::CompileError;
use crate::{RUN_BAD_CALL, RUN_UNWOUND};
use beeline_abi::run::RunContext;
use beeline_isa::{Call, Reg};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{FuncRef, InstBuilder, Value};

/// Helpers that have code of their own here.
pub(super) mod helper {
    pub(crate) const MAP_LOOKUP_ELEM: i32 = 1;
    pub(crate) const PROBE_READ: i32 = 4;
    pub(crate) const GET_SMP_PROCESSOR_ID: i32 = 8;
    pub(crate) const TAIL_CALL: i32 = 12;
    pub(crate) const PROBE_READ_USER: i32 = 112;
    pub(crate) const PROBE_READ_KERNEL: u32 = 113;
    pub(crate) const LOOP: i32 = 181;
    pub(crate) const SESSION_IS_RETURN: i32 = 264;
    pub(crate) const SESSION_COOKIE: i32 = 265;
}

impl Body<'_, '_> {
    /// Translates a call. False: it ended the block.
    pub(super) fn call(&mut self, callee: Call) -> Result<bool, CompileError> {
        match callee {
            Call::Helper(id) => self.call_helper(id)?,
            Call::Local(relative) => {
                let index = self.function_index(relative)?;
                let function = self.own_function(index);
                let result = self.call_with_registers(function, 5);
                self.set(Reg::R0, result)?;
                self.leave_when_unwound();
            }
            Call::Kfunc { .. } => return Err(self.unsupported("a kernel function")),
            Call::Register(register) => self.call_register(register)?,
        }
        Ok(true)
    }

    fn call_helper(&mut self, id: i32) -> Result<(), CompileError> {
        if self.inline_helper(id)? {
            return Ok(());
        }
        let result = self.call_helper_plain(id)?;
        self.set(Reg::R0, result)?;
        if self.code.conformance.unwind == Some(id as u32) {
            self.unwind_when_zero(result);
        }
        Ok(())
    }

    pub(super) fn call_helper_plain(&mut self, id: i32) -> Result<Value, CompileError> {
        let id = u32::try_from(id).map_err(|_| self.unsupported("a negative helper number"))?;
        let function = self.function(external::HELPER, id);
        Ok(self.call_with_registers(function, (self.code.helper_arguments)(id)))
    }

    /// Calls with the first `count` argument registers and the run, which also stands in for the arguments between: it is
    /// at hand, and the function does not look at them.
    fn call_with_registers(&mut self, function: FuncRef, count: u8) -> Value {
        let mut arguments = [self.run; 6];
        for number in 1..=count {
            arguments[usize::from(number) - 1] = self.get(Reg(number));
        }
        self.frame_values.clear();
        let call = self.builder.ins().call(function, &arguments);
        self.builder.inst_results(call)[0]
    }

    /// `bpf_probe_read_kernel(target, size, source)`: the memory at the target is zeros when the source cannot be read.
    pub(super) fn call_probe_read(&mut self, arguments: [Value; 3]) {
        let function = self.function(external::HELPER, helper::PROBE_READ_KERNEL);
        let [target, size, source] = arguments;
        self.frame_values.clear();
        self.builder.ins().call(function, &[target, size, source, self.run, self.run, self.run]);
    }

    /// Returns r0. The block is over.
    pub(super) fn exit(&mut self) -> bool {
        let result = self.get(Reg::R0);
        self.builder.ins().return_(&[result]);
        false
    }

    /// The function that a value is the address of.
    pub(super) fn known_function(&self, value: Value) -> Option<usize> {
        match self.known(value) {
            Some(Known::Function(index)) => Some(index),
            _ => None,
        }
    }

    /// Conformance: a helper number in a register, one of a list.
    fn call_register(&mut self, register: Reg) -> Result<(), CompileError> {
        let ids = self.code.conformance.register_calls.clone();
        if ids.is_empty() {
            return Err(self.unsupported("a call through a register"));
        }
        let wanted = self.get(register);
        let done = self.builder.create_block();
        for id in ids {
            let (matched, other) = (self.builder.create_block(), self.builder.create_block());
            let is_it = self.builder.ins().icmp_imm_u(IntCC::Equal, wanted, i64::from(id));
            self.builder.ins().brif(is_it, matched, &[], other, &[]);
            self.builder.switch_to_block(matched);
            self.builder.seal_block(matched);
            self.call_helper(id as i32)?;
            self.builder.ins().jump(done, &[]);
            self.builder.switch_to_block(other);
            self.builder.seal_block(other);
        }
        self.end_run(RUN_BAD_CALL);
        self.builder.switch_to_block(done);
        self.builder.seal_block(done);
        Ok(())
    }

    /// Conformance: ends the whole program when the helper's result is 0.
    fn unwind_when_zero(&mut self, result: Value) {
        let (leave, stay) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(result, stay, &[], leave, &[]);
        self.builder.switch_to_block(leave);
        self.builder.seal_block(leave);
        self.end_run(RUN_UNWOUND);
        self.builder.switch_to_block(stay);
        self.builder.seal_block(stay);
    }

    /// Conformance: a subprogram may have ended the whole program.
    fn leave_when_unwound(&mut self) {
        if self.code.conformance == Default::default() {
            return;
        }
        let flags = self.load_field32(self.run, core::mem::offset_of!(RunContext, flags));
        let (leave, stay) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(flags, leave, &[], stay, &[]);
        self.builder.switch_to_block(leave);
        self.builder.seal_block(leave);
        let zero = self.constant(I64, 0);
        self.builder.ins().return_(&[zero]);
        self.builder.switch_to_block(stay);
        self.builder.seal_block(stay);
    }

    /// Sets a flag in the run and returns 0; every caller sees the flag and returns, too.
    fn end_run(&mut self, flag: u32) {
        let flag = self.constant(I64, i64::from(flag));
        self.store_field32(flag, self.run, core::mem::offset_of!(RunContext, flags));
        let zero = self.constant(I64, 0);
        self.builder.ins().return_(&[zero]);
    }
}
