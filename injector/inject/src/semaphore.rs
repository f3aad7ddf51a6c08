//! The 16-bit counts by which statically defined probes learn that somebody wants them (`ref_ctr`).
//!
//! Everybody who traces the process adds one, and takes it away again; so do we, while it stands still. What is in memory
//! afterwards is never lower than the number of those who are there.

use crate::wire::Wire;
use beeline_abi::link::LinkRuntime;
use beeline_remote::{Process, RemoteError};
use std::mem::offset_of;

/// Adds `change` to a count, unless it would leave the range of 16 bits; tells whether it did.
pub(crate) fn add(process: &Process, address: u64, change: i16) -> Result<bool, RemoteError> {
    let count = u16::from_le_bytes(process.memory().read_array(address)?);
    let Some(count) = count.checked_add_signed(change) else { return Ok(false) };
    process.memory().write(address, &count.to_le_bytes())?;
    Ok(true)
}

/// Sets the flags of the link at `link`.
pub(crate) fn mark(process: &Process, link: u64, flags: u32) -> Result<(), RemoteError> {
    process.memory().write(link + offset_of!(LinkRuntime, flags) as u64, &flags.to_bytes())
}

/// Takes us out of the semaphores of those of a site's links that are `meant`; the first link lies at `at`. If we are
/// killed in between, one stays too high.
pub(crate) fn leave(
    process: &Process,
    at: u64,
    links: &[LinkRuntime],
    meant: impl Fn(&LinkRuntime) -> bool,
) -> Result<(), RemoteError> {
    for (index, link) in links.iter().enumerate() {
        if link.flags & LinkRuntime::IN_SEMAPHORE != 0 && meant(link) {
            mark(process, at + (index * LinkRuntime::LEN) as u64, link.flags & !LinkRuntime::IN_SEMAPHORE)?;
            add(process, link.semaphore, -1)?;
        }
    }
    Ok(())
}
