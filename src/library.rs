//! Shared libraries that the configuration names: plugins and backends.
//!
//! What can be wrong with one is found before its code runs, and said so that its user knows what to do.
#![expect(unsafe_code, reason = "what a symbol is, its library alone knows")]

use core::{
    ffi::{CStr, c_int, c_void},
    mem,
};
use std::{fs::File, io::Read as _, path::Path};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// Loads a library, for itself alone; an error is the reason.
///
/// # Safety
/// - The library's constructors may be run.
pub unsafe fn open(path: &Path) -> Result<Library, String> {
    let flags: c_int = RTLD_NOW | RTLD_LOCAL;
    // SAFETY: the caller allows its constructors.
    unsafe { Library::open(Some(path), flags) }.map_err(|error| {
        other_machine(path).unwrap_or_else(|| {
            let source = std::error::Error::source(&error);
            source.map_or_else(|| error.to_string(), ToString::to_string)
        })
    })
}

/// Why a symbol cannot be called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoFunction {
    /// The library has none of this name.
    Absent,
    /// It is data.
    Data,
}

/// A function that the library exports.
///
/// # Safety
/// - `F` is the type of a pointer to that function, if it is one.
pub unsafe fn function<F: Copy>(library: &Library, name: &CStr) -> Result<F, NoFunction> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the symbol is looked at as an address only, as every symbol can be.
    let found = unsafe { library.get::<*mut c_void>(name.to_bytes_with_nul()) };
    let address = found.map_err(|_| NoFunction::Absent)?.into_raw();
    if address.is_null() {
        return Err(NoFunction::Absent);
    }
    if !is_code(address) {
        return Err(NoFunction::Data);
    }
    // SAFETY: the sizes are the same, the address is that of code, and the caller knows the function's type.
    Ok(unsafe { mem::transmute_copy(&address) })
}

/// Whether an address lies in a part of this process's libraries from which code may be run.
fn is_code(address: *const c_void) -> bool {
    unsafe extern "C" fn look(
        object: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        wanted: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes a live description of an object.
        let object = unsafe { &*object };
        if object.dlpi_phdr.is_null() {
            return 0;
        }
        // SAFETY: the object's headers are mapped, `dlpi_phnum` in number.
        let headers =
            unsafe { core::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let found = headers.iter().any(|header| {
            let start = (object.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
            header.p_type == libc::PT_LOAD
                && header.p_flags & libc::PF_X != 0
                && (wanted as usize).wrapping_sub(start) < header.p_memsz as usize
        });
        c_int::from(found)
    }
    // SAFETY: the function reads what the loader gives it, and the address as a number only.
    unsafe { libc::dl_iterate_phdr(Some(look), address.cast_mut()) != 0 }
}

/// A sentence if the file is a library for another machine than the running program: the loader says then that there
/// is no such file.
fn other_machine(path: &Path) -> Option<String> {
    let (theirs, ours) = (machine(path)?, machine(Path::new("/proc/self/exe"))?);
    (theirs != ours).then(|| {
        format!(
            "it is made for another machine ({theirs}, httpd for {ours}): compile it for this one"
        )
    })
}

/// What machine an ELF file is for: class, byte order and number (`EI_CLASS`, `EI_DATA`, `e_machine`).
fn machine(path: &Path) -> Option<String> {
    let mut header = [0; 20];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let bits = if header[4] == 2 { 64 } else { 32 };
    let number = [header[18], header[19]];
    let (order, number) = match header[5] {
        2 => ("big-endian", u16::from_be_bytes(number)),
        _ => ("little-endian", u16::from_le_bytes(number)),
    };
    // elf(5), and /usr/include/elf.h for the others.
    let name = match number {
        3 => "x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "ARM",
        62 => "x86-64",
        183 => "AArch64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return Some(format!("number {number} of ELF, {bits} bits, {order}")),
    };
    Some(format!("{name}, {bits} bits, {order}"))
}

#[cfg(test)]
mod tests {
    use core::ptr;

    use super::*;

    #[test]
    fn code_is_told_from_data() {
        static mut CHANGING: u8 = 0;
        let on_the_heap = Box::new(0_u8);
        assert!(is_code(code_is_told_from_data as fn() as *const c_void));
        assert!(is_code(libc::getpid as *const c_void));
        assert!(!is_code((&raw const CHANGING).cast()));
        assert!(!is_code(ptr::from_ref(&*on_the_heap).cast()));
        assert!(!is_code(ptr::null()));
    }

    #[test]
    fn a_library_names_its_machine() {
        let own = machine(Path::new("/proc/self/exe")).unwrap();
        assert!(own.contains(&format!("{} bits", usize::BITS)), "{own}");
        assert_eq!(other_machine(Path::new("/proc/self/exe")), None);
        assert_eq!(machine(Path::new("/proc/self/status")), None);
        assert_eq!(machine(Path::new("/nowhere")), None);
    }
}
