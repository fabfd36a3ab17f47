//! Backends in libraries, compiled from `test/plugins`: what they are given, and what becomes of what they return.
//!
//! The libraries find `core_framing` in this program, which exports it as the module does (`build.rs`).
#![allow(unsafe_code, reason = "backends and framings may be C")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use mod_websocket::bridge::{
    PeerChoice, Piece,
    backend::{Backend, Query, open},
    framing::{self, registry},
};
use mod_websocket::proto::Kind;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const KEY: (&str, &str) = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");

/// The libraries and their trail, for one test at a time.
struct Bench {
    trail: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        let trail = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trail");
        let _ = fs::remove_file(&trail);
        // SAFETY: this turn is the only one that reads or writes the environment.
        unsafe { env::set_var("WEBSOCKET_DEBUG_TRAIL", &trail) };
        Self { trail, _turn: turn }
    }

    /// What the libraries have written since the last time.
    fn trail(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.trail).unwrap_or_default();
        let _ = fs::remove_file(&self.trail);
        text.lines().map(str::to_owned).collect()
    }
}

/// Compiles a library of `test/plugins`; `name` is also that of the copy, for tests that need one.
fn compile(source: &str, name: &str) -> PathBuf {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.so"));
    // Renamed into its place: another process may have the old one mapped.
    let fresh = library.with_extension(format!("{}", std::process::id()));
    let mut command = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command.args(["-D_POSIX_C_SOURCE=200809L", "-shared", "-fPIC", "-I"]);
    command.arg(Path::new(ROOT).join("include")).arg("-o").arg(&fresh);
    command.arg(Path::new(ROOT).join(format!("test/plugins/{source}.c")));
    assert!(command.status().expect("the C compiler runs").success());
    fs::rename(&fresh, &library).expect("the library can be moved");
    library
}

fn load(
    library: &Path,
    options: &[(&str, &str)],
    parallel: bool,
) -> Result<Arc<dyn Backend>, String> {
    let options: Vec<_> =
        options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let name = library.to_str().expect("the path is UTF-8");
    open(name, &options, Path::new("/"), parallel)
}

/// The sentence with which a configuration is refused.
fn refused(library: &Path, options: &[(&str, &str)]) -> String {
    load(library, options, false).err().expect("it is refused")
}

fn ask(backend: &dyn Backend, endpoint: &str) -> Result<Option<PeerChoice>, String> {
    backend.query(&Query { endpoint, protocols: &[], headers: &[KEY] })
}

#[test]
fn a_library_is_set_up_asked_and_cleaned_up() {
    let bench = Bench::new();
    let library = compile("backend_debug", "backend_life");
    let options =
        [("host", "tcp://h"), ("port", "7"), ("framing", "newline"), ("framing-config", "lf")];
    let backend = load(&library, &options, false).unwrap();
    assert_eq!(
        bench.trail(),
        [
            "init 1",
            "configure host=tcp://h",
            "configure port=7",
            "configure framing=newline",
            "configure framing-config=lf"
        ]
    );
    let headers = [
        ("Host", "x"),
        ("upgrade", "websocket"),
        ("Connection", "Upgrade"),
        KEY,
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", "a, b"),
        ("Cookie", "c=d"),
    ];
    let query = Query { endpoint: "/p?q", protocols: &["a", "b"], headers: &headers };
    let target = backend.query(&query).unwrap().unwrap();
    assert_eq!(
        target,
        PeerChoice {
            peer: "tcp://h:7".into(),
            framing: "newline".into(),
            framing_config: Some("lf".into()),
            protocol: Some(1),
        }
    );
    assert_eq!(
        bench.trail(),
        [
            "query /p?q",
            "protocol a",
            "protocol b",
            "header Host=x",
            "header Cookie=c=d",
            "socket -1 -1 1 13 1 dGhlIHNhbXBsZSBub25jZQ== 2 2 /p?q",
            "now 0"
        ]
    );
    // None of 0 subprotocols is chosen.
    assert_eq!(ask(&*backend, "/").unwrap().unwrap().protocol, None);
    assert_eq!(ask(&*backend, "/none"), Ok(None));
    let error = ask(&*backend, "/fifo").unwrap_err();
    assert!(error.contains("backend_life.so") && error.contains("transport 3"), "{error}");
    bench.trail();
    drop(backend);
    assert_eq!(bench.trail(), ["cleanup"]);
    // It has been unloaded: the count of inits starts anew.
    drop(load(&library, &[], false).unwrap());
    assert_eq!(bench.trail(), ["init 1", "cleanup"]);
}

#[test]
fn more_headers_than_the_connection_has_room_for_are_passed() {
    let bench = Bench::new();
    let library = compile("backend_debug", "backend_many");
    let backend = load(&library, &[], false).unwrap();
    let headers = [("X", "y"); 25];
    let query = Query { endpoint: "/", protocols: &[], headers: &headers };
    assert_eq!(backend.query(&query), Ok(None));
    let trail = bench.trail();
    assert_eq!(trail.iter().filter(|line| *line == "header X=y").count(), 25);
    assert!(trail.contains(&"socket -1 -1 1 13 1 - 10 0 /".to_owned()), "{trail:?}");
}

#[test]
fn one_library_has_one_set_of_options() {
    let bench = Bench::new();
    let library = compile("backend_debug", "backend_shared");
    let link = library.with_file_name("backend_link.so");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&library, &link).unwrap();
    let first = load(&library, &[("host", "a:1")], false).unwrap();
    let second = load(&link, &[("host", "a:1")], false).unwrap();
    assert_eq!(bench.trail(), ["init 1", "configure host=a:1"]);
    for error in [refused(&library, &[("host", "b:1")]), refused(&link, &[])] {
        assert!(error.contains("in use with other options"), "{error}");
    }
    drop(first);
    assert_eq!(ask(&*second, "/").unwrap().unwrap().peer, "tcp://a:1");
    bench.trail();
    drop(second);
    assert_eq!(bench.trail(), ["cleanup"]);
    let third = load(&library, &[("host", "b:1")], false).unwrap();
    assert_eq!(ask(&*third, "/").unwrap().unwrap().peer, "tcp://b:1");
}

#[test]
fn queries_take_turns_unless_the_library_needs_none() {
    let bench = Bench::new();
    let library = compile("backend_debug", "backend_turns");
    for parallel in [false, true] {
        let backend = load(&library, &[("lag", "50")], parallel).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| ask(&*backend, "/none").unwrap());
            }
        });
        let overlaps = bench.trail().contains(&"overlap".to_owned());
        assert_eq!(overlaps, parallel);
    }
}

#[test]
fn a_wrong_library_or_option_is_refused() {
    let bench = Bench::new();
    let library = compile("backend_debug", "backend_wrong");
    let error = refused(&library, &[("host", "x"), ("colour", "red")]);
    assert!(error.contains("backend_wrong.so: it refuses the option 'colour'"), "{error}");
    assert_eq!(bench.trail().last().map(String::as_str), Some("cleanup"));
    let error = refused(Path::new("/no/such.so"), &[]);
    assert!(error.contains("/no/such.so") && error.contains("No such file"), "{error}");
    let error = refused(&compile("framing_words", "framing_no_backend"), &[]);
    assert!(error.contains("exports no function init"), "{error}");
    let error = refused(&compile("backend_version", "backend_version"), &[]);
    assert!(error.contains("interface version 2, this module knows version 1"), "{error}");
}

#[test]
fn a_function_that_nobody_has_registered_can_be_a_framing() {
    let _bench = Bench::new();
    let library = compile("backend_debug", "backend_own");
    let backend = load(&library, &[("host", "unix:///x")], false).unwrap();
    let target = ask(&*backend, "/own").unwrap().unwrap();
    assert_eq!(target.peer, "unix:///x");
    let mut framing = framing::make(&target.framing, target.framing_config.as_deref()).unwrap();
    assert_eq!(framing.next(&mut b"abc\0".to_owned(), 3), Piece::Message(Kind::Text, 3));
    // The function stays when the backend goes.
    drop(backend);
    assert_eq!(framing.next(&mut b"abc\0".to_owned(), 3), Piece::Message(Kind::Text, 3));
}

#[test]
fn a_binary_of_websocksys_time_works() {
    let _bench = Bench::new();
    let library = compile("backend_old", "backend_old");
    let backend = load(&library, &[("tag", "X-End")], false).unwrap();
    let headers = [("Host", "x"), KEY, ("X-End", ";")];
    let query = Query { endpoint: "/a/7001", protocols: &["p"], headers: &headers };
    let target = backend.query(&query).unwrap().unwrap();
    assert_eq!(
        target,
        PeerChoice {
            peer: "tcp://127.0.0.1:7001".into(),
            framing: "old".into(),
            framing_config: Some(";".into()),
            protocol: None,
        }
    );
    assert_eq!(ask(&*backend, "/"), Ok(None));
    let mut framing = framing::make("old", Some(";")).unwrap();
    assert_eq!(framing.next(&mut b"a;b;c\0".to_owned(), 5), Piece::Message(Kind::Text, 2));
    assert_eq!(framing.next(&mut b"b;c\0".to_owned(), 0), Piece::Message(Kind::Binary, 2));
    assert_eq!(framing.next(&mut b"c\0".to_owned(), 0), Piece::Wait);
    assert_eq!(framing.finish(&mut b"c\0".to_owned()), Piece::Message(Kind::Binary, 1));
    drop(framing);
    // It has registered a framing, so it stays: it can be set up again, and the framing goes on.
    drop(backend);
    let backend = load(&library, &[], false).unwrap();
    assert_eq!(ask(&*backend, "/1").unwrap().unwrap().framing_config, None);
    assert!(framing::make("old", None).is_ok());
}

#[test]
fn a_library_of_framings_registers_when_it_is_loaded() {
    let bench = Bench::new();
    let library = compile("framing_words", "framing_words");
    for _ in 0..3 {
        // As httpd's LoadFile does: opened, and closed when the configuration goes away.
        // SAFETY: the library's constructors are ours.
        drop(unsafe { libloading::Library::new(&library) }.unwrap());
    }
    assert_eq!(bench.trail(), [format!("framings {}", std::process::id())]);
    let mut framing = framing::make("words", Some("count")).unwrap();
    let mut data = b"-drop #bin t\xe9xt text rest\0".to_owned();
    let table = [
        (0, Piece::Discard(6), &b"1drop "[..]),
        (6, Piece::Message(Kind::Binary, 5), b"2bin "),
        (11, Piece::Message(Kind::Binary, 5), b"3\xe9xt "),
        (16, Piece::Message(Kind::Text, 5), b"4ext "),
        (21, Piece::Wait, b"rest"),
    ];
    for (from, piece, bytes) in table {
        let fresh = if from == 0 { data.len() - 1 } else { 0 };
        assert_eq!(framing.next(&mut data[from..], fresh), piece);
        assert_eq!(&data[from..from + bytes.len()], bytes);
    }
    drop(framing);
    assert_eq!(bench.trail(), ["words 4"]);
    let mut broken = framing::make("words", None).unwrap();
    assert_eq!(broken.next(&mut b"!x \0".to_owned(), 3), Piece::Broken("The framing failed"));
    let mut lines = framing::make("lines", Some("crlf")).unwrap();
    assert_eq!(lines.next(&mut b"a\r\0".to_owned(), 2), Piece::Wait);
    assert_eq!(lines.next(&mut b"a\r\nb\0".to_owned(), 2), Piece::Message(Kind::Text, 3));
}

#[test]
fn this_program_exports_what_libraries_look_up() {
    assert!(registry::core_framing as *const () as usize != 0);
    // SAFETY: a search of what is loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"core_register_framing".as_ptr()) };
    assert!(!found.is_null());
}
