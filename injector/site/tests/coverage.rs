//! How much of the machine's own libraries can be probed, and how long the planner takes.

use beeline_site::{Binary, Refusal, SHORT_WINDOW, SitePlan, WINDOW_MIN, find_library, plan, plan_return};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Share of function entries that must be plannable.
fn report(path: &PathBuf) -> Option<(usize, usize)> {
    let binary = Binary::open(path).ok()?;
    let entries: Vec<u64> = binary.functions().iter().map(|f| f.start).collect();
    let started = Instant::now();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let (mut planned, mut returns, mut not_entries) = (0, 0, 0);
    for &entry in &entries {
        match plan(&binary, entry) {
            Ok(plan) => {
                planned += 1;
                not_entries += usize::from(!plan.is_entry);
                assert_eq!(binary.file_offset_of(entry), Some(plan.file_offset));
                assert!(plan.original.len() >= usize::from(plan.jump_len) && plan.original.len() <= 19);
                if usize::from(plan.jump_len) == SHORT_WINDOW {
                    *reasons.entry(check_holes(&binary, &plan)).or_default() += 1;
                }
                assert!(usize::from(plan.code_len) <= plan.original.len());
            }
            Err(refusal) => *reasons.entry(kind(&refusal)).or_default() += 1,
        }
        returns += usize::from(plan_return(&binary, entry).is_ok());
    }
    println!(
        "{}: {planned} of {} entries, {returns} returns, {not_entries} not pure entries, {:?}",
        path.display(),
        entries.len(),
        started.elapsed()
    );
    for (reason, count) in reasons {
        println!("    {count:5} {reason}");
    }
    Some((planned, entries.len()))
}

/// Looks at the places for the long jump of a short one; the kind of the best.
fn check_holes(binary: &Binary, plan: &SitePlan) -> String {
    assert!(!plan.holes.is_empty());
    let site = plan.vaddr..plan.vaddr + plan.original.len() as u64;
    for hole in &plan.holes {
        let bytes = &binary.bytes_from(hole.vaddr).unwrap()[..hole.original.len()];
        assert_eq!(bytes, hole.original);
        let distance = hole.jump() as i64 - (plan.vaddr as i64 + 2);
        assert!((-128..128).contains(&distance), "{distance}");
        let end = hole.vaddr + hole.original.len() as u64;
        assert!(end <= site.start || hole.vaddr >= site.end, "apart from the site");
        match &hole.neighbour {
            Some(neighbour) => {
                assert_eq!((neighbour.vaddr, hole.original.len()), (hole.vaddr, 2 * WINDOW_MIN));
                assert!(neighbour.original.starts_with(&hole.original));
            }
            None => {
                assert_eq!(hole.original.len(), WINDOW_MIN);
                // Padding: what remains of multi-byte no-operations, or breakpoints.
                assert!(
                    bytes
                        .iter()
                        .all(|b| [0x00, 0x0f, 0x1f, 0x2e, 0x40, 0x44, 0x66, 0x80, 0x84, 0x90, 0xcc]
                            .contains(b))
                );
            }
        }
    }
    format!(
        "short, {}",
        if plan.holes[0].neighbour.is_none() { "into padding" } else { "into borrowed room" }
    )
}

/// The variant's name.
fn kind(refusal: &Refusal) -> String {
    let text = format!("{refusal:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

fn libraries() -> Vec<PathBuf> {
    let names =
        ["libcrypto", "libssl", "libstdc++", "libpython3.11", "bash", "python3", "redis-server", "nginx"];
    names.iter().filter_map(|name| find_library(name).ok()).collect()
}

#[test]
fn nearly_every_function_of_libc_can_be_probed() {
    let Ok(libc) = find_library("libc.so.6") else {
        println!("skipped: no libc.so.6");
        return;
    };
    let (planned, all) = report(&libc).unwrap();
    assert!(all > 1000, "{all} functions");
    assert!(planned * 100 >= all * 98, "{planned} of {all}");
}

#[test]
fn nearly_every_function_of_other_libraries_can_be_probed() {
    for path in libraries() {
        let Some((planned, all)) = report(&path) else { continue };
        assert!(planned * 100 >= all * 97, "{}: {planned} of {all}", path.display());
    }
}
