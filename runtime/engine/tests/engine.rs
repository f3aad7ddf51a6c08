//! The engine as a library: load, plan, run, unload, with programs compiled by clang.

use beeline_engine::{
    Engine, EngineError, Literal, LoadOptions, PlanFilter, ProbeKind, RunOptions, StoreName,
};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A store of its own for one test, removed with it.
struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        let folder =
            tempfile::Builder::new().prefix("beeline-engine-").tempdir_in("/dev/shm").expect("tmpfs");
        Scratch { folder }
    }

    fn engine(&self) -> Engine {
        Engine::open_or_create(&StoreName::Path(self.folder.path().join("store"))).expect("a new store")
    }
}

/// Compiles an example; `None`, with a message, where there is no clang for BPF.
fn example(scratch: &Scratch, path: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(path);
    let output = scratch.folder.path().join(source.file_name()?).with_extension("o");
    let include = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let clang = Command::new("clang")
        .args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-I", &include, "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&output)
        .output();
    match clang {
        Ok(result) => assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr)),
        Err(error) => {
            eprintln!("skipped: clang does not run: {error}");
            return None;
        }
    }
    Some(output)
}

fn attach(specs: &[&str]) -> LoadOptions {
    let attach = specs.iter().map(|spec| spec.parse().expect("a place")).collect();
    LoadOptions { attach, ..LoadOptions::default() }
}

/// A context whose first argument (`di`, byte 112 of `pt_regs`) is this.
fn with_argument(argument: u64) -> RunOptions {
    let mut context = vec![0; 168];
    context[112..120].copy_from_slice(&argument.to_le_bytes());
    RunOptions { context, ..RunOptions::default() }
}

#[test]
fn a_plan_holds_what_tail_calls_reach() {
    let scratch = Scratch::new();
    let Some(path) = example(&scratch, "tail-calls/dispatch.bpf.c") else { return };
    let engine = scratch.engine();
    let loaded = engine.load(&path, &attach(&["dispatch=uprobe:libc.so.6:malloc"])).unwrap();
    assert!(loaded.programs.iter().all(|program| program.unattached.is_none()), "reached by tail calls");
    let plan = engine.attach_plan(&PlanFilter::default()).unwrap();
    let mut names: Vec<_> = plan.programs.iter().map(|program| program.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["dispatch", "on_large", "on_small"]);
    assert_eq!(plan.maps.len(), 2);
    assert!(plan.maps.is_sorted_by_key(|map| map.id) && plan.programs.is_sorted_by_key(|program| program.id));
    let [probe] = plan.probes.as_slice() else { panic!("{:?}", plan.probes) };
    assert_eq!((probe.kind, probe.target.places[0].symbol.as_deref()), (ProbeKind::Entry, Some("malloc")));
    assert_eq!(plan.store_uuid, engine.store().uuid());
    assert!(plan.left_out.is_empty());
}

#[test]
fn tail_calls_in_a_test_run() {
    let scratch = Scratch::new();
    let Some(path) = example(&scratch, "tail-calls/dispatch.bpf.c") else { return };
    let engine = scratch.engine();
    engine.load(&path, &LoadOptions::default()).unwrap();
    let programs = engine.programs().unwrap().items;
    let dispatch = &programs.iter().find(|entry| entry.program.name == "dispatch").unwrap().program;
    for (argument, interpreter) in [(5, false), (500, false), (500, true), (7, true), (1000, false)] {
        let options = RunOptions { interpreter, ..with_argument(argument) };
        assert_eq!(engine.test_run(dispatch, &options).unwrap().result, 0);
    }
    let maps = engine.maps().unwrap().maps;
    let counts = &maps.iter().find(|map| map.name == "counts").unwrap().file;
    let count = |index: u32| counts.lookup(&index.to_ne_bytes()).unwrap().unwrap()[0];
    assert_eq!([count(0), count(1), count(2)], [2, 3, 0]);
    // Without its handler a tail call fails, and the program goes on.
    let handlers = &maps.iter().find(|map| map.name == "handlers").unwrap().file;
    handlers.delete(&1u32.to_ne_bytes()).unwrap();
    engine.test_run(dispatch, &with_argument(500)).unwrap();
    assert_eq!([count(0), count(1), count(2)], [2, 3, 1]);
}

#[test]
fn links_of_other_processes_and_objects_are_left_out() {
    let scratch = Scratch::new();
    let Some(path) = example(&scratch, "malloc-counter/malloc.bpf.c") else { return };
    let engine = scratch.engine();
    engine.load(&path, &LoadOptions { pid: Some(7), cookie: 9, ..LoadOptions::default() }).unwrap();
    engine.load(&path, &LoadOptions { name: Some("other".into()), ..LoadOptions::default() }).unwrap();
    let probes = |pid, objects: &[&str]| {
        let objects = objects.iter().map(|name| (*name).to_owned()).collect();
        let plan = engine.attach_plan(&PlanFilter { pid, objects, links: None }).unwrap();
        plan.probes
            .iter()
            .map(|probe| (probe.name.clone(), probe.target.places[0].cookie))
            .collect::<Vec<_>>()
    };
    let (first, other) = (("malloc/on_malloc".to_owned(), 9), ("other/on_malloc".to_owned(), 0));
    assert_eq!(probes(None, &[]), std::slice::from_ref(&other));
    assert_eq!(probes(Some(7), &[]), [first.clone(), other.clone()]);
    assert_eq!(probes(Some(8), &[]), [other]);
    assert_eq!(probes(Some(7), &["malloc"]), [first]);
    engine.unload("malloc").unwrap();
    engine.unload("other").unwrap();
    assert_eq!(probes(Some(7), &[]), []);
}

#[test]
fn nothing_is_left_of_a_load_that_fails() {
    let scratch = Scratch::new();
    let Some(path) = example(&scratch, "malloc-counter/malloc.bpf.c") else { return };
    let engine = scratch.engine();
    let fails = |options: &LoadOptions| engine.load(&path, options).unwrap_err();
    assert!(matches!(fails(&attach(&["nobody=uprobe:libc.so.6:malloc"])), EngineError::NoSuchProgram { .. }));
    assert!(matches!(fails(&attach(&["on_malloc=uprobe:libc.so.6:mallok"])), EngineError::NoPlace { .. }));
    let bad_btf = LoadOptions { btf: Some(path.with_extension("none")), ..LoadOptions::default() };
    assert!(matches!(fails(&bad_btf), EngineError::Btf { .. }));
    let bytes = std::fs::read(&path).unwrap();
    for len in (0..bytes.len()).step_by(bytes.len() / 40) {
        assert!(engine.load_bytes(&bytes[..len], &path, &LoadOptions::default()).is_err(), "{len} bytes");
    }
    assert!(engine.objects().unwrap().items.is_empty());
    assert!(engine.maps().unwrap().maps.is_empty());
    engine.load(&path, &LoadOptions::default()).unwrap();
    assert!(matches!(fails(&LoadOptions::default()), EngineError::Store(_)));
}

#[test]
fn values_go_to_bytes_and_back() {
    let scratch = Scratch::new();
    let Some(path) = example(&scratch, "malloc-counter/malloc.bpf.c") else { return };
    let engine = scratch.engine();
    engine.load(&path, &LoadOptions::default()).unwrap();
    let maps = engine.maps().unwrap().maps;
    let map = maps.iter().find(|map| map.name == "by_process").unwrap();
    let types = engine.map_types(map).unwrap();
    let value = Literal::Struct(vec![("bytes".into(), Literal::Integer(5))]);
    let bytes = types.encode_value(&value, 16).unwrap().unwrap();
    assert_eq!(bytes, [[0; 8], [5, 0, 0, 0, 0, 0, 0, 0]].concat());
    assert_eq!(types.format_value(&bytes).unwrap().to_string(), r#"{"calls":0,"bytes":5}"#);
    for wrong in [
        Literal::Integer(1),
        Literal::Struct(vec![("nothing".into(), Literal::Integer(1))]),
        Literal::Struct(vec![("calls".into(), Literal::Integer(1 << 64))]),
        Literal::Struct(vec![("calls".into(), Literal::Array(vec![]))]),
    ] {
        assert!(types.encode_value(&wrong, 16).unwrap().is_err(), "{wrong:?}");
    }
    let key = types.encode_key(&Literal::Integer(-1), 4).unwrap().unwrap();
    assert_eq!(types.format_key(&key).unwrap().to_string(), "4294967295");
    assert!(types.types().unwrap().find("struct usage").is_some());
}

#[test]
fn verdicts_without_a_store() {
    let scratch = Scratch::new();
    let Some(path) = example(&scratch, "function-latency/latency.bpf.c") else { return };
    let verdicts = beeline_engine::verify(&path, None, &[], 2).unwrap();
    assert!(!verdicts.is_empty());
    for verdict in verdicts {
        assert!(verdict.result.is_ok() && !verdict.log.is_empty(), "{verdict:?}");
    }
}
