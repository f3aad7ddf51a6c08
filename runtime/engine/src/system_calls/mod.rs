//! System calls by name, and the places at which `SEC()` names of tracepoints put programs.
//!
//! | section | runs | sees |
//! |---|---|---|
//! | `tracepoint/syscalls/sys_enter_NAME`, `tp/...` | before one call | `struct trace_event_raw_sys_enter` |
//! | `tracepoint/syscalls/sys_exit_NAME` | behind one call | `struct trace_event_raw_sys_exit` |
//! | `tracepoint/raw_syscalls/sys_enter`, `sys_exit` | at all calls | the same |
//! | `raw_tp/sys_enter`, `sys_exit`, `raw_tracepoint/...` | at all calls | address of the registers; number, or result |
//! | `ksyscall/NAME`, `kprobe/__x64_sys_NAME` | before one call | registers of the kernel's function: its argument is their address |
//! | `kretsyscall/NAME`, `kretprobe/__x64_sys_NAME` | behind one call | the same, the result in `ax` |

mod table;

use beeline_abi::system_call::{EnterRecord, ExitRecord, RawArguments};
use beeline_object::{SectionSpec, Target};
use beeline_store::{CallContext, ProbeKind};

/// A system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemCall {
    /// Its number.
    pub number: u32,
    /// Its name as that of its tracepoints, without `sys_enter_`.
    pub name: &'static str,
    /// Its arguments in C, type and name.
    pub arguments: &'static [&'static str],
}

/// All of them, in order of number.
pub fn system_calls() -> &'static [SystemCall] {
    table::TABLE
}

/// The system call with this name.
pub fn system_call(name: &str) -> Option<&'static SystemCall> {
    table::TABLE.iter().find(|call| call.name == name)
}

/// The system call with this number.
pub fn system_call_by_number(number: u32) -> Option<&'static SystemCall> {
    let at = table::TABLE.binary_search_by_key(&number, |call| call.number).ok()?;
    table::TABLE.get(at)
}

/// System calls at which a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallPlace {
    /// Which; none for all.
    pub number: Option<u32>,
    /// What the program sees.
    pub context: CallContext,
}

impl CallPlace {
    /// Bytes of the context. A program that reads more is refused, as the kernel refuses to attach it.
    pub fn context_len(&self, kind: ProbeKind) -> u32 {
        let len = match (self.context, kind) {
            (CallContext::Record, ProbeKind::Entry) => match self.number.and_then(system_call_by_number) {
                Some(call) => 16 + 8 * call.arguments.len(),
                None => size_of::<EnterRecord>(),
            },
            (CallContext::Record, ProbeKind::Return | ProbeKind::Session) => size_of::<ExitRecord>(),
            (CallContext::Raw, _) => size_of::<RawArguments>(),
            (CallContext::Registers, _) => beeline_abi::regs::PT_REGS_SIZE as usize,
        };
        len as u32
    }
}

/// Where a section puts its program, if it is at system calls; the error says why it cannot.
pub(crate) fn place_of(spec: &SectionSpec) -> Option<Result<(ProbeKind, CallPlace), String>> {
    let all = |kind, context| Some(Ok((kind, CallPlace { number: None, context })));
    match &spec.target {
        Target::Tracepoint { category, name } if category == "syscalls" => {
            let (kind, call) = match (name.strip_prefix("sys_enter_"), name.strip_prefix("sys_exit_")) {
                (Some(call), _) => (ProbeKind::Entry, call),
                (_, Some(call)) => (ProbeKind::Return, call),
                _ => return Some(Err(format!("there is no tracepoint syscalls:{name}"))),
            };
            Some(one(kind, call, CallContext::Record))
        }
        Target::Tracepoint { category, name } if category == "raw_syscalls" => match name.as_str() {
            "sys_enter" => all(ProbeKind::Entry, CallContext::Record),
            "sys_exit" => all(ProbeKind::Return, CallContext::Record),
            _ => Some(Err(format!("there is no tracepoint raw_syscalls:{name}"))),
        },
        Target::Kernel { name, .. } if matches!(spec.def.name, "raw_tp" | "raw_tracepoint") => {
            match name.as_str() {
                "sys_enter" => all(ProbeKind::Entry, CallContext::Raw),
                "sys_exit" => all(ProbeKind::Return, CallContext::Raw),
                _ => None,
            }
        }
        Target::Kernel { name, offset: 0 } => {
            let kind = if spec.is_return() { ProbeKind::Return } else { ProbeKind::Entry };
            let call = match spec.def.name {
                "ksyscall" | "kretsyscall" => name,
                "kprobe" | "kretprobe" => name.strip_prefix("__x64_sys_")?,
                _ => return None,
            };
            Some(one(kind, call, CallContext::Registers))
        }
        _ => None,
    }
}

fn one(kind: ProbeKind, name: &str, context: CallContext) -> Result<(ProbeKind, CallPlace), String> {
    let Some(call) = system_call(name) else {
        let longer = format!("new{name}");
        let hint = system_call(&longer).map_or(String::new(), |_| format!("; the kernel calls it {longer}"));
        return Err(format!("there is no system call {name} on x86-64{hint}"));
    };
    Ok((kind, CallPlace { number: Some(call.number), context }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(section: &str, kind: ProbeKind, number: Option<u32>, context: CallContext, len: u32) {
        let spec = SectionSpec::parse(section).expect(section);
        let (found, place) = place_of(&spec).expect(section).expect(section);
        assert_eq!((found, place), (kind, CallPlace { number, context }), "{section}");
        assert_eq!(place.context_len(kind), len, "{section}");
    }

    #[test]
    fn sections() {
        use CallContext::{Raw, Record, Registers};
        use ProbeKind::{Entry, Return};
        check("tracepoint/syscalls/sys_enter_openat", Entry, Some(257), Record, 48);
        check("tp/syscalls/sys_enter_getppid", Entry, Some(110), Record, 16);
        check("tp/syscalls/sys_exit_openat", Return, Some(257), Record, 24);
        check("tracepoint/raw_syscalls/sys_enter", Entry, None, Record, 64);
        check("tp/raw_syscalls/sys_exit", Return, None, Record, 24);
        check("raw_tp/sys_enter", Entry, None, Raw, 16);
        check("raw_tracepoint/sys_exit", Return, None, Raw, 16);
        check("ksyscall/execve", Entry, Some(59), Registers, 168);
        check("kretsyscall/execve", Return, Some(59), Registers, 168);
        check("kprobe/__x64_sys_kill", Entry, Some(62), Registers, 168);
    }

    #[test]
    fn other_sections() {
        let place = |section: &str| place_of(&SectionSpec::parse(section).expect(section));
        for section in
            ["tp/sched/sched_switch", "kprobe/vfs_read", "raw_tp/sched_switch", "uprobe/x:y", "kprobe"]
        {
            assert_eq!(place(section), None, "{section}");
        }
        for section in ["tp/syscalls/sys_enter_nothing", "tp/raw_syscalls/x", "ksyscall/fstat"] {
            assert!(place(section).is_some_and(|found| found.is_err()), "{section}");
        }
        let error = place("tp/syscalls/sys_enter_fstat").unwrap().unwrap_err();
        assert!(error.ends_with("the kernel calls it newfstat"), "{error}");
    }

    #[test]
    fn numbers_are_in_order() {
        let numbers = system_calls().windows(2).all(|two| two[0].number < two[1].number);
        assert!(numbers && system_calls().iter().all(|call| call.arguments.len() <= 6));
        assert_eq!(system_call_by_number(59).map(|call| call.name), Some("execve"));
        assert_eq!(system_call_by_number(999), None);
    }
}
