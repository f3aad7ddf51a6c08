//! Bytes for people and for JSON, as bpftool prints them.

use serde_json::Value;

/// `01 00 0a`, 16 bytes a line; further lines begin with `indent`.
pub(crate) fn plain(bytes: &[u8], indent: &str) -> String {
    let lines: Vec<String> = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    lines.join(&format!("\n{indent}"))
}

/// `["0x01","0x00"]`.
pub(crate) fn json(bytes: &[u8]) -> Value {
    bytes.iter().map(|byte| Value::String(format!("0x{byte:02x}"))).collect()
}

/// Offset, bytes and text of each 16 bytes.
pub(crate) fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, line) in bytes.chunks(16).enumerate() {
        let hex: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        let printable = |&byte: &u8| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '.' };
        let ascii: String = line.iter().map(printable).collect();
        text.push_str(&format!("{:04x}  {hex:<48} {ascii}\n", row * 16));
    }
    text
}

/// 8 bytes as 16 hexadecimal digits.
pub(crate) fn tag(tag: u64) -> String {
    format!("{:016x}", tag.swap_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!(plain(&[1, 0, 10], ""), "01 00 0a");
        assert_eq!(json(&[1, 255]).to_string(), r#"["0x01","0xff"]"#);
        let text = dump(b"hello, world\0\x01\x02\x03tail");
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.starts_with("0000  68 65 6c 6c 6f 2c 20 77 6f 72 6c 64 00 01 02 03  hello, world....\n"),
            "{text}"
        );
        assert!(text.ends_with("0010  74 61 69 6c                                      tail\n"), "{text}");
    }
}
