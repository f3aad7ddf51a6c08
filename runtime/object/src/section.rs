//! What a program's `SEC()` says: its type, and the target that it names.
//!
//! Only names: whether the target exists, and whether it can be attached at all, is for others to find out.

use crate::section_table::{ATTACH_BTF, SECTION_DEFS, SLEEPABLE, SectionDef, USDT, XDP_FRAGS, attach_type};

/// A parsed section name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SectionSpec {
    /// The row of the table.
    pub def: &'static SectionDef,
    /// The target it names.
    pub target: Target,
}

/// What a section name names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Nothing: the target is given when the program is attached.
    None,
    /// `kprobe/FUNCTION[+OFFSET]`, `ksyscall/NAME`, `fentry/FUNCTION`, `raw_tp/NAME`, `struct_ops/NAME`, ...
    Kernel {
        /// A function, system call, tracepoint, hook or pattern (`kprobe.multi`).
        name: String,
        /// Bytes into the function.
        offset: u64,
    },
    /// `uprobe/PATH:SYMBOL[+OFFSET]` and its relatives.
    User {
        /// Path, or name of a library or program to look for.
        path: String,
        /// Symbol; a pattern with `*` and `?` for `uprobe.multi`.
        symbol: String,
        /// Bytes from the symbol.
        offset: u64,
    },
    /// `usdt/PATH:PROVIDER:NAME`.
    Usdt {
        /// Path, or name of a library or program to look for.
        path: String,
        /// The provider.
        provider: String,
        /// The probe.
        name: String,
    },
    /// `tracepoint/CATEGORY/NAME`.
    Tracepoint {
        /// For example `syscalls`.
        category: String,
        /// For example `sys_enter_openat`.
        name: String,
    },
    /// A name that libbpf refuses when it attaches the program.
    Malformed {
        /// Why.
        reason: String,
    },
}

impl SectionSpec {
    /// Parses a section name, without the leading `?`. `None`: libbpf does not know it.
    pub fn parse(section: &str) -> Option<SectionSpec> {
        let def = SECTION_DEFS.iter().find(|def| def.matches(section))?;
        let target = match section.get(def.name.len() + 1..) {
            Some(extras) if def.extras => def.target(section, extras),
            _ => Target::None,
        };
        Some(SectionSpec { def, target })
    }

    /// The program runs when the function returns.
    pub fn is_return(&self) -> bool {
        ["uretprobe", "kretprobe", "kretsyscall"].iter().any(|prefix| self.def.name.starts_with(prefix))
    }

    /// One link may cover many functions (`uprobe.multi`, `kprobe.multi`, sessions).
    pub fn is_multi(&self) -> bool {
        use attach_type as a;
        matches!(self.def.attach_type, a::TRACE_KPROBE_MULTI | a::TRACE_UPROBE_MULTI) || self.is_session()
    }

    /// The program runs at entry and at return of the same call, with a cookie shared by both.
    pub fn is_session(&self) -> bool {
        use attach_type as a;
        matches!(self.def.attach_type, a::TRACE_KPROBE_SESSION | a::TRACE_UPROBE_SESSION)
    }

    /// A probe on user-space code: `uprobe`, `uretprobe` or `usdt` in any form.
    pub fn is_user(&self) -> bool {
        self.def.name.starts_with("uprobe") || self.def.name.starts_with("uretprobe") || self.is_usdt()
    }

    /// `usdt`.
    pub fn is_usdt(&self) -> bool {
        self.def.flags & USDT != 0
    }

    /// May sleep.
    pub fn is_sleepable(&self) -> bool {
        self.def.flags & SLEEPABLE != 0
    }

    /// `BPF_F_*` of program loading: `BPF_F_SLEEPABLE` (1 << 4), `BPF_F_XDP_HAS_FRAGS` (1 << 5).
    pub fn prog_flags(&self) -> u32 {
        let sleepable = if self.is_sleepable() { 1 << 4 } else { 0 };
        let frags = if self.def.flags & XDP_FRAGS != 0 { 1 << 5 } else { 0 };
        sleepable | frags
    }

    /// Needs the BTF id of a kernel function.
    pub fn needs_attach_btf(&self) -> bool {
        self.def.flags & ATTACH_BTF != 0
    }
}

impl SectionDef {
    /// True when `section` is this one, or this one with a target.
    fn matches(&self, section: &str) -> bool {
        match section.strip_prefix(self.name) {
            Some("") => true,
            Some(rest) => self.extras && rest.starts_with('/'),
            None => false,
        }
    }

    fn target(&self, section: &str, extras: &str) -> Target {
        match self.name {
            "uprobe" | "uprobe.s" => user(section, extras, false),
            "uretprobe" | "uretprobe.s" => user(section, extras, true),
            "tracepoint" | "tp" => tracepoint(section, extras),
            "kprobe" => kprobe(extras, false),
            "kretprobe" => kprobe(extras, true),
            _ if self.flags & USDT != 0 => usdt(section, extras),
            _ if matches!(
                self.attach_type,
                attach_type::TRACE_UPROBE_MULTI | attach_type::TRACE_UPROBE_SESSION
            ) =>
            {
                user_pattern(section, extras)
            }
            _ => Target::Kernel { name: extras.into(), offset: 0 },
        }
    }
}

fn malformed(reason: String) -> Target {
    Target::Malformed { reason }
}

fn user_pattern(section: &str, extras: &str) -> Target {
    match extras.split_once(':') {
        Some((path, symbol)) if !path.is_empty() && !symbol.is_empty() => {
            Target::User { path: path.into(), symbol: symbol.into(), offset: 0 }
        }
        _ => malformed(format!("invalid format of section definition '{section}'")),
    }
}

fn user(section: &str, extras: &str, is_return: bool) -> Target {
    let Some((path, function)) = extras.split_once(':') else {
        return malformed(format!("section '{section}' is missing ':function[+offset]'"));
    };
    if path.is_empty() || function.is_empty() {
        return malformed(format!("invalid format of section definition '{section}'"));
    }
    let (symbol, offset) = split_offset(function).unwrap_or((function, 0));
    if is_return && offset != 0 {
        return malformed("uretprobes do not support an offset".into());
    }
    Target::User { path: path.into(), symbol: symbol.into(), offset }
}

fn kprobe(extras: &str, is_return: bool) -> Target {
    let end =
        extras.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(extras.len());
    if end == 0 {
        return malformed(format!("kprobe name is invalid: '{extras}'"));
    }
    let offset = split_offset(extras).map_or(0, |(_, offset)| offset);
    if is_return && offset != 0 {
        return malformed("kretprobes do not support an offset".into());
    }
    Target::Kernel { name: extras[..end].into(), offset }
}

fn usdt(section: &str, extras: &str) -> Target {
    let mut parts = extras.split(':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(path), Some(provider), Some(name))
            if !path.is_empty() && !provider.is_empty() && !name.is_empty() =>
        {
            Target::Usdt { path: path.into(), provider: provider.into(), name: name.into() }
        }
        _ => {
            malformed(format!("invalid section '{section}', expected SEC(\"usdt/<path>:<provider>:<name>\")"))
        }
    }
}

fn tracepoint(section: &str, extras: &str) -> Target {
    match extras.split_once('/') {
        Some((category, name)) => Target::Tracepoint { category: category.into(), name: name.into() },
        None => malformed(format!("section '{section}' is missing '/name' after the category")),
    }
}

/// Splits `name+offset`; the offset in C notation (decimal, `0x`, leading `0` = octal).
fn split_offset(text: &str) -> Option<(&str, u64)> {
    let (name, offset) = text.rsplit_once('+')?;
    let offset = if let Some(hex) = offset.strip_prefix("0x").or_else(|| offset.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if offset.len() > 1 && offset.starts_with('0') {
        u64::from_str_radix(offset, 8)
    } else {
        offset.parse()
    };
    Some((name, offset.ok()?))
}

/// A known section name that is spelt like `section`.
pub(crate) fn nearest(section: &str) -> Option<&'static str> {
    let head = section.split('/').next().unwrap_or(section);
    SECTION_DEFS
        .iter()
        .map(|def| (edit_distance(head, def.name), def.name))
        .min()
        .filter(|&(distance, name)| distance <= 2 && distance < name.len())
        .map(|(_, name)| name)
}

/// Levenshtein distance; long names are not compared.
fn edit_distance(a: &str, b: &str) -> usize {
    if a.len() > 40 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section_table::prog_type;

    #[track_caller]
    fn check(section: &str, prog_type: u32, expected: Target) {
        let spec = SectionSpec::parse(section).expect(section);
        assert_eq!(spec.def.prog_type, prog_type, "{section}");
        assert_eq!(spec.target, expected, "{section}");
    }

    fn user(path: &str, symbol: &str, offset: u64) -> Target {
        Target::User { path: path.into(), symbol: symbol.into(), offset }
    }

    fn kernel(name: &str, offset: u64) -> Target {
        Target::Kernel { name: name.into(), offset }
    }

    #[test]
    fn targets() {
        use prog_type as p;
        check("uprobe", p::KPROBE, Target::None);
        check("uprobe/libc.so.6:malloc", p::KPROBE, user("libc.so.6", "malloc", 0));
        check("uprobe.s//bin/bash:readline+0x10", p::KPROBE, user("/bin/bash", "readline", 16));
        check("uprobe/x:a+010", p::KPROBE, user("x", "a", 8));
        check("uprobe/x:ns::f(int+)", p::KPROBE, user("x", "ns::f(int+)", 0));
        check("uretprobe//bin/bash:readline", p::KPROBE, user("/bin/bash", "readline", 0));
        check("uprobe.multi/libc.so.6:mem*", p::KPROBE, user("libc.so.6", "mem*", 0));
        check("kprobe/do_exit+8", p::KPROBE, kernel("do_exit", 8));
        check("ksyscall/openat", p::KPROBE, kernel("openat", 0));
        check("raw_tp/sys_enter", p::RAW_TRACEPOINT, kernel("sys_enter", 0));
        check("raw_tracepoint.w/x", p::RAW_TRACEPOINT_WRITABLE, kernel("x", 0));
        check("fentry.s/f", p::TRACING, kernel("f", 0));
        check("xdp", p::XDP, Target::None);
        check("xdp.frags/devmap", p::XDP, Target::None);
        check("perf_event", p::PERF_EVENT, Target::None);
        let usdt = Target::Usdt { path: "libc.so.6".into(), provider: "libc".into(), name: "setjmp".into() };
        check("usdt/libc.so.6:libc:setjmp", p::KPROBE, usdt);
        let exec = Target::Tracepoint { category: "sched".into(), name: "sched_process_exec".into() };
        check("tp/sched/sched_process_exec", p::TRACEPOINT, exec);
    }

    #[test]
    fn malformed_targets_keep_their_type() {
        for section in
            ["uprobe/libc.so.6", "uretprobe/x:f+4", "usdt/x:y", "tp/sched", "kprobe/+4", "uprobe/:f"]
        {
            let spec = SectionSpec::parse(section).expect(section);
            assert!(matches!(spec.target, Target::Malformed { .. }), "{section}");
        }
    }

    #[test]
    fn unknown_names() {
        for section in ["xdp/foo", "uprobes/x:y", "socket1", "tracepoints", "", "maps"] {
            assert_eq!(SectionSpec::parse(section), None, "{section}");
        }
        assert_eq!(nearest("uprob/x:y"), Some("uprobe"));
        assert_eq!(nearest("tracepont/a/b"), Some("tracepoint"));
        assert_eq!(nearest("completely_else"), None);
    }

    #[test]
    fn kinds() {
        let spec = |section| SectionSpec::parse(section).expect(section);
        assert!(spec("uretprobe.multi.s/x:y").is_return());
        assert!(spec("uretprobe.multi.s/x:y").is_multi());
        assert!(spec("uprobe.session/x:y").is_session());
        assert!(spec("syscall").is_sleepable());
        assert_eq!(spec("xdp.frags").prog_flags(), 1 << 5);
        assert!(spec("usdt").is_user() && !spec("kprobe/x").is_user());
    }
}
