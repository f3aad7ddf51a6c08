//! The bytes that turn a site into a probe.

use beeline_site::{SHORT_WINDOW, SitePlan, WINDOW_MIN};

/// What fills the window behind the jump: `int3`. Nothing runs there.
const FILLER: u8 = 0xcc;

/// The stub is too far away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a jump at {site:#x} cannot reach the stub at {stub:#x}")]
pub struct PatchError {
    /// The site.
    pub site: u64,
    /// Address of the stub's entry.
    pub stub: u64,
}

/// `jmp` from `site` to `stub` in five bytes.
///
/// # Errors
/// [`PatchError`] when the distance does not fit 32 bits.
pub fn jump(site: u64, stub: u64) -> Result<[u8; WINDOW_MIN], PatchError> {
    let next = i128::from(site) + WINDOW_MIN as i128;
    let distance = i32::try_from(i128::from(stub) - next).map_err(|_| PatchError { site, stub })?;
    let mut bytes = [0xe9, 0, 0, 0, 0];
    bytes[1..].copy_from_slice(&distance.to_le_bytes());
    Ok(bytes)
}

/// `jmp` from `site` to `hole` in two bytes.
///
/// # Errors
/// [`PatchError`] when the distance does not fit 8 bits.
pub fn short_jump(site: u64, hole: u64) -> Result<[u8; SHORT_WINDOW], PatchError> {
    let next = i128::from(site) + SHORT_WINDOW as i128;
    let distance = i8::try_from(i128::from(hole) - next).map_err(|_| PatchError { site, stub: hole })?;
    Ok([0xeb, distance as u8])
}

/// The bytes to be written over `plan.original` at address `site`: a jump to `stub` (the address of its entry), then
/// filler up to the end of the window ([`SitePlan::patched_len`] bytes).
///
/// # Errors
/// [`PatchError`] when the distance does not fit 32 bits.
pub fn patch_bytes(plan: &SitePlan, site: u64, stub: u64) -> Result<Vec<u8>, PatchError> {
    let mut bytes = vec![FILLER; plan.patched_len().max(WINDOW_MIN)];
    bytes[..WINDOW_MIN].copy_from_slice(&jump(site, stub)?);
    Ok(bytes)
}
