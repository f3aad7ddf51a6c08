//! Tests and commands that hang say where everybody is, and fail.
//!
//! Tests here stop processes and wait for them. When one never comes back, what each thread was doing is worth more than
//! the end of somebody's patience. The limits are far above what a loaded machine needs: they only keep a hang from staying.

mod processes;

use processes::{children_of, describe, family, kill};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use std::{fmt, io};

/// Time without a sign of life after which a test hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// Watches over one test until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    signs: Sender<()>,
}

impl Watchdog {
    /// Begins to watch.
    pub fn new(name: &str) -> Watchdog {
        Watchdog::with_limit(name, LIMIT)
    }

    /// The same, with another time that may pass without a sign of life.
    pub fn with_limit(name: &str, limit: Duration) -> Watchdog {
        let (signs, received) = channel();
        let name = name.to_owned();
        std::thread::spawn(move || {
            loop {
                match received.recv_timeout(limit) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => end(&name, limit),
                }
            }
        });
        Watchdog { signs }
    }

    /// A sign of life: the time begins anew.
    pub fn alive(&self) {
        // The other end is there as long as we are.
        let _ = self.signs.send(());
    }
}

/// Says what this process and its descendants do, and ends them all.
fn end(name: &str, limit: Duration) -> ! {
    eprintln!("\n== {name} hangs: no progress for {} s", limit.as_secs());
    family(std::process::id()).into_iter().for_each(describe);
    children_of(std::process::id()).into_iter().for_each(kill);
    std::process::exit(1)
}

/// Time between two looks at the command.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a command has no exit status.
#[derive(Debug)]
pub enum Unfinished {
    /// It could not be run, or not be waited for.
    NotRun(io::Error),
    /// It took longer than it may, and was ended.
    Hung,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfinished::NotRun(error) => write!(f, "cannot be run: {error}"),
            Unfinished::Hung => f.write_str("hung; what its processes were doing is shown above"),
        }
    }
}

impl std::error::Error for Unfinished {}

/// Runs a command to its end, for at most `limit`.
///
/// # Errors
/// It cannot be run, or takes longer. Then the stacks of it and of its descendants are on standard error, and all of
/// them are killed.
pub fn run(command: &mut Command, limit: Duration) -> Result<ExitStatus, Unfinished> {
    let begin = Instant::now();
    let mut child = command.spawn().map_err(Unfinished::NotRun)?;
    loop {
        if let Some(status) = child.try_wait().map_err(Unfinished::NotRun)? {
            return Ok(status);
        }
        if begin.elapsed() > limit {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    eprintln!("\n== {command:?} has not ended after {} s", limit.as_secs());
    family(child.id()).into_iter().for_each(describe);
    kill(child.id());
    let _ = child.wait();
    Err(Unfinished::Hung)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_ends_in_time() {
        let hour = Duration::from_secs(3600);
        assert!(run(&mut Command::new("true"), hour).unwrap().success());
        assert!(!run(&mut Command::new("false"), hour).unwrap().success());
        let missing = run(&mut Command::new("/no/such/program"), hour);
        assert!(matches!(missing, Err(Unfinished::NotRun(_))), "{missing:?}");
    }

    #[test]
    fn what_hangs_is_ended_with_its_children() {
        let (mut reader, writer) = io::pipe().unwrap();
        {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 100000 & wait"]).stdout(writer);
            let hung = run(&mut command, Duration::from_millis(1));
            assert!(matches!(hung, Err(Unfinished::Hung)), "{hung:?}");
        }
        // The shell and what it started held the other end.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
