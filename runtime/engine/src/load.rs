//! From an object file to programs, maps and links in the store: all of them, or nothing.

use crate::attach_spec::{AttachSpec, Place, Places};
use crate::system_calls::{self, CallPlace};
use crate::targets::{Targets, Wanted};
use crate::usdt::{SPECS_MAP, Specs};
use crate::{Engine, EngineError, HostFunctionSpec, host, right, translate};
use beeline_jit::{CodeImage, CompileOptions};
use beeline_object::btf::Btf;
use beeline_object::section_table::prog_type;
use beeline_object::{
    InitialValue as Contents, MapDef, MapKind, Object, Options, ProgramDef, Target as Named,
};
use beeline_store::{
    HostFunction, InitialValue, NewLink, NewMap, NewObject, NewProgram, Ownership, ProbeKind, Program,
    Published, Target, TargetForm, VerifierStats, check_name,
};
use beeline_verifier::Verified;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a user can say about a load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Name in the store; by default the file's name without `.bpf.o` or `.o`.
    pub name: Option<String>,
    /// A file with the BTF to relocate against; by default the running kernel's.
    pub btf: Option<PathBuf>,
    /// Where programs go; for a program named here, the target in its `SEC()` does not count.
    pub attach: Vec<AttachSpec>,
    /// Where functions of the targets are that programs call; for a function named here, the place in its declaration does not count.
    pub host_functions: Vec<HostFunctionSpec>,
    /// Links only apply in this process.
    pub pid: Option<u32>,
    /// `bpf_get_attach_cookie` of the links; `bpf_usdt_cookie` of USDT probes.
    pub cookie: u64,
    /// The same for the links of single programs, by name.
    pub program_cookies: BTreeMap<String, u64>,
    /// Count the hits of the links.
    pub count_hits: bool,
    /// Programs at system calls may skip and change them. Without it an object with such a program is refused.
    pub allow_override: bool,
    /// The object ends with this process, or earlier with [`Loaded::ownership`].
    pub own: bool,
}

/// What was put into the store.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Name of the object.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Its maps.
    pub maps: Vec<LoadedMap>,
    /// Its programs.
    pub programs: Vec<LoadedProgram>,
    /// Programs of the file that were left out: `SEC("?...")`.
    pub skipped: Vec<String>,
    /// Of an object that ends with its owner: its links are off everywhere when this and its clones are dropped, or when
    /// the process ends, however it does. Whoever looks at the store next takes the object out of it.
    pub ownership: Option<Arc<Ownership>>,
}

/// A map that was made or taken over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadedMap {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Name of its type.
    pub type_name: &'static str,
    /// It was pinned, and is shared with other objects.
    pub reused: bool,
}

/// A program that was verified and compiled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadedProgram {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Its section.
    pub section: String,
    /// Instructions.
    pub insns: usize,
    /// Bytes of machine code.
    pub code_len: usize,
    /// What the verifier did.
    pub verified: VerifierStats,
    /// Its links: id, kind, target.
    pub links: Vec<(u32, ProbeKind, Target)>,
    /// Why it has none.
    pub unattached: Option<String>,
}

/// A program on its way: proven, compiled.
struct Compiled {
    verified: Verified,
    image: CodeImage,
    stats: VerifierStats,
}

impl Engine {
    /// Reads an object file, verifies and compiles its programs, and puts everything into the store.
    ///
    /// # Errors
    /// Whatever is wrong with the file, its programs, the places that they go to or the store. Nothing of the object is
    /// in the store then.
    pub fn load(&self, path: &Path, options: &LoadOptions) -> Result<Loaded, EngineError> {
        let bytes = std::fs::read(path).map_err(|source| EngineError::Read { path: path.into(), source })?;
        self.load_bytes(&bytes, path, options)
    }

    /// As [`Engine::load`], of bytes that were read already; `path` names the object and is for messages.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_bytes(
        &self,
        bytes: &[u8],
        path: &Path,
        options: &LoadOptions,
    ) -> Result<Loaded, EngineError> {
        let name = options.name.clone().unwrap_or_else(|| default_name(path));
        check_name("an object", &name)?;
        let (object, target_btf) = parse(bytes, path, options.btf.as_deref(), &options.host_functions)?;
        let (wanted, skipped): (Vec<_>, Vec<_>) =
            object.programs.iter().partition(|program| program.autoload);
        for map in &object.maps {
            supported_type(map)?;
        }
        let Placed { links, unattached, usdt, mut targets } = places(&object, &wanted, options)?;
        let mut compiled = Vec::with_capacity(wanted.len());
        for def in &wanted {
            compiled.push(prove_and_compile(&object, def, self.store().cpus())?);
        }
        let hosts =
            wanted.iter().map(|def| host::located(&object, def, &options.host_functions, &mut targets));
        let hosts: Vec<Vec<HostFunction>> = hosts.collect::<Result<_, _>>()?;
        for (index, (def, compiled)) in wanted.iter().zip(&compiled).enumerate() {
            let own = || links.iter().filter(|link| link.program == index);
            if !hosts[index].is_empty() {
                check_host_caller(&object, def, own())?;
            }
            check_context(&object, def, &compiled.verified, own())?;
            let reached = is_tail_called(&object, def);
            let mut at_calls = links.iter().filter(|link| right::is_at_calls(&link.target));
            if !options.allow_override && at_calls.any(|link| link.program == index || reached) {
                right::only_looks(&def.name, &def.section, &compiled.image.image().relocs)?;
            }
        }
        let mut new = NewObject {
            name: name.clone(),
            source: path.canonicalize().unwrap_or_else(|_| path.into()).display().to_string(),
            license: object.license.clone(),
            btf: object.btf.as_deref().map(Btf::to_bytes).unwrap_or_default(),
            loaded_at: now(),
            task_layout: target_btf.task_layout(),
            maps: Vec::new(),
            programs: Vec::new(),
            links,
            owned: options.own,
        };
        for map in &object.maps {
            new.maps.push(new_map(map, &wanted, &usdt)?);
        }
        for ((def, compiled), hosts) in wanted.iter().zip(&compiled).zip(hosts) {
            new.programs.push(new_program(&object, def, compiled, hosts));
        }
        let (published, ownership) = if options.own {
            let (published, ownership) = self.store().publish_owned(&new)?;
            (published, Some(Arc::new(ownership)))
        } else {
            (self.store().publish(&new)?, None)
        };
        let skipped = skipped.into_iter().map(|def| def.name.clone()).collect();
        Ok(Loaded { ownership, ..report(&new, &published, unattached, skipped) })
    }
}

/// Where the programs of an object go.
struct Placed {
    links: Vec<NewLink>,
    /// For each program without a link, why it has none.
    unattached: Vec<Option<String>>,
    /// The arguments of the USDT probes among the places.
    usdt: Specs,
    /// With the files that were opened.
    targets: Targets,
}

/// The links to make.
fn places(object: &Object, programs: &[&ProgramDef], options: &LoadOptions) -> Result<Placed, EngineError> {
    let mut targets = Targets::default();
    let mut links = Vec::new();
    let has_specs = object.maps.iter().any(|map| map.name == SPECS_MAP);
    let mut link = |index: usize, kind, path: &str, places: &Places| {
        let program = programs[index].name.as_str();
        let cookie = options.program_cookies.get(program).copied().unwrap_or(options.cookie);
        let target = targets.find(&Wanted { program, path, places, cookie, has_specs })?;
        links.push(NewLink {
            program: index,
            kind,
            target,
            pid: options.pid,
            count_hits: options.count_hits,
            may_override: options.allow_override,
        });
        Ok::<_, EngineError>(())
    };
    let no_program = |name: &str| EngineError::NoSuchProgram {
        program: name.into(),
        object: object.name.clone(),
        known: programs.iter().map(|def| def.name.clone()).collect(),
    };
    let position = |name: &str| programs.iter().position(|def| def.name == name);
    if let Some(name) = options.program_cookies.keys().find(|name| position(name).is_none()) {
        return Err(no_program(name));
    }
    for spec in &options.attach {
        let index = position(&spec.program).ok_or_else(|| no_program(&spec.program))?;
        attachable(programs[index])?;
        sessions_suit(programs[index], spec.kind)?;
        link(index, spec.kind, &spec.path, &spec.places)?;
    }
    let mut unattached = Vec::new();
    for (index, def) in programs.iter().enumerate() {
        let explicit = options.attach.iter().any(|spec| spec.program == def.name);
        match own_place(def) {
            _ if explicit => unattached.push(None),
            Err(_) if is_tail_called(object, def) => unattached.push(None),
            Ok((kind, path, places)) => {
                link(index, kind, &path, &places)?;
                unattached.push(None);
            }
            Err(reason) => unattached.push(Some(reason)),
        }
    }
    Ok(Placed { links, unattached, usdt: std::mem::take(&mut targets.usdt), targets })
}

/// A program at system calls reads no more than there is. One that is reached by tail calls can be reached from all of them.
fn check_context<'a>(
    object: &Object,
    def: &ProgramDef,
    verified: &Verified,
    mut links: impl Iterator<Item = &'a NewLink>,
) -> Result<(), EngineError> {
    let room = |link: &NewLink| match link.target.form {
        TargetForm::SystemCall { number, context } => CallPlace { number, context }.context_len(link.kind),
        _ => u32::MAX,
    };
    let least = match def.prog_type {
        prog_type::TRACEPOINT if is_tail_called(object, def) => 16,
        prog_type::RAW_TRACEPOINT if is_tail_called(object, def) => 16,
        _ => u32::MAX,
    };
    let least = links.try_fold(least, |least, link| Some(least.min(room(link)))).unwrap_or(least);
    if verified.context_len() <= least {
        return Ok(());
    }
    Err(EngineError::CannotAttach {
        program: def.name.clone(),
        section: def.section.clone(),
        reason: format!("it reads {} bytes of its context, which has {least}", verified.context_len()),
    })
}

/// A program that calls host functions runs where a function of the target could have been called.
fn check_host_caller<'a>(
    object: &Object,
    def: &ProgramDef,
    mut links: impl Iterator<Item = &'a NewLink>,
) -> Result<(), EngineError> {
    let reason = if is_tail_called(object, def) {
        "a program that calls host functions cannot be reached by tail calls"
    } else if links.any(|link| matches!(link.target.form, TargetForm::SystemCall { .. })) {
        "programs at system calls cannot call host functions"
    } else {
        return Ok(());
    };
    Err(EngineError::CannotAttach {
        program: def.name.clone(),
        section: def.section.clone(),
        reason: reason.into(),
    })
}

/// Reads an object against this machine, or against a given BTF; with what it was relocated against.
pub(crate) fn parse(
    bytes: &[u8],
    path: &Path,
    btf: Option<&Path>,
    hosts: &[HostFunctionSpec],
) -> Result<(Object, Arc<Btf>), EngineError> {
    let mut options = Options::of_this_machine().named_after(path);
    options.host_functions = hosts.iter().map(|spec| spec.name.clone()).collect();
    options.kernel_functions = beeline_helpers::table::kfuncs().map(|helper| helper.proto.name).collect();
    if let Some(btf) = btf {
        let loaded = Btf::load(btf)
            .map_err(|source| EngineError::Btf { path: btf.into(), source: Box::new(source) })?;
        options.target_btf = Some(Arc::new(loaded));
    }
    let object = Object::parse(bytes, &options).map_err(|source| EngineError::Object {
        file: path.display().to_string(),
        source: Box::new(source),
    })?;
    host::check_declared(&object, hosts)?;
    Ok((object, options.target()))
}

/// The verifier's verdict on one program.
pub(crate) fn prove(
    object: &Object,
    def: &ProgramDef,
    cpus: u32,
    options: &beeline_verifier::Options,
) -> Result<(Verified, VerifierStats), EngineError> {
    let start = Instant::now();
    let verified =
        beeline_verifier::verify(translate::program(object, def, cpus)?, options).map_err(|rejection| {
            EngineError::Rejected { program: def.name.clone(), rejection: Box::new(rejection) }
        })?;
    let stats = VerifierStats {
        insns_processed: u64::from(verified.stats().insns_processed),
        states: u64::from(verified.stats().states),
        time_ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
    };
    Ok((verified, stats))
}

fn prove_and_compile(object: &Object, def: &ProgramDef, cpus: u32) -> Result<Compiled, EngineError> {
    let (verified, stats) = prove(object, def, cpus, &beeline_verifier::Options::default())?;
    let image = beeline_jit::compile(&verified, &CompileOptions::default())
        .map_err(|source| EngineError::Compile { program: def.name.clone(), source: Box::new(source) })?;
    Ok(Compiled { verified, image, stats })
}

/// The name in the store of an object that is given none: `malloc.bpf.o` is `malloc`.
pub fn default_name(path: &Path) -> String {
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = file.strip_suffix(".bpf.o").or_else(|| file.strip_suffix(".o")).unwrap_or(&file);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-+@.".contains(c) { c } else { '_' };
    stem.chars().map(plain).collect::<String>().trim_start_matches('.').to_owned()
}

/// True for a program that is in a prog array from the start: it is reached by tail calls and needs no place.
fn is_tail_called(object: &Object, def: &ProgramDef) -> bool {
    let names = object.maps.iter().flat_map(|map| &map.initial);
    names.into_iter().any(|(_, value)| matches!(value, Contents::Program(name) if *name == def.name))
}

/// Where a program's `SEC()` sends it; or why nowhere.
fn own_place(def: &ProgramDef) -> Result<(ProbeKind, String, Places), String> {
    let Some(spec) = &def.spec else { return Err("its section says nothing".into()) };
    let section = spec.def.name;
    let give = |flag: &str| {
        let place = match flag {
            "usdt" => "PROVIDER:NAME",
            _ if spec.is_multi() => "PATTERN",
            _ => "SYMBOL",
        };
        format!("its section names no place; give one: --attach {}={flag}:PATH:{place}", def.name)
    };
    if let Some(place) = system_calls::place_of(spec) {
        return place.map(|(kind, place)| (kind, String::new(), Places::SystemCall(place)));
    }
    let kind = match spec.is_return() {
        _ if spec.is_session() => ProbeKind::Session,
        true => ProbeKind::Return,
        false => ProbeKind::Entry,
    };
    match &spec.target {
        Named::Usdt { path, provider, name } => {
            let places = Places::Usdt { provider: provider.clone(), name: name.clone() };
            Ok((kind, path.clone(), places))
        }
        Named::User { path, symbol, .. } if spec.is_multi() => {
            Ok((kind, path.clone(), Places::Pattern(symbol.clone())))
        }
        Named::User { path, symbol, offset } => {
            // libbpf takes a number in place of the symbol for an offset in the file.
            let place = match symbol.parse::<Place>() {
                Ok(Place::FileOffset(at)) => Place::FileOffset(at.wrapping_add(*offset)),
                _ => Place::Symbol { name: symbol.clone(), offset: *offset },
            };
            Ok((kind, path.clone(), Places::One(place)))
        }
        Named::None if spec.is_usdt() => Err(give("usdt")),
        Named::None if spec.is_user() && spec.is_session() => Err(give("uprobe.session")),
        Named::None if spec.is_user() && spec.is_multi() => {
            Err(give(if spec.is_return() { "uretprobe.multi" } else { "uprobe.multi" }))
        }
        Named::Malformed { reason } => Err(reason.clone()),
        Named::None if spec.is_user() => Err(give(if spec.is_return() { "uretprobe" } else { "uprobe" })),
        _ if def.prog_type == prog_type::KPROBE => {
            let flag = if spec.is_return() { "uretprobe" } else { "uprobe" };
            Err(format!(
                "{section} is for functions of the kernel; to use it on a program: --attach {}={flag}:PATH:SYMBOL",
                def.name
            ))
        }
        _ => Err(format!("attaching {section} programs is not supported yet")),
    }
}

/// A program can be put at a place in user space when its context is `struct pt_regs`.
fn attachable(def: &ProgramDef) -> Result<(), EngineError> {
    if def.prog_type == prog_type::KPROBE {
        return Ok(());
    }
    let kind = program_type_name(def.prog_type);
    let is_call = def.spec.as_ref().is_some_and(|spec| system_calls::place_of(spec).is_some());
    let reason = if is_call {
        format!(
            "a {kind} program runs at system calls, where its section says; a function has no such context"
        )
    } else {
        format!("attaching {kind} programs is not supported yet")
    };
    Err(EngineError::CannotAttach { program: def.name.clone(), section: def.section.clone(), reason })
}

/// A session's program runs at both ends of a call, others do not (`expected_attach_type` says which it is).
fn sessions_suit(def: &ProgramDef, kind: ProbeKind) -> Result<(), EngineError> {
    let is_session = def.spec.as_ref().is_some_and(|spec| spec.is_session());
    if is_session == (kind == ProbeKind::Session) {
        return Ok(());
    }
    let how =
        if is_session { "as uprobe.session only" } else { "at the entry or at the return, not as a session" };
    Err(EngineError::CannotAttach {
        program: def.name.clone(),
        section: def.section.clone(),
        reason: format!("it can be attached {how}"),
    })
}

/// `BPF_PROG_TYPE_*` in lower case.
pub fn program_type_name(prog_type: u32) -> &'static str {
    beeline_object::section_table::prog_type_name(prog_type)
}

/// `BPF_MAP_TYPE_*` as bpftool prints it, or its number.
pub fn map_type_name(map_type: u32) -> String {
    KERNEL_MAP_TYPES.get(map_type as usize).map_or_else(|| map_type.to_string(), |name| (*name).to_owned())
}

/// The name of a map's type, when there is an implementation of it.
fn supported_type(map: &MapDef) -> Result<&'static str, EngineError> {
    match beeline_maps::types::find(map.map_type) {
        Some(kind) => Ok(kind.name),
        None => Err(EngineError::MapType {
            map: map.name.clone(),
            map_type: map.map_type,
            name: KERNEL_MAP_TYPES.get(map.map_type as usize).copied(),
        }),
    }
}

/// Names of `enum bpf_map_type`, for types without an implementation.
const KERNEL_MAP_TYPES: [&str; 34] = [
    "unspec",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgrp_storage",
    "arena",
];

fn new_map(def: &MapDef, programs: &[&ProgramDef], usdt: &Specs) -> Result<NewMap, EngineError> {
    let mut initial = Vec::new();
    if def.name == SPECS_MAP {
        let contents = usdt.contents(def.max_entries, def.value_size);
        let contents = contents.map_err(|reason| EngineError::Specs { map: def.name.clone(), reason })?;
        initial.extend(contents.map(|(key, value)| (key, InitialValue::Bytes(value))));
    }
    if let MapKind::Data { contents, .. } = &def.kind {
        initial.push((0u32.to_ne_bytes().to_vec(), InitialValue::Bytes(contents.clone())));
    }
    for (index, value) in &def.initial {
        let program = match value {
            Contents::Program(name) => programs.iter().position(|def| def.name == *name),
            Contents::Map(_) => None,
        };
        let Some(program) = program else {
            let unsupported =
                EngineError::MapType { map: def.name.clone(), map_type: def.map_type, name: None };
            match value {
                // A program that is not loaded leaves its place empty, as libbpf does.
                Contents::Program(_) => continue,
                Contents::Map(_) => return Err(unsupported),
            }
        };
        initial.push((index.to_ne_bytes().to_vec(), InitialValue::Program(program)));
    }
    Ok(NewMap {
        name: def.name.clone(),
        shape: translate::shape(def, 0),
        btf_key_type_id: def.btf_key_type_id,
        btf_value_type_id: def.btf_value_type_id,
        initial,
        frozen: def.frozen,
        pinned: def.pinned_by_name,
    })
}

fn new_program(
    object: &Object,
    def: &ProgramDef,
    compiled: &Compiled,
    host_functions: Vec<HostFunction>,
) -> NewProgram {
    let insns = compiled.verified.insns().to_vec();
    let program = Program {
        id: 0,
        name: def.name.clone(),
        section: def.section.clone(),
        prog_type: def.prog_type,
        expected_attach_type: def.expected_attach_type,
        tag: beeline_store::tag(&insns),
        license: object.license.clone(),
        insns,
        code: Vec::new(),
        relocs: Vec::new(),
        functions: Vec::new(),
        code_offsets: Vec::new(),
        needs: compiled.verified.needs(),
        map_ids: Vec::new(),
        host_functions,
        subprograms: def.subprograms.iter().map(|it| (it.offset, it.name.clone())).collect(),
        lines: translate::lines(object, def),
        verified: compiled.stats,
        loaded_at: now(),
        uid: rustix::process::geteuid().as_raw(),
        sleepable: def.sleepable,
    };
    NewProgram {
        program,
        image: compiled.image.clone(),
        maps: def.map_refs.iter().map(|&index| index as usize).collect(),
    }
}

fn report(
    new: &NewObject,
    published: &Published,
    unattached: Vec<Option<String>>,
    skipped: Vec<String>,
) -> Loaded {
    let maps = new.maps.iter().zip(&published.maps).zip(&published.reused);
    let maps = maps.map(|((map, &id), &reused)| LoadedMap {
        name: map.name.clone(),
        id,
        type_name: beeline_maps::types::find(map.shape.map_type).map_or("unknown", |kind| kind.name),
        reused,
    });
    let links_of = |index| {
        let links = new.links.iter().zip(&published.links).filter(move |(link, _)| link.program == index);
        links.map(|(link, &id)| (id, link.kind, link.target.clone())).collect()
    };
    let programs = new.programs.iter().zip(&published.programs).zip(unattached).enumerate();
    let programs = programs.map(|(index, ((new, &id), unattached))| LoadedProgram {
        name: new.program.name.clone(),
        id,
        section: new.program.section.clone(),
        insns: new.program.insns.len(),
        code_len: new.image.image().code.len(),
        verified: new.program.verified,
        links: links_of(index),
        unattached,
    });
    Loaded {
        name: new.name.clone(),
        id: published.id,
        maps: maps.collect(),
        programs: programs.collect(),
        skipped,
        ownership: None,
    }
}

/// CLOCK_REALTIME seconds.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
