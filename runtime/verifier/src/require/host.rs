//! What a call of a function of the target requires.
//!
//! Such a function runs for as long as it likes, and may never come back (`longjmp`, the end of its thread): a program that calls one
//! holds nothing that others wait for. It is trusted to do what its prototype says; that the program's own memory is all that it is
//! given, and of the size that it expects, is proven as for functions of the kernel (`check_kfunc_args` in `kernel/bpf/verifier.c`).

use crate::explore::Explorer;
use crate::program::{HostArg, HostFunction, ProgType};
use crate::refusal::{Checked, refuse};
use crate::state::{Kind, RegState};
use beeline_helpers::proto::MemAccess;
use beeline_isa::Reg;

impl Explorer<'_> {
    /// This program may call it here.
    pub(crate) fn may_call_host(&self, function: &HostFunction) -> Checked {
        let name = &function.name;
        if self.program.prog_type != ProgType::KPROBE {
            refuse!("calling host function {name} is not allowed for programs of this type");
        }
        self.may_call_locked(None)?;
        if let Some(what) = self.in_the_way_of_hosts() {
            refuse!("host function {name} may never return: it cannot be called {what}");
        }
        Ok(())
    }

    /// What the program is about that a function must come back to. Iterators over numbers lie on the program's stack alone.
    pub(crate) fn in_the_way_of_hosts(&self) -> Option<&'static str> {
        let slots = || self.state.frames.iter().flat_map(|frame| &frame.stack);
        let is_iterator = |id: u32| {
            slots().any(|slot| matches!(slot.spilled.kind, Kind::Iter { .. }) && slot.spilled.reference == id)
        };
        if self.state.references.iter().any(|held| !is_iterator(held.0)) {
            return Some("with a record reserved");
        }
        let in_callback = self.state.frames.iter().any(|frame| frame.callback.is_some());
        in_callback.then_some("in a callback")
    }

    /// What the program as a whole must not do beside calling host functions: own a CPU, which others wait for; call a global
    /// function where a host function could not be called, if one of the global functions calls one.
    pub(crate) fn host_calls_suit(&self) -> Checked {
        let what = match &self.facts {
            facts if !facts.host_calls => return Ok(()),
            facts if facts.tail_calls => "makes tail calls",
            facts if facts.cpu => "uses data of its CPU",
            facts if facts.host_calls_in_global && facts.global_called_busy => {
                "calls global functions in callbacks or with records reserved"
            }
            _ => return Ok(()),
        };
        refuse!("a program that {what} cannot call host functions, which may block or never return")
    }

    /// Every argument is what the prototype asks for.
    pub(crate) fn host_arguments(&mut self, function: &HostFunction) -> Checked {
        for (index, arg) in function.args.iter().enumerate() {
            let reg = Reg(index as u8 + 1);
            let state = self.readable(reg)?;
            self.host_argument(reg, &state, *arg)
                .map_err(|reason| format!("in the call of host function {}\n{reason}", function.name))?;
        }
        Ok(())
    }

    fn host_argument(&mut self, reg: Reg, state: &RegState, arg: HostArg) -> Checked {
        let number = reg.0;
        // An address of the target: what is there is the target's business.
        if state.kind == Kind::Scalar {
            return Ok(());
        }
        let access = |read_only| if read_only { MemAccess::Read } else { MemAccess::ReadWrite };
        match arg {
            HostArg::Number(_) => refuse!("R{number} is not a scalar"),
            HostArg::Address => refuse!(
                "R{number} type={} expected=scalar: its size is not known to the function",
                state.kind.name()
            ),
            HostArg::Memory { size, read_only } => self.memory(reg, state, size, access(read_only), false),
            HostArg::SizedMemory { read_only, constant } => {
                let size = self.readable(Reg(number + 1))?;
                if constant && size.as_const().is_none() {
                    refuse!("R{} must be a known constant", number + 1);
                }
                self.sized_for_host(reg, state, access(read_only))
            }
            HostArg::String => self.constant_for_host(reg, state),
        }
    }
}
