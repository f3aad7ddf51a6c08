//! From words to what they mean: programs, maps and links by name or id, keys and values.

use crate::context::Context;
use anyhow::{Context as _, Result, anyhow, bail};
use beeline_engine::{Engine, LinkEntry, MapEntry, ProgramEntry};

/// How a thing of the store is named on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Selector {
    /// `id 7`, or a number that is nobody's name.
    Id(u32),
    /// `malloc_enter` or `name malloc_enter`.
    Name(String),
    /// `malloc/total`.
    InObject {
        /// The object.
        object: String,
        /// The thing in it.
        name: String,
    },
}

impl Selector {
    /// Takes a selector from the front of the words; the rest of them.
    pub(crate) fn take(words: &[String]) -> Result<(Selector, &[String])> {
        match words {
            [] => bail!("say which: NAME, OBJECT/NAME, `id N` or `name NAME`"),
            [kind, id, rest @ ..] if kind == "id" => {
                let id = id.parse().with_context(|| format!("{id:?} is not an id"))?;
                Ok((Selector::Id(id), rest))
            }
            [kind, name, rest @ ..] if kind == "name" => Ok((Selector::Name(name.clone()), rest)),
            [word, rest @ ..] => Ok((Selector::of(word), rest)),
        }
    }

    /// All the words are one selector.
    pub(crate) fn all(words: &[String]) -> Result<Selector> {
        match Selector::take(words)? {
            (selector, []) => Ok(selector),
            (_, [word, ..]) => bail!("what is {word:?}? One name, or `id N`, is enough"),
        }
    }

    fn of(word: &str) -> Selector {
        match word.split_once('/') {
            Some((object, name)) => Selector::InObject { object: object.into(), name: name.into() },
            None => Selector::Name(word.into()),
        }
    }

    fn matches(&self, id: u32, objects: &[String], name: &str) -> bool {
        match self {
            Selector::Id(wanted) => *wanted == id,
            Selector::Name(wanted) => wanted == name,
            Selector::InObject { object, name: wanted } => wanted == name && objects.contains(object),
        }
    }

    /// The one of the things that is meant. `describe` gives id, objects and name of each.
    fn one<T>(
        &self,
        what: &str,
        mut things: Vec<T>,
        describe: impl Fn(&T) -> (u32, Vec<String>, String),
    ) -> Result<T> {
        let found = self.indexes(&things, &describe);
        match found.as_slice() {
            [] => Err(self.not_found(what, &things, &describe)),
            [index] => Ok(things.swap_remove(*index)),
            several => {
                let ids: Vec<_> =
                    several.iter().map(|&index| describe(&things[index])).map(name_and_id).collect();
                bail!(
                    "{} {what}s are called so: {}; say OBJECT/NAME or `id N`",
                    several.len(),
                    ids.join(", ")
                )
            }
        }
    }

    /// All that are meant; at least one.
    fn several<T>(
        &self,
        what: &str,
        things: Vec<T>,
        describe: impl Fn(&T) -> (u32, Vec<String>, String),
    ) -> Result<Vec<T>> {
        let found = self.indexes(&things, &describe);
        if found.is_empty() {
            return Err(self.not_found(what, &things, &describe));
        }
        let mut index = 0;
        let mut keep = |_: &T| {
            index += 1;
            found.contains(&(index - 1))
        };
        Ok(things.into_iter().filter(|thing| keep(thing)).collect())
    }

    fn indexes<T>(&self, things: &[T], describe: impl Fn(&T) -> (u32, Vec<String>, String)) -> Vec<usize> {
        let by = |selector: &Selector| -> Vec<usize> {
            let is_it = |thing: &T| {
                let (id, objects, name) = describe(thing);
                selector.matches(id, &objects, &name)
            };
            (0..things.len()).filter(|&index| is_it(&things[index])).collect()
        };
        let found = by(self);
        match self {
            Selector::Name(name) if found.is_empty() => match name.parse() {
                Ok(id) => by(&Selector::Id(id)),
                Err(_) => found,
            },
            _ => found,
        }
    }

    fn not_found<T>(
        &self,
        what: &str,
        things: &[T],
        describe: impl Fn(&T) -> (u32, Vec<String>, String),
    ) -> anyhow::Error {
        let wanted = match self {
            Selector::Id(id) => format!("with id {id}"),
            Selector::Name(name) => format!("called {name}"),
            Selector::InObject { object, name } => format!("called {name} in object {object}"),
        };
        let mut names: Vec<String> = things.iter().map(|thing| describe(thing).2).collect();
        names.dedup();
        let known = match names.len() {
            0 => format!("there are no {what}s; `beeline load` a file first"),
            1..=8 => format!("there is: {}", names.join(", ")),
            more => format!("see `beeline {} list` for the {more} that there are", command_of(what)),
        };
        anyhow!("there is no {what} {wanted}; {known}")
    }
}

fn command_of(what: &str) -> &str {
    if what == "program" { "prog" } else { what }
}

fn name_and_id((id, objects, name): (u32, Vec<String>, String)) -> String {
    match objects.first() {
        Some(object) => format!("{object}/{name} (id {id})"),
        None => format!("{name} (id {id})"),
    }
}

/// Programs to list: all, or those that the words name.
pub(crate) fn programs(context: &Context, engine: &Engine, words: &[String]) -> Result<Vec<ProgramEntry>> {
    let listing = engine.programs()?;
    context.damaged(&listing.damaged);
    if words.is_empty() {
        return Ok(listing.items);
    }
    Selector::all(words)?.several("program", listing.items, program_identity)
}

/// One program.
pub(crate) fn program(engine: &Engine, words: &[String]) -> Result<ProgramEntry> {
    Selector::all(words)?.one("program", engine.programs()?.items, program_identity)
}

fn program_identity(entry: &ProgramEntry) -> (u32, Vec<String>, String) {
    (entry.program.id, vec![entry.object.clone()], entry.program.name.clone())
}

/// Maps to list: all, or those that the words name.
pub(crate) fn maps(context: &Context, engine: &Engine, words: &[String]) -> Result<Vec<MapEntry>> {
    let list = engine.maps()?;
    context.damaged(&list.damaged);
    if words.is_empty() {
        return Ok(list.maps);
    }
    Selector::all(words)?.several("map", list.maps, map_identity)
}

/// One map from the front of the words; the rest of them.
pub(crate) fn map<'a>(engine: &Engine, words: &'a [String]) -> Result<(MapEntry, &'a [String])> {
    let (selector, rest) = Selector::take(words)?;
    Ok((selector.one("map", engine.maps()?.maps, map_identity)?, rest))
}

/// One map, named by all the words.
pub(crate) fn only_map(engine: &Engine, words: &[String]) -> Result<MapEntry> {
    Selector::all(words)?.one("map", engine.maps()?.maps, map_identity)
}

fn map_identity(entry: &MapEntry) -> (u32, Vec<String>, String) {
    (entry.file.id(), entry.objects.clone(), entry.name.clone())
}

/// Links to list: all, or those that the words name.
pub(crate) fn links(context: &Context, engine: &Engine, words: &[String]) -> Result<Vec<LinkEntry>> {
    let listing = engine.links()?;
    context.damaged(&listing.damaged);
    if words.is_empty() {
        return Ok(listing.items);
    }
    Selector::all(words)?.several("link", listing.items, |entry| {
        (entry.file.link.id, vec![entry.object.clone()], entry.file.link.name.clone())
    })
}

/// `key DATA`, `value DATA` and flags, as words.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct KeyValue {
    /// The words behind `key`.
    pub(crate) key: Vec<String>,
    /// The words behind `value`.
    pub(crate) value: Vec<String>,
    /// The word behind both: `any`, `noexist` or `exist`.
    pub(crate) flags: u64,
}

impl KeyValue {
    /// Divides `[key DATA] [value DATA] [any|noexist|exist]`.
    pub(crate) fn parse(words: &[String]) -> Result<KeyValue> {
        let mut parsed = KeyValue::default();
        let mut words = words;
        if let [rest @ .., last] = words
            && let Some(flags) = ["any", "noexist", "exist"].iter().position(|flag| flag == last)
        {
            parsed.flags = flags as u64;
            words = rest;
        }
        let value_at = words.iter().position(|word| word == "value");
        let (key, value) = words.split_at(value_at.unwrap_or(words.len()));
        match key {
            [] => {}
            [keyword, data @ ..] if keyword == "key" && !data.is_empty() => parsed.key = data.to_vec(),
            [keyword] if keyword == "key" => bail!("there is nothing behind `key`"),
            [word, ..] => bail!("expected `key`, not {word:?}"),
        }
        match value {
            [] => {}
            [_] => bail!("there is nothing behind `value`"),
            [_, data @ ..] => parsed.value = data.to_vec(),
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn selectors() {
        let take = |text: &str| Selector::take(&words(text)).map(|(it, rest)| (it, rest.len())).unwrap();
        assert_eq!(take("id 7 key 1"), (Selector::Id(7), 2));
        assert_eq!(take("name id"), (Selector::Name("id".into()), 0));
        assert_eq!(take("counts"), (Selector::Name("counts".into()), 0));
        assert_eq!(take("a/b"), (Selector::InObject { object: "a".into(), name: "b".into() }, 0));
        assert!(Selector::take(&[]).is_err());
        assert!(Selector::all(&words("a b")).is_err());
        assert!(Selector::all(&words("id x")).is_err());
    }

    #[test]
    fn names_before_ids() {
        let things = vec![(5u32, "7"), (7, "x")];
        let describe = |it: &(u32, &str)| (it.0, vec!["o".to_owned()], it.1.to_owned());
        let one = |text: &str| Selector::all(&words(text)).unwrap().one("map", things.clone(), describe);
        assert_eq!(one("7").unwrap().0, 5, "a name wins");
        assert_eq!(one("id 7").unwrap().0, 7);
        assert_eq!(one("5").unwrap().0, 5, "a number that is no name is an id");
        assert_eq!(one("o/x").unwrap().0, 7);
        let error = one("y").unwrap_err().to_string();
        assert_eq!(error, "there is no map called y; there is: 7, x");
        let twice = vec![(1u32, "a"), (2, "a")];
        let error = Selector::Name("a".into()).one("map", twice, describe).unwrap_err().to_string();
        assert_eq!(error, "2 maps are called so: o/a (id 1), o/a (id 2); say OBJECT/NAME or `id N`");
    }

    #[test]
    fn keys_and_values() {
        let parsed = KeyValue::parse(&words("key 0x01 0 0 0 value 5 noexist")).unwrap();
        assert_eq!((parsed.key.len(), parsed.value, parsed.flags), (4, words("5"), 1));
        assert_eq!(KeyValue::parse(&words("value 1")).unwrap().key, Vec::<String>::new());
        for bad in ["key", "key 1 value", "1", "keys 1"] {
            assert!(KeyValue::parse(&words(bad)).is_err(), "{bad}");
        }
    }
}
