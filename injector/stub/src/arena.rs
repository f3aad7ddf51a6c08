//! An arena: one executable mapping near the text that it serves, filled from its start.
//!
//! ```text
//! base                                                                     base + len
//! │ gates │ stub │ program │ stub │ ... ▶            ◀ ... │ jump slot │ jump slot │
//! ```
//!
//! A jump slot is `jmp *[rip+0]` and the address: how code here reaches what is more than 2 GiB away.

use crate::assemble::{build_copy, build_stub};
use crate::chain::{CallLink, build_chain, is_chain};
use crate::dispatched::{DispatchedCode, build_dispatched};
use crate::gates::{Gates, build_gates};
use crate::host_call::{HostCall, build_host_call};
use crate::link::{LinkError, link_code};
use crate::phase::Shared;
use crate::program_use::body;
use crate::site_code::{Environment, SiteCode, Stub, StubError};
use crate::system_call::{
    CallGates, CallStub, NearChains, SystemCallCode, SystemCallTarget, build_call_gates, build_call_stub,
};
use beeline_abi::code::{Reloc, Symbol};
use beeline_site::SitePlan;
use std::collections::HashMap;

/// Alignment of programs and stubs.
pub(crate) const ALIGNMENT: u64 = 16;
/// Bytes of a jump slot: `ff 25 00 00 00 00`, the address, two bytes of filler.
const SLOT_LEN: u64 = 16;
/// What unused bytes hold: `int3`.
pub(crate) const FILLER: u8 = 0xcc;

/// Bytes of a cache line.
pub(crate) const LINE: u64 = 64;

/// Where code, made for its address, would better be: where all of it that usually runs lies in one cache line. The kernel leaves no code of
/// the process in the first caches that it needs itself, and each line more costs some nanoseconds then.
fn in_line(code: &Stub) -> u64 {
    let hot = u64::from(code.cold.start);
    let is_split = code.address % LINE + hot > LINE;
    if hot <= LINE && is_split { code.address.next_multiple_of(LINE) } else { code.address }
}

/// Why something does not go into an arena.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArenaError {
    /// No room left.
    #[error("arena at {base:#x} is full: {wanted} bytes wanted, {free} free")]
    Full {
        /// The arena.
        base: u64,
        /// Bytes wanted.
        wanted: u64,
        /// Bytes free.
        free: u64,
    },
    /// The program cannot be linked here.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The stub cannot be made here.
    #[error(transparent)]
    Stub(#[from] StubError),
}

/// The contents of an arena, made outside the process, to be written into it in one piece.
#[derive(Clone, Debug)]
pub struct Arena {
    base: u64,
    bytes: Vec<u8>,
    used: u64,
    slots_from: u64,
    slots: HashMap<u64, u64>,
    gates: Option<(Environment, Gates)>,
    call_gates: Option<CallGates>,
    /// Programs that are short enough to stand in stubs, by the address of their entry.
    bodies: HashMap<u64, Vec<u8>>,
}

impl Arena {
    /// An empty arena for the mapping of `len` bytes at `base`.
    pub fn new(base: u64, len: u64) -> Arena {
        Arena {
            base,
            bytes: vec![FILLER; len as usize],
            used: 0,
            slots_from: len & !(SLOT_LEN - 1),
            slots: HashMap::new(),
            gates: None,
            call_gates: None,
            bodies: HashMap::new(),
        }
    }

    /// Its first address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes that are not in use.
    pub fn free(&self) -> u64 {
        self.slots_from.saturating_sub(self.used)
    }

    /// Links a program into the arena and returns its address.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before.
    pub fn add_program(
        &mut self,
        image: &[u8],
        relocs: &[Reloc],
        resolve: impl FnMut(Symbol) -> Option<u64>,
    ) -> Result<u64, ArenaError> {
        let before = self.clone_slots();
        let at = self.base + self.used;
        self.check_room(image.len() as u64)?;
        let reserved = self.used + image.len() as u64;
        let linked = link_code(image, relocs, at, resolve, |target| self.jump_slot(target, reserved));
        match linked {
            Ok(code) => {
                let entry = self.put(&code);
                if let Some(body) = body(&code) {
                    self.bodies.insert(entry, body.to_vec());
                }
                Ok(entry)
            }
            Err(error) => {
                (self.slots, self.slots_from) = before;
                Err(error.into())
            }
        }
    }

    /// Puts in the code through which a program calls a function of the target, and returns its address.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before.
    pub fn add_host_call(&mut self, call: &HostCall) -> Result<u64, ArenaError> {
        let code = build_host_call(call, self.base + self.used)?;
        self.check_room(code.len() as u64)?;
        Ok(self.put(&code))
    }

    /// Makes the stub of a site in the arena.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before, but for the gates.
    pub fn add_stub(&mut self, environment: &Environment, site: &SiteCode<'_>) -> Result<Stub, ArenaError> {
        let gates = self.gates(environment)?;
        let shared = Shared { environment, gates: &gates, bodies: &self.bodies };
        let stub = build_stub(shared, site, self.base + self.used)?;
        self.check_room(stub.bytes.len() as u64)?;
        self.put(&stub.bytes);
        Ok(stub)
    }

    /// Makes the code of a window at a system call. One arena serves one [`SystemCallTarget`].
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before, but for the gates.
    pub fn add_system_call(
        &mut self,
        environment: &Environment,
        target: &SystemCallTarget,
        code: &SystemCallCode<'_>,
    ) -> Result<CallStub, ArenaError> {
        self.add_system_call_with(environment, target, code, [&[], &[]])
    }

    /// The same where the number is a constant and these programs run before the call and behind it: what of them is short stands in the stub,
    /// and its hooks call it there.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before, but for the gates.
    pub fn add_system_call_with(
        &mut self,
        environment: &Environment,
        target: &SystemCallTarget,
        code: &SystemCallCode<'_>,
        links: [&[CallLink]; 2],
    ) -> Result<CallStub, ArenaError> {
        let call_gates = self.call_gates(environment, target)?;
        let gates = self.gates(environment)?;
        let shared = Shared { environment, gates: &gates, bodies: &self.bodies };
        let near = NearChains { shared, links };
        let build = |at| build_call_stub(code, target, call_gates, &near, at);
        let mut built = build(self.base + self.used)?;
        let at = in_line(&built.stub);
        if at != built.stub.address {
            built = build(at)?;
        }
        self.put_at(at, &built.stub.bytes)?;
        Ok(built)
    }

    /// Whom hooks call before the calls of a number, or behind them: a chain of these programs, or the gate where they cannot be run
    /// without the agent, or `agent` says that it has to know of the calls.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before, but for the gates.
    pub fn add_chain(
        &mut self,
        environment: &Environment,
        target: &SystemCallTarget,
        links: &[CallLink],
        is_exit: bool,
        agent: bool,
    ) -> Result<u64, ArenaError> {
        let call_gates = self.call_gates(environment, target)?;
        if agent || !is_chain(links) {
            return Ok(call_gates.hooked[usize::from(is_exit)]);
        }
        let gates = self.gates(environment)?;
        let shared = Shared { environment, gates: &gates, bodies: &self.bodies };
        let mut chain = build_chain(shared, links, is_exit, self.base + self.used)?;
        let at = in_line(&chain);
        if at != chain.address {
            chain = build_chain(shared, links, is_exit, at)?;
        }
        self.put_at(at, &chain.bytes)?;
        Ok(at)
    }

    /// Whom the hooks behind calls call whose number is no constant, while somebody wants the end of some call.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before, but for the gates.
    pub fn exit_dispatch(
        &mut self,
        environment: &Environment,
        target: &SystemCallTarget,
    ) -> Result<u64, ArenaError> {
        Ok(self.call_gates(environment, target)?.dispatch[1])
    }

    /// The code at calls that the kernel hands to the process.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before, but for the gates.
    pub fn add_dispatched(
        &mut self,
        environment: &Environment,
        target: &SystemCallTarget,
    ) -> Result<DispatchedCode, ArenaError> {
        let call_gates = self.call_gates(environment, target)?;
        let (code, made) = build_dispatched(target, call_gates, self.base + self.used)?;
        self.check_room(code.len() as u64)?;
        self.put(&code);
        Ok(made)
    }

    /// The gates for system calls, which the first of them brings.
    fn call_gates(
        &mut self,
        environment: &Environment,
        target: &SystemCallTarget,
    ) -> Result<CallGates, ArenaError> {
        if let Some(known) = self.call_gates {
            return Ok(known);
        }
        let gates = self.gates(environment)?;
        let shared = Shared { environment, gates: &gates, bodies: &self.bodies };
        let (code, made) = build_call_gates(shared, target, self.base + self.used)?;
        self.check_room(code.len() as u64)?;
        self.put(&code);
        Ok(*self.call_gates.insert(made))
    }

    /// Puts the displaced instructions of a window into the arena, without a probe: they give room to a neighbour.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is as before.
    pub fn add_copy(&mut self, plan: &SitePlan, address: u64) -> Result<Stub, ArenaError> {
        let copy = build_copy(plan, address, self.base + self.used)?;
        self.check_room(copy.bytes.len() as u64)?;
        self.put(&copy.bytes);
        Ok(copy)
    }

    /// The gates of the arena, which the first stub brings.
    fn gates(&mut self, environment: &Environment) -> Result<Gates, ArenaError> {
        if let Some((of, gates)) = &self.gates
            && of == environment
        {
            return Ok(*gates);
        }
        let (code, gates) = build_gates(environment, self.base + self.used)?;
        self.check_room(code.len() as u64)?;
        self.put(&code);
        self.gates = Some((*environment, gates));
        Ok(gates)
    }

    fn check_room(&self, wanted: u64) -> Result<(), ArenaError> {
        if wanted <= self.free() {
            return Ok(());
        }
        Err(ArenaError::Full { base: self.base, wanted, free: self.free() })
    }

    /// Puts code that was made for address `at`, which is behind all there is.
    fn put_at(&mut self, at: u64, code: &[u8]) -> Result<(), ArenaError> {
        let start = at - self.base;
        self.check_room(start - self.used + code.len() as u64)?;
        self.used = start;
        self.put(code);
        Ok(())
    }

    fn put(&mut self, code: &[u8]) -> u64 {
        let (at, start) = (self.base + self.used, self.used as usize);
        self.bytes[start..start + code.len()].copy_from_slice(code);
        self.used = (self.used + code.len() as u64).next_multiple_of(ALIGNMENT);
        at
    }

    /// The address of a slot that jumps to `target`; none when it would lie below `reserved`.
    fn jump_slot(&mut self, target: u64, reserved: u64) -> Option<u64> {
        if let Some(&at) = self.slots.get(&target) {
            return Some(at);
        }
        let start = self.slots_from.checked_sub(SLOT_LEN).filter(|&s| s >= reserved)?;
        let bytes = &mut self.bytes[start as usize..(start + SLOT_LEN) as usize];
        bytes[..6].copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
        bytes[6..14].copy_from_slice(&target.to_le_bytes());
        bytes[14..].fill(FILLER);
        self.slots_from = start;
        self.slots.insert(target, self.base + start);
        Some(self.base + start)
    }

    fn clone_slots(&self) -> (HashMap<u64, u64>, u64) {
        (self.slots.clone(), self.slots_from)
    }
}
