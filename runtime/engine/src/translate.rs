//! From the object's terms to the verifier's.

use crate::kernel_types::kernel_types;
use crate::{EngineError, host};
use beeline_abi::map::{MapFlags, MapShape};
use beeline_object::btf::{Btf, FUNC_GLOBAL, Kind, Type};
use beeline_object::{MapDef, MapKind, Object, ProgramDef};
use beeline_verifier::{
    GlobalArg, GlobalSignature, MapInfo, ProgType, Program, SpecialField, SpecialKind, SubprogramInfo,
};

/// The verifier's input for a program of an object. Its maps are those that it refers to, in the order of
/// [`ProgramDef::map_refs`], its host functions those that it calls; the instructions are renumbered to match.
///
/// # Errors
/// When it calls a function of the target that no program can call.
pub(crate) fn program(object: &Object, def: &ProgramDef, cpus: u32) -> Result<Program, EngineError> {
    let hosts = host::used(def);
    let signature = |&index: &u32| host::signature(object, &object.host_functions[index as usize]);
    Ok(Program {
        host_functions: hosts.iter().map(signature).collect::<Result<_, _>>()?,
        name: def.name.clone(),
        prog_type: ProgType(def.prog_type),
        expected_attach_type: def.expected_attach_type,
        gpl_compatible: object.is_gpl_compatible(),
        sleepable: def.sleepable,
        insns: renumbered(def, &hosts),
        maps: def
            .map_refs
            .iter()
            .map(|&index| map_info(object, &object.maps[index as usize], cpus))
            .collect(),
        subprograms: subprograms(object, def),
        line_info: lines(object, def),
        types: Some(kernel_types(object.target_btf.clone())),
    })
}

/// The instructions with references to maps and host functions by index into the program's own lists.
fn renumbered(def: &ProgramDef, hosts: &[u32]) -> Vec<beeline_isa::Insn> {
    use beeline_isa::opcode::{PSEUDO_MAP_FD, PSEUDO_MAP_VALUE};
    let mut insns = def.insns.clone();
    let mut pc = 0;
    while let Some(insn) = insns.get_mut(pc) {
        if !insn.is_wide() {
            if host::is_host_call(insn)
                && let Ok(own) = hosts.binary_search(&(insn.imm as u32))
            {
                insn.imm = own as i32;
            }
            pc += 1;
            continue;
        }
        if matches!(insn.src(), PSEUDO_MAP_FD | PSEUDO_MAP_VALUE)
            && let Ok(own) = def.map_refs.binary_search(&(insn.imm as u32))
        {
            insn.imm = own as i32;
        }
        pc += 2;
    }
    insns
}

/// What a map is, as the store will make it.
pub(crate) fn shape(def: &MapDef, cpus: u32) -> MapShape {
    MapShape {
        map_type: def.map_type,
        key_size: def.key_size,
        value_size: def.value_size,
        max_entries: def.max_entries,
        map_flags: def.map_flags,
        cpus,
    }
}

fn map_info(object: &Object, def: &MapDef, cpus: u32) -> MapInfo {
    let constant = def.frozen && def.map_flags & MapFlags::RDONLY_PROG != 0;
    let frozen_contents = match &def.kind {
        MapKind::Data { contents, .. } if constant => Some(contents.clone()),
        _ => None,
    };
    MapInfo {
        name: def.name.clone(),
        shape: shape(def, cpus),
        inner: def.inner.as_ref().map(|inner| Box::new(map_info(object, inner, cpus))),
        special: object.btf.as_deref().map_or(Vec::new(), |btf| special_fields(btf, def.btf_value_type_id)),
        frozen_contents,
    }
}

/// The locks and timers in a map's value.
fn special_fields(btf: &Btf, value: u32) -> Vec<SpecialField> {
    let mut fields = Vec::new();
    find_special(btf, value, 0, 0, &mut fields);
    fields
}

/// Structures in structures, as deep as the kernel looks (`btf_parse_fields` of nested structures).
fn find_special(btf: &Btf, type_id: u32, offset: u32, depth: u32, fields: &mut Vec<SpecialField>) {
    const DEPTH_MAX: u32 = 4;
    let Some(ty) = btf.resolve(type_id) else { return };
    if ty.kind() == Kind::DataSec {
        for var in ty.section_vars() {
            let target = btf.get(var.type_id).map_or(0, |var| var.type_id());
            find_special(btf, target, offset.saturating_add(var.offset), depth, fields);
        }
        return;
    }
    if ty.kind() != Kind::Struct || depth >= DEPTH_MAX {
        return;
    }
    if let Some(kind) = SpecialKind::ALL.into_iter().find(|kind| kind.name() == ty.name()) {
        fields.push(SpecialField { kind, offset });
        return;
    }
    for member in ty.members() {
        find_special(btf, member.type_id, offset.saturating_add(member.bit_offset / 8), depth + 1, fields);
    }
}

fn subprograms(object: &Object, def: &ProgramDef) -> Vec<SubprogramInfo> {
    let function_of = |offset| {
        let info = def.func_info.iter().find(|info| info.insn_off == offset)?;
        object.btf.as_deref()?.get(info.type_id).filter(|ty| ty.kind() == Kind::Func)
    };
    let info = |subprogram: &beeline_object::Subprogram| SubprogramInfo {
        start: subprogram.offset,
        name: subprogram.name.clone(),
        global: function_of(subprogram.offset)
            .filter(|function| subprogram.offset != 0 && function.linkage() == FUNC_GLOBAL)
            .and_then(signature),
    };
    def.subprograms.iter().map(info).collect()
}

/// The type of a global function. `None` when an argument's type is not one by which a function can be verified by
/// itself: then it is verified at each call, as a static one.
fn signature(function: Type<'_>) -> Option<GlobalSignature> {
    let btf = function.btf();
    let prototype = btf.get(function.type_id())?;
    let tags = argument_tags(btf, function.id());
    let argument = |(index, param): (usize, beeline_object::btf::Param<'_>)| {
        let tagged = |tag: &str| tags.iter().any(|(at, name)| *at == index as i32 && name == tag);
        argument(btf, param.type_id, &tagged)
    };
    let args: Vec<_> = prototype.params().enumerate().map(argument).collect::<Option<_>>()?;
    let returns_void = btf.resolve(prototype.type_id()).is_none_or(|ty| ty.kind() == Kind::Void);
    (args.len() <= 5).then_some(GlobalSignature { args, returns_void })
}

fn argument(btf: &Btf, type_id: u32, tagged: &dyn Fn(&str) -> bool) -> Option<GlobalArg> {
    let ty = btf.resolve(type_id)?;
    match ty.kind() {
        Kind::Int | Kind::Enum | Kind::Enum64 => Some(GlobalArg::Scalar),
        Kind::Ptr if tagged("arg:ctx") => Some(GlobalArg::Ctx),
        Kind::Ptr if is_context(btf, ty.type_id()) => Some(GlobalArg::Ctx),
        Kind::Ptr => {
            let size = btf.size_of(ty.type_id()).ok().filter(|&size| size > 0)?;
            Some(GlobalArg::Mem { size, nonnull: tagged("arg:nonnull") })
        }
        _ => None,
    }
}

/// True for the types that the kernel takes for a probe's context (`btf_validate_prog_ctx_type`).
fn is_context(btf: &Btf, pointee: u32) -> bool {
    let mut id = pointee;
    // Modifiers and typedefs one by one: `bpf_user_pt_regs_t` is known by the typedef's name.
    for _ in 0..16 {
        let Some(ty) = btf.get(id) else { return false };
        if matches!(ty.name(), "bpf_user_pt_regs_t" | "pt_regs") {
            return true;
        }
        if !ty.kind().is_modifier_or_typedef() {
            return false;
        }
        id = ty.type_id();
    }
    false
}

/// `__attribute__((btf_decl_tag("...")))` on the arguments of a function: argument and text.
fn argument_tags(btf: &Btf, function: u32) -> Vec<(i32, String)> {
    let tags = btf.types().filter(|ty| ty.kind() == Kind::DeclTag && ty.type_id() == function);
    tags.filter(|tag| tag.component() >= 0).map(|tag| (tag.component(), tag.name().to_owned())).collect()
}

/// Source lines as the kernel's log prints them: `text @ file.c:12`.
pub(crate) fn lines(object: &Object, def: &ProgramDef) -> Vec<(u32, String)> {
    let line = |info: &beeline_object::btf::ext::LineInfo| {
        let source = object.source_line(info)?;
        let file = source.file.rsplit('/').next().unwrap_or(source.file);
        Some((info.insn_off, format!("{} @ {file}:{}", source.text.trim(), source.line)))
    };
    def.line_info.iter().filter_map(line).collect()
}
