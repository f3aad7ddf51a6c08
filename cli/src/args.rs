//! The command line as it is typed: one definition from which parsing, help, completions and man pages come.
//!
//! What a text *means* (which map, which process) is decided in `resolve`.

use beeline_inject::{BreakpointUse, Request};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;

/// Run eBPF programs inside the processes they trace
#[derive(Parser, Debug)]
#[command(
    name = "beeline",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    args_override_self = true,
    after_help = "Exit status: 0 it worked; 1 it failed, and standard error says why; 2 the command line is wrong.\n\
                  `start` ends as the command it runs: with its status, or 128 + n when signal n killed it."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Store to use: a name, or the path of a directory on tmpfs (with a '/')
    #[arg(
        long,
        global = true,
        env = "BEELINE_STORE",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "default"
    )]
    pub(crate) store: String,
    /// Print JSON
    #[arg(long, short, global = true)]
    pub(crate) json: bool,
    /// Say more on standard error
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colours in the output
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
}

/// When to print colours. `auto` also heeds `NO_COLOR` and `CLICOLOR`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Verify, compile and register the programs, maps and links of eBPF object files
    Load(Load),
    /// Forget a loaded object; its links are off everywhere at once
    Unload(Unload),
    /// Run a command with the probes in it before its first constructor runs
    ///
    /// A static program gets them when its C library has set up its threads; programs at system calls see all calls of both kinds
    /// from the first instruction on. What its children execute gets them, too: `beeline` is their tracer then. A program that
    /// calls ptrace() itself (gdb, strace), or checks its leaks (LeakSanitizer), gets its probes and is not followed any further.
    Start(Start),
    /// Put the probes into running processes
    Attach(Attach),
    /// Take the probes out of processes
    Detach(Detach),
    /// List the processes that carry probes
    Ps,
    /// Look at programs, run them
    #[command(subcommand)]
    Prog(Prog),
    /// Look at maps, change them
    #[command(subcommand)]
    Map(Map),
    /// Look at links, turn them on and off
    #[command(subcommand)]
    Link(Link),
    /// Follow a ring buffer or perf event array
    Events(Events),
    /// Follow the log of bpf_trace_printk
    Trace(Trace),
    /// Verify an object file without loading it
    Verify(Verify),
    /// Print a script with which gdb goes through probed frames
    ///
    /// gdb -p PID -x <(beeline gdb)
    Gdb,
    /// Print a completion script
    Completions(Completions),
    /// Write man pages
    Man(Man),
}

/// Arguments of `load`.
#[derive(Args, Debug)]
pub(crate) struct Load {
    /// Object files, compiled by `clang -g -O2 -target bpf`
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) files: Vec<PathBuf>,
    /// Name in the store [default: the file's name without .bpf.o or .o]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// BTF of the kernel to relocate against (raw, or an ELF file with .BTF) [default: the running kernel's]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) btf: Option<PathBuf>,
    /// Where a program goes: PROG=uprobe:PATH:SYMBOL[+OFFSET], PROG=uretprobe:PATH:SYMBOL, PROG=uprobe.multi:PATH:PATTERN,
    /// PROG=uretprobe.multi:PATH:PATTERN, PROG=uprobe.session:PATH:PATTERN, PROG=usdt:PATH:PROVIDER:NAME
    ///
    /// An offset in the file can stand in place of a symbol. A pattern has `*` and `?`; in place of it may stand
    /// SYMBOL[#COOKIE],SYMBOL[#COOKIE],...
    #[arg(long, value_name = "SPEC")]
    pub(crate) attach: Vec<String>,
    /// A function of the target that programs may call, NAME=PATH:SYMBOL; the object declares NAME (extern ... __ksym)
    #[arg(long = "host-function", value_name = "SPEC")]
    pub(crate) host_functions: Vec<String>,
    /// Only in the process with this id
    #[arg(long, short, value_name = "PID")]
    pub(crate) pid: Option<u32>,
    /// Number that bpf_get_attach_cookie() (in USDT probes bpf_usdt_cookie()) returns, of all links or of one program's
    #[arg(long, value_name = "[PROG=]NUMBER")]
    pub(crate) cookie: Vec<Cookie>,
    /// Stay, and let the links end with this process, however it ends
    #[arg(long)]
    pub(crate) own: bool,
    /// Count the hits of the links, at the price of two atomic increments a hit
    #[arg(long)]
    pub(crate) count_hits: bool,
    /// Let programs at system calls skip them, change their arguments and their results
    #[arg(long)]
    pub(crate) allow_override: bool,
}

/// `NUMBER` or `PROG=NUMBER`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cookie {
    /// Of which program's links; none: of all.
    pub(crate) program: Option<String>,
    /// The number.
    pub(crate) value: u64,
}

impl std::str::FromStr for Cookie {
    type Err = String;

    fn from_str(text: &str) -> Result<Cookie, String> {
        match text.split_once('=') {
            Some((program, value)) => Ok(Cookie { program: Some(program.into()), value: number(value)? }),
            None => Ok(Cookie { program: None, value: number(text)? }),
        }
    }
}

/// Arguments of `unload`.
#[derive(Args, Debug)]
pub(crate) struct Unload {
    /// Names of objects
    #[arg(required_unless_present = "all", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Every object
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
}

/// What `start` and `attach` do only when they are asked to.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Optional {
    /// Put an int3 where no jump fits (about 2 µs a hit); the process then cannot block SIGTRAP
    #[arg(long)]
    pub(crate) breakpoints: bool,
    /// Trace the system calls of code made at run time, too (about 1.6 µs a call, 30 ns more for each of libc's); the process then
    /// cannot block SIGSYS. Needs Linux 6.4
    #[arg(long)]
    pub(crate) complete: bool,
}

impl Optional {
    /// What a request asks for.
    pub(crate) fn of(request: &Request) -> Optional {
        Optional { breakpoints: request.breakpoints != BreakpointUse::Never, complete: request.complete }
    }

    /// Where processes get breakpoints.
    pub(crate) fn breakpoint_use(self) -> BreakpointUse {
        if self.breakpoints { BreakpointUse::WhereNoJumpFits } else { BreakpointUse::Never }
    }
}

/// Arguments of `start`.
#[derive(Args, Debug)]
pub(crate) struct Start {
    /// Leave alone what the command's children execute: for commands that call sudo, or trace by system calls of their own
    #[arg(long)]
    pub(crate) no_follow: bool,
    #[command(flatten)]
    pub(crate) optional: Optional,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND",
          value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `attach`.
#[derive(Args, Debug)]
pub(crate) struct Attach {
    /// Stay, and put the probes into what the processes and their children execute and load, until all have ended
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) optional: Optional,
    /// Process ids
    #[arg(value_name = "PID", required_unless_present = "pid_option")]
    pub(crate) pids: Vec<u32>,
    /// A process id
    #[arg(id = "pid_option", long = "pid", short, value_name = "PID")]
    pub(crate) pid_option: Vec<u32>,
    /// Only the links of this object
    #[arg(long, value_name = "NAME")]
    pub(crate) object: Vec<String>,
}

/// Arguments of `detach`.
#[derive(Args, Debug)]
pub(crate) struct Detach {
    /// Process ids
    #[arg(value_name = "PID", required_unless_present_any = ["all", "pid_option"])]
    pub(crate) pids: Vec<u32>,
    /// A process id
    #[arg(id = "pid_option", long = "pid", short, value_name = "PID")]
    pub(crate) pid_option: Vec<u32>,
    /// Every process that carries probes of this store
    #[arg(long, conflicts_with_all = ["pids", "pid_option"])]
    pub(crate) all: bool,
}

/// What to do with programs. A program is its name, OBJECT/NAME, `id N` or `name NAME`.
#[derive(Subcommand, Debug)]
pub(crate) enum Prog {
    /// List the programs
    #[command(visible_alias = "ls")]
    List(Which),
    /// Show programs
    Show(Which),
    /// Print the instructions or the machine code of a program
    #[command(subcommand)]
    Dump(ProgDump),
    /// Run a program once, here, on a context of your choice
    Run(ProgRun),
}

/// Which code to print.
#[derive(Subcommand, Debug)]
pub(crate) enum ProgDump {
    /// The verified instructions
    Xlated(ProgXlated),
    /// The machine code
    Jited(ProgJited),
}

/// Arguments of `prog dump xlated`.
#[derive(Args, Debug)]
pub(crate) struct ProgXlated {
    /// The program
    #[arg(required = true, value_name = "PROG")]
    pub(crate) program: Vec<String>,
    /// Print the instructions' bytes too
    #[arg(long)]
    pub(crate) opcodes: bool,
    /// Print source lines too
    #[arg(long)]
    pub(crate) linum: bool,
}

/// Arguments of `prog dump jited`.
#[derive(Args, Debug)]
pub(crate) struct ProgJited {
    /// The program
    #[arg(required = true, value_name = "PROG")]
    pub(crate) program: Vec<String>,
    /// Print the machine code's bytes too
    #[arg(long)]
    pub(crate) opcodes: bool,
}

/// Arguments of `prog run`.
#[derive(Args, Debug)]
pub(crate) struct ProgRun {
    /// The program
    #[arg(required = true, value_name = "PROG")]
    pub(crate) program: Vec<String>,
    /// File with the bytes of the context [default: zeros]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ctx_in: Option<PathBuf>,
    /// Run it this many times
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Interpret it instead of running its machine code
    #[arg(long)]
    pub(crate) interpreter: bool,
}

/// Which of a list: all, or one.
#[derive(Args, Debug)]
pub(crate) struct Which {
    /// Only this one: NAME, OBJECT/NAME, `id N` or `name NAME`
    #[arg(value_name = "WHICH")]
    pub(crate) which: Vec<String>,
}

/// What to do with maps. A map is its name, OBJECT/NAME, `id N` or `name NAME`.
#[derive(Subcommand, Debug)]
pub(crate) enum Map {
    /// List the maps
    #[command(visible_alias = "ls")]
    List(Which),
    /// Show maps
    Show(Which),
    /// Print all entries of a map; stacks with the names of their functions, folded for flame graphs
    Dump(MapDump),
    /// Print the value of a key: MAP key DATA
    ///
    /// DATA is bytes (`key 0x01 0 0 0`, `key hex 01 00 00 00`), an integer (`key 1`) or JSON of the map's type.
    Lookup(MapWords),
    /// Set the value of a key: MAP key DATA value DATA [any|noexist|exist]
    ///
    /// DATA is bytes (`0x01 0 0 0`, `hex 01 00 00 00`), an integer or JSON of the map's type.
    Update(MapWords),
    /// Delete a key: MAP key DATA
    Delete(MapWords),
    /// Keep a map when its object is unloaded
    Pin(MapPin),
    /// Take a pin away
    Unpin(MapUnpin),
}

/// Arguments of `map dump`.
#[derive(Args, Debug)]
pub(crate) struct MapDump {
    /// The map
    #[arg(required = true, value_name = "MAP")]
    pub(crate) map: Vec<String>,
    /// Print the stacks that the map holds, or that its keys name, with the functions' names
    #[arg(long)]
    pub(crate) symbols: bool,
    /// The same as one line for each stack: outermost function first, divided by ';', and how often it was counted
    #[arg(long)]
    pub(crate) folded: bool,
    /// Map that holds the stacks which the keys name [default: the only one of the object]
    #[arg(long, value_name = "MAP")]
    pub(crate) stacks: Option<String>,
    /// Process whose stacks they are, where the keys have no pid [default: the only one that carries probes]
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Option<u32>,
}

/// A map, then words that say what.
#[derive(Args, Debug)]
pub(crate) struct MapWords {
    /// The map, then `key DATA`, `value DATA`
    #[arg(required = true, value_name = "WORDS", allow_negative_numbers = true)]
    pub(crate) words: Vec<String>,
}

/// Arguments of `map pin`.
#[derive(Args, Debug)]
pub(crate) struct MapPin {
    /// The map
    #[arg(required = true, value_name = "MAP")]
    pub(crate) map: Vec<String>,
    /// Name of the pin [default: the map's name]
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) pin: Option<String>,
}

/// Arguments of `map unpin`.
#[derive(Args, Debug)]
pub(crate) struct MapUnpin {
    /// Name of the pin
    #[arg(value_name = "PIN")]
    pub(crate) pin: String,
}

/// What to do with links. A link is its name, OBJECT/NAME, `id N` or `name NAME`.
#[derive(Subcommand, Debug)]
pub(crate) enum Link {
    /// List the links
    #[command(visible_alias = "ls")]
    List(Which),
    /// Show links
    Show(Which),
    /// Let the programs of links run again
    Enable(LinkOne),
    /// Keep the programs of links from running, in all processes at once
    Disable(LinkOne),
    /// Give a link another program: LINK PROG. No hit is lost, none counted by both
    Update(LinkUpdate),
    /// Take links out of the store and of all processes
    Detach(LinkOne),
}

/// Arguments of `link update`.
#[derive(Args, Debug)]
pub(crate) struct LinkUpdate {
    /// The link: NAME, OBJECT/NAME or its id
    #[arg(value_name = "LINK")]
    pub(crate) link: String,
    /// The program: NAME, OBJECT/NAME or its id
    #[arg(value_name = "PROG")]
    pub(crate) program: String,
}

/// One link.
#[derive(Args, Debug)]
pub(crate) struct LinkOne {
    /// The link
    #[arg(required = true, value_name = "LINK")]
    pub(crate) link: Vec<String>,
}

/// Arguments of `events`.
#[derive(Args, Debug)]
pub(crate) struct Events {
    /// The map
    #[arg(required = true, value_name = "MAP")]
    pub(crate) map: Vec<String>,
    /// Type of an event: the name of a struct in the object's BTF [default: the map's value type, else bytes]
    #[arg(long = "type", value_name = "STRUCT")]
    pub(crate) type_name: Option<String>,
    /// End after this many events
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) count: Option<u64>,
    /// End when there is nothing to read
    #[arg(long)]
    pub(crate) no_follow: bool,
}

/// Arguments of `trace`.
#[derive(Args, Debug)]
pub(crate) struct Trace {
    /// End when there is nothing to read
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// End after this many lines
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) count: Option<u64>,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Object files
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) files: Vec<PathBuf>,
    /// BTF of the kernel to relocate against [default: the running kernel's]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) btf: Option<PathBuf>,
    /// A function of the target that programs may call, NAME=PATH:SYMBOL, as for load
    #[arg(long = "host-function", value_name = "SPEC")]
    pub(crate) host_functions: Vec<String>,
    /// Print the verifier's log, in the kernel's form: 1 the path that fails, 2 every path, stats what it took
    #[arg(long, value_name = "LEVEL", default_value = "0")]
    pub(crate) log_level: LogLevel,
    /// The same as --log-level 2
    #[arg(long, hide = true)]
    pub(crate) log: bool,
}

/// How much the verifier writes down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    /// Of a rejected program what was known where it fails
    #[value(name = "0")]
    None,
    /// The path that fails
    #[value(name = "1")]
    Path,
    /// Every path
    #[value(name = "2")]
    Every,
    /// Time, stack depths, how much work it was
    Stats,
}

impl LogLevel {
    /// The bits of `bpf_attr.log_level`.
    pub(crate) fn bits(self) -> u32 {
        match self {
            LogLevel::None => 0,
            LogLevel::Path => 1,
            LogLevel::Every => 2,
            LogLevel::Stats => 4,
        }
    }
}

/// Arguments of `completions`.
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// For which shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Directory to write a page for each command to [default: the main page to standard output]
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: Option<PathBuf>,
}

/// A number, decimal or with 0x.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_last_store_counts() {
        let cli = Cli::try_parse_from(["beeline", "--store", "a", "--store", "b", "ps"]).unwrap();
        assert_eq!(cli.global.store, "b");
    }

    #[test]
    fn cookies() {
        let line = ["beeline", "load", "x.o", "--cookie", "0x10", "--cookie", "on_entry=7"];
        let Command::Load(load) = Cli::try_parse_from(line).unwrap().command else { panic!("not load") };
        assert_eq!(load.cookie[0], Cookie { program: None, value: 16 });
        assert_eq!(load.cookie[1], Cookie { program: Some("on_entry".into()), value: 7 });
        assert!(Cli::try_parse_from(["beeline", "load", "x.o", "--cookie", "p=x"]).is_err());
    }

    #[test]
    fn negative_numbers_are_data() {
        let line = ["beeline", "map", "update", "m", "key", "-1", "value", "-2", "-j"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert!(cli.global.json);
        let Command::Map(Map::Update(words)) = cli.command else { panic!("not update") };
        assert_eq!(words.words, ["m", "key", "-1", "value", "-2"]);
    }

    #[test]
    fn a_started_command_keeps_its_options() {
        for line in [
            &["beeline", "start", "--", "ls", "-l", "--json"][..],
            &["beeline", "start", "ls", "-l", "--json"],
        ] {
            let Command::Start(start) = Cli::try_parse_from(line).unwrap().command else {
                panic!("not start")
            };
            assert_eq!(start.command, ["ls", "-l", "--json"]);
        }
    }
}
