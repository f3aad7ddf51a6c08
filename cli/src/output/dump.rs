//! JSON laid out as bpftool lays out a typed map dump (its `json_writer` in pretty mode).

use serde_json::Value;

/// The text, without a newline at its end.
pub(crate) fn pretty(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn write(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(fields) => {
            text.push('{');
            for (index, (name, field)) in fields.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                line(depth + 1, text);
                text.push_str(&format!("{}: ", Value::String(name.clone())));
                write(field, depth + 1, text);
            }
            close(!fields.is_empty(), '}', depth, text);
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write(item, depth + 1, text);
            }
            close(!items.is_empty(), ']', depth, text);
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn close(filled: bool, bracket: char, depth: usize, text: &mut String) {
    if filled {
        line(depth, text);
    }
    text.push(bracket);
}

fn line(depth: usize, text: &mut String) {
    text.push('\n');
    text.push_str(&"    ".repeat(depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_bpftool_prints() {
        let value = serde_json::json!([{"key": 1, "value": {"a": [1, 2]}}, {"key": 2, "value": {}}]);
        let expected = "[{\n        \"key\": 1,\n        \"value\": {\n            \"a\": [1,2\n            ]\n        }\n    },{\n        \"key\": 2,\n        \"value\": {}\n    }\n]";
        assert_eq!(pretty(&value), expected);
    }
}
