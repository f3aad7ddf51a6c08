//! The same with `--complete`: programs that make calls from code of their own making, and some that make none.

use super::calls::Call;
use super::{Folder, Images, command, compare_with, same, same_but_memory, same_but_waiting};
use beeline_tests::{can_be_complete, have, target};

const COMPLETE: &[&str] = &["--complete"];

fn generated() -> String {
    target("tests/targets/generated.c", "glibc", "gcc", &[]).to_string_lossy().into_owned()
}

#[test]
fn calls_of_made_code() {
    if !have(&["strace"]) || !can_be_complete() {
        return;
    }
    let folder = Folder::new("made");
    let program = generated();
    for words in [&["kinds"][..], &["many", "400"]] {
        let words = [&[program.as_str()], words].concat();
        compare_with(COMPLETE, &folder, same_but_waiting, || command(&words), String::new);
    }
}

/// Without the option they are not seen: it is what makes the difference.
#[test]
fn without_the_option() {
    if !have(&["strace"]) || !can_be_complete() {
        return;
    }
    let program = generated();
    let count = |options: &[&str]| {
        let (threads, _) = super::recorded(&mut command(&[&program, "many", "10"]), options);
        let made = |call: &&Call| call.name == "getppid";
        threads.iter().map(|images: &Images| images.iter().flatten().filter(made).count()).sum::<usize>()
    };
    assert_eq!((count(&[]), count(COMPLETE)), (30, 60));
}

#[test]
fn programs_without_made_code() {
    if !have(&["strace"]) || !can_be_complete() {
        return;
    }
    let folder = Folder::new("complete");
    let script =
        "for i in 1 2 3; do echo $i | cat; done; x=$(ls /etc | wc -l); echo $x; exec cat /etc/hostname";
    compare_with(COMPLETE, &folder, same, || command(&["/bin/sh", "-c", script]), String::new);
    if std::path::Path::new("/usr/bin/python3").exists() {
        let code = "import subprocess\n\
                    print(subprocess.run(['/bin/echo', 'one']).returncode)";
        let words = ["/usr/bin/python3", "-I", "-S", "-c", code];
        compare_with(COMPLETE, &folder, same_but_memory, || command(&words), String::new);
    }
}
