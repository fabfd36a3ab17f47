//! The Rust mirrors of `include/*.h` against what a C compiler makes of the headers.
//!
//! `abi.c` and `bridge_abi.c` print the layouts one fact a line. Both lists must be the same set: a line that only one
//! side has is a failure, so a member cannot be added to a header, its program or its mirror alone.

use core::mem::{offset_of, size_of};
use std::{collections::BTreeSet, fs, path::Path, process::Command};

#[path = "../../src/plugin/abi.rs"]
mod abi;
#[path = "../../src/bridge/abi.rs"]
mod bridge_abi;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The size and the offsets of a structure.
macro_rules! layout {
    ($facts:ident, $abi:ident::$type:ident { $($member:ident),* $(,)? }) => {
        // Names each member, so that a new one fails to compile until it is listed.
        let _ = |$abi::$type { $($member: _),* }: $abi::$type| {};
        $facts.insert(format!("sizeof {} {}", stringify!($type), size_of::<$abi::$type>()));
        $($facts.insert(format!(
            "offsetof {} {} {}",
            stringify!($type),
            stringify!($member),
            offset_of!($abi::$type, $member)
        ));)*
    };
}

/// The values of constants.
macro_rules! values {
    ($facts:ident, $abi:ident::{ $($name:ident),* $(,)? }) => {
        $($facts.insert(format!("value {} {}", stringify!($name), $abi::$name));)*
    };
}

/// The facts that `abi.c` prints, as the mirror has them.
fn mirror() -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    layout!(
        facts,
        abi::WebSocketServer {
            size,
            version,
            state,
            request,
            header_get,
            header_set,
            protocol_count,
            protocol_index,
            protocol_set,
            send,
            close,
        }
    );
    layout!(
        facts,
        abi::WebSocketPlugin { size, version, destroy, on_connect, on_message, on_disconnect }
    );
    values!(facts, abi::{
        MESSAGE_TYPE_INVALID,
        MESSAGE_TYPE_TEXT,
        MESSAGE_TYPE_BINARY,
        MESSAGE_TYPE_CLOSE,
        MESSAGE_TYPE_PING,
        MESSAGE_TYPE_PONG,
        WEBSOCKET_SERVER_VERSION_1,
        WEBSOCKET_PLUGIN_VERSION_0,
    });
    facts
}

/// The facts that `bridge_abi.c` prints, as the mirror has them.
fn bridge_mirror() -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    layout!(facts, bridge_abi::ws_http_header { tag, value });
    layout!(
        facts,
        bridge_abi::ws_peer_info { transport, host, port, framing, framing_config, protocol }
    );
    layout!(
        facts,
        bridge_abi::websocket {
            ws_fd,
            read_buffer,
            read_buffer_offset,
            state,
            last_event,
            headers,
            header,
            request_path,
            websocket_version,
            socket_key,
            want_upgrade,
            protocols,
            protocol,
            peer,
            peer_fd,
            peer_buffer,
            peer_buffer_offset,
            peer_framing_data,
        }
    );
    layout!(facts, bridge_abi::ws_backend { init, config, query, cleanup });
    for name in ["ws_state", "ws_operation", "peer_transport"] {
        facts.insert(format!("sizeof {name} {}", size_of::<bridge_abi::ws_operation>()));
    }
    values!(facts, bridge_abi::{
        WEBSOCKSY_API_VERSION,
        WS_MAX_LINE,
        PEER_BUFFER_SIZE,
        WS_HEADER_LIMIT,
        ws_new,
        ws_http,
        ws_open,
        ws_closed,
        ws_frame_continuation,
        ws_frame_text,
        ws_frame_binary,
        ws_frame_close,
        ws_frame_ping,
        ws_frame_pong,
        ws_frame_discard,
        peer_transport_detect,
        peer_tcp_client,
        peer_udp_client,
        peer_fifo_tx,
        peer_fifo_rx,
        peer_unix_stream,
        peer_unix_dgram,
    });
    facts
}

/// The compiler for this machine (`CC`, `CXX` and their flags count), ready to read the header.
fn compiler(cpp: bool) -> Command {
    let rustc = Command::new(option_env!("RUSTC").unwrap_or("rustc")).arg("-vV").output();
    let about = String::from_utf8(rustc.expect("rustc runs").stdout).expect("rustc writes UTF-8");
    let host =
        about.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc has a host");
    // No build script runs here, so nothing else tells cc what it would have learnt from cargo.
    let tool = cc::Build::new()
        .cargo_metadata(false)
        .target(host)
        .host(host)
        .opt_level(0)
        .cpp(cpp)
        .get_compiler();
    let mut command = tool.to_command();
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    command.arg("-I").arg(Path::new(ROOT).join("include"));
    command
}

/// Runs `command` to its successful end and returns what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// Compares what the program in `source` prints with a mirror.
fn same_layout(source: &str, mirror: &BTreeSet<String>) {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(source.trim_end_matches(".c"));
    run(compiler(false)
        .arg(Path::new(ROOT).join(format!("test/cargo/{source}")))
        .arg("-o")
        .arg(&program));
    let printed = run(&mut Command::new(&program));
    let header: BTreeSet<String> = printed.lines().map(str::to_owned).collect();
    assert_eq!(printed.lines().count(), header.len(), "{source} prints a line twice");
    let only_c: Vec<_> = header.difference(mirror).collect();
    let only_rust: Vec<_> = mirror.difference(&header).collect();
    assert!(
        only_c.is_empty() && only_rust.is_empty(),
        "only in C: {only_c:#?}\nonly in Rust: {only_rust:#?}"
    );
}

#[test]
fn the_mirrors_have_the_layout_of_the_headers() {
    same_layout("abi.c", &mirror());
    same_layout("bridge_abi.c", &bridge_mirror());
}

#[test]
fn the_mirror_has_each_constant_of_the_header() {
    let header = fs::read_to_string(Path::new(ROOT).join("include/websocket_plugin.h"));
    let header = header.expect("the header is there");
    let defined: BTreeSet<&str> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_whitespace().next())
        .filter(|name| name.starts_with("MESSAGE_TYPE_") || name.contains("_VERSION_"))
        .collect();
    let mirror = mirror();
    let mirrored =
        mirror.iter().filter_map(|fact| fact.strip_prefix("value ")?.split(' ').next()).collect();
    assert_eq!(defined, mirrored);
}

#[test]
fn the_headers_are_c89_c99_c11_and_cpp() {
    for header in ["include/websocket_plugin.h", "include/websocket_bridge.h"] {
        let header = Path::new(ROOT).join(header);
        for standard in ["-std=c89", "-std=c99", "-std=c11"] {
            run(compiler(false).args([standard, "-fsyntax-only", "-x", "c"]).arg(&header));
        }
        for standard in ["-std=c++98", "-std=c++17"] {
            run(compiler(true).args([standard, "-fsyntax-only", "-x", "c++"]).arg(&header));
        }
    }
}
