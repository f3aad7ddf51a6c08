//! One unverified program, ready to run on one of the engines.

use crate::native::{Executable, LinkError};
use beeline_abi::code::Symbol;
use beeline_abi::map::MapShape;
use beeline_abi::run::RunContext;
use beeline_interp::memory::{HelperFunction, Native, NativeMap, Trusted};
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

/// What a program finds around it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Helper 5 is `unwind`, and `callx` reaches it.
    pub conformance: bool,
    /// All other helpers.
    pub helpers: fn(u32) -> Option<HelperFunction>,
    /// Its maps.
    pub shapes: Vec<MapShape>,
    /// Where they are, in the same order.
    pub maps: Vec<NativeMap>,
    /// The CPU that a run owns.
    pub cpu: Option<u32>,
}

impl Setup {
    /// What the conformance suite wants.
    pub fn conformance() -> Setup {
        Setup { conformance: true, ..Setup::with_helpers(|_| None) }
    }

    /// No maps, these helpers.
    pub fn with_helpers(helpers: fn(u32) -> Option<HelperFunction>) -> Setup {
        Setup { conformance: false, helpers, shapes: Vec::new(), maps: Vec::new(), cpu: None }
    }

    /// Compiles a program for these surroundings.
    ///
    /// # Errors
    /// [`CompileError`].
    pub fn compile(&self, insns: &[Insn]) -> Result<RawCode, CompileError> {
        let mut code = Code::divide(insns, &self.shapes)?;
        if self.conformance {
            code.conformance = Conformance { unwind: Some(UNWIND), register_calls: vec![UNWIND] };
        }
        code.owns_cpu = self.cpu.is_some();
        compile_unverified(&code)
    }

    fn helper(&self, id: u32) -> Option<HelperFunction> {
        if self.conformance && id == UNWIND { Some(unwind) } else { (self.helpers)(id) }
    }

    fn resolve(&self, symbol: Symbol) -> Option<u64> {
        let map = |index: u32| self.maps.get(index as usize);
        match symbol {
            Symbol::Helper(id) => self.helper(id).map(|function| function as usize as u64),
            Symbol::MapHandle(index) => map(index).map(|map| map.handle),
            Symbol::MapData(index) => map(index).map(|map| map.data),
            Symbol::HostFunction(_) | Symbol::Image => None,
        }
    }
}

/// A program on an engine.
#[derive(Debug)]
pub struct Machine {
    setup: Setup,
    prepared: Prepared,
    limits: Limits,
}

#[derive(Debug)]
enum Prepared {
    Interpreter(Program),
    Compiled(Executable),
}

impl Machine {
    /// Prepares a program.
    ///
    /// # Safety
    /// Nobody checks the program. Whatever buffer [`run`](Machine::run) gives it, it must touch no other memory than
    /// that, its maps and its stack, and it must end. The helpers must take what it passes; the maps stay mapped.
    ///
    /// # Errors
    /// [`VmError`] when it cannot be compiled.
    pub unsafe fn new(engine: Engine, insns: &[Insn], setup: Setup) -> Result<Machine, VmError> {
        let prepared = match engine {
            Engine::Interpreter => Prepared::Interpreter(Program::new(insns)),
            Engine::Compiled => {
                let code = setup.compile(insns)?;
                Prepared::Compiled(Executable::link(code.image(), |symbol| setup.resolve(symbol))?)
            }
        };
        Ok(Machine { setup, prepared, limits: Limits::default() })
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
        context.access.cpu = self.setup.cpu.unwrap_or(RunContext::NO_CPU);
        match &self.prepared {
            Prepared::Interpreter(program) => {
                // SAFETY: the contract of `new`.
                let (mut memory, host) = unsafe { (Trusted::new(), SetupHost::new(&self.setup)) };
                let run = &raw mut context;
                Ok(beeline_interp::run(program, &mut memory, &host, arguments, run, self.limits)?)
            }
            Prepared::Compiled(executable) => {
                // SAFETY: the image is a `RawCode`'s; the rest is the contract of `new`.
                let result = unsafe { executable.call_raw(arguments, &mut context) };
                if context.flags & RUN_BAD_CALL != 0 { Err(VmError::BadCall) } else { Ok(result) }
            }
        }
    }
}

extern "sysv64" fn unwind(r1: u64, _r2: u64, _r3: u64, _r4: u64, _r5: u64, _run: *mut RunContext) -> u64 {
    r1
}

/// The native host, with the end that `unwind` makes.
struct SetupHost<'s> {
    setup: &'s Setup,
    native: Native<'s, Box<dyn Fn(u32) -> Option<HelperFunction> + 's>>,
}

impl SetupHost<'_> {
    /// # Safety
    /// As [`Machine::new`].
    unsafe fn new(setup: &Setup) -> SetupHost<'_> {
        let helper = Box::new(|id| setup.helper(id));
        // SAFETY: the caller's promise.
        SetupHost { setup, native: unsafe { Native::new(helper, &setup.maps) } }
    }
}

impl Host for SetupHost<'_> {
    fn map_handle(&self, map: u32) -> Option<u64> {
        self.native.map_handle(map)
    }

    fn map_data(&self, map: u32) -> Option<u64> {
        self.native.map_data(map)
    }

    fn call(&self, call: &HelperCall, environment: &mut dyn Environment) -> Result<Outcome, Stop> {
        match self.native.call(call, environment)? {
            Outcome::Value(0) if self.setup.conformance && call.id == UNWIND as i32 => Ok(Outcome::Exit(0)),
            outcome => Ok(outcome),
        }
    }
}
