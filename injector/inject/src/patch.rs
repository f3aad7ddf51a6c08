//! The bytes that put a site in force, and where threads go on that are in the middle of what changes.
//!
//! ```text
//! long:    site ◀ jmp stub
//! short:   hole ◀ jmp stub, then   site ◀ jmp hole
//! neither: site ◀ int3; the table of breakpoints has the stub
//! ```

use crate::existing::{hole_jump, hole_of};
use crate::sites::PlannedSite;
use beeline_abi::link::LinkRuntime;
use beeline_abi::process::SiteRuntime;
use beeline_site::{SitePlan, WINDOW_MIN};
use beeline_stub::{Arena, PatchError, Stub, jump, short_jump};

/// `int3`.
const BREAKPOINT: [u8; 1] = [0xcc];

/// A site to be patched.
#[derive(Debug)]
pub(crate) struct Patch {
    pub(crate) address: u64,
    /// What is written, in this order. Nothing of ours runs before the last, which is at the site itself.
    pub(crate) writes: Vec<Write>,
    /// It is a breakpoint, which comes in force behind all others.
    pub(crate) is_breakpoint: bool,
    /// The agent looks here for seccomp filters that are being installed.
    pub(crate) sees_seccomp: bool,
    /// Links that are to be counted in semaphores when the jump stands: where each lies in the process, and what it is.
    pub(crate) semaphores: Vec<(u64, LinkRuntime)>,
    /// Where the entries of site and hole lie in the memory file, and what stands there when the patch is given up.
    pub(crate) entries: Vec<(u64, SiteRuntime)>,
}

/// Bytes to be written over code.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) address: u64,
    /// What has to stand there now: the whole window, padding, or the earlier jump.
    pub(crate) expected: Vec<u8>,
    /// What is written over the first of them.
    pub(crate) bytes: Vec<u8>,
    /// Where the code goes on that stands there; none for padding and for jumps of ours.
    pub(crate) moved: Option<Stub>,
    /// Offsets of instructions that a thread may be at in the bytes that change.
    pub(crate) inner: Vec<u8>,
}

impl Write {
    /// Addresses that a thread may be at, in the middle of what changes.
    pub(crate) fn inner_addresses(&self) -> impl Iterator<Item = u64> + use<'_> {
        self.inner.iter().map(|&at| self.address + u64::from(at))
    }
}

/// Offsets of the instructions of a window that lie within its first `len` bytes, without the first.
pub(crate) fn inner(plan: &SitePlan, len: usize) -> Vec<u8> {
    plan.boundaries.iter().copied().filter(|&at| at > 0 && usize::from(at) < len).collect()
}

/// The hole of a short site, in place or to be.
pub(crate) struct FilledHole {
    /// Its entry in the table, when it has one.
    pub(crate) index: Option<usize>,
    /// Address of the long jump.
    pub(crate) jump: u64,
    pub(crate) runtime: SiteRuntime,
    pub(crate) write: Write,
}

/// How a site's code comes to a stub.
pub(crate) struct SiteJump {
    /// What is written at the site.
    pub(crate) bytes: Vec<u8>,
    pub(crate) hole: Option<FilledHole>,
    /// The site's entry in the table, without links and flags.
    pub(crate) runtime: SiteRuntime,
}

/// The jump from a site to its stub, by a hole where it needs one. The error is the reason why the site cannot be served.
pub(crate) fn jump_to(
    arena: &mut Arena,
    known: &[SiteRuntime],
    site: &PlannedSite,
    stub: &Stub,
) -> Result<SiteJump, String> {
    let entry = stub.address + u64::from(stub.entry);
    let hole = fill_hole(arena, known, site, entry)?;
    let mut bytes =
        jump_bytes(site, hole.as_ref().map(|hole| hole.jump), entry).map_err(|error| error.to_string())?;
    if let Some(leave) = site.plan.leave.filter(|_| !site.is_short()) {
        // Nobody else's probe goes to an instruction that only runs in the stub.
        bytes.resize(bytes.len().max(usize::from(leave.at) + 1), INT3);
    }
    let runtime = SiteRuntime {
        address: site.address,
        stub: stub.address,
        stub_len: stub.bytes.len() as u32,
        len: bytes.len() as u32,
        original: padded(&site.plan.original[..bytes.len()]),
        patched: padded(&bytes),
        links: 0,
        link_count: 0,
        flags: if site.is_breakpoint() { SiteRuntime::BREAKPOINT } else { 0 },
    };
    Ok(SiteJump { bytes, hole, runtime })
}

/// `int3`, where nothing runs.
const INT3: u8 = 0xcc;

/// The hole of a short site, with the jump to the site's `stub`; none for a long site. `known` is the process's list of sites.
/// The error is the reason why the site cannot be served.
fn fill_hole(
    arena: &mut Arena,
    known: &[SiteRuntime],
    site: &PlannedSite,
    stub: u64,
) -> Result<Option<FilledHole>, String> {
    if let Some(index) = site.existing {
        return refill_hole(known, index, stub);
    }
    let Some(hole) = &site.hole else { return Ok(None) };
    let copy = hole.neighbour.as_ref().map(|plan| arena.add_copy(plan, hole.address)).transpose();
    let copy = copy.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    if let Some(copy) = &copy {
        bytes.extend(jump(hole.address, copy.address).map_err(|error| error.to_string())?);
    }
    bytes.extend(jump(hole.jump(), stub).map_err(|error| error.to_string())?);
    let runtime = SiteRuntime {
        address: hole.address,
        stub: copy.as_ref().map_or(0, |copy| copy.address),
        stub_len: copy.as_ref().map_or(0, |copy| copy.bytes.len() as u32),
        len: bytes.len() as u32,
        original: padded(&hole.original),
        patched: padded(&bytes),
        links: 0,
        link_count: 0,
        flags: SiteRuntime::HOLE,
    };
    let inner = hole.neighbour.as_ref().map_or(Vec::new(), |plan| inner(plan, bytes.len()));
    let expected = hole.neighbour.as_ref().map_or(&hole.original, |plan| &plan.original).clone();
    let write = Write { address: hole.address, expected, bytes, moved: copy, inner };
    Ok(Some(FilledHole { index: None, jump: hole.jump(), runtime, write }))
}

/// The hole of a short site that is patched already, with another jump in it.
fn refill_hole(known: &[SiteRuntime], site: usize, stub: u64) -> Result<Option<FilledHole>, String> {
    let Some(at) = known.get(site).and_then(hole_of) else { return Ok(None) };
    let is_it = |hole: &SiteRuntime| {
        hole.flags & SiteRuntime::HOLE != 0 && hole.len as usize >= WINDOW_MIN && hole_jump(hole) == at
    };
    let index = known.iter().position(is_it).ok_or("its long jump is not known any more")?;
    let mut runtime = known[index];
    let bytes = jump(at, stub).map_err(|error| error.to_string())?;
    let end = runtime.len as usize;
    let place = &mut runtime.patched[end - WINDOW_MIN..end];
    let expected = place.to_vec();
    place.copy_from_slice(&bytes);
    let write = Write { address: at, expected, bytes: bytes.to_vec(), moved: None, inner: Vec::new() };
    Ok(Some(FilledHole { index: Some(index), jump: at, runtime, write }))
}

/// The bytes of a site's jump: to its stub, or to the hole of a short one; or of its breakpoint.
fn jump_bytes(site: &PlannedSite, hole: Option<u64>, stub: u64) -> Result<Vec<u8>, PatchError> {
    match hole {
        _ if site.is_breakpoint() => Ok(BREAKPOINT.to_vec()),
        Some(hole) => short_jump(site.address, hole).map(Vec::from),
        None => jump(site.address, stub).map(Vec::from),
    }
}

/// Bytes of a site as the table holds them.
pub(crate) fn padded(bytes: &[u8]) -> [u8; 16] {
    std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
}
