//! How much of the machine's own libraries can be probed, and how long the planner takes.

use beeline_site::{Binary, Refusal, find_library, plan, plan_return};
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
                assert!(plan.original.len() >= 5 && plan.original.len() <= 19);
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
