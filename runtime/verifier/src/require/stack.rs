//! What an access to the stack requires.

use crate::explore::Explorer;
use crate::program::STACK_BYTES_MAX;
use crate::refusal::{Checked, refuse};
use crate::require::memory::{Access, Target};
use crate::require::pointer::OFFSET_MAX;

/// Bytes of a stack that an access can touch, relative to r10: `least..end`, both at most 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// Lowest first byte.
    pub(crate) least: i32,
    /// Highest first byte.
    pub(crate) most: i32,
    /// One past the last byte.
    pub(crate) end: i32,
}

impl Span {
    /// True when the access is at one place only.
    pub(crate) fn is_fixed(&self) -> bool {
        self.least == self.most
    }
}

impl Explorer<'_> {
    /// The access lies on the stack for every value that the offset can have.
    pub(crate) fn on_stack(&self, target: &Target, access: Access) -> Checked<Span> {
        let what = match access {
            Access::Read => " read from",
            Access::Write => " write to",
        };
        let (number, value, fixed, size) = (target.reg.0, &target.pointer.value, target.fixed(), target.size);
        let (least, most) = match value.as_const() {
            Some(value) => {
                let at = (value as i64).saturating_add(fixed);
                (at, at)
            }
            None if value.smax >= OFFSET_MAX || value.smin <= -OFFSET_MAX => {
                refuse!("invalid unbounded variable-offset{what} stack R{number}")
            }
            None => (value.smin + fixed, value.smax + fixed),
        };
        let end = most.saturating_add(i64::from(size.max(1)));
        if least < -i64::from(STACK_BYTES_MAX) || end > 0 {
            match value.as_const() {
                Some(_) => refuse!("invalid{what} stack R{number} off={least} size={size}"),
                None => refuse!(
                    "invalid variable-offset{what} stack R{number} var_off={} off={} size={size}",
                    value.tnum,
                    target.fixed()
                ),
            }
        }
        let end = most + i64::from(size);
        Ok(Span { least: least as i32, most: most as i32, end: end as i32 })
    }
}
