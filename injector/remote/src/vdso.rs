//! The kernel's code in every process.

use crate::error::RemoteError;
use crate::maps::Mappings;
use crate::process::Process;
use object::{Object, ObjectSymbol};

/// The address of a function of the vDSO, like `__vdso_clock_gettime`; none when there is no vDSO or no such function.
///
/// # Errors
/// When the process cannot be read.
pub fn symbol(process: &Process, maps: &Mappings, name: &str) -> Result<Option<u64>, RemoteError> {
    let Some(mapping) = maps.named("[vdso]") else { return Ok(None) };
    let image = process.memory().read_vec(mapping.start, mapping.len() as usize)?;
    let Ok(file) = object::File::parse(&*image) else { return Ok(None) };
    let found = file.dynamic_symbols().find(|symbol| symbol.name() == Ok(name) && symbol.is_definition());
    Ok(found.and_then(|symbol| mapping.start.checked_add(symbol.address())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_vdso() {
        let process = Process::open(std::process::id() as i32, false).unwrap();
        let maps = process.maps().unwrap();
        let address = symbol(&process, &maps, "__vdso_clock_gettime").unwrap().unwrap();
        assert!(maps.named("[vdso]").unwrap().holds(address));
        assert_eq!(symbol(&process, &maps, "absent").unwrap(), None);
    }
}
