//! Room for a long jump within reach of a short one.
//!
//! ```text
//! padding:     site: jmp hole ─▶ │ jmp stub │ rest of the padding │
//! borrowed:    site: jmp hole ─────────────────▼
//!              neighbour: │ jmp displaced copy │ jmp stub │ rest of an instruction │
//! ```
//!
//! Padding behind code that does not go on costs nobody anything. Where there is none, neighbouring instructions move out: ten bytes of
//! them, five for the jump to their copy and five for ours.

use crate::binary::Binary;
use crate::plan::{SHORT_WINDOW, SitePlan, WINDOW_MIN, crosses_page, plan_window};
use iced_x86::{Decoder, DecoderOptions};

/// Bytes of two jumps: what a neighbour gives.
const BORROWED: usize = 2 * WINDOW_MIN;
/// How far behind its own start a short jump reaches, and before it.
const AHEAD: u64 = SHORT_WINDOW as u64 + 127;
const BACK: u64 = 128 - SHORT_WINDOW as u64;
/// Most holes of each kind that are offered: others may be taken by other probes.
const OFFERED: usize = 6;

/// A place for the long jump of a site. Plain data, like the plan that it belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Hole {
    /// Link-time address of the first byte that changes. The jump is the last five of those bytes.
    pub vaddr: u64,
    /// What stands there.
    pub original: Vec<u8>,
    /// The window that gives the room; none when it is padding.
    pub neighbour: Option<Box<SitePlan>>,
}

impl Hole {
    /// Link-time address of the long jump.
    pub fn jump(&self) -> u64 {
        self.vaddr + (self.original.len() - WINDOW_MIN) as u64
    }
}

/// Where the long jump of a short site can go.
pub(crate) fn holes(binary: &Binary, site: &SitePlan) -> Vec<Hole> {
    let mut holes = padding(binary, site);
    holes.truncate(OFFERED);
    holes.extend(neighbours(binary, site));
    holes
}

/// A short jump at the site reaches `vaddr`.
fn in_reach(site: &SitePlan, vaddr: u64) -> bool {
    (site.vaddr.saturating_sub(BACK)..=site.vaddr + AHEAD).contains(&vaddr)
}

/// The `len` bytes at `vaddr` are apart from the site's window, and in its section.
fn is_apart(binary: &Binary, site: &SitePlan, vaddr: u64, len: u64) -> bool {
    let window = site.vaddr..site.vaddr + site.original.len() as u64;
    let section = |vaddr: u64| binary.section_at(vaddr).map(|section| section.vaddr);
    (vaddr + len <= window.start || vaddr >= window.end)
        && section(vaddr) == section(site.vaddr)
        && section(vaddr + len - 1) == section(site.vaddr)
}

fn padding(binary: &Binary, site: &SitePlan) -> Vec<Hole> {
    let len = WINDOW_MIN as u64;
    let near = site.vaddr.saturating_sub(BACK)..site.vaddr + AHEAD + len;
    let mut holes = Vec::new();
    for filler in binary.analysis().padding_in(near) {
        // From its end: what lies before may be replaced together with the code that it follows.
        let mut vaddr = filler.end;
        while vaddr.checked_sub(len).is_some_and(|start| start >= filler.start) {
            vaddr -= len;
            let usable =
                in_reach(site, vaddr) && is_apart(binary, site, vaddr, len) && !crosses_page(vaddr, len);
            let bytes = binary.bytes_from(vaddr).and_then(|bytes| bytes.get(..WINDOW_MIN));
            if let Some(bytes) = bytes.filter(|_| usable) {
                holes.push(Hole { vaddr, original: bytes.to_vec(), neighbour: None });
            }
        }
    }
    holes
}

fn neighbours(binary: &Binary, site: &SitePlan) -> Vec<Hole> {
    let mut holes = Vec::new();
    for vaddr in boundaries(binary, site) {
        let len = BORROWED as u64;
        let usable = in_reach(site, vaddr + WINDOW_MIN as u64)
            && is_apart(binary, site, vaddr, len)
            && !crosses_page(vaddr, len);
        if !usable || holes.last().is_some_and(|last: &Hole| vaddr < last.vaddr + len) {
            continue;
        }
        let Ok(plan) = plan_window(binary, vaddr, BORROWED) else { continue };
        // A site whose own copy jumps into the room that it borrows would meet the wrong jump.
        if !is_apart(binary, site, vaddr, plan.original.len() as u64) {
            continue;
        }
        let original = plan.original[..BORROWED].to_vec();
        holes.push(Hole { vaddr, original, neighbour: Some(Box::new(plan)) });
        if holes.len() == OFFERED {
            break;
        }
    }
    holes
}

/// Starts of instructions around the site, as far as decoding from a known start shows them.
fn boundaries(binary: &Binary, site: &SitePlan) -> Vec<u64> {
    let end = site.vaddr + AHEAD;
    let mut found = Vec::new();
    let mut from = site.vaddr.saturating_sub(BACK + WINDOW_MIN as u64);
    while from < end {
        let start = binary.analysis().start_before(from);
        let next =
            binary.analysis().first_start_in(start.map_or(from, |start| start + 1)..end + 1).unwrap_or(end);
        if let Some((start, bytes)) = start.and_then(|start| Some((start, binary.bytes_from(start)?))) {
            let bytes = &bytes[..bytes.len().min((next - start) as usize)];
            let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
            while decoder.can_decode() {
                let instruction = decoder.decode();
                if instruction.is_invalid() {
                    break;
                }
                if instruction.ip() >= from {
                    found.push(instruction.ip());
                }
            }
        }
        if next <= from {
            break;
        }
        from = next;
    }
    found
}
