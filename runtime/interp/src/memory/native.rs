//! A host whose helpers are functions of this process.

use crate::error::{Stop, TrapKind};
use crate::host::{Environment, HelperCall, Host, Outcome};
use crate::machine::FUNCTION_BASE;
use beeline_abi::run::RunContext;

/// A helper: r1 to r5 and the run.
pub type HelperFunction = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64, *mut RunContext) -> u64;

/// The entry of a compiled program.
type Entry = unsafe extern "sysv64" fn(u64, *mut RunContext) -> u64;

const TAIL_CALL: i32 = 12;
const FOR_EACH_MAP_ELEM: i32 = 164;

/// A map of the program in this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NativeMap {
    /// Address of its `MapHandle`.
    pub handle: u64,
    /// Address of its data region.
    pub data: u64,
}

/// Calls helpers natively. `F` finds a helper by number.
#[derive(Clone, Copy, Debug)]
pub struct Native<'m, F> {
    helper: F,
    maps: &'m [NativeMap],
}

impl<'m, F: Fn(u32) -> Option<HelperFunction>> Native<'m, F> {
    /// # Safety
    /// - Every function that `helper` finds keeps to the helpers' convention and may be called with what a program
    ///   that runs on this host passes: the program is verified, or is a test.
    /// - The run given to [`run`](crate::run) is one that those helpers take.
    /// - The maps are mapped as long as the host lives.
    pub unsafe fn new(helper: F, maps: &'m [NativeMap]) -> Native<'m, F> {
        Native { helper, maps }
    }

    /// The other program's result, when the helper finds one.
    fn tail_call(call: &HelperCall, function: HelperFunction) -> Outcome {
        // SAFETY: the contract of `new`.
        let entry = unsafe { invoke(function, call.arguments, call.run) };
        if entry == 0 {
            return Outcome::Value(0);
        }
        // SAFETY: the tail-call helper returns the address of a program's entry or 0 (the helpers' convention).
        let entry: Entry = unsafe { core::mem::transmute::<usize, Entry>(entry as usize) };
        // SAFETY: an entry takes the context that the calling program got, which is its r1, and the run.
        Outcome::Return(unsafe { entry(call.arguments[0], call.run) })
    }

    /// `for_each_map_elem(map, callback, context, flags)`: the helper gets a native callback and a bridge for its
    /// context; the bridge leads back here.
    fn for_each(
        call: &HelperCall,
        function: HelperFunction,
        environment: &mut dyn Environment,
    ) -> Result<Outcome, Stop> {
        let [map, callback, context, flags, rest] = call.arguments;
        let mut bridge = Bridge { environment, function: callback, context, stopped: None };
        let native: HelperFunction = cross;
        let arguments = [map, native as usize as u64, (&raw mut bridge) as u64, flags, rest];
        // SAFETY: the contract of `new`; the bridge outlives the call, and only `cross` looks into it.
        let result = unsafe { invoke(function, arguments, call.run) };
        match bridge.stopped {
            Some(stop) => Err(stop),
            None => Ok(Outcome::Value(result)),
        }
    }
}

impl<F: Fn(u32) -> Option<HelperFunction>> Host for Native<'_, F> {
    fn map_handle(&self, map: u32) -> Option<u64> {
        self.maps.get(map as usize).map(|map| map.handle)
    }

    fn map_data(&self, map: u32) -> Option<u64> {
        self.maps.get(map as usize).map(|map| map.data)
    }

    fn call(&self, call: &HelperCall, environment: &mut dyn Environment) -> Result<Outcome, Stop> {
        let function = u32::try_from(call.id).ok().and_then(|id| (self.helper)(id));
        let Some(function) = function else {
            return Err(environment.trap(TrapKind::UnknownHelper(i64::from(call.id))));
        };
        match call.id {
            TAIL_CALL => Ok(Self::tail_call(call, function)),
            FOR_EACH_MAP_ELEM => Self::for_each(call, function, environment),
            _ if call.arguments[1..].iter().any(|&argument| is_function(argument)) => {
                Err(environment.trap(TrapKind::Unsupported("a callback for this helper")))
            }
            // SAFETY: the contract of `new`.
            _ => Ok(Outcome::Value(unsafe { invoke(function, call.arguments, call.run) })),
        }
    }
}

/// Numbers that look like function references are not valid addresses, so no helper wants one otherwise.
fn is_function(argument: u64) -> bool {
    (FUNCTION_BASE..FUNCTION_BASE + 0x1_0000_0000).contains(&argument)
}

/// # Safety
/// As the function demands.
unsafe fn invoke(function: HelperFunction, arguments: [u64; 5], run: *mut RunContext) -> u64 {
    let [r1, r2, r3, r4, r5] = arguments;
    // SAFETY: the caller's promise.
    unsafe { function(r1, r2, r3, r4, r5, run) }
}

/// What a native callback needs to find its way back into the interpreter.
struct Bridge<'e> {
    environment: &'e mut dyn Environment,
    function: u64,
    context: u64,
    stopped: Option<Stop>,
}

/// The native callback of `for_each_map_elem`: `callback(map, key, value, context)`. After a stop it asks the helper to end.
///
/// # Safety
/// `context` is the address of a [`Bridge`] that nobody else uses.
unsafe extern "sysv64" fn cross(
    map: u64,
    key: u64,
    value: u64,
    context: u64,
    _r5: u64,
    _run: *mut RunContext,
) -> u64 {
    // SAFETY: the contract above.
    let bridge = unsafe { &mut *(context as *mut Bridge<'_>) };
    if bridge.stopped.is_some() {
        return 1;
    }
    let arguments = [map, key, value, bridge.context, 0];
    match bridge.environment.callback(bridge.function, arguments) {
        Ok(result) => result,
        Err(stop) => {
            bridge.stopped = Some(stop);
            1
        }
    }
}
