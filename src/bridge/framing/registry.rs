//! Framings in C: the two functions that libraries find in this module, what they have registered, and its calls.
//!
//! A library registers its framings from a constructor, which runs once for each time that the library is mapped.
//! httpd, however, unmaps what its configuration loaded and maps it anew at every restart. So the library and this module,
//! which has the list, stay mapped from the first registration to the end of the process, and the list stays right.
#![expect(unsafe_code, reason = "framings may be C")]

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr, slice,
};
use std::{
    ffi::CString,
    io::Write as _,
    sync::{Mutex, MutexGuard},
};

use super::{bytes, json, kind, length, separator, whole};
use crate::{
    bridge::{Framing, Piece, abi},
    proto::Kind,
    sync::Lock as _,
};

/// What every constructor of a framing looks like.
type Make = fn(&str) -> Result<Box<dyn Framing>, String>;

/// A framing of this module.
pub(super) struct Builtin {
    /// Its name.
    pub(super) name: &'static str,
    /// Sets one up.
    pub(super) make: Make,
    /// The same for callers in C.
    function: abi::ws_framing,
}

/// Gives a built-in framing its C function.
macro_rules! builtin {
    ($name:literal, $make:path) => {{
        unsafe extern "C" fn function(
            data: *mut u8,
            length: usize,
            last_read: usize,
            opcode: *mut abi::ws_operation,
            framing_data: *mut *mut c_void,
            config: *const c_char,
        ) -> i64 {
            // SAFETY: the caller's promises are those that `serve` asks for.
            unsafe { serve($name, data, length, last_read, opcode, framing_data, config) }
        }
        Builtin { name: $name, make: $make, function }
    }};
}

/// The framings of this module.
pub(super) static BUILTIN: [Builtin; 7] = [
    builtin!("auto", whole::auto),
    builtin!("binary", whole::binary),
    builtin!("separator", separator::separator),
    builtin!("newline", separator::newline),
    builtin!("fixedlength", length::fixed),
    builtin!("dynamic32", length::dynamic),
    builtin!("json", json::json),
];

/// A framing of a library. It is never freed: connections and libraries keep its function.
struct Registered {
    name: String,
    function: abi::ws_framing,
    /// Held during each call: the interface promises that calls of one function do not overlap.
    turn: &'static Mutex<()>,
}

static REGISTERED: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

fn registered() -> MutexGuard<'static, Vec<Registered>> {
    REGISTERED.acquire()
}

/// Adds a framing to the library of framings: `core_register_framing` of `include/websocket_bridge.h`.
///
/// # Safety
/// - `name` is NULL or a string, and `function` NULL or a framing that stays callable as long as its library is mapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn core_register_framing(
    name: *mut c_char,
    function: Option<abi::ws_framing>,
) -> u64 {
    let Some(function) = function else { return 1 };
    if name.is_null() {
        return 1;
    }
    // SAFETY: the caller passes a string.
    let name = unsafe { CStr::from_ptr(name) };
    let Ok(name) = name.to_str() else { return 1 };
    register(name, function);
    0
}

/// Finds a framing by its name: `core_framing` of `include/websocket_bridge.h`. Never NULL: `auto` stands in for what is
/// unknown.
///
/// # Safety
/// - `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn core_framing(name: *mut c_char) -> Option<abi::ws_framing> {
    let name = if name.is_null() {
        c""
    } else {
        // SAFETY: the caller passes a string.
        unsafe { CStr::from_ptr(name) }
    };
    let name = name.to_str().unwrap_or_default();
    let ours = || BUILTIN.iter().find(|b| b.name == name).unwrap_or(&BUILTIN[0]).function;
    Some(function_of(name).unwrap_or_else(ours))
}

fn function_of(name: &str) -> Option<abi::ws_framing> {
    registered().iter().find(|r| r.name == name).map(|r| r.function)
}

fn register(name: &str, function: abi::ws_framing) {
    pin(function as *const c_void, 0);
    pin(core_register_framing as *const c_void, 0);
    let mut list = registered();
    let turn = list.iter().find(|r| same(r.function, function)).map(|r| r.turn);
    let turn = turn.unwrap_or_else(|| Box::leak(Box::new(Mutex::new(()))));
    let entry = Registered { name: name.to_owned(), function, turn };
    let builtin = BUILTIN.iter().any(|b| b.name == name);
    match list.iter_mut().find(|r| r.name == name) {
        Some(old) if same(old.function, function) => return,
        Some(old) => *old = entry,
        None => {
            list.push(entry);
            if !builtin {
                return;
            }
        }
    }
    // A constructor runs while the configuration is read: this is the terminal, or httpd's log.
    let _ = writeln!(std::io::stderr(), "mod_websocket: a library replaces the framing {name}");
}

/// The name under which [`make`](super::make) knows a function that a backend has returned. One that no library has
/// registered gets a name that nobody can write into a configuration.
pub(in crate::bridge) fn name_of(function: abi::ws_framing) -> String {
    let builtin = BUILTIN.iter().find(|b| same(b.function, function));
    // A library may have replaced it: then the name alone would find the other one.
    if let Some(builtin) = builtin.filter(|b| function_of(b.name).is_none()) {
        return builtin.name.to_owned();
    }
    if let Some(known) = registered().iter().find(|r| same(r.function, function)) {
        return known.name.clone();
    }
    let name = format!("\0{:p}", function as *const c_void);
    register(&name, function);
    name
}

fn same(a: abi::ws_framing, b: abi::ws_framing) -> bool {
    ptr::fn_addr_eq(a, b)
}

/// A registered framing, set up for a connection; `None` if no library has one of this name.
pub(super) fn make_registered(
    name: &str,
    config: Option<&str>,
) -> Option<Result<Box<dyn Framing>, String>> {
    let list = registered();
    let found = list.iter().find(|r| r.name == name)?;
    let Ok(config) = config.map(CString::new).transpose() else {
        return Some(Err(format!("the configuration of the framing {name} has a NUL byte")));
    };
    let (function, turn) = (found.function, found.turn);
    Some(Ok(Box::new(Foreign { function, turn, config, data: ptr::null_mut(), last_read: 0 })))
}

/// Keeps the library that contains `address` mapped to the end of the process; `more` are further flags of dlopen.
pub(in crate::bridge) fn pin(address: *const c_void, more: c_int) {
    // SAFETY: plain data, for which all zeroes are a value.
    let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
    // SAFETY: dladdr takes any address and fills `info` in.
    if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return;
    }
    // NOLOAD: it is mapped, so this changes its flags only. It fails for the program itself, which needs no pin.
    let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE | more;
    // SAFETY: dladdr gave a string; nothing is loaded, so no constructor runs.
    unsafe { libc::dlopen(info.dli_fname, flags) };
}

/// A connection's use of a framing in C.
struct Foreign {
    function: abi::ws_framing,
    turn: &'static Mutex<()>,
    config: Option<CString>,
    /// The framing's own, for this connection.
    data: *mut c_void,
    /// How many bytes of the last read are in the buffer.
    last_read: usize,
}

// SAFETY: the interface says that calls for one connection may come from different threads, one at a time.
unsafe impl Send for Foreign {}

impl Foreign {
    fn config(&self) -> *const c_char {
        self.config.as_ref().map_or(ptr::null(), |config| config.as_ptr())
    }
}

impl Framing for Foreign {
    fn next(&mut self, data: &mut [u8], fresh: usize) -> Piece {
        let length = bytes(data).len();
        self.last_read = if fresh > 0 { fresh } else { self.last_read }.min(length);
        // The interface's default, for each message anew.
        let mut opcode = abi::ws_frame_binary;
        let taken = {
            let _turn = self.turn.acquire();
            let (config, last_read) = (self.config(), self.last_read);
            // SAFETY: the library is pinned. The arguments are what the interface promises: `length` bytes that may be
            // changed and a NUL byte, this connection's own pointer, and a string or NULL.
            unsafe {
                (self.function)(
                    data.as_mut_ptr(),
                    length,
                    last_read,
                    &raw mut opcode,
                    &raw mut self.data,
                    config,
                )
            }
        };
        let taken = match usize::try_from(taken) {
            Ok(0) => return Piece::Wait,
            Ok(taken) if taken <= length => taken,
            Ok(_) => return Piece::Broken("The framing took more than there is"),
            Err(_) => return Piece::Broken("The framing failed"),
        };
        match opcode {
            // What is not text must not be sent as text (RFC 6455 §8.1).
            abi::ws_frame_text => Piece::Message(kind(&data[..taken]), taken),
            abi::ws_frame_binary => Piece::Message(Kind::Binary, taken),
            abi::ws_frame_discard => Piece::Discard(taken),
            _ => Piece::Broken("The framing chose no type of message"),
        }
    }

    fn finish(&mut self, data: &mut [u8]) -> Piece {
        super::all_binary(data)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if self.data.is_null() {
            return;
        }
        let _turn = self.turn.acquire();
        let config = self.config();
        // SAFETY: this is the call by which the interface lets a framing free what it keeps; the last one.
        unsafe {
            (self.function)(ptr::null_mut(), 0, 0, ptr::null_mut(), &raw mut self.data, config)
        };
    }
}

/// A built-in framing, called from C: a library may wrap what `core_framing` gave it. The state is a boxed [`Framing`]
/// behind `framing_data`.
///
/// # Safety
/// - As the interface says: `data` is NULL, or `length` writable bytes and a NUL byte; `opcode` may be written then.
/// - `framing_data` is this connection's pointer: NULL, or what an earlier call for the same framing left there.
/// - `config` is NULL or a string.
unsafe fn serve(
    name: &str,
    data: *mut u8,
    length: usize,
    last_read: usize,
    opcode: *mut abi::ws_operation,
    framing_data: *mut *mut c_void,
    config: *const c_char,
) -> i64 {
    if framing_data.is_null() {
        return -1;
    }
    // SAFETY: the caller passes a pointer to the connection's pointer.
    let kept = unsafe { &mut *framing_data }.cast::<Box<dyn Framing>>();
    if data.is_null() {
        if !kept.is_null() {
            // SAFETY: the pointer came from `into_raw` below and is forgotten.
            drop(unsafe { Box::from_raw(kept) });
            // SAFETY: as above.
            unsafe { *framing_data = ptr::null_mut() };
        }
        return 0;
    }
    let kept = if kept.is_null() {
        let config = if config.is_null() {
            c""
        } else {
            // SAFETY: the caller passes a string.
            unsafe { CStr::from_ptr(config) }
        };
        let builtin = BUILTIN.iter().find(|b| b.name == name);
        let made = config.to_str().ok().and_then(|config| (builtin?.make)(config).ok());
        let Some(framing) = made else { return -1 };
        let kept = Box::into_raw(Box::new(framing));
        // SAFETY: as above.
        unsafe { *framing_data = kept.cast() };
        kept
    } else {
        kept
    };
    // SAFETY: the pointer came from `into_raw`, and calls for one connection do not overlap.
    let framing = unsafe { &mut *kept };
    // SAFETY: the caller passes `length` bytes and the NUL byte behind them.
    let data = unsafe { slice::from_raw_parts_mut(data, length + 1) };
    let (taken, operation) = match framing.next(data, last_read) {
        Piece::Wait => return 0,
        Piece::Message(Kind::Text, n) => (n, abi::ws_frame_text),
        Piece::Message(Kind::Binary, n) => (n, abi::ws_frame_binary),
        Piece::Discard(n) => (n, abi::ws_frame_discard),
        Piece::Broken(_) => return -1,
    };
    if !opcode.is_null() {
        // SAFETY: the caller passes a place for it.
        unsafe { *opcode = operation };
    }
    taken as i64
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::bridge::framing::{
        make,
        tests::{check, messages},
    };

    /// Two bytes a message: text, binary, discarded or nonsense, as the first one says; counts what it keeps.
    unsafe extern "C" fn pairs(
        data: *mut u8,
        length: usize,
        last_read: usize,
        opcode: *mut abi::ws_operation,
        framing_data: *mut *mut c_void,
        config: *const c_char,
    ) -> i64 {
        static KEPT: AtomicUsize = AtomicUsize::new(0);
        if data.is_null() {
            assert!(opcode.is_null() && length == 0);
            // SAFETY: the wrapper passes the connection's pointer.
            assert_eq!(unsafe { *framing_data }, (&raw const KEPT).cast_mut().cast());
            KEPT.fetch_sub(1, Ordering::SeqCst);
            return 0;
        }
        // SAFETY: as above.
        if unsafe { *framing_data }.is_null() {
            KEPT.fetch_add(1, Ordering::SeqCst);
            // SAFETY: as above.
            unsafe { *framing_data = (&raw const KEPT).cast_mut().cast() };
        }
        assert!(last_read >= 1 && last_read <= length);
        // SAFETY: the wrapper passes the bytes and a NUL byte.
        let data = unsafe { slice::from_raw_parts(data, length + 1) };
        assert_eq!(data[length], 0);
        // SAFETY: the wrapper passes a place for it.
        let opcode = unsafe { &mut *opcode };
        assert_eq!(*opcode, abi::ws_frame_binary);
        if length < 2 {
            return 0;
        }
        match data[0] {
            b't' => *opcode = abi::ws_frame_text,
            b'd' => *opcode = abi::ws_frame_discard,
            b'p' => *opcode = abi::ws_frame_ping,
            b'-' => return -1,
            b'+' => return length as i64 + 1,
            b'?' if !config.is_null() => {
                // SAFETY: the wrapper passes NULL or a string.
                return unsafe { CStr::from_ptr(config) }.count_bytes() as i64;
            }
            _ => (),
        }
        2
    }

    fn name(name: &CStr) -> *mut c_char {
        name.as_ptr().cast_mut()
    }

    #[test]
    fn a_registered_framing_is_called_as_the_interface_says() {
        // SAFETY: a string and a function.
        assert_eq!(unsafe { core_register_framing(name(c"pairs"), Some(pairs)) }, 0);
        check(
            "pairs",
            "x",
            b"t1b2t3d4x5t\xff7",
            &[('t', b"t1"), ('b', b"b2"), ('t', b"t3"), ('b', b"x5"), ('b', b"t\xff"), ('b', b"7")],
        );
        for (config, piece) in [
            (None, Piece::Message(Kind::Binary, 2)),
            (Some(""), Piece::Wait),
            (Some("x"), Piece::Message(Kind::Binary, 1)),
        ] {
            let mut pairs = make("pairs", config).unwrap();
            assert_eq!(pairs.next(&mut b"??\0".to_owned(), 2), piece, "{config:?}");
        }
        for (data, reason) in [("-x", "failed"), ("+x", "took more"), ("px", "no type")] {
            let mut data = [data.as_bytes(), b"\0"].concat();
            match make("pairs", None).unwrap().next(&mut data, 2) {
                Piece::Broken(why) => assert!(why.contains(reason), "{why}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(name_of(pairs), "pairs");
    }

    #[test]
    fn registering_checks_its_arguments() {
        // SAFETY: NULL or a string, which need not be UTF-8.
        let register = |name, function| unsafe { core_register_framing(name, function) };
        assert_eq!(register(ptr::null_mut(), Some(pairs)), 1);
        assert_eq!(register(name(c"nothing"), None), 1);
        assert_eq!(register(name(c"\xff"), Some(pairs)), 1);
        assert!(make("nothing", None).is_err());
    }

    #[test]
    fn an_unregistered_function_gets_a_name_of_its_own() {
        unsafe extern "C" fn all(
            _: *mut u8,
            length: usize,
            _: usize,
            _: *mut abi::ws_operation,
            _: *mut *mut c_void,
            _: *const c_char,
        ) -> i64 {
            length as i64
        }
        let name = name_of(all);
        assert_eq!(name, name_of(all));
        assert_eq!(
            messages(&name, "", &[b"ab", b"c"]),
            [('b', b"ab".to_vec()), ('b', b"c".to_vec())]
        );
    }

    #[test]
    fn built_in_framings_can_be_found_and_called_from_c() {
        // SAFETY: strings or NULL.
        let find = |name: *mut c_char| unsafe { core_framing(name) }.expect("it is never NULL");
        assert_eq!(name_of(find(ptr::null_mut())), "auto");
        assert_eq!(name_of(find(name(c"no such"))), "auto");
        for builtin in &BUILTIN {
            let wanted = CString::new(builtin.name).unwrap();
            assert_eq!(name_of(find(name(&wanted))), builtin.name);
        }
        // A library that registers what it found has the framing under another name.
        assert_eq!(unsafe_register(c"lines", find(name(c"newline"))), 0);
        check("lines", "lf", b"a\n\xff\nb", &[('t', b"a\n"), ('b', b"\xff\n"), ('b', b"b")]);
        let mut wrong = make("lines", Some("xy")).unwrap();
        assert_eq!(wrong.next(&mut b"a\0".to_owned(), 1), Piece::Broken("The framing failed"));
    }

    fn unsafe_register(to: &CStr, function: abi::ws_framing) -> u64 {
        // SAFETY: a string and a function.
        unsafe { core_register_framing(name(to), Some(function)) }
    }
}
