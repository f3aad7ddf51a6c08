//! `beeline map dump --symbols` and `--folded`: stacks for people and for flame graphs.
//!
//! A map of stacks holds addresses by id; a map of counts has keys that name such an id, and often a process and its name:
//! `struct { u32 pid; s32 user_stack_id; char comm[16]; }`. Which field is which is told by its name.

use super::map::{Typed, cannot};
use crate::args::MapDump;
use crate::context::Context;
use crate::resolve;
use crate::symbols::{Frame, Symbols};
use anyhow::{Result, anyhow, bail};
use beeline_engine::{Engine, map_type_name};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A stack, and what its entry says of it.
struct Stack {
    id: i64,
    count: u64,
    pid: Option<u32>,
    comm: Option<String>,
    frames: Vec<Frame>,
}

pub(super) fn dump(context: &mut Context, engine: &Engine, map: &Typed, args: &MapDump) -> Result<()> {
    let mut counted = if is_stacks(map) { own(map)? } else { named(engine, map, args)? };
    let only = args.pid.or_else(|| only_process(engine));
    let mut symbols = Symbols::new();
    for (stack, addresses) in &mut counted {
        stack.pid = args.pid.or(stack.pid).or(only);
        stack.frames = symbols.frames(stack.pid, addresses);
    }
    let stacks: Vec<Stack> = counted.into_iter().map(|(stack, _)| stack).collect();
    if context.json {
        return Ok(context.out.json(&stacks.iter().map(Stack::to_json).collect())?);
    }
    if args.folded {
        for line in folded(&stacks) {
            context.out.line(line)?;
        }
        return Ok(());
    }
    for stack in &stacks {
        for line in stack.lines() {
            context.out.line(line)?;
        }
    }
    Ok(())
}

fn is_stacks(map: &Typed) -> bool {
    map_type_name(map.entry.file.shape().map_type) == "stack_trace"
}

/// The addresses of each stack of a map, by id.
fn addresses(map: &Typed) -> Result<HashMap<i64, Vec<u64>>> {
    let entries = map.entry.file.entries().map_err(|errno| cannot("dump", &map.entry, errno.into()))?;
    let stack = |data: &[u8]| {
        let words = data.chunks_exact(8).map(|word| u64::from_ne_bytes(std::array::from_fn(|i| word[i])));
        words.take_while(|&address| address != 0).collect()
    };
    let id = |key: &[u8]| Some(i64::from(u32::from_ne_bytes(key.get(..4)?.try_into().ok()?)));
    Ok(entries.iter().filter_map(|(key, data)| Some((id(key)?, stack(data)))).collect())
}

/// The stacks of a map of stacks, each once.
fn own(map: &Typed) -> Result<Vec<(Stack, Vec<u64>)>> {
    let mut stacks: Vec<_> = addresses(map)?.into_iter().collect();
    stacks.sort_unstable();
    let stack = |id| Stack { id, count: 1, pid: None, comm: None, frames: Vec::new() };
    Ok(stacks.into_iter().map(|(id, addresses)| (stack(id), addresses)).collect())
}

/// The stacks that the keys of a map name, with its values as counts.
fn named(engine: &Engine, map: &Typed, args: &MapDump) -> Result<Vec<(Stack, Vec<u64>)>> {
    let stacks = addresses(&map_of_stacks(engine, map, args)?)?;
    let entries = map.entry.file.entries().map_err(|errno| cannot("dump", &map.entry, errno.into()))?;
    let mut named = Vec::new();
    for (key, data) in &entries {
        let typed = map.formatted(key, data).ok_or_else(|| no_stack(map))?;
        let id = stack_id(&typed["key"]).ok_or_else(|| no_stack(map))?;
        let of_key = |names: &[&str]| names.iter().find_map(|name| typed["key"].get(*name));
        let stack = Stack {
            id,
            count: count(&typed).unwrap_or(1),
            pid: of_key(&["pid", "tgid"]).and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()),
            comm: of_key(&["comm", "name"]).and_then(Value::as_str).map(str::to_owned),
            frames: Vec::new(),
        };
        named.push((stack, stacks.get(&id).cloned().unwrap_or_default()));
    }
    named.sort_by(|(a, _), (b, _)| b.count.cmp(&a.count).then(a.id.cmp(&b.id)).then(a.pid.cmp(&b.pid)));
    Ok(named)
}

fn no_stack(map: &Typed) -> anyhow::Error {
    anyhow!(
        "map {} holds no stacks, and its keys have no field called like a stack's id (\"stack\")",
        map.entry.name
    )
}

/// The map that is named, or the only map of stacks of the objects that have this one.
fn map_of_stacks(engine: &Engine, map: &Typed, args: &MapDump) -> Result<Typed> {
    if let Some(name) = &args.stacks {
        let found = Typed::new(engine, resolve::only_map(engine, std::slice::from_ref(name))?)?;
        if !is_stacks(&found) {
            bail!("map {} is no map of stacks", found.entry.name);
        }
        return Ok(found);
    }
    let ours = &map.entry.objects;
    let mut found = Vec::new();
    for entry in engine.maps()?.maps {
        let typed = Typed::new(engine, entry)?;
        if is_stacks(&typed) && typed.entry.objects.iter().any(|object| ours.contains(object)) {
            found.push(typed);
        }
    }
    let several: Vec<&str> = found.iter().map(|it| it.entry.name.as_str()).collect();
    match found.len() {
        0 => bail!("map {} holds no stacks, and there is no map of stacks beside it", map.entry.name),
        1 => Ok(found.remove(0)),
        _ => bail!("there are several maps of stacks: {}; say --stacks MAP", several.join(", ")),
    }
}

/// The id in a key: the key itself, or its field that is called so.
fn stack_id(key: &Value) -> Option<i64> {
    if let Some(id) = key.as_i64() {
        return Some(id);
    }
    let fields = key.as_object()?;
    let called = |part: &str| {
        let named = fields.iter().filter(|(name, _)| name.contains("stack"));
        named.filter(|(name, _)| name.contains(part)).find_map(|(_, value)| value.as_i64())
    };
    called("user").or_else(|| called(""))
}

/// The number in a value, summed over all CPUs; of a structure, its first one.
fn count(entry: &Value) -> Option<u64> {
    fn number(value: &Value) -> Option<u64> {
        match value {
            Value::Object(fields) => fields.values().find_map(Value::as_u64),
            other => other.as_u64(),
        }
    }
    match entry["values"].as_array() {
        Some(copies) => Some(copies.iter().filter_map(|it| number(&it["value"])).sum()),
        None => number(&entry["value"]),
    }
}

/// The only process that carries probes of the store.
fn only_process(engine: &Engine) -> Option<u32> {
    let ours = engine.store().uuid();
    let mut attached = beeline_inject::attached_processes().into_iter().filter(|it| it.store_uuid == ours);
    let only = attached.next().filter(|_| attached.next().is_none())?;
    u32::try_from(only.pid).ok()
}

/// One line for each stack, the same ones put together, in order.
fn folded(stacks: &[Stack]) -> Vec<String> {
    let mut lines: HashMap<String, u64> = HashMap::new();
    for stack in stacks {
        *lines.entry(stack.folded()).or_default() += stack.count;
    }
    let mut lines: Vec<String> = lines.into_iter().map(|(line, count)| format!("{line} {count}")).collect();
    lines.sort_unstable();
    lines
}

impl Stack {
    fn folded(&self) -> String {
        let name = |frame: &Frame| {
            let named = frame.function.as_ref().map(|function| function.name.clone());
            let named = named.or_else(|| frame.file.as_ref().map(|file| format!("[{file}]")));
            named.unwrap_or_else(|| format!("{:#x}", frame.address))
        };
        let missing = self.frames.is_empty().then(|| "[no stack]".to_owned());
        let frames = self.comm.clone().into_iter().chain(self.frames.iter().rev().map(name)).chain(missing);
        // What divides frames cannot stand in one.
        frames.map(|frame| frame.replace([';', '\n'], ":")).collect::<Vec<_>>().join(";")
    }

    fn lines(&self) -> Vec<String> {
        let pid = self.pid.map(|pid| format!("  pid {pid}")).unwrap_or_default();
        let comm = self.comm.as_ref().map(|comm| format!("  {comm}")).unwrap_or_default();
        let mut lines = vec![format!("stack {}  count {}{pid}{comm}", self.id, self.count)];
        for Frame { address, function, file } in &self.frames {
            let function = function.as_ref().map(|it| format!(" {}+{:#x}", it.name, it.offset));
            let file = file.as_ref().map(|file| format!(" ({file})"));
            let named = [function, file].map(Option::unwrap_or_default).concat();
            lines.push(format!("\t{address:016x}{named}"));
        }
        if self.frames.is_empty() {
            lines.push("\tno stack".to_owned());
        }
        lines
    }

    fn to_json(&self) -> Value {
        let frame = |Frame { address, function, file }: &Frame| {
            json!({
                "address": address,
                "symbol": function.as_ref().map(|it| &it.name),
                "offset": function.as_ref().map(|it| it.offset),
                "file": file,
            })
        };
        json!({
            "id": self.id,
            "count": self.count,
            "pid": self.pid,
            "comm": self.comm,
            "frames": self.frames.iter().map(frame).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Named;

    #[test]
    fn which_field_is_the_stack() {
        let id = |key: Value| stack_id(&key);
        assert_eq!(id(json!(5)), Some(5));
        assert_eq!(id(json!({"pid": 1, "kern_stack_id": -14, "user_stack_id": 7})), Some(7));
        assert_eq!(id(json!({"stackid": 3, "pid": 9})), Some(3));
        assert_eq!(id(json!({"pid": 9})), None);
        assert_eq!(count(&json!({"value": 4})), Some(4));
        assert_eq!(count(&json!({"value": {"hits": 4, "ns": 9}})), Some(4));
        assert_eq!(count(&json!({"values": [{"cpu": 0, "value": 4}, {"cpu": 1, "value": 3}]})), Some(7));
    }

    #[test]
    fn folded_lines() {
        let frame = |address: u64, name: Option<&str>| Frame {
            address,
            function: name.map(|name| Named { name: name.into(), offset: 1 }),
            file: None,
        };
        let stack =
            |comm: &str, count, frames| Stack { id: 1, count, pid: None, comm: Some(comm.into()), frames };
        let one = || vec![frame(0x10, Some("leaf")), frame(0x20, None), frame(0x30, Some("a;b"))];
        let stacks =
            [stack("x", 2, one()), stack("y", 1, one()), stack("x", 3, one()), stack("x", 1, vec![])];
        assert_eq!(folded(&stacks), ["x;[no stack] 1", "x;a:b;0x20;leaf 5", "y;a:b;0x20;leaf 1"]);
    }
}
