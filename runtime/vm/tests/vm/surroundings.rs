//! What test programs find around them: a few helpers, three maps.

use beeline_abi::map::{MapHandle, MapShape, MapType};
use beeline_abi::run::RunContext;
use beeline_interp::memory::{HelperFunction, NativeMap};
use beeline_vm::engine::Setup;

/// The CPU that runs own.
pub(crate) const CPU: u32 = 1;

/// The maps of a case, alive as long as this is.
pub(crate) struct Surroundings {
    shapes: Vec<MapShape>,
    handles: Vec<MapHandle>,
    data: Vec<Vec<u64>>,
}

impl Surroundings {
    /// Fresh maps: the first byte of each element is 0x10 * map + 8 * CPU + index.
    pub(crate) fn new() -> Surroundings {
        let shape = |map_type, value_size, max_entries| MapShape {
            map_type,
            key_size: 4,
            value_size,
            max_entries,
            map_flags: 0,
            cpus: 2,
        };
        let shapes = vec![
            shape(MapType::ARRAY, 12, 4),
            shape(MapType::PERCPU_ARRAY, 8, 2),
            shape(MapType::HASH, 8, 4),
            shape(MapType::PROG_ARRAY, 4, 4),
            shape(MapType::ARRAY, 16, 1),
        ];
        let mut surroundings = Surroundings { shapes, handles: Vec::new(), data: Vec::new() };
        for map in 0..surroundings.shapes.len() {
            surroundings.add(map);
        }
        surroundings
    }

    fn add(&mut self, map: usize) {
        let shape = self.shapes[map];
        let stride = u64::from(shape.value_size).next_multiple_of(8);
        let cpu_stride = (stride * u64::from(shape.max_entries)).next_multiple_of(64);
        let mut data = vec![0u64; (cpu_stride * u64::from(shape.cpus) / 8) as usize];
        for cpu in 0..u64::from(shape.cpus) {
            for index in 0..u64::from(shape.max_entries) {
                data[((cpu * cpu_stride + index * stride) / 8) as usize] =
                    0x10 * map as u64 + 8 * cpu + index;
            }
        }
        let handle =
            MapHandle { data: data.as_mut_ptr() as u64, stride, cpu_stride, shape, ..MapHandle::default() };
        self.data.push(data);
        self.handles.push(handle);
    }

    /// Types and sizes of the maps.
    pub(crate) fn shapes(&self) -> &[MapShape] {
        &self.shapes
    }

    /// Addresses of the maps.
    pub(crate) fn maps(&mut self) -> Vec<NativeMap> {
        let handles = self.handles.iter_mut();
        handles.map(|handle| NativeMap { data: handle.data, handle: &raw mut *handle as u64 }).collect()
    }

    /// A word of a map's data region.
    pub(crate) fn word(&self, map: usize, index: usize) -> u64 {
        self.data[map][index]
    }

    /// All words of all maps.
    pub(crate) fn words(&self) -> Vec<u64> {
        self.data.concat()
    }

    pub(crate) fn setup(&mut self) -> Setup {
        let (maps, shapes) = (self.maps(), self.shapes.clone());
        Setup { maps, shapes, cpu: Some(CPU), ..Setup::with_helpers(helper) }
    }
}

/// The helpers of test programs.
pub(crate) fn helper(id: u32) -> Option<HelperFunction> {
    let function: HelperFunction = match id {
        1 => lookup,
        8 => processor_id,
        12 => tail_call,
        100 => mix,
        164 => for_each,
        181 => bpf_loop,
        _ => return None,
    };
    Some(function)
}

/// The look-up that the compiler does inline: arrays only, everything else is empty.
unsafe extern "sysv64" fn lookup(
    map: u64,
    key: u64,
    _r3: u64,
    _r4: u64,
    _r5: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: r1 is a handle of `Surroundings`, r2 the address of at least four bytes, the run is the engine's.
    let (handle, index, cpu) =
        unsafe { (&*(map as *const MapHandle), (key as *const u32).read_unaligned(), (*run).access.cpu) };
    if index >= handle.shape.max_entries {
        return 0;
    }
    match handle.shape.map_type {
        MapType::ARRAY => handle.data + u64::from(index) * handle.stride,
        MapType::PERCPU_ARRAY => {
            handle.data + u64::from(cpu) * handle.cpu_stride + u64::from(index) * handle.stride
        }
        _ => 0,
    }
}

unsafe extern "sysv64" fn processor_id(
    _r1: u64,
    _r2: u64,
    _r3: u64,
    _r4: u64,
    _r5: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the run is the engine's.
    u64::from(unsafe { (*run).access.cpu })
}

/// `tail_call(context, map, index)`: index 1 is a program that returns the first byte of its context plus 0x100.
extern "sysv64" fn tail_call(
    _context: u64,
    _map: u64,
    index: u64,
    _r4: u64,
    _r5: u64,
    _run: *mut RunContext,
) -> u64 {
    if index == 1 { other_program as *const () as u64 } else { 0 }
}

unsafe extern "sysv64" fn other_program(context: u64, _run: *mut RunContext) -> u64 {
    // SAFETY: the test passes the buffer, of at least one byte.
    0x100 + u64::from(unsafe { *(context as *const u8) })
}

extern "sysv64" fn mix(r1: u64, r2: u64, r3: u64, r4: u64, r5: u64, _run: *mut RunContext) -> u64 {
    [r5, r4, r3, r2, r1].into_iter().fold(0, |mixed: u64, r| mixed.rotate_left(8) ^ r)
}

type Callback = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64, *mut RunContext) -> u64;

/// Calls back with keys 0 to 2 and twice the key as value, until the callback returns non-zero.
unsafe extern "sysv64" fn for_each(
    map: u64,
    callback: u64,
    context: u64,
    _flags: u64,
    _r5: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: compiled code passes the address of a callback; the interpreter, that of its bridge.
    let callback = unsafe { std::mem::transmute::<usize, Callback>(callback as usize) };
    for key in 0..3 {
        // SAFETY: as above.
        if unsafe { callback(map, key, 2 * key, context, 0, run) } != 0 {
            return key + 1;
        }
    }
    3
}

/// For callbacks that the compiler does not know: only reached by compiled code.
unsafe extern "sysv64" fn bpf_loop(
    count: u64,
    callback: u64,
    context: u64,
    _flags: u64,
    _r5: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: compiled code passes the address of a callback.
    let callback = unsafe { std::mem::transmute::<usize, Callback>(callback as usize) };
    for index in 0..u64::from(count as u32) {
        // SAFETY: as above.
        if unsafe { callback(index, context, 0, 0, 0, run) } != 0 {
            return index + 1;
        }
    }
    u64::from(count as u32)
}
