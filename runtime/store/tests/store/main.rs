//! The store from outside: what is published, what survives a kill, what is refused.

mod contents;
mod crash;
mod damage;
mod publish;
mod space;

use beeline_abi::map::{MapShape, MapType};
use beeline_isa::Insn;
use beeline_store::{
    InitialValue, NewLink, NewMap, NewObject, NewProgram, Place, ProbeKind, Program, Store, StoreName,
    Target, TargetForm,
};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Held for writing while a process is started, for reading while free memory is measured: between fork and exec a
/// child has all our descriptors, and with them files that are removed already.
static SPAWNING: RwLock<()> = RwLock::new(());

/// Starts a process.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _alone = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// As long as it is held, nobody starts a process.
pub(crate) fn quiet() -> RwLockReadGuard<'static, ()> {
    SPAWNING.read().unwrap_or_else(PoisonError::into_inner)
}

/// A store's name of its own for one test; the store is removed with it.
pub(crate) struct Scratch {
    pub(crate) folder: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        let folder = tempfile::Builder::new().prefix("beeline-test-").tempdir_in("/dev/shm").expect("tmpfs");
        Scratch { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn name(&self) -> StoreName {
        StoreName::Path(self.path())
    }

    pub(crate) fn store(&self) -> Store {
        Store::open_or_create(&self.name()).expect("a new store")
    }
}

pub(crate) fn program(name: &str) -> Program {
    let insns = vec![Insn::new(0xb7, 0, 0, 0, 1), Insn::new(0x95, 0, 0, 0, 0)];
    Program {
        id: 0,
        name: name.into(),
        section: "uprobe".into(),
        prog_type: 2,
        expected_attach_type: 0,
        tag: beeline_store::tag(&insns),
        license: "GPL".into(),
        insns,
        code: Vec::new(),
        relocs: Vec::new(),
        functions: Vec::new(),
        code_offsets: Vec::new(),
        needs: beeline_abi::code::ProgramNeeds::default(),
        map_ids: Vec::new(),
        host_functions: Vec::new(),
        subprograms: Vec::new(),
        lines: Vec::new(),
        verified: beeline_store::VerifierStats::default(),
        loaded_at: 1,
        uid: 0,
        sleepable: false,
    }
}

/// A program that was verified and compiled, as all in the store.
pub(crate) fn new_program(name: &str, maps: Vec<usize>) -> NewProgram {
    let program = program(name);
    let input = beeline_verifier::Program {
        name: name.into(),
        prog_type: beeline_verifier::ProgType::KPROBE,
        insns: program.insns.clone(),
        ..beeline_verifier::Program::default()
    };
    let verified =
        beeline_verifier::verify(input, &beeline_verifier::Options::default()).expect("it returns 1");
    let image =
        beeline_jit::compile(&verified, &beeline_jit::CompileOptions::default()).expect("it has code");
    NewProgram { program, image, maps }
}

pub(crate) fn array(name: &str, value_size: u32, max_entries: u32) -> NewMap {
    let shape =
        MapShape { map_type: MapType::ARRAY, key_size: 4, value_size, max_entries, ..MapShape::default() };
    NewMap { name: name.into(), shape, ..NewMap::default() }
}

/// An object with two maps (one with contents), two programs and three links.
pub(crate) fn object(name: &str) -> NewObject {
    let mut data = array("data", 12, 1);
    data.initial.push((vec![0; 4], InitialValue::Bytes(b"hello, world".to_vec())));
    data.frozen = true;
    let target = Target {
        path: "/bin/true".into(),
        device: 1,
        inode: 2,
        build_id: vec![1, 2, 3],
        form: TargetForm::Places,
        places: vec![Place {
            symbol: Some("main".into()),
            file_offset: 0x1000,
            cookie: 7,
            ..Place::default()
        }],
    };
    let link = |program, kind| NewLink {
        program,
        kind,
        target: target.clone(),
        pid: None,
        count_hits: false,
        may_override: false,
    };
    NewObject {
        name: name.into(),
        source: format!("{name}.bpf.o"),
        license: "GPL".into(),
        btf: b"btf".to_vec(),
        loaded_at: 1,
        task_layout: None,
        maps: vec![array("counts", 8, 100), data],
        programs: vec![new_program("first", vec![1, 0]), new_program("second", vec![])],
        links: vec![link(0, ProbeKind::Entry), link(0, ProbeKind::Return), link(1, ProbeKind::Entry)],
        owned: false,
    }
}
