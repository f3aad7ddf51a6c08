//! From eBPF instructions to Cranelift's intermediate representation.
//!
//! One [`Body`] per subprogram. BPF registers are Cranelift variables; r10 and the run pointer are values that never
//! change. [`Known`] remembers of single values what they are (a map, a callback, a place in the frame), which is what
//! makes a look-up or a loop inlinable.
//!
//! | module | |
//! |---|---|
//! | `flow` | which slots start blocks, and how many edges lead to each |
//! | `alu` | arithmetic, moves, byte order |
//! | `memory` | loads, stores, atomics, the frame |
//! | `jump` | branches |
//! | `call` | helpers, subprograms, return |
//! | `inline` | look-ups, loops, tail calls without a helper call |
//! | `dead_stores` | what was put on the stack for nobody |

mod alu;
mod call;
mod dead_stores;
mod flow;
mod inline;
mod jump;
mod memory;

use crate::code::{Code, Subprogram};
use crate::error::CompileError;
use beeline_isa::{Imm64, Op, Operand, Reg, Width};
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{
    AbiParam, Block, ExtFuncData, ExternalName, FuncRef, Function, GlobalValueData, InstBuilder, SigRef,
    Signature, SourceLoc, StackSlot, StackSlotData, StackSlotKind, Type, UserExternalName, UserFuncName,
    Value,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use flow::Flow;
use std::collections::{BTreeMap, HashMap};

/// Name spaces of the external names in generated code.
pub(crate) mod external {
    /// A function of the same image, by index.
    pub(crate) const FUNCTION: u32 = 0;
    /// A helper, by id.
    pub(crate) const HELPER: u32 = 1;
    /// A map's handle, by index.
    pub(crate) const MAP_HANDLE: u32 = 2;
    /// A map's data region, by index.
    pub(crate) const MAP_DATA: u32 = 3;
}

/// How the main program is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryConvention {
    /// `fn(context, run)`.
    Program,
    /// `fn(r1, r2, r3, r4, r5, run)`, as subprograms, callbacks and helpers.
    Helper,
}

impl EntryConvention {
    /// The signature: register arguments, the run, a result.
    fn signature(self) -> Signature {
        let mut signature = Signature::new(CallConv::SystemV);
        for _ in 0..self.arguments() + 1 {
            signature.params.push(AbiParam::new(I64));
        }
        signature.returns.push(AbiParam::new(I64));
        signature
    }

    /// BPF registers from r1 on that are passed.
    fn arguments(self) -> usize {
        match self {
            EntryConvention::Program => 1,
            EntryConvention::Helper => 5,
        }
    }
}

/// What one value is, on every execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// The frame pointer plus this many bytes.
    Frame(i32),
    /// The handle of the map with this index.
    Map(u32),
    /// The address of the function with this index.
    Function(usize),
    /// An address that is not null.
    NonNull,
    /// The result of a look-up: `address` where `exists` holds, else null.
    Found {
        /// The condition.
        exists: Value,
        /// The address, meaningless where the condition does not hold.
        address: Value,
    },
}

/// Translates the subprograms of one program.
pub(crate) struct Translator<'a> {
    code: &'a Code<'a>,
    entry: EntryConvention,
    scratch: FunctionBuilderContext,
}

impl<'a> Translator<'a> {
    pub(crate) fn new(code: &'a Code<'a>, entry: EntryConvention) -> Translator<'a> {
        Translator { code, entry, scratch: FunctionBuilderContext::new() }
    }

    /// Writes subprogram `index` into `function`.
    pub(crate) fn translate(
        &mut self,
        index: usize,
        function: &mut Function,
        config: TargetFrontendConfig,
    ) -> Result<(), CompileError> {
        let flow = Flow::of(self.code, &self.code.subprograms[index])?;
        let convention = if index == 0 { self.entry } else { EntryConvention::Helper };
        *function =
            Function::with_name_signature(UserFuncName::user(0, index as u32), convention.signature());
        let builder = FunctionBuilder::new(function, &mut self.scratch);
        let mut body = Body::new(self.code, index, self.entry, builder, flow);
        body.prologue(convention);
        body.instructions()?;
        body.builder.seal_all_blocks();
        let frame = body.frame;
        body.builder.finalize(config);
        if let Some(frame) = frame {
            dead_stores::remove(function, frame);
        }
        Ok(())
    }
}

/// One subprogram while it is being translated.
pub(crate) struct Body<'a, 'f> {
    code: &'a Code<'a>,
    subprogram: &'a Subprogram,
    entry: EntryConvention,
    builder: FunctionBuilder<'f>,
    flow: Flow,
    /// r0 to r9.
    registers: [Variable; 10],
    /// Iterations that `may_goto` still allows.
    budget: Option<Variable>,
    frame: Option<StackSlot>,
    frame_pointer: Value,
    run: Value,
    /// The slot being translated.
    pc: u32,
    blocks: HashMap<u32, Block>,
    known: HashMap<Value, Known>,
    /// What was stored in the frame since the block began, by offset from the frame pointer; see `memory`.
    frame_values: BTreeMap<i32, memory::Stored>,
    /// Registers that hold another value from the start of a block on, by its slot: what a null check has shown.
    refined: HashMap<u32, (Reg, Value)>,
    functions: HashMap<(u32, u32), FuncRef>,
    helper_signature: Option<SigRef>,
}

impl<'a, 'f> Body<'a, 'f> {
    fn new(
        code: &'a Code<'a>,
        index: usize,
        entry: EntryConvention,
        mut builder: FunctionBuilder<'f>,
        flow: Flow,
    ) -> Body<'a, 'f> {
        let registers = std::array::from_fn(|_| builder.declare_var(I64));
        let blocks = flow.leaders().map(|pc| (pc, builder.create_block())).collect();
        Body {
            code,
            subprogram: &code.subprograms[index],
            entry,
            builder,
            flow,
            registers,
            budget: None,
            frame: None,
            frame_pointer: Value::from_u32(0),
            run: Value::from_u32(0),
            pc: 0,
            blocks,
            known: HashMap::new(),
            frame_values: BTreeMap::new(),
            refined: HashMap::new(),
            functions: HashMap::new(),
            helper_signature: None,
        }
    }

    /// Takes the arguments over and makes the frame.
    fn prologue(&mut self, convention: EntryConvention) {
        let block = self.builder.create_block();
        self.builder.append_block_params_for_function_params(block);
        self.builder.switch_to_block(block);
        self.builder.seal_block(block);
        let params = self.builder.block_params(block).to_vec();
        let count = convention.arguments();
        for (register, &value) in (1..).zip(&params[..count]) {
            self.builder.def_var(self.registers[register], value);
        }
        self.run = params[count];
        if self.flow.uses_frame {
            // At least one word, so that the frame pointer is an address even when nothing is stored.
            let bytes = self.subprogram.stack_bytes.next_multiple_of(8).max(8);
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 3);
            self.frame = Some(self.builder.create_sized_stack_slot(data));
            self.frame_pointer = self.frame_address(0);
        }
        if self.flow.uses_budget {
            let budget = self.builder.declare_var(I64);
            let start = self.constant(I64, jump::LOOPS_MAX);
            self.builder.def_var(budget, start);
            self.budget = Some(budget);
        }
    }

    fn instructions(&mut self) -> Result<(), CompileError> {
        let ops = std::mem::take(&mut self.flow.ops);
        let mut open = true;
        for &(pc, op) in &ops {
            self.pc = pc;
            if let Some(&block) = self.blocks.get(&pc) {
                if open {
                    self.builder.ins().jump(block, &[]);
                    self.arrived(pc);
                }
                self.builder.switch_to_block(block);
                self.frame_values.clear();
                if let Some((register, value)) = self.refined.remove(&pc) {
                    self.set(register, value)?;
                }
            } else if !open {
                continue;
            }
            self.builder.set_srcloc(SourceLoc::new(pc));
            open = self.instruction(op)?;
        }
        // `Flow` has seen to it that no path gets here.
        if open { Err(CompileError::FallsOffEnd { pc: self.pc }) } else { Ok(()) }
    }

    /// One edge to the block at `pc` is in place; behind the last one the block is complete.
    fn arrived(&mut self, pc: u32) {
        if self.flow.edge_placed(pc) {
            self.builder.seal_block(self.blocks[&pc]);
        }
    }

    /// Translates one instruction. False: it ended the block.
    fn instruction(&mut self, op: Op) -> Result<bool, CompileError> {
        match op {
            Op::Alu { width, op, dst, src } => self.arithmetic(width, op, dst, src)?,
            Op::Mov { width, dst, src } => self.mov(width, dst, src)?,
            Op::MovSx { width, dst, src, bits } => self.mov_sign_extended(width, dst, src, bits)?,
            Op::Neg { width, dst } => self.negate(width, dst)?,
            Op::Endian { kind, dst, bits } => self.byte_order(kind, dst, bits)?,
            Op::LoadImm64 { dst, value } => self.load_immediate(dst, value)?,
            Op::Load { size, signed, dst, base, off } => self.load(size, signed, dst, base, off)?,
            Op::ProbeLoad { size, signed, dst, base, off } => {
                self.probe_load(size, signed, dst, base, off)?
            }
            Op::Store { size, base, off, src } => self.store(size, base, off, src),
            Op::Atomic { size, op, fetch, base, off, src } => {
                self.atomic(memory::Atomic { size, op, fetch, base, off, src })?;
            }
            Op::LoadPacket { .. } => return Err(self.unsupported("legacy packet access")),
            Op::Ja { target } => return self.jump(target),
            Op::Jump { width, op, dst, src, target } => return self.branch(width, op, dst, src, target),
            Op::MayGoto { target } => return self.may_goto(target),
            Op::Call(callee) => return self.call(callee),
            Op::Exit => return Ok(self.exit()),
        }
        Ok(true)
    }

    fn load_immediate(&mut self, dst: Reg, value: Imm64) -> Result<(), CompileError> {
        let value = match value {
            Imm64::Value(number) => self.constant(I64, number as i64),
            Imm64::Map(map) => {
                self.check_map(map)?;
                let handle = self.symbol(external::MAP_HANDLE, map, 0);
                self.known.insert(handle, Known::Map(map));
                handle
            }
            Imm64::MapValue { map, offset } => {
                self.check_map(map)?;
                let address = self.symbol(external::MAP_DATA, map, i64::from(offset));
                self.known.insert(address, Known::NonNull);
                address
            }
            Imm64::Func(relative) => {
                let index = self.function_index(relative)?;
                let function = self.own_function(index);
                let address = self.builder.ins().func_addr(I64, function);
                self.known.insert(address, Known::Function(index));
                address
            }
            Imm64::BtfId(_) => return Err(self.unsupported("a kernel variable")),
        };
        self.set(dst, value)
    }

    fn check_map(&self, map: u32) -> Result<(), CompileError> {
        if (map as usize) < self.code.maps.len() {
            return Ok(());
        }
        Err(CompileError::NoMap { pc: self.pc, map })
    }

    /// The function `relative` slots behind the next one, which may be called as a subprogram.
    fn function_index(&self, relative: i32) -> Result<usize, CompileError> {
        let target = i64::from(self.pc) + 1 + i64::from(relative);
        let index = u32::try_from(target).ok().and_then(|start| self.code.subprogram_at(start));
        match index {
            Some(0) if self.entry == EntryConvention::Program => {
                Err(self.unsupported("a call of the main program"))
            }
            Some(index) => Ok(index),
            None => Err(CompileError::BadTarget { pc: self.pc, target }),
        }
    }

    fn unsupported(&self, what: &'static str) -> CompileError {
        CompileError::Unsupported { pc: self.pc, what }
    }

    fn get(&mut self, register: Reg) -> Value {
        match self.registers.get(register.index()) {
            Some(&variable) => self.builder.use_var(variable),
            None => self.frame_pointer,
        }
    }

    /// # Errors
    /// [`CompileError::Unsupported`] for r10.
    fn set(&mut self, register: Reg, value: Value) -> Result<(), CompileError> {
        let Some(&variable) = self.registers.get(register.index()) else {
            return Err(self.unsupported("a write to the frame pointer"));
        };
        self.builder.def_var(variable, value);
        Ok(())
    }

    fn known(&self, value: Value) -> Option<Known> {
        self.known.get(&value).copied()
    }

    /// A number of type I32 or I64.
    fn constant(&mut self, ty: Type, number: i64) -> Value {
        let number = if ty == I32 { i64::from(number as u32) } else { number };
        self.builder.ins().iconst(ty, number)
    }

    /// The low 32 bits, or all of a register.
    fn get_width(&mut self, width: Width, register: Reg) -> Value {
        let value = self.get(register);
        match width {
            Width::W32 => self.builder.ins().ireduce(I32, value),
            Width::W64 => value,
        }
    }

    fn operand(&mut self, width: Width, operand: Operand) -> Value {
        match operand {
            Operand::Reg(register) => self.get_width(width, register),
            Operand::Imm(number) => self.constant(width_type(width), i64::from(number)),
        }
    }

    /// The address that the linker gives a symbol.
    fn symbol(&mut self, namespace: u32, index: u32, offset: i64) -> Value {
        let name = self.external(namespace, index);
        let data = GlobalValueData::Symbol { name, offset: offset.into(), colocated: false, tls: false };
        let global = self.builder.create_global_value(data);
        self.builder.ins().symbol_value(I64, global)
    }

    fn external(&mut self, namespace: u32, index: u32) -> ExternalName {
        let name = UserExternalName { namespace, index };
        ExternalName::user(self.builder.func.declare_imported_user_function(name))
    }

    /// A function of this image.
    fn own_function(&mut self, index: usize) -> FuncRef {
        self.function(external::FUNCTION, index as u32)
    }

    /// A function with the helpers' signature, reached by a rip-relative call.
    fn function(&mut self, namespace: u32, index: u32) -> FuncRef {
        if let Some(&function) = self.functions.get(&(namespace, index)) {
            return function;
        }
        let name = self.external(namespace, index);
        let signature = self.helper_signature();
        let data = ExtFuncData { name, signature, colocated: true, patchable: false };
        let function = self.builder.import_function(data);
        self.functions.insert((namespace, index), function);
        function
    }

    fn helper_signature(&mut self) -> SigRef {
        if let Some(signature) = self.helper_signature {
            return signature;
        }
        let signature = self.builder.import_signature(EntryConvention::Helper.signature());
        self.helper_signature = Some(signature);
        signature
    }
}

fn width_type(width: Width) -> Type {
    match width {
        Width::W32 => I32,
        Width::W64 => I64,
    }
}
