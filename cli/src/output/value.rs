//! Values by their BTF type, as JSON.

use beeline_engine::TypedValue;
use serde_json::Value;

/// The value as bpftool's JSON has it.
pub(crate) fn json(value: &TypedValue) -> Value {
    // A typed value prints itself as JSON; numbers keep all of their digits.
    serde_json::from_str(&value.to_string()).unwrap_or_else(|_| Value::String(value.to_string()))
}
