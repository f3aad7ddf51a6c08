//! The built-in table of system calls against the running kernel's own description of its tracepoints (`events/*/format` of tracefs).

use beeline_abi::system_call::{EnterRecord, ExitRecord};
use beeline_engine::{SystemCall, system_calls};
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::{Path, PathBuf};

/// A field of a record: type and name in C, offset, bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Field {
    declaration: String,
    offset: usize,
    len: usize,
}

impl Field {
    fn new(declaration: &str, offset: usize, len: usize) -> Field {
        Field { declaration: declaration.to_owned(), offset, len }
    }

    /// `field:int dfd; offset:16; size:8; signed:0;`, with tabs between.
    fn parse(line: &str) -> Option<Field> {
        let mut parts = line.trim().split(';').map(str::trim);
        let declaration = parts.next()?.strip_prefix("field:")?;
        let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
        let len = parts.next()?.strip_prefix("size:")?.parse().ok()?;
        Some(Field::new(declaration, offset, len))
    }
}

/// The tracepoints of a group that this kernel has, where they can be read.
fn events(group: &str) -> Option<PathBuf> {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let found = places.iter().map(|place| Path::new(place).join("events").join(group));
    found.into_iter().find(|path| path.read_dir().is_ok_and(|mut entries| entries.next().is_some()))
}

/// The fields of a record but for those that all tracepoints have, and copies of strings that new kernels append.
fn fields(event: &Path) -> Vec<Field> {
    let text =
        std::fs::read_to_string(event.join("format")).expect("readable by whoever may read the folder");
    let fields = text.lines().filter_map(Field::parse);
    fields
        .filter(|it| !it.declaration.contains(" common_") && !it.declaration.contains("__data_loc"))
        .collect()
}

/// What the table says of a call's record.
fn expected(call: &SystemCall) -> Vec<Field> {
    let arguments = offset_of!(EnterRecord, arguments);
    let number = Field::new("int __syscall_nr", offset_of!(EnterRecord, id), 4);
    let fields = call.arguments.iter().enumerate();
    let fields = fields.map(|(index, argument)| Field::new(argument, arguments + 8 * index, 8));
    std::iter::once(number).chain(fields).collect()
}

#[test]
fn each_call_has_the_kernels_record() {
    let Some(folder) = events("syscalls") else {
        println!("skipped: tracefs is not readable");
        return;
    };
    let known: BTreeMap<&str, &SystemCall> = system_calls().iter().map(|call| (call.name, call)).collect();
    let (mut compared, mut unknown) = (0, Vec::new());
    for entry in folder.read_dir().expect("readable").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let end = [
            Field::new("int __syscall_nr", offset_of!(ExitRecord, id), 4),
            Field::new("long ret", offset_of!(ExitRecord, result), 8),
        ];
        if let Some(name) = name.strip_prefix("sys_enter_") {
            match known.get(name) {
                Some(call) => assert_eq!(fields(&entry.path()), expected(call), "{name}"),
                None => unknown.push(name.to_owned()),
            }
        } else if name.starts_with("sys_exit_") {
            assert_eq!(fields(&entry.path()), end, "{name}");
        } else {
            continue;
        }
        compared += 1;
    }
    println!("{compared} records compared; calls that only this kernel has: {unknown:?}");
    assert!(compared > 600, "{compared}");
    // Kernels add a few in a year; most of what is not known would be a mistake.
    assert!(unknown.len() < 20, "{unknown:?}");
}

#[test]
fn the_records_of_all_calls() {
    let Some(folder) = events("raw_syscalls") else {
        println!("skipped: tracefs is not readable");
        return;
    };
    let id = Field::new("long id", offset_of!(EnterRecord, id), 8);
    let arguments = Field::new("unsigned long args[6]", offset_of!(EnterRecord, arguments), 48);
    assert_eq!(fields(&folder.join("sys_enter")), [id.clone(), arguments]);
    let result = Field::new("long ret", offset_of!(ExitRecord, result), 8);
    assert_eq!(fields(&folder.join("sys_exit")), [id, result]);
}

/// Numbers are in no format: the kernel's headers have them, with the names of the C library.
#[test]
fn numbers_are_those_of_the_headers() {
    let Ok(header) = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h") else {
        println!("skipped: no kernel headers");
        return;
    };
    let lines = header.lines().filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '));
    let mut compared = 0;
    for (name, number) in lines.filter_map(|(name, number)| Some((name, number.trim().parse::<u32>().ok()?)))
    {
        let kernels = match name {
            "stat" | "fstat" | "lstat" | "uname" => format!("new{name}"),
            "sendfile" => "sendfile64".to_owned(),
            "umount2" => "umount".to_owned(),
            "_sysctl" => "sysctl".to_owned(),
            name => name.to_owned(),
        };
        if let Some(call) = system_calls().iter().find(|call| call.name == kernels) {
            assert_eq!(call.number, number, "{name}");
            compared += 1;
        }
    }
    assert!(compared > 330, "{compared}");
}
