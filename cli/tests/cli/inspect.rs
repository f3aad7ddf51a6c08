//! Looking at what is loaded, and changing maps.

use crate::{Store, sample};
use serde_json::{Value, json};

#[test]
fn lists() {
    let Some(store) = sample() else { return };
    let programs = store.json(&["prog", "list"]);
    let names: Vec<_> = programs.as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
    assert_eq!(names, ["on_malloc", "on_return"]);
    assert_eq!(programs[0]["type"], "kprobe");
    assert_eq!(store.json(&["prog", "show", "id", &programs[1]["id"].to_string()])[0]["name"], "on_return");
    let maps = store.json(&["map", "list"]);
    let names: Vec<_> = maps.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    for name in ["usages", "per_cpu", "events", "shared", "sample.data", "sample.rodata"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let usages = store.json(&["map", "show", "usages"]);
    assert_eq!((&usages[0]["bytes_value"], &usages[0]["type"]), (&json!(24), &json!("hash")));
    let links = store.json(&["link", "list"]);
    let kinds: Vec<_> =
        links.as_array().unwrap().iter().map(|it| (it["type"].clone(), it["symbol"].clone())).collect();
    assert!(kinds.contains(&(json!("uprobe"), json!("malloc"))), "{kinds:?}");
    assert!(kinds.contains(&(json!("uretprobe"), json!("free"))), "{kinds:?}");
    for list in ["prog", "map", "link"] {
        let table = store.ok(&[list, "list"]);
        assert!(table.lines().count() > 1 && table.contains("NAME"), "{table}");
        assert!(!store.ok(&[list, "show"]).is_empty());
    }
}

#[test]
fn a_map_by_its_types() {
    let Some(store) = sample() else { return };
    let value = r#"{"calls": 5, "delta": -1, "color": "GREEN", "comm": "bash"}"#;
    store.ok(&["map", "update", "usages", "key", "7", "value", value]);
    insta::assert_snapshot!("map_dump_typed", store.ok(&["map", "dump", "usages"]));
    let dump = store.json(&["map", "dump", "sample/usages"]);
    assert_eq!(dump[0]["key"], json!(["0x07", "0x00", "0x00", "0x00"]));
    let expected = json!({"calls": 5, "delta": -1, "color": "GREEN", "comm": "bash"});
    assert_eq!(dump[0]["formatted"], json!({"key": 7, "value": expected}));
    let found = store.json(&["map", "lookup", "usages", "key", "0x07", "0", "0", "0"]);
    assert_eq!(found, dump[0]);
    insta::assert_snapshot!("map_no_key", store.fails(&["map", "lookup", "usages", "key", "8"]));
    insta::assert_snapshot!(
        "map_exists",
        store.fails(&["map", "update", "usages", "key", "7", "value", value, "noexist"])
    );
    insta::assert_snapshot!(
        "map_bad_member",
        store.fails(&["map", "update", "usages", "key", "1", "value", r#"{"x": 1}"#])
    );
    insta::assert_snapshot!(
        "map_bad_length",
        store.fails(&["map", "update", "usages", "key", "1", "value", "1", "2"])
    );
    store.ok(&["map", "delete", "usages", "key", "7"]);
    assert_eq!(store.json(&["map", "dump", "usages"]), json!([]));
    assert_eq!(store.ok(&["map", "dump", "usages"]), "Found 0 elements\n");
}

#[test]
fn global_data_and_per_cpu_values() {
    let Some(store) = sample() else { return };
    let data = store.json(&["map", "dump", "sample.data"]);
    assert_eq!(find(&data, "total"), Some(3), "{data}");
    insta::assert_snapshot!("map_dump_data", store.ok(&["map", "dump", "sample.data"]));
    insta::assert_snapshot!(
        "map_frozen",
        store.fails(&["map", "update", "sample.rodata", "key", "0", "value", "1", "0", "0", "0"])
    );
    let per_cpu = store.json(&["map", "dump", "per_cpu"]);
    let values = per_cpu[0]["formatted"]["values"].as_array().unwrap();
    assert_eq!(values[0], json!({"cpu": 0, "value": 0}));
    store.ok(&["map", "update", "per_cpu", "key", "0", "value", "6"]);
    let per_cpu = store.json(&["map", "dump", "per_cpu"]);
    assert!(
        per_cpu[0]["formatted"]["values"].as_array().unwrap().iter().all(|it| it["value"] == 6),
        "{per_cpu}"
    );
    insta::assert_snapshot!("map_not_deleted", store.fails(&["map", "delete", "per_cpu", "key", "0"]));
}

fn find(value: &Value, name: &str) -> Option<u64> {
    match value {
        Value::Object(fields) => {
            fields.get(name).and_then(Value::as_u64).or_else(|| fields.values().find_map(|it| find(it, name)))
        }
        Value::Array(items) => items.iter().find_map(|it| find(it, name)),
        _ => None,
    }
}

#[test]
fn programs_run_here_and_what_they_leave() {
    let Some(store) = sample() else { return };
    for engine in [&[][..], &["--interpreter"]] {
        let run = store.json(&[&["prog", "run", "on_malloc"], engine].concat());
        assert_eq!(run["retval"], 42, "{engine:?}");
    }
    assert_eq!(find(&store.json(&["map", "dump", "sample.data"]), "total"), Some(3 + 7 + 7));

    // The return value is the word at byte 80 of the context, `ax`.
    let context = store.path().with_file_name("context");
    let mut bytes = vec![0; 168];
    bytes[80] = 99;
    std::fs::write(&context, bytes).unwrap();
    let run =
        store.json(&["prog", "run", "on_return", "--ctx-in", &context.to_string_lossy(), "--repeat", "3"]);
    assert_eq!(run["retval"], 99);
    assert_eq!(store.json(&["map", "lookup", "shared", "key", "0"])["formatted"]["value"], 3);

    let text = store.ok(&["--json", "events", "events", "--type", "event", "--count", "2"]);
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events, vec![json!({"cpu": 0, "value": {"number": 9, "text": "hello"}}); 2]);
    insta::assert_snapshot!("events_bytes", store.ok(&["events", "events", "--no-follow"]));
    assert_eq!(store.ok(&["events", "events", "--no-follow"]), "");
    let lines = store.ok(&["--json", "trace", "--no-follow"]);
    assert_eq!(lines.lines().count(), 3);
    let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&line["text"], &line["comm"]), (&json!("event 9"), &json!("beeline")));
    assert_eq!(store.ok(&["trace", "--count", "2"]).lines().count(), 2);
}

#[test]
fn programs_as_text() {
    let Some(store) = sample() else { return };
    let xlated = store.ok(&["prog", "dump", "xlated", "on_malloc", "--linum"]);
    assert!(xlated.contains("(85) call bpf_map_lookup_elem#1") && xlated.contains("; "), "{xlated}");
    let jited = store.ok(&["prog", "dump", "jited", "on_return"]);
    assert!(jited.contains("ret") && jited.contains("bpf_ringbuf_reserve"), "{jited}");
    for kind in ["xlated", "jited"] {
        let lines = store.json(&["prog", "dump", kind, "on_return"]);
        assert!(lines.as_array().is_some_and(|lines| lines.len() > 5), "{kind}");
    }
}

#[test]
fn links_off_and_on() {
    let Some(store) = sample() else { return };
    store.ok(&["link", "disable", "on_malloc"]);
    assert_eq!(store.json(&["link", "show", "on_malloc"])[0]["enabled"], false);
    store.ok(&["link", "enable", "sample/on_malloc"]);
    assert_eq!(store.json(&["link", "show", "on_malloc"])[0]["enabled"], true);
    insta::assert_snapshot!("no_such_link", store.fails(&["link", "enable", "nothing"]));
}

#[test]
fn pins_by_hand() {
    let Some(store) = sample() else { return };
    store.ok(&["map", "pin", "usages", "--as", "kept"]);
    store.ok(&["map", "update", "usages", "key", "1", "value", r#"{"calls": 2}"#]);
    store.ok(&["unload", "sample"]);
    let dump = store.json(&["map", "dump", "kept"]);
    assert_eq!(dump[0]["formatted"]["value"]["calls"], 2, "its types are kept with it: {dump}");
    insta::assert_snapshot!("no_such_map", store.fails(&["map", "dump", "usages"]));
}

#[test]
fn damaged_files_are_named_and_the_rest_is_shown() {
    let Some(store) = sample() else { return };
    std::fs::write(store.path().join("objects/sample/progs/on_return"), b"x").unwrap();
    let output = store.run(&["--json", "prog", "list"]);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("on_return: is damaged"), "{errors}");
    store.ok(&["unload", "sample"]);
    assert_eq!(Store::new().json(&["prog", "list"]), json!([]));
}
