//! Types as C: `struct task_struct *real_parent;`, `int (*handler)(struct pt_regs *)`.

use std::fmt::Write;

use super::{Btf, Kind, Param, RESOLVE_DEPTH_MAX, Type};

/// Characters of one declaration, at most.
const LEN_MAX: usize = 1 << 20;

impl Btf {
    /// The declaration of `name` with this type, on one line: `const char *name[4]`. Structs are named, anonymous
    /// ones written out.
    pub fn declare(&self, type_id: u32, name: &str) -> String {
        let mut out = String::new();
        self.declarator(&mut out, type_id, name.to_owned(), 0, RESOLVE_DEPTH_MAX);
        out
    }

    /// The definition of a struct, union, enum or typedef, over several lines, with a trailing semicolon; of anything
    /// else its name.
    pub fn define(&self, type_id: u32) -> String {
        let mut out = String::new();
        let ty = self.type_or_void(type_id);
        match ty.kind() {
            Kind::Struct | Kind::Union => self.body(&mut out, ty, 0, RESOLVE_DEPTH_MAX),
            Kind::Enum | Kind::Enum64 => enumeration(&mut out, ty, 0),
            Kind::Typedef => {
                out.push_str("typedef ");
                self.declarator(&mut out, ty.type_id(), ty.name().to_owned(), 0, RESOLVE_DEPTH_MAX);
            }
            _ => out.push_str(&self.declare(type_id, "")),
        }
        out.push(';');
        out
    }

    /// Writes specifiers, then the declarator that was built from the inside out.
    fn declarator(&self, out: &mut String, type_id: u32, inner: String, indent: usize, depth: usize) {
        let mut inner = inner;
        let mut id = type_id;
        // Whether the last thing added to `inner` was a pointer: then an array or a function needs parentheses.
        let mut pointer = false;
        for _ in 0..depth {
            let ty = self.type_or_void(id);
            match ty.kind() {
                Kind::Ptr => {
                    inner = format!("*{inner}");
                    pointer = true;
                }
                Kind::Const | Kind::Volatile | Kind::Restrict if pointer_below(self, ty) => {
                    let space = if inner.is_empty() || inner.starts_with('*') { "" } else { " " };
                    inner = format!(" {}{space}{inner}", ty.kind().name());
                }
                Kind::Array => {
                    inner = format!("{}[{}]", parenthesised(inner, pointer), ty.array().len);
                    pointer = false;
                    id = ty.array().element;
                    continue;
                }
                Kind::FuncProto => {
                    let params: Vec<String> = ty.params().map(|param| self.param(param, depth)).collect();
                    let params = if params.is_empty() { "void".to_owned() } else { params.join(", ") };
                    inner = format!("{}({params})", parenthesised(inner, pointer));
                    pointer = false;
                }
                Kind::TypeTag => {}
                _ => {
                    self.specifier(out, ty, indent, depth);
                    let inner = inner.trim_end();
                    if !inner.is_empty() {
                        if !inner.starts_with(' ') {
                            out.push(' ');
                        }
                        out.push_str(inner);
                    }
                    return;
                }
            }
            id = ty.type_id();
            if inner.len() > LEN_MAX {
                break;
            }
        }
        out.push_str("<...>");
    }

    fn param(&self, param: Param<'_>, depth: usize) -> String {
        let mut out = String::new();
        match (param.type_id, depth.checked_sub(1)) {
            (0, _) => out.push_str("..."),
            (_, None) => out.push_str("<...>"),
            (id, Some(depth)) => self.declarator(&mut out, id, param.name.to_owned(), 0, depth / 2),
        }
        out
    }

    /// The type before the declarator.
    fn specifier(&self, out: &mut String, ty: Type<'_>, indent: usize, depth: usize) {
        let Some(depth) = depth.checked_sub(1) else { return out.push_str("<...>") };
        match ty.kind() {
            Kind::Const | Kind::Volatile | Kind::Restrict => {
                out.push_str(ty.kind().name());
                out.push(' ');
                self.specifier(out, self.type_or_void(ty.type_id()), indent, depth);
            }
            Kind::TypeTag => self.specifier(out, self.type_or_void(ty.type_id()), indent, depth),
            Kind::Struct | Kind::Union if ty.name().is_empty() => self.body(out, ty, indent, depth),
            Kind::Enum | Kind::Enum64 if ty.name().is_empty() => enumeration(out, ty, indent),
            Kind::Struct | Kind::Union => _ = write!(out, "{} {}", ty.kind().name(), ty.name()),
            Kind::Enum | Kind::Enum64 => _ = write!(out, "enum {}", ty.name()),
            Kind::Fwd => _ = write!(out, "{} {}", if ty.kind_flag() { "union" } else { "struct" }, ty.name()),
            Kind::Var | Kind::Func => self.declarator(out, ty.type_id(), ty.name().to_owned(), indent, depth),
            _ => out.push_str(ty.display_name()),
        }
    }

    fn body(&self, out: &mut String, ty: Type<'_>, indent: usize, depth: usize) {
        out.push_str(ty.kind().name());
        if !ty.name().is_empty() {
            _ = write!(out, " {}", ty.name());
        }
        if ty.vlen() == 0 {
            return out.push_str(" {}");
        }
        out.push_str(" {\n");
        for member in ty.members() {
            if out.len() > LEN_MAX {
                out.push_str("...\n");
                break;
            }
            out.extend(std::iter::repeat_n('\t', indent + 1));
            self.declarator(out, member.type_id, member.name.to_owned(), indent + 1, depth.saturating_sub(1));
            if member.bitfield_bits > 0 {
                _ = write!(out, ": {}", member.bitfield_bits);
            }
            out.push_str(";\n");
        }
        out.extend(std::iter::repeat_n('\t', indent));
        out.push('}');
    }
}

/// A qualifier that belongs to a pointer stands after the star, others in front of everything.
fn pointer_below(btf: &Btf, ty: Type<'_>) -> bool {
    let mut ty = ty;
    for _ in 0..RESOLVE_DEPTH_MAX {
        match ty.kind() {
            Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag => {
                ty = btf.type_or_void(ty.type_id())
            }
            kind => return kind == Kind::Ptr,
        }
    }
    false
}

fn parenthesised(inner: String, pointer: bool) -> String {
    if pointer { format!("({inner})") } else { inner }
}

fn enumeration(out: &mut String, ty: Type<'_>, indent: usize) {
    out.push_str("enum");
    if !ty.name().is_empty() {
        _ = write!(out, " {}", ty.name());
    }
    out.push_str(" {\n");
    for enumerator in ty.enumerators() {
        out.extend(std::iter::repeat_n('\t', indent + 1));
        _ = writeln!(out, "{} = {},", enumerator.name, enumerator.value);
    }
    out.extend(std::iter::repeat_n('\t', indent));
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::INT_SIGNED;
    use crate::btf::builder::Builder;

    #[track_caller]
    fn check(build: impl Fn(&mut Builder, u32) -> u32, expected: &str) {
        let mut builder = Builder::new();
        let int = builder.int("int", 4, INT_SIGNED);
        let id = build(&mut builder, int);
        assert_eq!(builder.finish().declare(id, "x"), expected);
    }

    #[test]
    fn declarators() {
        check(|_, int| int, "int x");
        check(|b, int| b.pointer(int), "int *x");
        check(|b, int| b.array(int, int, 4), "int x[4]");
        check(
            |b, int| {
                let array = b.array(int, int, 4);
                b.pointer(array)
            },
            "int (*x)[4]",
        );
        check(
            |b, int| {
                let pointer = b.pointer(int);
                b.array(pointer, int, 4)
            },
            "int *x[4]",
        );
        check(
            |b, int| {
                let prototype = b.prototype(int, &[("a", int), ("", 0)]);
                b.pointer(prototype)
            },
            "int (*x)(int a, ...)",
        );
        check(
            |b, int| {
                let constant = b.reference(Kind::Const, "", int);
                b.pointer(constant)
            },
            "const int *x",
        );
        check(
            |b, int| {
                let pointer = b.pointer(int);
                b.reference(Kind::Const, "", pointer)
            },
            "int * const x",
        );
        check(
            |b, _| {
                let forward = b.forward("f", false);
                b.pointer(forward)
            },
            "struct f *x",
        );
        check(|b, _| b.pointer(0), "void *x");
    }

    #[test]
    fn definitions() {
        let mut b = Builder::new();
        let int = b.int("int", 4, INT_SIGNED);
        let inner = b.composite(Kind::Union, "", 4, &[("a", int, 0, 0), ("b", int, 0, 0)]);
        let id = b.composite(Kind::Struct, "s", 8, &[("x", int, 0, 3), ("", inner, 32, 0)]);
        let btf = b.finish();
        let expected = "struct s {\n\tint x: 3;\n\tunion {\n\t\tint a;\n\t\tint b;\n\t};\n};";
        assert_eq!(btf.define(id), expected);
    }

    #[test]
    fn loops_end() {
        let mut b = Builder::new();
        let own = b.pointer(0);
        b.set_pointee(own, own);
        let btf = b.finish();
        assert!(btf.declare(own, "x").contains("<...>"));
    }
}
