//! Functions of the target that programs may call: who they are, what they take, where they are.
//!
//! Their types are those of the `extern` declaration in the object. BTF keeps no names of the parameters of such a declaration, so the
//! kernel's suffixes (`__sz`, `__szk`, `__str`) may stand on the name of a parameter's typedef as well.

use crate::EngineError;
use crate::attach_spec::{Place, Places};
use crate::targets::{Targets, Wanted};
use beeline_abi::code::HostValue;
use beeline_isa::{Insn, opcode};
use beeline_object::btf::{Btf, Kind, Param, Type};
use beeline_object::{HostFunctionDef, Object, ProgramDef};
use beeline_store::HostFunction;
use beeline_verifier::HostArg;
use std::str::FromStr;

/// Where a host function is, as a user registers it: `NAME=PATH:SYMBOL`, or `NAME=PATH:OFFSET` in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFunctionSpec {
    /// Its name in the object.
    pub name: String,
    /// The file: a path, or the name of a library or command to be searched for.
    pub path: String,
    /// The place in the file.
    pub place: Place,
}

/// Why a text says of no function where it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?}: {reason}; write NAME=PATH:SYMBOL")]
pub struct HostFunctionSpecError {
    text: String,
    reason: String,
}

impl FromStr for HostFunctionSpec {
    type Err = HostFunctionSpecError;

    fn from_str(text: &str) -> Result<HostFunctionSpec, HostFunctionSpecError> {
        let fail = |reason: &str| HostFunctionSpecError { text: text.into(), reason: reason.into() };
        let (name, place) = text.split_once('=').ok_or_else(|| fail("there is no '='"))?;
        HostFunctionSpec::of(name, place).map_err(|reason| fail(&reason))
    }
}

impl HostFunctionSpec {
    fn of(name: &str, place: &str) -> Result<HostFunctionSpec, String> {
        // As in an `AttachSpec`: the first ':' behind the last '/'.
        let file_starts = place.rfind('/').map_or(0, |slash| slash + 1);
        let colon = place[file_starts..].find(':').ok_or("there is no symbol behind the path")?;
        let (path, symbol) = (&place[..file_starts + colon], &place[file_starts + colon + 1..]);
        if name.is_empty() || path.is_empty() {
            return Err("the name or the path is empty".into());
        }
        Ok(HostFunctionSpec { name: name.into(), path: path.into(), place: symbol.parse()? })
    }
}

/// Every function that is registered is declared in the object.
pub(crate) fn check_declared(object: &Object, specs: &[HostFunctionSpec]) -> Result<(), EngineError> {
    let known = |spec: &&HostFunctionSpec| object.host_functions.iter().any(|def| def.name == spec.name);
    match specs.iter().find(|spec| !known(spec)) {
        None => Ok(()),
        Some(spec) => Err(EngineError::HostFunction {
            name: spec.name.clone(),
            reason: "the object calls no extern function of that name that is declared __ksym".into(),
        }),
    }
}

/// The host functions that a program calls, by their index in the object.
pub(crate) fn used(def: &ProgramDef) -> Vec<u32> {
    let mut used: Vec<u32> =
        def.insns.iter().filter(|insn| is_host_call(insn)).map(|insn| insn.imm as u32).collect();
    used.sort_unstable();
    used.dedup();
    used
}

/// The instruction calls a host function.
pub(crate) fn is_host_call(insn: &Insn) -> bool {
    insn.code == opcode::JMP | opcode::CALL
        && insn.src() == opcode::PSEUDO_KFUNC_CALL
        && insn.off == opcode::HOST_CALL
}

/// The host functions of a program with their places.
pub(crate) fn located(
    object: &Object,
    def: &ProgramDef,
    specs: &[HostFunctionSpec],
    targets: &mut Targets,
) -> Result<Vec<HostFunction>, EngineError> {
    let locate = |index: u32| {
        let function = &object.host_functions[index as usize];
        let fail = |reason: String| EngineError::HostFunction { name: function.name.clone(), reason };
        let declared = || {
            let place = function.place.as_deref().ok_or("it is registered nowhere")?;
            HostFunctionSpec::of(&function.name, place)
        };
        let registered = specs.iter().rev().find(|spec| spec.name == function.name).cloned();
        let spec = registered.map_or_else(declared, Ok).map_err(fail)?;
        let places = Places::One(spec.place);
        let wanted =
            Wanted { program: &def.name, path: &spec.path, places: &places, cookie: 0, has_specs: false };
        let target = targets.find(&wanted).map_err(|error| match error {
            EngineError::NoPlace { place, reason, .. } => fail(format!("{place}: {reason}")),
            other => other,
        })?;
        let signature = signature(object, function)?;
        let args = signature.args.iter().map(|arg| arg.value()).collect();
        Ok(HostFunction { name: signature.name, target, args, returns: signature.returns })
    };
    used(def).into_iter().map(locate).collect()
}

/// What the verifier is to know of a host function.
pub(crate) fn signature(
    object: &Object,
    def: &HostFunctionDef,
) -> Result<beeline_verifier::HostFunction, EngineError> {
    let fail = |reason: String| EngineError::HostFunction { name: def.name.clone(), reason };
    let types = object.btf.as_deref().and_then(|btf| btf.get(def.type_id));
    let prototype = types.filter(|ty| ty.kind() == Kind::FuncProto);
    let prototype = prototype.ok_or_else(|| fail("its prototype is not in the object's BTF".into()))?;
    let btf = prototype.btf();
    let params: Vec<Param<'_>> = prototype.params().collect();
    if params.len() > 5 {
        return Err(fail(format!("it takes {} arguments, and a program hands over five", params.len())));
    }
    let argument = |(index, param): (usize, &Param<'_>)| {
        argument(btf, param, params.get(index + 1))
            .map_err(|reason| format!("argument {}: {reason}", index + 1))
    };
    let args = params.iter().enumerate().map(argument).collect::<Result<_, _>>().map_err(fail)?;
    let result = btf.resolve(prototype.type_id());
    let returns = match result.map_or(Kind::Void, Type::kind) {
        Kind::Void => HostValue::NONE,
        Kind::Ptr => HostValue::WORD,
        kind => number(result).ok_or_else(|| fail(format!("it returns a {}", kind.name())))?,
    };
    Ok(beeline_verifier::HostFunction { name: def.name.clone(), args, returns })
}

fn argument(btf: &Btf, param: &Param<'_>, next: Option<&Param<'_>>) -> Result<HostArg, String> {
    let ty = btf.resolve(param.type_id).filter(|ty| ty.kind() != Kind::Void);
    let Some(ty) = ty else { return Err("variable arguments are not supported".into()) };
    if ty.kind() != Kind::Ptr {
        let number = number(Some(ty)).map(HostArg::Number);
        return number.ok_or_else(|| format!("a {} is not supported", ty.kind().name()));
    }
    let pointee = btf.resolve(ty.type_id());
    let read_only = is_const(btf, ty.type_id());
    let sized = |suffix| next.is_some_and(|next| has_suffix(btf, next, suffix));
    let size = || btf.size_of(ty.type_id()).ok().filter(|&size| size > 1);
    Ok(match pointee.map_or(Kind::Void, Type::kind) {
        _ if has_suffix(btf, param, "__str") => HostArg::String,
        _ if sized("__szk") => HostArg::SizedMemory { read_only, constant: true },
        _ if sized("__sz") => HostArg::SizedMemory { read_only, constant: false },
        Kind::Void | Kind::FuncProto | Kind::Fwd => HostArg::Address,
        // A single byte is a text or a buffer of unknown length.
        _ => size().map_or(HostArg::Address, |size| HostArg::Memory { size, read_only }),
    })
}

/// A number that fits into a register.
fn number(ty: Option<Type<'_>>) -> Option<HostValue> {
    let ty = ty.filter(|ty| matches!(ty.kind(), Kind::Int | Kind::Enum | Kind::Enum64))?;
    let size = u8::try_from(ty.size()).ok().filter(|size| matches!(size, 1 | 2 | 4 | 8))?;
    Some(HostValue { size, signed: ty.is_signed() })
}

/// The name of the parameter, or of its typedef, ends so.
fn has_suffix(btf: &Btf, param: &Param<'_>, suffix: &str) -> bool {
    if param.name.ends_with(suffix) {
        return true;
    }
    let mut id = param.type_id;
    // As long as chains of modifiers may be (`BTF_MAX_DEPTH` is 32).
    for _ in 0..32 {
        let Some(ty) = btf.get(id).filter(|ty| ty.kind().is_modifier_or_typedef()) else { return false };
        if ty.name().ends_with(suffix) {
            return true;
        }
        id = ty.type_id();
    }
    false
}

/// The type is `const`.
fn is_const(btf: &Btf, mut id: u32) -> bool {
    for _ in 0..32 {
        let Some(ty) = btf.get(id).filter(|ty| ty.kind().is_modifier_or_typedef()) else { return false };
        if ty.kind() == Kind::Const {
            return true;
        }
        id = ty.type_id();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs() {
        let spec: HostFunctionSpec = "repair=/opt/app/server:repair_table+4".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.path.as_str()), ("repair", "/opt/app/server"));
        assert_eq!(spec.place, Place::Symbol { name: "repair_table".into(), offset: 4 });
        let spec: HostFunctionSpec = "f=libc.so.6:std::f(int)".parse().unwrap();
        assert_eq!(spec.place, Place::Symbol { name: "std::f(int)".into(), offset: 0 });
        for wrong in ["", "repair", "repair=", "=/a:b", "repair=/a/b", "repair=/a:", "repair=:b"] {
            assert!(wrong.parse::<HostFunctionSpec>().is_err(), "{wrong}");
        }
    }
}
