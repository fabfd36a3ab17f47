//! What is legal in a configuration and cannot be meant: said at configtest and at start, with file, line and remedy;
//! and while requests are served, if it shows only then.
//!
//! A warning has no false alarms in an ordinary configuration: where another section, or a .htaccess file, may well
//! make things right, there is none.

use core::ffi::{CStr, c_void};
use std::collections::{HashMap, HashSet};

use super::{
    directives, draft, log,
    request::{Request, Table},
    sys,
    tree::{self, Directive},
};
use crate::{
    conn::log::Level,
    settings::{self, Settings, scope::Scope},
};

/// What names an endpoint.
const ENDPOINTS: [&str; 5] = [
    "WebSocketHandler",
    "WebSocketBridge",
    "WebSocketBridgeBackend",
    "WebSocketBridgeConfig",
    "WebSocketChannel",
];

/// Writes the warnings. They come at configtest, and once at start, where the error log is open.
///
/// # Safety
/// - `main` is the main server, after the whole configuration was read.
pub(super) unsafe fn warn(main: *const sys::server_rec) {
    let mut lines = missing_handlers();
    lines.extend(missing_endpoints());
    lines.extend(missing_origins());
    // SAFETY: the main server is live, and so are its settings.
    lines.extend(too_large_messages(unsafe { (*directives::server(main)).memory_limit() }));
    // SAFETY: `main` is what `doubts` demands, too.
    lines.extend(unsafe { directives::doubts(main) });
    lines.extend(foreign_draft76());
    for line in lines {
        // SAFETY: the main server is live.
        unsafe { log::server(main, Level::Warn, format_args!("{line}")) };
    }
}

/// Message sizes that exceed the memory of a child.
fn too_large_messages(memory: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut sizes = Places::default();
    tree::each(&mut |directive| {
        let is_one = ["WebSocketMaxMessageSize", "MaxMessageSize"].iter().any(|n| directive.is(n));
        if is_one {
            sizes.add(directive);
        }
        let size = settings::size(directive.args().trim().trim_matches(['"', '\'']));
        if lines.len() < MOST && is_one && size.is_some_and(|size| size > memory) {
            let (name, args, place) = (directive.name(), directive.args(), directive.place());
            lines.push(format!(
                "WS0414: {name} {args} on {place} lets in messages for which the memory of a child's connections has no \
                 room: set WebSocketMemoryLimit higher, or the size lower"
            ));
        }
    });
    if settings::MAX_MESSAGE > memory {
        lines.extend(too_large_by_default(&sizes));
    }
    lines
}

/// The default size exceeds the memory that is set, and an endpoint has it; `sizes` are those that are set.
fn too_large_by_default(sizes: &Places) -> Option<String> {
    let (mut limit, mut endpoint) = (None, None);
    tree::each(&mut |directive| {
        if directive.is("WebSocketMemoryLimit") {
            limit =
                Some(format!("WebSocketMemoryLimit {} on {}", directive.args(), directive.place()));
        } else if ENDPOINTS.iter().any(|name| directive.is(name)) && !sizes.may_meet(directive) {
            endpoint.get_or_insert_with(|| directive.place());
        }
    });
    let (limit, endpoint) = (limit?, endpoint?);
    Some(format!(
        "WS0414: {limit} has no room for messages of 32M, the default of WebSocketMaxMessageSize, which the endpoint on \
         {endpoint} has: set WebSocketMemoryLimit higher, or WebSocketMaxMessageSize lower"
    ))
}

/// How many endpoints without requests are named; they have one cause, as a rule.
const MOST: usize = 20;

/// Endpoints that no request comes to.
fn missing_handlers() -> Vec<String> {
    let mut handlers = Places::default();
    // Of each section: name, arguments and line of its SetHandler.
    let mut others: HashMap<Option<usize>, (String, String, i64)> = HashMap::new();
    let mut in_htaccess = false;
    tree::each(&mut |directive| {
        if names_handler(directive) {
            handlers.add(directive);
        } else if directive.is("SetHandler") {
            let (name, args) = (directive.name().into(), directive.args().trim().into());
            others.insert(directive.section().map(Directive::id), (name, args, directive.line()));
        }
        in_htaccess |= overrides(directive, "FileInfo");
    });
    let mut lines = Vec::new();
    if in_htaccess {
        return lines;
    }
    let mut last = None;
    tree::each(&mut |directive| {
        if lines.len() > MOST || !ENDPOINTS.iter().any(|name| directive.is(name)) {
            return;
        }
        let section = directive.section();
        let id = section.map(Directive::id);
        // A section with two endpoints has one mistake.
        if last == Some(id) || handlers.may_meet(directive) {
            return;
        }
        last = Some(id);
        if lines.len() == MOST {
            lines.push("WS0420: and so it is, perhaps, with more endpoints".to_owned());
            return;
        }
        let what = format!("WS0420: {} on {}", directive.name(), directive.place());
        let handler = if directive.is("WebSocketChannel") {
            "'SetHandler websocket-handler' (for those who listen) or 'SetHandler websocket-publish'"
        } else {
            "'SetHandler websocket-handler'"
        };
        lines.push(match others.get(&id) {
            Some(other) => format!(
                "{what} gets no request: '{} {}' on line {} names another handler: write {handler}",
                other.0, other.1, other.2
            ),
            None => {
                let whole = || "any section".to_owned();
                let section = section
                    .map_or_else(whole, |section| format!("{} {}", section.name(), section.args()));
                format!(
                    "{what} gets no request: there is no {handler} in {section}, nor in \
                     another section for the same requests: add that line beside it"
                )
            }
        });
    });
    lines
}

/// Where directives of a kind stand.
#[derive(Default)]
struct Places {
    /// In which sections: the same place needs no comparison.
    sections: HashSet<Option<usize>>,
    scopes: Vec<Scope>,
}

impl Places {
    fn add(&mut self, directive: Directive<'_>) {
        if self.sections.insert(directive.section().map(Directive::id)) {
            self.scopes.push(directive.scope());
        }
    }

    /// Whether there may be a request for which one of them and `directive` are.
    fn may_meet(&self, directive: Directive<'_>) -> bool {
        let scope = directive.scope();
        self.sections.contains(&directive.section().map(Directive::id))
            || self.scopes.iter().any(|place| place.may_meet(&scope))
    }
}

/// What is wrong with an expression in WebSocketBridge where no list can say the peers of: all its requests would be
/// refused. (Where a list can, it may still not hold for a request, which is refused then.)
pub(super) fn unlisted_expression() -> Option<String> {
    let mut lists = Places::default();
    tree::each(&mut |directive| {
        if directive.is("WebSocketBridgeAllow") {
            lists.add(directive);
        }
    });
    let mut wrong = None;
    tree::each(&mut |directive| {
        let has_expression = directive.is("WebSocketBridge") && directive.args().contains("%{");
        if wrong.is_none() && has_expression && !lists.may_meet(directive) {
            wrong = Some(format!(
                "WS0428: WebSocketBridge on {} has an expression: name the peers that it may lead to with \
                 WebSocketBridgeAllow in the same section, or in one that holds for the same requests",
                directive.place()
            ));
        }
    });
    wrong
}

/// Whether a directive may be what makes requests ours: SetHandler, AddHandler, RewriteRule with H=, and all else
/// that has the handler's name among its arguments; or an expression that may come to it.
fn names_handler(directive: Directive<'_>) -> bool {
    let args = directive.args().to_ascii_lowercase();
    let expression = directive.is("SetHandler") && args.contains("%{") && !args.contains("proxy:");
    expression
        || args
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            .any(|word| word == "websocket-handler" || word == "websocket-publish")
}

/// Whether a directive lets .htaccess files use directives of a class.
fn overrides(directive: Directive<'_>, class: &str) -> bool {
    let allows = |word: &str| word.eq_ignore_ascii_case("All") || word.eq_ignore_ascii_case(class);
    directive.is("AllowOverrideList") && !directive.args().trim().eq_ignore_ascii_case("None")
        || directive.is("AllowOverride") && directive.args().split_whitespace().any(allows)
}

/// Requests that come to no endpoint. None is named in .htaccess.
fn missing_endpoints() -> Vec<String> {
    let (mut endpoints, mut channels) = (Places::default(), Places::default());
    tree::each(&mut |directive| {
        if ENDPOINTS.iter().any(|name| directive.is(name)) {
            endpoints.add(directive);
        }
        if directive.is("WebSocketChannel") {
            channels.add(directive);
        }
    });
    let mut lines = Vec::new();
    tree::each(&mut |directive| {
        let is_ours = directive.is("SetHandler") && is_word(&directive.args(), "websocket-handler");
        if is_ours && lines.len() < MOST && !endpoints.may_meet(directive) {
            lines.push(format!(
                "WS0431: {} websocket-handler on {} has no endpoint, so its requests get 500: add WebSocketHandler, \
                 WebSocketBridge, WebSocketBridgeBackend, WebSocketBridgeConfig or WebSocketChannel beside it",
                directive.name(),
                directive.place()
            ));
        }
        let publishes =
            directive.is("SetHandler") && is_word(&directive.args(), "websocket-publish");
        if publishes && lines.len() < MOST && !channels.may_meet(directive) {
            lines.push(format!(
                "WS0431: {} websocket-publish on {} has no channel, so its requests get 500: add WebSocketChannel beside it",
                directive.name(),
                directive.place()
            ));
        }
    });
    lines
}

/// Whether the only argument is this word, in any case, with or without quotes.
fn is_word(args: &str, word: &str) -> bool {
    args.trim().trim_matches(['"', '\'']).eq_ignore_ascii_case(word)
}

/// `WebSocketOriginCheck Trusted` where nothing is trusted, and origins that nobody asks for.
fn missing_origins() -> Vec<String> {
    let (mut origins, mut checks) = (Places::default(), Places::default());
    let mut in_htaccess = false;
    let is_check = |directive: Directive<'_>| {
        directive.is("WebSocketOriginCheck") && is_word(&directive.args(), "Trusted")
    };
    tree::each(&mut |directive| {
        if directive.is("WebSocketTrustedOrigin") {
            origins.add(directive);
        } else if is_check(directive) {
            checks.add(directive);
        }
        in_htaccess |= overrides(directive, "AuthConfig");
    });
    let mut lines = Vec::new();
    let mut last = None;
    tree::each(&mut |directive| {
        let what = || format!("{} on {}", directive.name(), directive.place());
        if is_check(directive) && !origins.may_meet(directive) {
            lines.push(format!(
                "WS0422: {} is Trusted, but no WebSocketTrustedOrigin says whom to trust, so every page gets 403: {TRUST}",
                what()
            ));
        }
        let id = directive.section().map(Directive::id);
        // A .htaccess file may check origins by the server's list, but not add to it.
        if directive.is("WebSocketTrustedOrigin")
            && !in_htaccess
            && last != Some(id)
            && !checks.may_meet(directive)
        {
            last = Some(id);
            lines.push(format!(
                "WS0430: {} has no effect without 'WebSocketOriginCheck Trusted': add that line beside it",
                what()
            ));
        }
    });
    lines
}

/// What to do about a list of origins that is empty.
const TRUST: &str = "list the pages' origins ('WebSocketTrustedOrigin https://www.example.com'), or write \
                     'WebSocketOriginCheck Same' for pages of the server itself";

/// A module for the drafts that is not ours, but that of apache-websocket.
fn foreign_draft76() -> Option<String> {
    // SAFETY: the name lives for the call.
    let found = unsafe { sys::ap_find_linked_module(draft::NAME.as_ptr()) }.cast_const();
    let ours = draft::module();
    if found.is_null() || found == ours {
        return None;
    }
    let (theirs, own) = (library_of(found.cast()), library_of(ours.cast()));
    Some(format!(
        "WS0426: websocket_draft76_module is loaded from {theirs}, which is not made for this websocket_module and \
         never gets a request beside it: clients of drafts 76 and 75 get 400. Write 'LoadModule \
         websocket_draft76_module {own}' instead of the line that loads it, or remove that line"
    ))
}

/// The path of the library that an address lies in.
fn library_of(address: *const c_void) -> String {
    let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is looked up as a number, and the result is live.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    // SAFETY: all its members are pointers, which were NULL.
    let name = unsafe { info.assume_init() }.dli_fname;
    if found == 0 || name.is_null() {
        return "another library".to_owned();
    }
    // SAFETY: dladdr gives a string that lives as long as the library is loaded, which holds a loaded module.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// Says, once a minute, why a page's handshake is refused for ever.
pub(super) fn tell_of_no_origins(r: Request<'_>, settings: &Settings) {
    static SAID: log::OnceAMinute = log::OnceAMinute::new();
    if settings.trusts_nobody() && SAID.is_due() {
        let uri = r.uri().to_string_lossy();
        log::request(
            r,
            Level::Warn,
            format_args!(
                "WS0423: {uri} has 'WebSocketOriginCheck Trusted', but no WebSocketTrustedOrigin says whom to \
                 trust: {TRUST}"
            ),
        );
    }
}

/// Says that a .htaccess file allows larger messages than the server's configuration, which stands.
pub(super) fn tell_of_larger_size(r: Request<'_>, settings: &Settings) {
    let most = settings.max_message_of_server();
    let Some((size, place)) = settings.htaccess.max_message.as_ref() else { return };
    if *size > most {
        log::request(
            r,
            Level::Info,
            format_args!(
                "WS0110: {place} has no effect: the server's configuration allows {most} bytes here, and a .htaccess \
                 file can only allow less than that"
            ),
        );
    }
}

/// Says that a page is kept out by the server's configuration, though not by a .htaccess file.
pub(super) fn tell_of_more_origins(r: Request<'_>, settings: &Settings) {
    let Some(place) = &settings.htaccess.origins_place else { return };
    let check = settings.origins.check();
    log::request(
        r,
        Level::Info,
        format_args!(
            "WS0111: {place} lets a page in that the server's configuration, 'WebSocketOriginCheck {check}', keeps \
             out: it has no effect, since a .htaccess file can only keep out more"
        ),
    );
}

/// A request is another handler's. If it opens a WebSocket and came to an endpoint, or was on its way there when it was
/// rewritten, its client will not get what the administrator meant it to.
pub(super) fn tell_of_other_handler(r: Request<'_>) {
    static SAID: log::OnceAMinute = log::OnceAMinute::new();
    let upgrade = r.get(Table::HeadersIn, c"Upgrade").map(CStr::to_bytes).unwrap_or_default();
    let is_websocket = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(b"websocket");
    if !upgrade.split(|&b| b == b',').any(is_websocket) || !r.is_get() || !r.is_main() {
        return;
    }
    // httpd's default handler has no name.
    let handler = r.handler().filter(|name| !name.is_empty());
    let handler = handler.unwrap_or(c"httpd's own").to_string_lossy();
    if handler == "redirect-handler" {
        // mod_rewrite's, which begins anew with another path.
        return;
    }
    let uri = r.uri().to_string_lossy();
    if directives::section(r).has_endpoint() {
        log::request(
            r,
            Level::Info,
            format_args!(
                "WS0421: {uri} has an endpoint, but its handshake goes to another handler, {handler}: 'SetHandler \
                 websocket-handler' is missing there, or something overrides it"
            ),
        );
        return;
    }
    let before = r.rewritten_from().filter(|before| directives::section(*before).has_endpoint());
    let Some(before) = before else { return };
    let level = if SAID.is_due() { Level::Warn } else { Level::Debug };
    let meant = before.uri().to_string_lossy();
    log::request(
        r,
        level,
        format_args!(
            "WS0427: {meant} has an endpoint, but its handshake was rewritten to {uri}, which has none: write \
             'RewriteEngine Off' in the section of the endpoint"
        ),
    );
}
