//! Hits of sample functions, with every function of the C library probed, against callgrind's count of calls in the same program.

use crate::cases::Verdict;
use crate::probed::{COMMAND, NOT_STARTED};
use crate::workloads::compile;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

pub(crate) const NAME: &str = "counts-against-callgrind";

/// Functions that the program calls, and that the loader does not.
const SAMPLES: [&str; 13] = [
    "qsort", "qsort_r", "strtod", "strtol", "snprintf", "regcomp", "regexec", "fputs", "tsearch", "tfind",
    "fnmatch", "rand", "mktime",
];
/// Fewer samples that both know would prove nothing.
const SAMPLES_MIN: usize = 8;

/// Calls of the library, from the program and from within.
const PROGRAM: &str = r#"
#include <fnmatch.h>
#include <regex.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
static int compare_text(const void *a, const void *b) { return strcmp(a, b); }
int main(void) {
    int numbers[500]; double sum = 0; void *root = 0; FILE *null = fopen("/dev/null", "w");
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < 500; i++) numbers[i] = rand();
        qsort(numbers, 500, sizeof *numbers, compare);
        char text[64]; regex_t regex;
        regcomp(&regex, "([a-z]+)([0-9]*)", REG_EXTENDED);
        for (int i = 0; i < 10; i++) {
            snprintf(text, sizeof text, "abc%d.%d", round, i);
            sum += strtod(text + 3, 0) + strtol(text + 3, 0, 10) + regexec(&regex, text, 0, 0, 0);
            sum += fnmatch("a*[0-9].?", text, 0);
            char *copy = strdup(text);
            tsearch(copy, &root, compare_text); tfind(text, &root, compare_text);
            fputs(text, null);
        }
        regfree(&regex);
        struct tm tm = {.tm_year = 100 + round, .tm_mday = 1};
        sum += mktime(&tm) % 7;
    }
    printf("%.3f\n", sum);
    return 0;
}
"#;

pub(crate) fn run(folder: &Path) -> Verdict {
    let program = match compile(folder, "gcc", PROGRAM, &["-O1", "-fno-builtin", "-Wl,-z,now"]) {
        Ok(program) => program,
        Err(reason) => return Verdict::Skipped(reason),
    };
    let calls = match calls(folder, &program) {
        Ok(calls) => calls,
        Err(reason) => return Verdict::Skipped(reason),
    };
    let hits = match hits(folder, &program) {
        Ok(hits) => hits,
        Err(reason) => return Verdict::Failed(reason),
    };
    let both: Vec<(&str, u64, u64)> = SAMPLES
        .into_iter()
        .filter_map(|name| Some((name, *calls.get(name)?, hits.get(name).copied().unwrap_or(0))))
        .collect();
    let different: Vec<_> = both.iter().filter(|(_, calls, hits)| calls != hits).collect();
    if !different.is_empty() || both.len() < SAMPLES_MIN {
        return Verdict::Failed(format!("name, calls, hits: {different:?}; all: {both:?}"));
    }
    Verdict::Passed(format!("{} functions, {} calls", both.len(), both.iter().map(|b| b.1).sum::<u64>()))
}

/// What callgrind counts.
fn calls(folder: &Path, program: &str) -> Result<HashMap<String, u64>, String> {
    let file = folder.join("callgrind.out");
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", file.display()), program])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !done.status.success() {
        return Err(format!("valgrind: {}", String::from_utf8_lossy(&done.stderr)));
    }
    let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
    Ok(parse(&text))
}

/// Sums of `calls=` by the function that is called. A name stands where its number is used first.
fn parse(text: &str) -> HashMap<String, u64> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut sums: HashMap<String, u64> = HashMap::new();
    let mut called = "";
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            called = names.get(number).copied().unwrap_or_default();
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let count: u64 = calls.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
            // A function that calls itself has more than one name.
            let name = called.split('\'').next().unwrap_or_default();
            *sums.entry(name.to_owned()).or_default() += count;
        }
    }
    sums
}

/// What the probes count: entries, and as many returns.
fn hits(folder: &Path, program: &str) -> Result<HashMap<String, u64>, String> {
    let report = folder.join("report");
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(own);
    command.args([COMMAND, "--entry", "--return", "--file", "libc.so.6"]);
    for name in SAMPLES {
        command.args(["--sample", name]);
    }
    let output = command.arg("--report").arg(&report).args(["--", program]).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() || output.status.code() == Some(i32::from(NOT_STARTED)) {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let report = std::fs::read_to_string(&report).map_err(|error| error.to_string())?;
    let mut hits: HashMap<String, u64> = HashMap::new();
    for line in report.lines().filter_map(|line| line.strip_prefix("sample: ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, _, count, missed] = words[..] else { return Err(format!("{line}?")) };
        let count: u64 = count.parse().map_err(|_| format!("{line}?"))?;
        if missed != "0" {
            return Err(format!("missed: {line}"));
        }
        // Both kinds have to agree.
        if *hits.entry(name.to_owned()).or_insert(count) != count {
            return Err(format!("entries and returns differ: {report}"));
        }
    }
    Ok(hits)
}
