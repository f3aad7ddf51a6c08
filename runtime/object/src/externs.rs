//! `extern` variables and functions: configuration values (`__kconfig`) and kernel symbols (`__ksym`).
//!
//! Configuration values become a data map of their own, `.kconfig`; kernel symbols are patched into instructions.
//! Both sections of the object's BTF are rewritten as libbpf rewrites them, so that a verifier sees plain variables.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use crate::btf::{
    Btf, FUNC_EXTERN, FUNC_GLOBAL, INT_BOOL, INT_SIGNED, Kind, Type, VAR_EXTERN, VAR_GLOBAL, essential_name,
};
use crate::core_relo::{Budget, types_are_compatible};
use crate::elf::Elf;
use crate::error::ObjectError;
use crate::options::Options;

/// ELF section and BTF data section of configuration values.
pub(crate) const KCONFIG_SECTION: &str = ".kconfig";
/// BTF data section of kernel symbols.
const KSYMS_SECTION: &str = ".ksyms";

/// Externs of one object.
const EXTERNS_MAX: usize = 4096;

/// An extern.
#[derive(Clone, Debug)]
pub(crate) struct Extern {
    pub name: String,
    /// Index of its ELF symbol.
    pub symbol: usize,
    /// May be absent.
    pub weak: bool,
    /// It has a value.
    pub is_set: bool,
    pub kind: ExternKind,
}

/// What an extern stands for.
#[derive(Clone, Debug)]
pub(crate) enum ExternKind {
    Kconfig(KconfigVar),
    Ksym(Ksym),
}

/// A variable in `.kconfig`.
#[derive(Clone, Debug)]
pub(crate) struct KconfigVar {
    /// Byte offset in the map's value.
    pub offset: u32,
    size: u32,
    align: u32,
    ty: KconfigType,
    signed: bool,
}

/// A kernel symbol.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ksym {
    /// Its local type without typedefs; 0 = typeless (`extern const void x __ksym`).
    pub type_id: u32,
    /// Its id in the target's BTF, of a typed symbol that exists.
    pub kernel_id: u32,
    /// Its address, of a typeless symbol that exists.
    pub address: u64,
    /// A function.
    is_function: bool,
    /// A function of the target, by its index among them.
    pub host: Option<u32>,
    /// Where it is a function of the target, as its declaration says.
    place: Option<String>,
}

/// An `extern` function that is the target's (a *host function*): declared `__ksym`, and registered by whoever loads the object or
/// by `__attribute__((btf_decl_tag("host:PATH:SYMBOL")))` on its declaration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFunctionDef {
    /// Its name in the object.
    pub name: String,
    /// `PATH:SYMBOL` of the declaration.
    pub place: Option<String>,
    /// Its prototype in the object's BTF.
    pub type_id: u32,
}

/// Start of the declaration tag that names a host function's place.
const HOST_TAG: &str = "host:";

/// The host functions among the externs, in the order by which calls refer to them.
pub(crate) fn host_functions(externs: &[Extern]) -> Vec<HostFunctionDef> {
    let def = |ext: &Extern| match &ext.kind {
        ExternKind::Ksym(ksym) if ksym.host.is_some() => {
            Some(HostFunctionDef { name: ext.name.clone(), place: ksym.place.clone(), type_id: ksym.type_id })
        }
        _ => None,
    };
    externs.iter().filter_map(def).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum KconfigType {
    Bool,
    Char,
    Int,
    Tristate,
    CharArray,
}

/// Finds the object's externs, in libbpf's order: its numbering shows in poisoned instructions.
pub(crate) fn collect(elf: &Elf<'_>, btf: Option<&mut Btf>) -> Result<Vec<Extern>, ObjectError> {
    let undefined: Vec<_> = elf
        .symbols
        .iter()
        .enumerate()
        .filter(|(_, symbol)| symbol.is_extern() && !symbol.name.is_empty())
        .collect();
    let Some(btf) = btf else {
        return match undefined.first() {
            None => Ok(Vec::new()),
            Some((_, symbol)) => {
                Err(ObjectError::MissingBtf { needed_by: format!("extern '{}'", symbol.name) })
            }
        };
    };
    if undefined.len() > EXTERNS_MAX {
        return Err(ObjectError::TooLarge { what: "the number of externs", limit: EXTERNS_MAX as u64 });
    }
    let dummy = add_dummy_variable(btf);
    let sections = sections_of_variables(btf);
    let mut externs = Vec::with_capacity(undefined.len());
    for (index, symbol) in undefined {
        externs.push(describe(symbol.name, index, symbol.is_weak(), btf, &sections)?);
    }
    externs.sort_by(order);
    rewrite_ksyms(btf, &externs, dummy)?;
    lay_out_kconfig(btf, &mut externs)?;
    Ok(externs)
}

fn fail(name: &str, reason: impl Into<String>) -> ObjectError {
    ObjectError::Extern { name: name.to_owned(), reason: reason.into() }
}

/// The data section of each variable and extern function.
fn sections_of_variables(btf: &Btf) -> HashMap<u32, u32> {
    let mut sections = HashMap::new();
    for section in btf.types().filter(|ty| ty.kind() == Kind::DataSec) {
        for var in section.section_vars() {
            sections.entry(var.type_id).or_insert(section.id());
        }
    }
    sections
}

fn describe(
    name: &str,
    symbol: usize,
    weak: bool,
    btf: &Btf,
    sections: &HashMap<u32, u32>,
) -> Result<Extern, ObjectError> {
    let ty = btf
        .with_essential_name(essential_name(name))
        .find(|ty| ty.name() == name && matches!(ty.kind(), Kind::Var | Kind::Func))
        .ok_or_else(|| fail(name, "it has no BTF; is it declared __ksym or __kconfig?"))?;
    let external = if ty.kind() == Kind::Var { VAR_EXTERN } else { FUNC_EXTERN };
    if ty.linkage() != external {
        return Err(fail(name, "its BTF does not call it extern"));
    }
    let section = sections.get(&ty.id()).map(|&id| btf.type_or_void(id).name());
    let kind = match section {
        Some(KCONFIG_SECTION) if ty.kind() == Kind::Func => {
            return Err(fail(name, "a function cannot be in section .kconfig"));
        }
        Some(KCONFIG_SECTION) => ExternKind::Kconfig(kconfig_variable(name, ty)?),
        Some(KSYMS_SECTION) => ExternKind::Ksym(Ksym {
            type_id: btf.resolve(ty.type_id()).map_or(0, Type::id),
            is_function: ty.kind() == Kind::Func,
            place: place_in_target(btf, ty),
            ..Ksym::default()
        }),
        Some(other) => return Err(fail(name, format!("unrecognised extern section '{other}'"))),
        None => {
            return Err(fail(
                name,
                "it is in no data section; if another object defines it, link them first (bpftool gen object)",
            ));
        }
    };
    Ok(Extern { name: name.to_owned(), symbol, weak, is_set: false, kind })
}

/// The place in the target that a function's declaration is tagged with.
fn place_in_target(btf: &Btf, function: Type<'_>) -> Option<String> {
    let mut tags = btf.types().filter(|ty| ty.kind() == Kind::DeclTag && ty.type_id() == function.id());
    tags.find_map(|tag| Some(tag.name().strip_prefix(HOST_TAG)?.to_owned()))
}

fn kconfig_variable(name: &str, var: Type<'_>) -> Result<KconfigVar, ObjectError> {
    let btf = var.btf();
    let sized = |result: Result<u32, _>| result.ok().filter(|&bytes| bytes > 0);
    let size = sized(btf.size_of(var.type_id())).ok_or_else(|| fail(name, "its type has no size"))?;
    let align = sized(btf.align_of(var.type_id())).ok_or_else(|| fail(name, "its type has no alignment"))?;
    let (ty, signed) = kconfig_type(btf, var.type_id(), true)
        .ok_or_else(|| fail(name, "only bool, char, integers, tristate and char arrays can be __kconfig"))?;
    Ok(KconfigVar { offset: 0, size, align, ty, signed })
}

fn kconfig_type(btf: &Btf, id: u32, arrays: bool) -> Option<(KconfigType, bool)> {
    let ty = btf.resolve(id)?;
    match ty.kind() {
        Kind::Int if ty.int_encoding() & INT_BOOL != 0 => {
            (ty.size() == 1).then_some((KconfigType::Bool, false))
        }
        Kind::Int => {
            let signed = ty.int_encoding() & INT_SIGNED != 0;
            match ty.size() {
                1 => Some((KconfigType::Char, signed)),
                2 | 4 | 8 => Some((KconfigType::Int, signed)),
                _ => None,
            }
        }
        Kind::Enum if ty.size() == 4 && ty.name() == "libbpf_tristate" => {
            Some((KconfigType::Tristate, false))
        }
        Kind::Enum64 if ty.name() == "libbpf_tristate" => Some((KconfigType::Tristate, false)),
        Kind::Array if arrays && ty.array().len > 0 => {
            let (element, _) = kconfig_type(btf, ty.array().element, false)?;
            (element == KconfigType::Char).then_some((KconfigType::CharArray, false))
        }
        _ => None,
    }
}

/// Configuration values first, by falling alignment, size and name; then kernel symbols by name.
fn order(a: &Extern, b: &Extern) -> Ordering {
    match (&a.kind, &b.kind) {
        (ExternKind::Kconfig(x), ExternKind::Kconfig(y)) => {
            y.align.cmp(&x.align).then(x.size.cmp(&y.size)).then_with(|| a.name.cmp(&b.name))
        }
        (ExternKind::Ksym(_), ExternKind::Ksym(_)) => a.name.cmp(&b.name),
        (ExternKind::Kconfig(_), ExternKind::Ksym(_)) => Ordering::Less,
        (ExternKind::Ksym(_), ExternKind::Kconfig(_)) => Ordering::Greater,
    }
}

fn first_int32(btf: &Btf) -> u32 {
    btf.types().find(|ty| ty.kind() == Kind::Int && ty.int_bits() == 32).map_or(0, Type::id)
}

/// Where `.ksyms` has a function, a variable to put in its place (a data section may hold variables only).
fn add_dummy_variable(btf: &mut Btf) -> Option<u32> {
    let section = btf.find(KSYMS_SECTION, Kind::DataSec)?;
    let has_function = section.section_vars().any(|var| btf.type_or_void(var.type_id).kind() == Kind::Func);
    if !has_function {
        return None;
    }
    let int = first_int32(btf);
    let name = btf.intern("dummy_ksym");
    Some(btf.push(name, (Kind::Var as u32) << 24, int, &[VAR_GLOBAL]))
}

/// Turns every kernel symbol into a 4-byte variable, as the kernel's verifier of BTF wants them.
fn rewrite_ksyms(btf: &mut Btf, externs: &[Extern], dummy: Option<u32>) -> Result<(), ObjectError> {
    if !externs.iter().any(|ext| matches!(ext.kind, ExternKind::Ksym(_))) {
        return Ok(());
    }
    let Some(section) = btf.find(KSYMS_SECTION, Kind::DataSec).map(Type::id) else { return Ok(()) };
    let int = first_int32(btf);
    let names: HashSet<&str> = externs.iter().map(|ext| ext.name.as_str()).collect();
    let vars: Vec<_> = btf.type_or_void(section).section_vars().collect();
    let mut words = Vec::with_capacity(3 * vars.len());
    for (position, var) in vars.iter().enumerate() {
        let ty = btf.type_or_void(var.type_id);
        if !names.contains(ty.name()) {
            return Err(fail(ty.name(), "in section .ksyms, but no symbol refers to it"));
        }
        let mut in_section = ty.id();
        if ty.kind() == Kind::Func {
            let (id, prototype, info) = (ty.id(), ty.type_id(), ty.info());
            in_section = dummy.unwrap_or(id);
            name_parameters(btf, prototype, in_section);
            btf.set_word(id, 1, (info & !0xffff) | FUNC_GLOBAL);
        } else {
            btf.set_word(in_section, 3, VAR_GLOBAL);
            btf.set_word(in_section, 2, int);
        }
        words.extend([in_section, 4 * position as u32, 4]);
    }
    btf.set_word(section, 2, 4 * vars.len() as u32);
    btf.set_trailer(section, &words);
    Ok(())
}

/// Gives parameters without a name that of `named`.
fn name_parameters(btf: &mut Btf, prototype: u32, named: u32) {
    let name = btf.type_or_void(named).name_offset();
    let missing: Vec<usize> = btf
        .type_or_void(prototype)
        .params()
        .enumerate()
        .filter(|(_, param)| param.type_id != 0 && param.name.is_empty())
        .map(|(index, _)| index)
        .collect();
    for index in missing {
        btf.set_word(prototype, 3 + 2 * index, name);
    }
}

/// Gives each configuration value its place in the map.
fn lay_out_kconfig(btf: &mut Btf, externs: &mut [Extern]) -> Result<(), ObjectError> {
    let mut end = 0u32;
    let mut offsets = HashMap::new();
    for ext in externs.iter_mut() {
        let ExternKind::Kconfig(var) = &mut ext.kind else { continue };
        let too_large = || ObjectError::TooLarge { what: "section .kconfig", limit: u32::MAX.into() };
        var.offset = end.checked_next_multiple_of(var.align).ok_or_else(too_large)?;
        end = var.offset.checked_add(var.size).ok_or_else(too_large)?;
        offsets.insert(ext.name.clone(), var.offset);
    }
    let Some(section) = btf.find(KCONFIG_SECTION, Kind::DataSec).filter(|_| end > 0).map(Type::id) else {
        return Ok(());
    };
    let vars: Vec<_> = btf.type_or_void(section).section_vars().collect();
    let mut words = Vec::with_capacity(3 * vars.len());
    for var in vars {
        let name = btf.type_or_void(var.type_id).name();
        let Some(&offset) = offsets.get(name) else {
            return Err(fail(name, "in section .kconfig, but no symbol refers to it"));
        };
        btf.set_word(var.type_id, 3, VAR_GLOBAL);
        words.extend([var.type_id, offset, var.size]);
    }
    btf.set_word(section, 2, end);
    btf.set_trailer(section, &words);
    Ok(())
}

/// Bytes of the `.kconfig` map, 0 when there is none.
pub(crate) fn kconfig_size(externs: &[Extern]) -> u32 {
    let end = |ext: &Extern| match &ext.kind {
        ExternKind::Kconfig(var) => var.offset + var.size,
        ExternKind::Ksym(_) => 0,
    };
    externs.iter().map(end).max().unwrap_or(0)
}

/// Gives every extern its value; those of configuration are written to `kconfig`, the map's contents.
pub(crate) fn resolve(
    externs: &mut [Extern],
    btf: &Btf,
    options: &Options,
    kconfig: &mut [u8],
) -> Result<(), ObjectError> {
    let target = options.target();
    let mut hosts = 0;
    for ext in externs.iter_mut() {
        match &mut ext.kind {
            ExternKind::Ksym(ksym) if is_host_function(ksym, &ext.name, options) => {
                ksym.host = Some(hosts);
                ext.is_set = true;
                hosts += 1;
            }
            ExternKind::Kconfig(var) => {
                let place = kconfig.get_mut(var.offset as usize..(var.offset + var.size) as usize);
                let place = place.unwrap_or_default();
                ext.is_set = set_kconfig(&ext.name, ext.weak, var, options, place)?;
            }
            ExternKind::Ksym(ksym) if ksym.type_id == 0 => {
                let address = options.kernel_addresses.get(&ext.name);
                ksym.address = address.copied().unwrap_or(0);
                ext.is_set = address.is_some();
            }
            ExternKind::Ksym(ksym) if options.kernel_symbols || exists_here(ksym, &ext.name, options) => {
                ksym.kernel_id = kernel_id(&ext.name, ext.weak, ksym, btf, &target)?;
                ext.is_set = ksym.kernel_id != 0;
            }
            ExternKind::Ksym(_) => {}
        }
        if !ext.is_set && !ext.weak {
            return Err(fail(&ext.name, unresolved_reason(ext, options)));
        }
    }
    Ok(())
}

/// A function of the target.
fn is_host_function(ksym: &Ksym, name: &str, options: &Options) -> bool {
    ksym.is_function && (ksym.place.is_some() || options.host_functions.contains(name))
}

/// A kernel function that userspace has too.
fn exists_here(ksym: &Ksym, name: &str, options: &Options) -> bool {
    ksym.is_function && options.kernel_functions.contains(&essential_name(name))
}

fn unresolved_reason(ext: &Extern, options: &Options) -> &'static str {
    match &ext.kind {
        ExternKind::Kconfig(_) if options.kconfig.is_empty() => {
            "no kernel configuration was found (/boot/config-RELEASE, /proc/config.gz), and it is not __weak"
        }
        ExternKind::Kconfig(_) => "not set in the kernel's configuration, and it is not __weak",
        ExternKind::Ksym(ksym) if ksym.is_function => {
            "a kernel function cannot be called here, and it is not __weak; if it is a function of the target, register it: --host-function NAME=PATH:SYMBOL"
        }
        ExternKind::Ksym(_) => "a kernel variable does not exist here, and it is not __weak",
    }
}

/// The id of a typed symbol in the target's BTF; 0 when a weak one does not exist.
fn kernel_id(name: &str, weak: bool, ksym: &Ksym, btf: &Btf, target: &Btf) -> Result<u32, ObjectError> {
    let kind = if ksym.is_function { Kind::Func } else { Kind::Var };
    let wanted = if ksym.is_function { essential_name(name) } else { name };
    let Some(found) = target.find(wanted, kind) else {
        return if weak { Ok(0) } else { Err(fail(name, "not found in the target's BTF")) };
    };
    let target_type =
        if ksym.is_function { found.type_id() } else { target.resolve(found.type_id()).map_or(0, Type::id) };
    let compatible = types_are_compatible((btf, ksym.type_id), (target, target_type), &Budget::full());
    match compatible {
        Ok(true) => Ok(found.id()),
        _ if weak && ksym.is_function => Ok(0),
        _ => Err(fail(name, format!("its type differs from the target's [{}]", found.id()))),
    }
}

/// Writes one configuration value; false when there is none.
fn set_kconfig(
    name: &str,
    weak: bool,
    var: &KconfigVar,
    options: &Options,
    place: &mut [u8],
) -> Result<bool, ObjectError> {
    if name.starts_with("CONFIG_") {
        return match options.kconfig.get(name) {
            Some(value) => set_text(name, var, value, place).map(|()| true),
            None => Ok(false),
        };
    }
    let value = match name {
        "LINUX_KERNEL_VERSION" => options.kernel_version.into(),
        "LINUX_HAS_BPF_COOKIE" => options.has_bpf_cookie.into(),
        "LINUX_HAS_SYSCALL_WRAPPER" => options.has_syscall_wrapper.into(),
        _ if name.starts_with("LINUX_") && weak => 0,
        _ => return Err(fail(name, "an unknown virtual configuration value")),
    };
    set_number(name, var, value, place).map(|()| true)
}

fn set_text(name: &str, var: &KconfigVar, value: &str, place: &mut [u8]) -> Result<(), ObjectError> {
    let wrong = |implies: &str| Err(fail(name, format!("value '{value}' implies {implies}")));
    match value.as_bytes().first() {
        Some(&letter @ (b'y' | b'n' | b'm')) => match var.ty {
            KconfigType::Bool if letter == b'm' => wrong("a tristate or char type"),
            KconfigType::Bool => store(place, u64::from(letter == b'y')),
            KconfigType::Tristate => store(
                place,
                match letter {
                    b'y' => 1,
                    b'm' => 2,
                    _ => 0,
                },
            ),
            KconfigType::Char => store(place, letter.into()),
            _ => wrong("a bool, tristate or char type"),
        },
        Some(b'"') => {
            let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            match inner {
                _ if var.ty != KconfigType::CharArray => wrong("a char array"),
                None => Err(fail(name, format!("invalid string {value}"))),
                Some(text) => {
                    // Truncated, and always NUL-terminated.
                    let len = text.len().min(place.len().saturating_sub(1));
                    place[..len].copy_from_slice(&text.as_bytes()[..len]);
                    Ok(())
                }
            }
        }
        _ => {
            let number = parse_number(value)
                .ok_or_else(|| fail(name, format!("value '{value}' is not a valid integer")))?;
            match var.ty {
                KconfigType::Int | KconfigType::Char => set_number(name, var, number, place),
                _ => wrong("an integer type"),
            }
        }
    }
}

/// As `strtoull` with base 0: decimal, `0x`, leading `0`; a minus wraps.
fn parse_number(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8).ok()?
    } else {
        digits.parse().ok()?
    };
    Some(if negative { magnitude.wrapping_neg() } else { magnitude })
}

fn set_number(name: &str, var: &KconfigVar, value: u64, place: &mut [u8]) -> Result<(), ObjectError> {
    if !matches!(var.ty, KconfigType::Int | KconfigType::Char | KconfigType::Bool) {
        return Err(fail(name, format!("value '{value}' implies an integer, char or bool type")));
    }
    if var.ty == KconfigType::Bool && value > 1 {
        return Err(fail(name, format!("value '{value}' is no bool")));
    }
    let bits = var.size * 8;
    let fits = match var.signed {
        _ if bits >= 64 => true,
        true => value.wrapping_add(1 << (bits - 1)) < 1 << bits,
        false => value >> bits == 0,
    };
    if !fits {
        return Err(fail(name, format!("value '{value}' does not fit into {} bytes", var.size)));
    }
    store(place, value)
}

fn store(place: &mut [u8], value: u64) -> Result<(), ObjectError> {
    let len = place.len().min(8);
    place[..len].copy_from_slice(&value.to_le_bytes()[..len]);
    Ok(())
}
