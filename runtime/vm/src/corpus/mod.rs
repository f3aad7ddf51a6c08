//! A corpus of programs, a line of JSON each: what the verifier says of them, and what those that it accepts return.
//!
//! | key of a row | |
//! |---|---|
//! | `id` | anything; it comes back |
//! | `insns` | hexadecimal, eight bytes an instruction |
//! | `prog_type` | name or number; `unspec` is a socket filter |
//! | `maps` | name -> kind, `type:key:value:max[:flags]` or an object (`type`, `key`, `value`, `max`, `flags`, `inner`, `init`) |
//! | `fixups` | name of a map, or its kind -> the instructions that take it |
//! | `license` | `GPL` unless it says otherwise |
//! | `prog_flags`, `expected_attach_type`, `log_level` | as in `bpf_attr` |
//! | `pkt`, `ctx` | bytes of the packet and of the context, hexadecimal |
//! | `run` | `false`: only verify |
//!
//! [`row`] reads them, [`maps`] knows the kinds of maps, [`run`] executes on both engines.

pub mod maps;
pub mod row;
pub mod run;
mod types;

use beeline_verifier::{Options, Rejection, Verified, verify};
use row::Row;
use serde_json::{Map, Value, json};

/// What came of a row.
#[derive(Debug)]
pub enum Verdict {
    /// The program is proven safe.
    Accepted {
        /// What it returns, low 32 bits, or why that cannot be said.
        returned: Result<u32, String>,
        /// The log that was asked for.
        log: String,
    },
    /// It is refused.
    Rejected(Rejection),
}

impl Row {
    /// How to verify the program.
    pub fn options(&self) -> Options {
        Options { log_level: self.log_level, strict_alignment: self.strict_alignment, ..Options::default() }
    }

    /// Verifies the program and, where that can be done, runs it.
    pub fn judge(&self) -> Verdict {
        match verify(self.program.clone(), &self.options()) {
            Ok(verified) => {
                let log = verified.log().to_owned();
                Verdict::Accepted { returned: self.returned(&verified), log }
            }
            Err(rejection) => Verdict::Rejected(rejection),
        }
    }

    fn returned(&self, verified: &Verified) -> Result<u32, String> {
        if self.run { run::both_engines(self, verified) } else { Err("not asked for".into()) }
    }
}

/// The answer to one line: a JSON object. A line that is no row is answered too, with the verdict `error`.
pub fn answer(line: &str) -> Value {
    let parsed: Value = match serde_json::from_str(line) {
        Ok(value) => value,
        Err(error) => return json!({"verdict": "error", "reason": format!("not JSON: {error}")}),
    };
    let mut answer = Map::new();
    for key in ["id", "name"] {
        if let Some(value) = parsed.get(key) {
            answer.insert(key.into(), value.clone());
        }
    }
    match Row::parse(&parsed) {
        Ok(row) => judged(&row, &mut answer),
        Err(error) => {
            answer.insert("verdict".into(), "error".into());
            answer.insert("reason".into(), error.to_string().into());
        }
    }
    Value::Object(answer)
}

/// The last line of a log, those left out that say how much work it was.
fn last_line(log: &str) -> &str {
    const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    let said =
        |line: &&str| !line.trim().is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines().rfind(said).unwrap_or_default().trim()
}

fn judged(row: &Row, answer: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| answer.insert(key.into(), value);
    let log = match row.judge() {
        Verdict::Accepted { returned, log } => {
            put("verdict", "accept".into());
            put("reason", Value::Null);
            match returned {
                Ok(value) => put("retval", value.into()),
                Err(_) if !row.run => None,
                Err(reason) => {
                    put("retval", Value::Null);
                    put("not_run", reason.into())
                }
            };
            log
        }
        Verdict::Rejected(rejection) => {
            put("verdict", "reject".into());
            put("reason", last_line(&rejection.log).into());
            put("pc", rejection.pc.into());
            if let Some(advice) = rejection.advice {
                put("advice", advice.into());
            }
            rejection.log
        }
    };
    if row.log_level != 0 {
        put("log", log.into());
    }
}
