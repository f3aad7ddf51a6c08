//! The contract of the `bpf-vm` binary.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs the binary with a program on standard input.
fn bpf_vm(arguments: &[&str], program: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bpf-vm"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may end before it reads all.
    let _ = stdin.write_all(program.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a run that succeeds on both engines.
fn result(arguments: &[&str], program: &str) -> String {
    let compiled = bpf_vm(arguments, program);
    let interpreted = bpf_vm(&[arguments, &["--interpreter"]].concat(), program);
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    assert!(interpreted.status.success(), "{}", text(&interpreted.stderr));
    assert_eq!(compiled.stdout, interpreted.stdout);
    text(&compiled.stdout)
}

fn error(arguments: &[&str], program: &str) -> String {
    let output = bpf_vm(arguments, program);
    assert!(!output.status.success());
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    text(&output.stderr)
}

/// `r0 = *(u64 *)(r1 +0); r0 += r2; exit`
const SUM: &str = "79 10 00 00 00 00 00 00 0f 20 00 00 00 00 00 00 95 00 00 00 00 00 00 00\n";

#[test]
fn prints_r0_in_hexadecimal() {
    assert_eq!(result(&[], "b7 00 00 00 ff ff ff ff 95 00 00 00 00 00 00 00"), "ffffffffffffffff\n");
    assert_eq!(result(&["01 02 03 04 05 06 07 08"], SUM), "807060504030209\n");
    assert_eq!(result(&["0102030405060700ff"], SUM), "706050403020a\n");
    // Without memory, r1 and r2 are 0.
    let registers = "bf100000000000004f20000000000000 9500000000000000";
    assert_eq!(result(&[""], registers), "0\n");
    assert_eq!(result(&[], registers), "0\n");
}

#[test]
fn measures_on_standard_error() {
    let output = bpf_vm(&["0000000000000000", "--repeat", "10", "--compile-time"], SUM);
    let stderr = text(&output.stderr);
    assert_eq!(text(&output.stdout), "8\n");
    for wanted in ["ns_per_run: ", "compile_us: "] {
        let number = stderr.lines().find_map(|line| line.strip_prefix(wanted)).expect(wanted);
        assert!(number.parse::<f64>().is_ok_and(|number| number > 0.0), "{stderr}");
    }
}

#[test]
fn says_what_is_wrong() {
    assert!(error(&[], "").contains("empty"));
    assert!(error(&[], "b7 00").contains("whole instructions"));
    assert!(error(&[], "b7 0").contains("odd number"));
    assert!(error(&["xyz"], SUM).contains("'x' is not a hexadecimal digit"));
    assert!(error(&["--repeat"], SUM).contains("wants a number"));
    assert!(error(&["--faster"], SUM).contains("unknown option --faster"));
    assert!(error(&[], "ff 00 00 00 00 00 00 00").contains("instruction 0: unknown opcode ff"));
    let helper = "85 00 00 00 63 00 00 00 95 00 00 00 00 00 00 00";
    assert!(error(&[], helper).contains("Helper(99)"));
    assert!(error(&["--interpreter"], helper).contains("unknown helper 99"));
    // callx with a number that is no helper's.
    let register = "b702000063000000 8d02000000000000 9500000000000000";
    assert!(error(&[], register).contains("unknown helper"));
    assert!(error(&["--interpreter"], register).contains("unknown helper 99"));
}

#[test]
fn unwind_ends_the_program_from_a_subprogram() {
    // r1 = 0; call sub; r0 = 5; exit; sub: call unwind; r0 = 6; exit
    let program = "b701000000000000 8510000002000000 b700000005000000 9500000000000000
                   8500000005000000 b700000006000000 9500000000000000";
    assert_eq!(result(&[], program), "0\n");
}
