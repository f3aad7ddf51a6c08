//! What spin locks in map values require: one at a time, nothing but loads and stores while it is held.

use crate::explore::Explorer;
use crate::program::SpecialKind;
use crate::refusal::{Checked, refuse};
use crate::state::{Kind, Lock, RegState};
use beeline_helpers::KFUNC_BASE;
use beeline_isa::Reg;

/// `bpf_spin_unlock`.
const SPIN_UNLOCK: u32 = 94;
/// `bpf_iter_num_new` and the others.
const ITERATOR: std::ops::Range<u32> = KFUNC_BASE..KFUNC_BASE + 3;

impl Explorer<'_> {
    /// The argument is the address of the lock in a map's value; gives which one (`process_spin_lock`).
    pub(crate) fn lock_argument(&self, reg: Reg, state: &RegState) -> Checked<Lock> {
        let Kind::MapValue { map, nullable: false } = state.kind else {
            refuse!("R{} type={} expected=map_value, ptr_", reg.0, state.kind.name())
        };
        if state.value.as_const().is_none() {
            refuse!(
                "R{} doesn't have constant offset. bpf_spin_lock has to be at the constant offset",
                reg.0
            );
        }
        let info = self.map(map)?;
        let lock = info.special.iter().find(|field| field.kind == SpecialKind::SpinLock);
        let Some(lock) = lock else { refuse!("map '{}' has no valid bpf_spin_lock", info.name) };
        let off = state.const_offset().unwrap_or(-1);
        if off != i64::from(lock.offset) {
            refuse!("off {off} doesn't point to 'struct bpf_spin_lock' that is at {}", lock.offset);
        }
        Ok(Lock { map, id: state.id })
    }

    /// The lock may be taken.
    pub(crate) fn may_lock(&self) -> Checked {
        if self.state.lock.is_some() {
            refuse!("Locking two bpf_spin_locks are not allowed");
        }
        Ok(())
    }

    /// The lock may be given back.
    pub(crate) fn may_unlock(&self, lock: Lock) -> Checked {
        match self.state.lock {
            None => refuse!("bpf_spin_unlock without taking a lock"),
            Some(held) if held != lock => refuse!("bpf_spin_unlock of different lock"),
            Some(_) => Ok(()),
        }
    }

    /// What is called while a lock is held.
    pub(crate) fn may_call_locked(&self, helper: Option<u32>) -> Checked {
        let allowed = helper.is_some_and(|id| id == SPIN_UNLOCK || ITERATOR.contains(&id));
        if self.state.lock.is_some() && !allowed {
            refuse!("function calls are not allowed while holding a lock");
        }
        Ok(())
    }

    /// No lock is held at the end, or where the program could end. `what` could be that.
    pub(crate) fn unlocked(&self, what: &str) -> Checked {
        if self.state.lock.is_some() {
            refuse!("{what} cannot be used inside bpf_spin_lock-ed region");
        }
        Ok(())
    }
}
