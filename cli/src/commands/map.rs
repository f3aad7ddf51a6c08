//! `beeline map`: list, show and dump maps; look up, update, delete elements; pins.

use super::stacks;
use crate::args::{Map, MapDump, MapPin, MapUnpin, MapWords};
use crate::context::Context;
use crate::output::table::Table;
use crate::output::{dump, hex, value};
use crate::resolve::{self, KeyValue};
use anyhow::{Context as _, Result, anyhow, bail};
use beeline_engine::{Engine, Literal, MapEntry, MapTypes, map_type_name, parse_integer};
use serde_json::{Map as Object, Value, json};

pub(crate) fn run(context: &mut Context, command: &Map) -> Result<()> {
    match command {
        Map::List(which) => list(context, &which.which),
        Map::Show(which) => show(context, &which.which),
        Map::Dump(one) => dump_all(context, one),
        Map::Lookup(words) => lookup(context, words),
        Map::Update(words) => update(context, words),
        Map::Delete(words) => delete(context, words),
        Map::Pin(args) => pin(context, args),
        Map::Unpin(args) => unpin(context, args),
    }
}

fn found(context: &Context, words: &[String]) -> Result<Vec<MapEntry>> {
    match context.existing()? {
        Some(engine) => resolve::maps(context, &engine, words),
        None if words.is_empty() => Ok(Vec::new()),
        None => Err(context.nothing_loaded()),
    }
}

fn list(context: &mut Context, words: &[String]) -> Result<()> {
    let maps = found(context, words)?;
    if context.json {
        return Ok(context.out.json(&maps.iter().map(to_json).collect())?);
    }
    if maps.is_empty() {
        return context.nothing_to_list("maps");
    }
    let mut table =
        Table::new(&["ID>", "NAME", "OBJECT", "TYPE", "KEY>", "VALUE>", "MAX>", "MEMORY>", "PINNED"]);
    for entry in maps {
        let shape = entry.file.shape();
        table.row([
            entry.file.id().to_string(),
            entry.name.clone(),
            entry.objects.join(","),
            map_type_name(shape.map_type),
            shape.key_size.to_string(),
            shape.value_size.to_string(),
            shape.max_entries.to_string(),
            bytes(entry.file.memory_bytes().unwrap_or(0)),
            entry.pins.join(","),
        ]);
    }
    Ok(context.out.text(&table.text())?)
}

/// A size with a fitting unit.
fn bytes(count: u64) -> String {
    match count {
        0..10_240 => format!("{count} B"),
        10_240..10_485_760 => format!("{} kB", count / 1024),
        _ => format!("{} MB", count / 1_048_576),
    }
}

fn show(context: &mut Context, words: &[String]) -> Result<()> {
    let maps = found(context, words)?;
    if context.json {
        return Ok(context.out.json(&maps.iter().map(to_json).collect())?);
    }
    for entry in &maps {
        let (out, shape) = (&mut context.out, entry.file.shape());
        let (id, name) = (entry.file.id(), &entry.name);
        out.line(format_args!(
            "{id}: {}  name {name}  flags {:#x}",
            map_type_name(shape.map_type),
            shape.map_flags
        ))?;
        let memory = entry.file.memory_bytes().unwrap_or(0);
        out.line(format_args!(
            "\tkey {}B  value {}B  max_entries {}  memlock {memory}B{}",
            shape.key_size,
            shape.value_size,
            shape.max_entries,
            if entry.file.is_frozen() { "  frozen" } else { "" }
        ))?;
        if !entry.objects.is_empty() {
            out.line(format_args!("\tobject {}", entry.objects.join(", ")))?;
        }
        for pin in &entry.pins {
            out.line(format_args!("\tpinned {pin}"))?;
        }
    }
    Ok(())
}

fn to_json(entry: &MapEntry) -> Value {
    let shape = entry.file.shape();
    json!({
        "id": entry.file.id(),
        "type": map_type_name(shape.map_type),
        "name": entry.name,
        "objects": entry.objects,
        "flags": shape.map_flags,
        "bytes_key": shape.key_size,
        "bytes_value": shape.value_size,
        "max_entries": shape.max_entries,
        "bytes_memlock": entry.file.memory_bytes().unwrap_or(0),
        "frozen": u32::from(entry.file.is_frozen()),
        "pinned": entry.pins,
    })
}

/// A map with its types.
pub(super) struct Typed {
    pub(super) entry: MapEntry,
    types: MapTypes,
}

impl Typed {
    pub(super) fn new(engine: &Engine, entry: MapEntry) -> Result<Typed> {
        let types = engine.map_types(&entry)?;
        Ok(Typed { entry, types })
    }

    fn cpus(&self) -> Option<u32> {
        self.entry.file.is_per_cpu().then(|| self.entry.file.shape().cpus)
    }

    /// Values of all CPUs, or the one value.
    fn copies<'a>(&self, data: &'a [u8]) -> Vec<&'a [u8]> {
        let size = self.entry.file.shape().value_size as usize;
        let stride = if self.cpus().is_some() { size.next_multiple_of(8).max(8) } else { data.len().max(1) };
        data.chunks(stride).map(|copy| &copy[..size.min(copy.len())]).collect()
    }

    /// `{"key":..,"value":..}` by type; `None` without types.
    pub(super) fn formatted(&self, key: &[u8], data: &[u8]) -> Option<Value> {
        let mut object = Object::new();
        object.insert("key".into(), value::json(&self.types.format_key(key)?));
        let copies: Option<Vec<Value>> = self
            .copies(data)
            .into_iter()
            .map(|copy| self.types.format_value(copy).map(|it| value::json(&it)))
            .collect();
        self.insert_copies(&mut object, copies?);
        Some(Value::Object(object))
    }

    /// What bpftool's JSON has of an entry: bytes, and `formatted` where there are types.
    fn json(&self, key: &[u8], data: &[u8]) -> Value {
        let mut object = Object::new();
        object.insert("key".into(), hex::json(key));
        self.insert_copies(&mut object, self.copies(data).into_iter().map(hex::json).collect());
        if let Some(formatted) = self.formatted(key, data) {
            object.insert("formatted".into(), formatted);
        }
        Value::Object(object)
    }

    fn insert_copies(&self, object: &mut Object<String, Value>, mut copies: Vec<Value>) {
        if self.cpus().is_some() {
            let values =
                copies.into_iter().enumerate().map(|(cpu, value)| json!({"cpu": cpu, "value": value}));
            object.insert("values".into(), values.collect());
        } else {
            object.insert("value".into(), copies.pop().unwrap_or(Value::Null));
        }
    }

    /// Bytes for people, as bpftool prints them without BTF.
    fn plain(&self, key: &[u8], data: &[u8]) -> String {
        let copies = self.copies(data);
        if self.cpus().is_some() {
            let mut text = format!("key:\n{}", hex::plain(key, ""));
            for (cpu, copy) in copies.iter().enumerate() {
                text.push_str(&format!("\nvalue (CPU {cpu:02}): {}", hex::plain(copy, "                ")));
            }
            return text;
        }
        let value = hex::plain(copies.first().copied().unwrap_or_default(), "");
        if key.len() <= 16 && data.len() <= 16 {
            format!("key: {}  value: {value}", hex::plain(key, ""))
        } else {
            format!("key:\n{}\nvalue:\n{value}", hex::plain(key, ""))
        }
    }
}

fn dump_all(context: &mut Context, args: &MapDump) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let map = Typed::new(&engine, resolve::only_map(&engine, &args.map)?)?;
    if args.symbols || args.folded || args.stacks.is_some() || args.pid.is_some() {
        return stacks::dump(context, &engine, &map, args);
    }
    let entries = map.entry.file.entries().map_err(|errno| cannot("dump", &map.entry, errno.into()))?;
    if context.json {
        let entries = entries.iter().map(|(key, data)| map.json(key, data)).collect();
        return Ok(context.out.json(&entries)?);
    }
    let typed: Option<Vec<Value>> = entries.iter().map(|(key, data)| map.formatted(key, data)).collect();
    match typed {
        Some(typed) if !typed.is_empty() => context.out.line(dump::pretty(&Value::Array(typed)))?,
        _ => {
            for (key, data) in &entries {
                context.out.line(map.plain(key, data))?;
            }
            let plural = if entries.len() == 1 { "" } else { "s" };
            context.out.line(format_args!("Found {} element{plural}", entries.len()))?;
        }
    }
    Ok(())
}

/// The error of a map operation, with what the kernel's error number means for it.
pub(super) fn cannot(action: &str, entry: &MapEntry, error: std::io::Error) -> anyhow::Error {
    let shape = entry.file.shape();
    let kind = map_type_name(shape.map_type);
    let meaning = match error.raw_os_error().unwrap_or(0) {
        EPERM if entry.file.is_frozen() => {
            "it is frozen: only programs may change it now, if they may".into()
        }
        EPERM => "its flags forbid that".into(),
        ENOENT => "the key is not there".into(),
        EEXIST => "the key is there already".into(),
        E2BIG if kind.contains("array") => format!("it has {} elements", shape.max_entries),
        E2BIG => format!("it is full: {} elements", shape.max_entries),
        EOPNOTSUPP => format!("maps of type {kind} do not have that operation"),
        EINVAL if kind.contains("array") => "elements of an array always exist".into(),
        _ => error.to_string(),
    };
    anyhow!(meaning).context(format!("cannot {action} map {} ({kind})", entry.name))
}

// Error numbers of x86-64 and AArch64 Linux (`include/uapi/asm-generic/errno*.h`).
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const E2BIG: i32 = 7;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

fn open<'a>(context: &Context, words: &'a MapWords) -> Result<(Engine, Typed, &'a [String])> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let (entry, rest) = resolve::map(&engine, &words.words)?;
    let typed = Typed::new(&engine, entry)?;
    Ok((engine, typed, rest))
}

fn lookup(context: &mut Context, words: &MapWords) -> Result<()> {
    let (_engine, map, rest) = open(context, words)?;
    let parsed = KeyValue::parse(rest)?;
    if !parsed.value.is_empty() {
        bail!("`lookup` takes a key and no value");
    }
    let key = key_bytes(&map, &parsed.key)?;
    let data =
        map.entry.file.lookup(&key).map_err(|errno| cannot("look up a key in", &map.entry, errno.into()))?;
    let Some(data) = data else {
        if context.json {
            context.out.json(&Value::Null)?;
        }
        bail!("key {} is not in map {}", hex::plain(&key, ""), map.entry.name);
    };
    if context.json {
        return Ok(context.out.json(&map.json(&key, &data))?);
    }
    match map.formatted(&key, &data) {
        Some(formatted) => context.out.line(dump::pretty(&formatted))?,
        None => context.out.line(map.plain(&key, &data))?,
    }
    Ok(())
}

fn update(context: &mut Context, words: &MapWords) -> Result<()> {
    let (_engine, map, rest) = open(context, words)?;
    let parsed = KeyValue::parse(rest)?;
    if parsed.value.is_empty() {
        bail!("`update` takes `key DATA value DATA`");
    }
    let key = key_bytes(&map, &parsed.key)?;
    let size = map.entry.file.shape().value_size;
    let value = data_bytes("value", &parsed.value, size, |literal| map.types.encode_value(literal, size))?;
    // As bpftool: one value is for all CPUs.
    let data = match map.cpus() {
        Some(cpus) => {
            let mut copy = value;
            copy.resize((size as usize).next_multiple_of(8), 0);
            copy.repeat(cpus as usize)
        }
        None => value,
    };
    map.entry
        .file
        .update(&key, &data, parsed.flags)
        .map_err(|errno| cannot("update", &map.entry, errno.into()))?;
    changed(context, &map.entry, "updated")
}

/// Says in JSON that one entry of a map is changed.
fn changed(context: &mut Context, map: &MapEntry, how: &str) -> Result<()> {
    if context.json {
        context.out.json(&json!({"id": map.file.id(), "name": map.name, how: 1}))?;
    }
    Ok(())
}

fn delete(context: &mut Context, words: &MapWords) -> Result<()> {
    let (_engine, map, rest) = open(context, words)?;
    let parsed = KeyValue::parse(rest)?;
    if !parsed.value.is_empty() || parsed.flags != 0 {
        bail!("`delete` takes a key and nothing else");
    }
    let key = key_bytes(&map, &parsed.key)?;
    map.entry.file.delete(&key).map_err(|errno| cannot("delete a key from", &map.entry, errno.into()))?;
    changed(context, &map.entry, "deleted")
}

fn key_bytes(map: &Typed, words: &[String]) -> Result<Vec<u8>> {
    let size = map.entry.file.shape().key_size;
    if words.is_empty() && size > 0 {
        bail!("say which: `key DATA`");
    }
    data_bytes("key", words, size, |literal| map.types.encode_key(literal, size))
}

/// Bytes (`0x01 0 0 0`, `hex 01 00`), a number, or JSON of the type.
fn data_bytes(
    what: &str,
    words: &[String],
    size: u32,
    encode: impl Fn(&Literal) -> Option<Result<Vec<u8>, beeline_engine::EncodeError>>,
) -> Result<Vec<u8>> {
    let (radix, bytes) = match words {
        [first, rest @ ..] if first == "hex" => (16, rest),
        all => (10, all),
    };
    if let [word] = words
        && (size > 1 || word.starts_with(['{', '[', '"']))
    {
        return one_word(what, word, size, encode);
    }
    if bytes.len() != size as usize {
        bail!("the {what} has {size} bytes, not {}; give as many, or one number, or JSON", bytes.len());
    }
    bytes.iter().map(|word| byte(word, radix).with_context(|| format!("{word:?} is not a byte"))).collect()
}

fn byte(word: &str, radix: u32) -> Option<u8> {
    match word.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None => u8::from_str_radix(word, radix).ok(),
    }
}

fn one_word(
    what: &str,
    word: &str,
    size: u32,
    encode: impl Fn(&Literal) -> Option<Result<Vec<u8>, beeline_engine::EncodeError>>,
) -> Result<Vec<u8>> {
    if let Some(number) = parse_integer(word) {
        if let Some(Ok(bytes)) = encode(&Literal::Integer(number)) {
            return Ok(bytes);
        }
        if !matches!(size, 1 | 2 | 4 | 8 | 16) {
            bail!("the {what} has {size} bytes: a number cannot say what they are; give bytes or JSON");
        }
        let mut bytes = vec![0; size as usize];
        beeline_engine::encode_integer(number, &mut bytes).map_err(|reason| anyhow!("{what}: {reason}"))?;
        return Ok(bytes);
    }
    let parsed: Result<Value, _> = serde_json::from_str(word);
    let literal = match parsed {
        Ok(parsed) => literal(&parsed).with_context(|| format!("{what}: {word}"))?,
        // An enumerator or a text for a character array needs no quotes.
        Err(_) if !word.starts_with(['{', '[', '"']) => Literal::Text(word.into()),
        Err(error) => return Err(error).with_context(|| format!("{what}: {word} is not JSON")),
    };
    match encode(&literal) {
        Some(encoded) => encoded.with_context(|| format!("the {what} does not fit its type")),
        None => bail!("the map has no type for its {what}; give {size} bytes, or a number"),
    }
}

fn literal(json: &Value) -> Result<Literal> {
    Ok(match json {
        Value::Null => bail!("null is no value"),
        Value::Bool(value) => Literal::Bool(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Literal::Integer(i128::from(number)),
            (None, Some(number)) => Literal::Integer(i128::from(number)),
            (None, None) => bail!("{number} is not an integer"),
        },
        Value::String(text) => Literal::Text(text.clone()),
        Value::Array(items) => Literal::Array(items.iter().map(literal).collect::<Result<_>>()?),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| Ok((name.clone(), literal(value)?));
            Literal::Struct(fields.iter().map(field).collect::<Result<_>>()?)
        }
    })
}

fn pin(context: &mut Context, args: &MapPin) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    let entry = resolve::only_map(&engine, &args.map)?;
    let Some(object) = entry.objects.first() else { bail!("map {} is only a pin by now", entry.name) };
    let name = args.pin.as_ref().unwrap_or(&entry.name);
    engine.store().pin(object, &entry.name, name)?;
    if context.json {
        return Ok(context.out.json(&json!({ "object": object, "map": entry.name, "pin": name }))?);
    }
    Ok(context.out.line(format_args!("pinned {object}/{} as {name}", entry.name))?)
}

fn unpin(context: &mut Context, args: &MapUnpin) -> Result<()> {
    let engine = context.existing()?.ok_or_else(|| context.nothing_loaded())?;
    engine.store().unpin(&args.pin)?;
    if context.json {
        return Ok(context.out.json(&json!({ "unpinned": args.pin }))?);
    }
    Ok(context.out.line(format_args!("unpinned {}", args.pin))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str, size: u32) -> Result<Vec<u8>> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        data_bytes("key", &words, size, |_| None)
    }

    #[test]
    fn bytes_and_numbers() {
        assert_eq!(bytes("0x01 0 0 255", 4).unwrap(), [1, 0, 0, 255]);
        assert_eq!(bytes("hex ff 00", 2).unwrap(), [255, 0]);
        assert_eq!(bytes("7", 1).unwrap(), [7]);
        assert_eq!(bytes("258", 4).unwrap(), [2, 1, 0, 0]);
        assert_eq!(bytes("-1", 8).unwrap(), [255; 8]);
        for (bad, size) in
            [("1 2", 4), ("300", 1), ("0x1ff 0", 2), ("x y", 2), ("5", 12), ("{", 4), ("{}", 4)]
        {
            assert!(bytes(bad, size).is_err(), "{bad}");
        }
    }
}
