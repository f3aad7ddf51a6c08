//! One unverified program, ready to run on one of the engines.

use crate::native::{Executable, LinkError};
use beeline_abi::code::Symbol;
use beeline_abi::run::RunContext;
use beeline_interp::memory::{HelperFunction, Native, Trusted};
use beeline_interp::{Environment, HelperCall, Host, Limits, Outcome, Program, Stop, Trap};
use beeline_isa::Insn;
use beeline_jit::{Code, CompileError, Conformance, RUN_BAD_CALL, RawCode, compile_unverified};

/// The helper that ends a program when its result is 0.
pub const UNWIND: u32 = 5;

/// Which engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// The interpreter.
    Interpreter,
    /// The compiler.
    Compiled,
}

/// Why a program did not run.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VmError {
    /// It cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Its code cannot be placed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The interpreter could not go on.
    #[error(transparent)]
    Trap(#[from] Trap),
    /// The compiled program called a helper that does not exist.
    #[error("unknown helper called through a register")]
    BadCall,
}

/// A program on an engine.
#[derive(Debug)]
pub struct Machine {
    prepared: Prepared,
    limits: Limits,
}

#[derive(Debug)]
enum Prepared {
    Interpreter(Program),
    Compiled(Executable),
}

/// Compiles with the conformance suite's helper.
///
/// # Errors
/// [`CompileError`].
pub fn compile(insns: &[Insn]) -> Result<RawCode, CompileError> {
    let mut code = Code::divide(insns, &[])?;
    code.conformance = Conformance { unwind: Some(UNWIND), register_calls: vec![UNWIND] };
    compile_unverified(&code)
}

impl Machine {
    /// Prepares a program.
    ///
    /// # Safety
    /// Nobody checks the program. Whatever buffer [`run`](Machine::run) gives it, it must touch no other memory than
    /// that and its stack, and it must end.
    ///
    /// # Errors
    /// [`VmError`] when it cannot be compiled.
    pub unsafe fn new(engine: Engine, insns: &[Insn]) -> Result<Machine, VmError> {
        let prepared = match engine {
            Engine::Interpreter => Prepared::Interpreter(Program::new(insns)),
            Engine::Compiled => Prepared::Compiled(Executable::link(compile(insns)?.image(), resolve)?),
        };
        Ok(Machine { prepared, limits: Limits::default() })
    }

    /// Most instructions of an interpreted run.
    pub fn limit(&mut self, instructions_max: u64) {
        self.limits = Limits { instructions_max };
    }

    /// Runs the program with r1 = address and r2 = length of the buffer (0 and 0 for an empty one) and returns r0.
    ///
    /// # Errors
    /// [`VmError`] when it cannot go on.
    pub fn run(&self, buffer: &mut [u8]) -> Result<u64, VmError> {
        let address = if buffer.is_empty() { 0 } else { buffer.as_mut_ptr() as u64 };
        let arguments = [address, buffer.len() as u64, 0, 0, 0];
        let mut context = RunContext::default();
        match &self.prepared {
            Prepared::Interpreter(program) => {
                // SAFETY: the contract of `new`.
                let mut memory = unsafe { Trusted::new() };
                let run = &raw mut context;
                Ok(beeline_interp::run(program, &mut memory, &TestHost::new(), arguments, run, self.limits)?)
            }
            Prepared::Compiled(executable) => {
                // SAFETY: the image comes from `compile`; the rest is the contract of `new`.
                let result = unsafe { executable.call_raw(arguments, &mut context) };
                if context.flags & RUN_BAD_CALL != 0 { Err(VmError::BadCall) } else { Ok(result) }
            }
        }
    }
}

fn resolve(symbol: Symbol) -> Option<u64> {
    match symbol {
        Symbol::Helper(id) => helper(id).map(|function| function as usize as u64),
        _ => None,
    }
}

fn helper(id: u32) -> Option<HelperFunction> {
    (id == UNWIND).then_some(unwind as HelperFunction)
}

extern "sysv64" fn unwind(r1: u64, _r2: u64, _r3: u64, _r4: u64, _r5: u64, _run: *mut RunContext) -> u64 {
    r1
}

/// The native host, with the end that `unwind` makes.
struct TestHost {
    native: Native<'static, fn(u32) -> Option<HelperFunction>>,
}

impl TestHost {
    fn new() -> TestHost {
        // SAFETY: the one helper takes anything; there are no maps.
        TestHost { native: unsafe { Native::new(helper, &[]) } }
    }
}

impl Host for TestHost {
    fn map_handle(&self, map: u32) -> Option<u64> {
        self.native.map_handle(map)
    }

    fn map_data(&self, map: u32) -> Option<u64> {
        self.native.map_data(map)
    }

    fn call(&self, call: &HelperCall, environment: &mut dyn Environment) -> Result<Outcome, Stop> {
        match self.native.call(call, environment)? {
            Outcome::Value(0) if call.id == UNWIND as i32 => Ok(Outcome::Exit(0)),
            outcome => Ok(outcome),
        }
    }
}
