//! Functions of the process that programs call: where they are, and whether they can be called.
//!
//! The code that calls one has its address for as long as the program is in force: it must not be unmapped before the process ends.

use crate::files::MappedFile;
use crate::ingredients::Ingredients;
use crate::request::{HostFunctionRequest, ProgramRequest};
use beeline_site::{Binary, resolve};
use beeline_stub::HostCall;
use std::collections::BTreeSet;

impl Ingredients<'_> {
    /// How the program's functions of the process are called, in its order.
    ///
    /// # Errors
    /// Why one of them cannot be called.
    pub(crate) fn host_calls(&self, program: &ProgramRequest) -> Result<Vec<HostCall>, String> {
        if program.host_functions.is_empty() {
            return Ok(Vec::new());
        }
        let fail = |function: &HostFunctionRequest, reason: &str| {
            format!("program {} calls host function {}: {reason}", program.name, function.name)
        };
        if let Some(first) = program.host_functions.first() {
            self.can_call_hosts().map_err(|reason| fail(first, reason))?;
        }
        let errno_location = self.errno_location();
        let call = |function: &HostFunctionRequest| {
            let address = self.address_of_host(function).map_err(|reason| fail(function, &reason))?;
            let (args, returns) = (function.args.clone(), function.returns);
            Ok(HostCall { function: address, args, returns, errno_location })
        };
        program.host_functions.iter().map(call).collect()
    }

    fn can_call_hosts(&self) -> Result<(), &'static str> {
        if self.small_stacks {
            return Err("its stacks are too small for functions of C");
        }
        if !std::arch::is_x86_feature_detected!("xsave") {
            return Err("this CPU cannot save the registers that a function may change (xsave)");
        }
        Ok(())
    }

    fn address_of_host(&self, function: &HostFunctionRequest) -> Result<u64, String> {
        let path = function.file.path.display();
        let mut files = self.files.matching(&function.file, self.process).into_iter();
        let file = files.next().ok_or_else(|| format!("{path} is not mapped"))?;
        file.check(&function.file, self.process)?;
        if !self.stays_mapped(file) {
            return Err(format!(
                "{path} can be unloaded under it: it is neither the program, nor a library that the program needs from its start, \
                 nor marked to stay (-z nodelete)"
            ));
        }
        let binary = file.binary(self.process)?;
        let resolved = resolve(binary, &function.location).map_err(|error| error.to_string())?;
        match (file.addresses(resolved.file_offset).as_slice(), files.next()) {
            ([address], None) => Ok(*address),
            ([], _) => Err(format!("that part of {path} is not mapped executable")),
            _ => Err(format!("{path} is mapped several times: it is not clear which is meant")),
        }
    }

    /// The file is mapped as long as the process executes its program: `dlclose` unmaps neither the program nor what it needs.
    fn stays_mapped(&self, file: &MappedFile) -> bool {
        let Some(program) = self.executable() else { return false };
        if std::ptr::eq(program, file) || file.binary(self.process).is_ok_and(Binary::is_never_unloaded) {
            return true;
        }
        let mut ahead = vec![program];
        let mut seen = BTreeSet::new();
        while let Some(next) = ahead.pop() {
            let needed = next.binary(self.process).map_or(&[][..], Binary::needed);
            for name in needed.iter().filter(|name| seen.insert(name.as_str())) {
                let is_it = |file: &&MappedFile| {
                    file.file_name() == name
                        || file.binary(self.process).is_ok_and(|binary| binary.soname() == Some(name))
                };
                ahead.extend(self.files.iter().filter(is_it));
            }
            if std::ptr::eq(next, file) {
                return true;
            }
        }
        false
    }

    /// The program's own file.
    fn executable(&self) -> Option<&MappedFile> {
        const AT_ENTRY: u64 = 9;
        self.files.at(self.process.auxiliary(AT_ENTRY).ok().flatten()?)
    }

    /// `int *__errno_location(void)` of the C library, or of a program that holds one; 0 when there is none.
    fn errno_location(&self) -> u64 {
        let of = |file: &MappedFile| {
            let binary = file.binary(self.process).ok()?;
            let symbol = binary.symbols().named("__errno_location").into_iter().next()?;
            file.addresses(binary.file_offset_of(symbol.vaddr)?).first().copied()
        };
        let library = self.files.iter().filter(|file| file.is_libc()).find_map(of);
        library.or_else(|| of(self.executable()?)).unwrap_or(0)
    }
}
