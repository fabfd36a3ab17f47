//! The directives. A new one is a row in the table below, and the field of [`Settings`](crate::settings::Settings), or of
//! [`Server`], that it sets; docs/directives.md and conf/websocket.conf are checked against the table.
//!
//! | file | owns |
//! |---|---|
//! | this one | the table |
//! | `setters.rs` | what directives do that takes more than a line |
//! | `words.rs` | sizes, times, numbers and choices |
//! | `parms.rs` | how httpd calls a directive |
//! | `section.rs` | the settings that directives make, and their life |

mod parms;
mod section;
mod setters;
mod words;

use core::{
    ffi::{CStr, c_int},
    ptr,
};

use super::sys;
use crate::{
    channel::{SlowClient, settings::Publishers},
    settings::Detach,
};

pub(super) use self::section::{
    Section, Server, Target, check, create_dir, create_server, doubts, merge_dir, section,
    section_of, server,
};
use self::{
    parms::{Parms, cmd_flag, cmd_one, cmd_two},
    words::{choice, duration, duration_or_off, number, on, size},
};

/// Legal in server configuration and in sections, but not in .htaccess files.
const ADMIN: u32 = sys::RSRC_CONF | sys::ACCESS_CONF;
/// Legal in .htaccess files too, with `AllowOverride AuthConfig`.
const ANYONE: u32 = sys::RSRC_CONF | sys::OR_AUTHCFG;
/// Legal in the main server's configuration only.
const GLOBAL: u32 = sys::RSRC_CONF;

/// A directive's own part: takes its words and changes the section, or says what is wrong with them.
type Setter = fn(Parms<'_>, &mut Section, &[&str]) -> Result<(), String>;

/// Sets a field to what the words mean.
fn set<T>(field: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *field = Some(value?);
    Ok(())
}

/// A table that httpd reads; it never changes.
#[repr(transparent)]
pub(super) struct Commands<const N: usize>([sys::command_rec; N]);

// SAFETY: httpd only reads the table, and nothing in it changes.
unsafe impl<const N: usize> Sync for Commands<N> {}

impl<const N: usize> Commands<N> {
    pub(super) const fn as_ptr(&self) -> *const sys::command_rec {
        self.0.as_ptr()
    }
}

/// The arguments that a directive takes, as httpd's macros of these names have them.
#[derive(Clone, Copy)]
enum Arguments {
    /// One.
    Take1,
    /// Two.
    Take2,
    /// One, or two.
    Take12,
    /// One or more, for each of which the setter is called.
    Iterate,
    /// On or Off.
    Flag,
}

/// httpd knows the end of a table by its name of NULL.
const END: sys::command_rec = sys::command_rec {
    name: ptr::null(),
    func: sys::cmd_func { no_args: None },
    cmd_data: ptr::null_mut(),
    req_override: 0,
    args_how: sys::cmd_how_RAW_ARGS,
    errmsg: ptr::null(),
};

const fn command(
    name: &'static CStr,
    arguments: Arguments,
    legal: u32,
    help: &'static CStr,
    setter: &'static Setter,
) -> sys::command_rec {
    let one = sys::cmd_func { take1: Some(cmd_one) };
    let two = sys::cmd_func { take2: Some(cmd_two) };
    let (func, args_how) = match arguments {
        Arguments::Take1 => (one, sys::cmd_how_TAKE1),
        Arguments::Take2 => (two, sys::cmd_how_TAKE2),
        Arguments::Take12 => (two, sys::cmd_how_TAKE12),
        Arguments::Iterate => (one, sys::cmd_how_ITERATE),
        Arguments::Flag => (sys::cmd_func { flag: Some(cmd_flag) }, sys::cmd_how_FLAG),
    };
    sys::command_rec {
        name: name.as_ptr(),
        func,
        cmd_data: ptr::from_ref(setter).cast_mut().cast(),
        req_override: legal as c_int,
        args_how,
        errmsg: help.as_ptr(),
    }
}

/// A table of directives: arguments, name, where it is legal, what httpd says of it (`httpd -L`, and when its arguments are
/// wrong), and its setter.
macro_rules! directives {
    ($table:ident: $($arguments:ident $name:literal $legal:ident $help:literal => $setter:expr;)+) => {
        pub(super) static $table: Commands<{ [$($name),+].len() + 1 }> = Commands([
            $(command($name, Arguments::$arguments, $legal, $help, {
                const SETTER: Setter = $setter;
                &SETTER
            }),)+
            END,
        ]);
    };
}

directives! {
    COMMANDS:
    Take2 c"WebSocketHandler" ADMIN
        c"the plugin's shared library and its init function"
        => setters::handler;
    Take1 c"WebSocketMaxMessageSize" ANYONE
        c"the largest message a client may send, in bytes; k, M and G are understood"
        => setters::max_message_size;
    Take1 c"MaxMessageSize" ANYONE
        c"the old name of WebSocketMaxMessageSize"
        => setters::max_message_size_old;
    Take1 c"WebSocketSendQueueLimit" ADMIN
        c"how much may wait for a slow client before senders are held up, in bytes"
        => |_, section, words| set(&mut section.settings.send_queue, size(words));
    Take1 c"WebSocketOriginCheck" ANYONE
        c"which pages may connect: Off, Same or Trusted"
        => setters::origin_check;
    Iterate c"WebSocketTrustedOrigin" ANYONE
        c"origins for WebSocketOriginCheck Trusted, such as https://www.example.com"
        => setters::trusted_origin;
    Flag c"WebSocketAllowReservedStatusCodes" ANYONE
        c"On to let clients close with codes that are reserved for future use"
        => |_, section, words| set(&mut section.settings.allow_reserved, Ok(on(words)));
    Take1 c"WebSocketMaxConnections" ADMIN
        c"the most WebSockets that this section may have open, in all children; or Off"
        => |parms, section, words| set(&mut section.settings.max_connections, setters::limit(parms, words));
    Take12 c"WebSocketMaxConnectionsPerIP" ADMIN
        c"the most WebSockets that one client address may have open in this section, or Off; and the bits of an IPv6 address that count, 64 if not given"
        => setters::max_connections_per_ip;
    Take1 c"WebSocketDetach" ADMIN
        c"whether connections leave httpd's threads: Auto, On or Off"
        => |_, section, words| {
            let choices = [("Auto", Detach::Auto), ("On", Detach::On), ("Off", Detach::Off)];
            set(&mut section.settings.detach, choice(words, &choices))
        };
    Take1 c"WebSocketPingInterval" ADMIN
        c"the silence after which a client is pinged, and then given up; or Off"
        => |_, section, words| set(&mut section.settings.ping_interval, duration_or_off(words));
    Take1 c"WebSocketIdleTimeout" ADMIN
        c"the time without a message after which a connection is closed; or Off"
        => |_, section, words| set(&mut section.settings.idle_timeout, duration_or_off(words));
    Take1 c"WebSocketCloseTimeout" ADMIN
        c"the time a client has to answer a Close; or Off"
        => |_, section, words| set(&mut section.settings.close_timeout, duration_or_off(words));
    Take1 c"WebSocketMessageTimeout" ADMIN
        c"the time a message may take to arrive, and at what rate it gets more, such as 60s,MinRate=500; or Off"
        => setters::message_timeout;
    Take1 c"WebSocketDrainTime" GLOBAL
        c"the time over which a child that ends gracefully spreads the end of its connections"
        => |parms, _, words| {
            let value = duration(words)?;
            set(&mut parms.main_server()?.drain_time, Ok(value))
        };
    Take1 c"WebSocketThreads" GLOBAL
        c"the most threads per child that serve detached connections"
        => |parms, _, words| {
            let value = number(words.first(), 1, 1024)?;
            set(&mut parms.main_server()?.threads, Ok(value))
        };
    Take1 c"WebSocketWorkerShare" GLOBAL
        c"how many percent of httpd's workers WebSockets may hold; or Off"
        => setters::worker_share;
    Flag c"WebSocketCompression" ADMIN
        c"On to compress messages for clients that offer permessage-deflate"
        => |_, section, words| set(&mut section.settings.compression.enabled, Ok(on(words)));
    Take1 c"WebSocketCompressionLevel" ADMIN
        c"the effort of compressing, 1 (fast) to 9 (small)"
        => |_, section, words| set(&mut section.settings.compression.level, number(words.first(), 1, 9).map(|n| n as u8));
    Take1 c"WebSocketCompressionMinSize" ADMIN
        c"the shortest message worth compressing, in bytes"
        => |_, section, words| set(&mut section.settings.compression.min_size, size(words));
    Take1 c"WebSocketCompressionContextTakeover" ADMIN
        c"who keeps the compression context between messages: None, Server, Client or Both"
        => setters::compression_takeover;
    Take12 c"WebSocketCompressionWindowBits" ADMIN
        c"the server's compression window in bits, and the one asked of clients; 9 to 15"
        => setters::compression_window_bits;
    Take1 c"WebSocketMemoryLimit" GLOBAL
        c"how much memory the messages, queues and compression of a child may take, in bytes"
        => |parms, _, words| {
            let value = size(words)?;
            set(&mut parms.main_server()?.memory_limit, Ok(value))
        };
    Take1 c"WebSocketBridge" ADMIN
        c"the peer that messages are relayed to, such as tcp://127.0.0.1:5900 or unix:///run/service.sock"
        => setters::bridge;
    Iterate c"WebSocketBridgeAllow" ADMIN
        c"the peers that an expression in WebSocketBridge may lead to"
        => setters::bridge_allow;
    Take12 c"WebSocketBridgeFraming" ADMIN
        c"how a peer's stream is cut into messages: a framing's name, and its configuration"
        => setters::bridge_framing;
    Take12 c"WebSocketBridgeBackend" ADMIN
        c"what finds a request's peer: defaultpeer, file or a library's path; Parallel if threads may share it"
        => setters::bridge_backend;
    Take2 c"WebSocketBridgeOption" ADMIN
        c"an option of the section's WebSocketBridgeBackend: its name and its value"
        => setters::bridge_option;
    Take12 c"WebSocketBridgeConfig" ADMIN
        c"a configuration file of websocksy's, and the folder of its backends"
        => setters::bridge_config;
    Take1 c"WebSocketBridgeProtocol" ADMIN
        c"the subprotocol to announce if the client offers it, * for the first one offered, or none"
        => setters::bridge_protocol;
    Take1 c"WebSocketBridgeConnectTimeout" ADMIN
        c"how long connecting to a peer may take, the look-up of its name included"
        => setters::bridge_connect_timeout;
    Take1 c"WebSocketBridgeProxyProtocol" ADMIN
        c"v2 to tell stream peers the client's address by the PROXY protocol; or Off"
        => |_, section, words| set(&mut section.bridge.proxy_protocol, choice(words, &[("Off", false), ("v2", true)]));
    Take1 c"WebSocketBridgeMaxPieceSize" ADMIN
        c"the largest message that a framing may make of a peer's stream, in bytes"
        => |_, section, words| set(&mut section.bridge.max_piece, size(words));
    Iterate c"WebSocketChannel" ADMIN
        c"the channels that clients are subscribed to, or that are published to; each may be an expression"
        => |parms, section, words| section.add_channel(setters::channel(parms, words)?);
    Flag c"WebSocketChannelClientPublish" ADMIN
        c"On to publish what clients send to the section's channel, of which there is one then"
        => |_, section, words| section.set_client_publish(on(words));
    Take1 c"WebSocketChannelReplay" ADMIN
        c"how many of the messages that are still there a new subscriber gets: None, a number or All"
        => setters::channel_replay;
    Take1 c"WebSocketChannelSlowClient" ADMIN
        c"what becomes of a subscriber that is overtaken: Close or Skip"
        => |_, section, words| {
            let choices = [("Close", SlowClient::Close), ("Skip", SlowClient::Skip)];
            set(&mut section.channel.slow_client, choice(words, &choices))
        };
    Take1 c"WebSocketChannelMemory" GLOBAL
        c"the memory that all children share for the messages of channels, in bytes"
        => setters::channel_memory;
    Take1 c"WebSocketPublish" ADMIN
        c"who may publish besides what Require says: Local or Any"
        => |_, section, words| {
            let choices = [("Local", Publishers::Local), ("Any", Publishers::Any)];
            set(&mut section.channel.publishers, choice(words, &choices))
        };
}

// Those of `websocket_draft76_module`, whose sections hold nothing else.
directives! {
    DRAFT_COMMANDS:
    Flag c"SupportDraft75" ADMIN
        c"On to serve clients that speak draft 75, too"
        => |_, section, words| set(&mut section.settings.draft75, Ok(on(words)));
}
