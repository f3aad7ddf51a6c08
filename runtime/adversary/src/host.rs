//! Helpers as the verifier knows them: each does anything that its prototype allows, and checks that it may.

use crate::world::{Map, World};
use beeline_abi::map::MapType;
use beeline_helpers::proto::{ArgKind, HelperProto, MemAccess, RetKind};
use beeline_interp::{AccessError, Environment, HelperCall, Host, Outcome, Stop, TrapKind};
use beeline_verifier::Verified;
use beeline_verifier::claims::Moment;
use std::cell::{Cell, RefCell};

const LOOKUP: u32 = 1;
const TAIL_CALL: u32 = 12;
const FOR_EACH_MAP_ELEM: u32 = 164;

/// The helpers of one run.
pub struct Helpers<'w> {
    /// The memory.
    pub world: &'w RefCell<World>,
    /// What was proven of the calls.
    pub verified: &'w Verified,
    /// The instruction that calls.
    pub pc: &'w Cell<u32>,
    /// What a helper found wrong.
    pub wrong: &'w RefCell<Option<String>>,
}

/// What makes a call wrong.
enum Wrong {
    /// Memory that the helper must not touch.
    Access(AccessError),
    /// Something else.
    Said(String),
}

impl From<AccessError> for Wrong {
    fn from(error: AccessError) -> Wrong {
        Wrong::Access(error)
    }
}

fn said<T>(text: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Said(text.into()))
}

impl Host for Helpers<'_> {
    fn map_handle(&self, map: u32) -> Option<u64> {
        self.world.borrow().maps.get(map as usize).map(|map| map.handle)
    }

    fn map_data(&self, map: u32) -> Option<u64> {
        self.world.borrow().maps.get(map as usize)?.values.first().copied()
    }

    fn call(&self, call: &HelperCall, environment: &mut dyn Environment) -> Result<Outcome, Stop> {
        let known = u32::try_from(call.id).ok().and_then(beeline_helpers::by_id);
        let kernel_only = beeline_helpers::kernel_only::KERNEL_ONLY;
        if kernel_only.iter().any(|proto| i64::from(proto.id) == i64::from(call.id)) {
            return Err(environment.trap(TrapKind::Unsupported("a helper that only a kernel has")));
        }
        let Some(helper) = known else {
            return Err(environment.trap(TrapKind::UnknownHelper(call.id.into())));
        };
        let proto = &helper.proto;
        let outcome =
            self.arguments(proto, call.arguments).and_then(|()| self.promises(proto, call.arguments));
        if let Err(wrong) = outcome {
            return Err(self.stop(proto, wrong, environment));
        }
        match proto.id {
            TAIL_CALL => Ok(self.tail_call()),
            FOR_EACH_MAP_ELEM => self.for_each(call.arguments, environment),
            _ => match self.returned(proto, call.arguments) {
                Ok(value) => Ok(Outcome::Value(value)),
                Err(wrong) => Err(self.stop(proto, wrong, environment)),
            },
        }
    }
}

impl Helpers<'_> {
    fn stop(&self, proto: &HelperProto, wrong: Wrong, environment: &mut dyn Environment) -> Stop {
        let text = match wrong {
            Wrong::Access(error) => format!("{} {error}", proto.name),
            Wrong::Said(text) => format!("{} {text}", proto.name),
        };
        self.wrong.borrow_mut().get_or_insert(text);
        environment.trap(TrapKind::Watched)
    }

    /// Every argument is what the prototype says; memory that is written gets new contents.
    fn arguments(&self, proto: &HelperProto, arguments: [u64; 5]) -> Result<(), Wrong> {
        let world = &mut *self.world.borrow_mut();
        let mut sizes = None;
        for (index, kind) in proto.args.iter().enumerate() {
            let value = arguments[index];
            match *kind {
                ArgKind::ConstMapPtr => {
                    let Some((_, _, map)) = world.maps_of(value) else {
                        return said(format!("{value:#x} is no map"));
                    };
                    sizes = Some((u64::from(map.key_size), u64::from(map.value_size)));
                }
                ArgKind::MapKey => {
                    world.bytes(value, sizes.unwrap_or_default().0)?;
                }
                ArgKind::MapValue(access) => memory(world, value, sizes.unwrap_or_default().1, access)?,
                ArgKind::Mem { access, nullable } => {
                    let size = arguments.get(index + 1).copied().unwrap_or_default();
                    if !(nullable && value == 0) {
                        memory(world, value, size, access)?;
                    }
                    let zero_allowed = proto.args.get(index + 1) == Some(&ArgKind::SizeOrZero);
                    if size == 0 && !zero_allowed {
                        return said("got a size of 0");
                    }
                }
                ArgKind::FixedMem { access, size, aligned } => {
                    memory(world, value, size.into(), access)?;
                    if aligned && !value.is_multiple_of(size.into()) {
                        return said(format!("got the misaligned address {value:#x}"));
                    }
                }
                ArgKind::Ctx { nullable } if value != world.context() && !(nullable && value == 0) => {
                    return said(format!("{value:#x} is not the context"));
                }
                ArgKind::RingbufMem { release: true } if !world.release(value) => {
                    return said(format!("{value:#x} is no record"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the verifier hands on about this call is true.
    fn promises(&self, proto: &HelperProto, arguments: [u64; 5]) -> Result<(), Wrong> {
        let pc = self.pc.get();
        let Some(facts) = self.verified.call(pc as usize) else {
            return said("is called where there is no call");
        };
        let world = self.world.borrow();
        let map_at = proto.args.iter().position(|kind| *kind == ArgKind::ConstMapPtr);
        if let (Some(index), Some(at)) = (facts.map, map_at)
            && world.maps.get(index as usize).map(|map| map.handle) != Some(arguments[at])
        {
            return said(format!("is not called with map {index}"));
        }
        let key_at = proto.args.iter().position(|kind| *kind == ArgKind::MapKey);
        if let (Some(constant), Some(at), Some(map)) = (facts.constant_key, key_at, map_at)
            && let Some((_, _, map)) = world.maps_of(arguments[map])
        {
            let bytes = world.bytes(arguments[at], map.key_size.into())?;
            let key = bytes.iter().rev().fold(0, |key, byte| key << 8 | u64::from(*byte));
            if key != constant {
                return said(format!("is called with key {key:#x}, not {constant:#x}"));
            }
        }
        if proto.id == TAIL_CALL {
            if !self.verified.needs().tail_calls {
                return said("is called and not among the needs");
            }
            // From a subprogram the other program's end leads back to the caller, which may hold one.
            if world.frames().len() == 1 && world.records_held() != 0 {
                return said("leaves a record behind");
            }
        }
        Ok(())
    }

    fn tail_call(&self) -> Outcome {
        let numbers = &mut self.world.borrow_mut().numbers;
        if numbers.percent(50) { Outcome::Return(numbers.interesting()) } else { Outcome::Value(0) }
    }

    fn for_each(&self, arguments: [u64; 5], environment: &mut dyn Environment) -> Result<Outcome, Stop> {
        let [handle, function, context, flags, _] = arguments;
        if flags != 0 {
            return Ok(Outcome::Value(-22i64 as u64));
        }
        let elements = {
            let world = self.world.borrow();
            world
                .maps_of(handle)
                .map(|(_, _, map)| (map.keys.clone(), map.values.clone()))
                .unwrap_or_default()
        };
        let mut called = 0;
        for (key, value) in elements.0.into_iter().zip(elements.1) {
            called += 1;
            match environment.callback(function, [handle, key, value, context, 0])? {
                0 => {}
                1 => break,
                other => {
                    let text = format!("a callback returned {other:#x}");
                    self.wrong.borrow_mut().get_or_insert(text);
                    return Err(environment.trap(TrapKind::Watched));
                }
            }
        }
        Ok(Outcome::Value(called))
    }

    fn returned(&self, proto: &HelperProto, arguments: [u64; 5]) -> Result<u64, Wrong> {
        let facts = self.verified.call(self.pc.get() as usize);
        let world = &mut *self.world.borrow_mut();
        Ok(match proto.ret {
            RetKind::Integer => number(world, proto, arguments),
            RetKind::MapValueOrNull if proto.id == LOOKUP => {
                let found = look_up(world, arguments)?;
                if found == 0 && facts.is_some_and(|facts| facts.non_null) {
                    return said("finds nothing where it was proven to");
                }
                found
            }
            RetKind::MapValueOrNull => {
                let values =
                    world.maps_of(arguments[0]).map(|(_, _, map)| map.values.clone()).unwrap_or_default();
                if values.is_empty() || world.numbers.percent(30) { 0 } else { world.numbers.one_of(&values) }
            }
            RetKind::RingbufMemOrNull => world.reserve(arguments[1] as u32).unwrap_or(0),
            _ => world.numbers.interesting(),
        })
    }
}

/// `len` bytes that the helper reads or writes.
fn memory(world: &mut World, address: u64, len: u64, access: MemAccess) -> Result<(), AccessError> {
    if access != MemAccess::Write {
        world.bytes(address, len)?;
    }
    if access != MemAccess::Read {
        world.scribble(address, len)?;
    }
    Ok(())
}

/// The value with this key: exactly in an array, by chance in a hash.
fn look_up(world: &mut World, arguments: [u64; 5]) -> Result<u64, Wrong> {
    let [handle, key, ..] = arguments;
    let Some((outer, is_member, map)) = world.maps_of(handle) else { return said("gets no map") };
    let map: Map = map.clone();
    if map.map_type == MapType::ARRAY_OF_MAPS && !is_member {
        let members = world.members.iter().filter(|(of, _)| *of == outer).map(|(_, map)| map.handle);
        let members = members.collect::<Vec<_>>();
        return Ok(if world.numbers.percent(30) { 0 } else { world.numbers.one_of(&members) });
    }
    let is_array = matches!(map.map_type, MapType::ARRAY | MapType::PERCPU_ARRAY);
    if is_array {
        let bytes = world.bytes(key, 4)?;
        let index = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        return Ok(map.values.get(index as usize).copied().unwrap_or(0));
    }
    Ok(if map.values.is_empty() || world.numbers.percent(30) { 0 } else { world.numbers.one_of(&map.values) })
}

/// Any number that the helper may return.
fn number(world: &mut World, proto: &HelperProto, arguments: [u64; 5]) -> u64 {
    const GET_SMP_PROCESSOR_ID: u32 = 8;
    const GET_STACK: u32 = 67;
    const READ_STR: [u32; 3] = [45, 114, 115];
    const GET_TASK_STACK: u32 = 141;
    let upto = match proto.id {
        GET_SMP_PROCESSOR_ID => return world.numbers.below(2),
        GET_STACK | GET_TASK_STACK => arguments[2],
        id if READ_STR.contains(&id) => arguments[1],
        _ => return world.pick(),
    };
    match world.numbers.below(4) {
        0 => (1 + world.numbers.below(4095)).wrapping_neg(),
        1 => upto,
        _ => world.numbers.below(upto + 1),
    }
}
