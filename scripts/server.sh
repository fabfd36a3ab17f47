#!/bin/sh
# server.sh run|start|stop|restart|debug: a private httpd with the module and the example plugins.
#
# Its ServerRoot is build/server; it listens on the loopback address only and never touches the system's configuration.
# Environment: APXS, HTTPD, TEST_MPM (event), PORT (8765), TLS_PORT (none) for https, with HTTP/2 where mod_http2 supports
# the MPM and WebSockets; for the conformance suite and the like SERVER_ROOT, EXTRA_CONF and MODULE.
set -eu
cd "$(dirname "$0")/.."
top=$(pwd)
command=${1:?usage: server.sh run|start|stop|restart|debug}
: "${APXS:=$(command -v apxs || command -v apxs2)}"
: "${HTTPD:=$("$APXS" -q SBINDIR)/$("$APXS" -q PROGNAME)}"
: "${TEST_MPM:=event}" "${PORT:=8765}" "${SERVER_ROOT:=$top/build/server}" "${EXTRA_CONF:=}"
: "${MODULE:=$top/build/mod_websocket.so}" "${TLS_PORT:=}"
modules=$("$APXS" -q LIBEXECDIR)
[ -e "$modules/mod_ssl.so" ] || TLS_PORT=

# load NAME...: LoadModule lines for modules that are not compiled in.
load() {
    for name; do
        if ! "$HTTPD" -l | grep -q "^ *mod_$name.c$"; then
            printf 'LoadModule %s_module "%s/mod_%s.so"\n' "$name" "$modules" "$name"
        fi
    done
}

# Whether mod_http2 serves WebSockets (from httpd 2.4.58 on): the name of the directive is in its file.
has_h2_websockets() {
    if "$HTTPD" -l | grep -q '^ *mod_http2.c$'; then file=$HTTPD; else file=$modules/mod_http2.so; fi
    grep -q H2WebSockets "$file" 2>/dev/null
}

# Starts the service behind the bridge's example, on a free port of the loopback address.
start_lines() {
    rm -f "$SERVER_ROOT/lines.port"
    command -v python3 >/dev/null || return 0
    mkdir -p "$SERVER_ROOT"
    nohup python3 examples/line_service.py "$SERVER_ROOT/lines.port" </dev/null >/dev/null 2>&1 &
    echo $! >"$SERVER_ROOT/lines.pid"
    await [ -s "$SERVER_ROOT/lines.port" ] || echo "server.sh: examples/line_service.py does not start" >&2
}

stop_lines() {
    if [ -s "$SERVER_ROOT/lines.pid" ]; then kill "$(cat "$SERVER_ROOT/lines.pid")" 2>/dev/null || :; fi
    rm -f "$SERVER_ROOT/lines.pid"
}

# https: what serves the same over TLS, with a certificate of our own.
https() {
    if [ ! -s "$SERVER_ROOT/tls.key" ]; then
        (umask 077 && openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=localhost \
            -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
            -addext basicConstraints=critical,CA:FALSE \
            -keyout "$SERVER_ROOT/tls.key" -out "$SERVER_ROOT/tls.pem" 2>/dev/null)
    fi
    load socache_shmcb ssl
    if [ "$TEST_MPM" != prefork ] && has_h2_websockets; then
        load http2
        printf 'Protocols h2 h2c http/1.1\nH2WebSockets On\n'
    fi
    cat <<CONF
Listen 127.0.0.1:$TLS_PORT
SSLSessionCache "shmcb:$SERVER_ROOT/sessions(128000)"
<VirtualHost *:$TLS_PORT>
    SSLEngine on
    SSLCertificateFile "$SERVER_ROOT/tls.pem"
    SSLCertificateKeyFile "$SERVER_ROOT/tls.key"
</VirtualHost>
CONF
}

# Writes the configuration. Started as root, httpd serves as an unprivileged user, who may not be able to read
# a folder of root's: the pages are copied to where anybody can.
configure() {
    mkdir -p "$SERVER_ROOT"
    pages=$SERVER_ROOT/pages
    user=
    if [ "$(id -u)" = 0 ]; then
        pages=$(mktemp -d)
        chmod 755 "$pages"
        user=$(id -un www-data 2>/dev/null || id -un apache 2>/dev/null || echo daemon)
    fi
    mkdir -p "$pages"
    install -m 644 examples/*.html "$pages"
    printf '%s\n' "$pages" >"$SERVER_ROOT/pages.path"
    {
        echo "ServerRoot \"$SERVER_ROOT\""
        echo "Listen 127.0.0.1:$PORT"
        echo "ServerName localhost"
        echo "PidFile \"$SERVER_ROOT/httpd.pid\""
        echo "DefaultRuntimeDir \"$SERVER_ROOT\""
        echo "Mutex \"file:$SERVER_ROOT\" default"
        if [ "$TEST_MPM" != builtin ]; then
            echo "LoadModule mpm_${TEST_MPM}_module \"$modules/mod_mpm_$TEST_MPM.so\""
        fi
        load unixd authz_core dir mime log_config headers
        [ -z "$user" ] || printf 'User %s\nGroup %s\n' "$user" "$(id -gn "$user")"
        cat <<CONF
TypesConfig /dev/null
AddType text/html .html
ErrorLog "$SERVER_ROOT/error_log"
LogLevel warn websocket:info
LogFormat "%h %t \\"%r\\" %>s %Dus close=%{websocket-close-code}n in=%{websocket-messages-in}n out=%{websocket-messages-out}n" ws
CustomLog "$SERVER_ROOT/access_log" ws
DocumentRoot "$pages"
DirectoryIndex index.html
<Directory "$pages">
    Require all granted
</Directory>

LoadModule websocket_module "$MODULE"
# The page may be opened by another name of this machine.
WebSocketOriginCheck Off
<Location /echo>
    SetHandler websocket-handler
    WebSocketHandler "$top/build/examples/mod_websocket_echo.so" echo_init
</Location>
<Location /echo-rs>
    SetHandler websocket-handler
    WebSocketHandler "$top/build/examples/mod_websocket_echo_rs.so" echo_init
</Location>
<Location /dumb-increment>
    SetHandler websocket-handler
    WebSocketHandler "$top/build/examples/mod_websocket_dumb_increment.so" dumb_increment_init
</Location>
<Location /greeting>
    SetHandler websocket-handler
    WebSocketHandler "$top/build/examples/mod_websocket_greeting.so" greeting_init
    RequestHeader set X-Greeting "expr=%{SERVER_PROTOCOL}"
</Location>
Include "$top/examples/channels.conf"
<Location /metrics>
    SetHandler websocket-metrics
</Location>
CONF
        if [ -s "$SERVER_ROOT/lines.port" ]; then
            cat <<CONF
<Location /lines>
    SetHandler websocket-handler
    WebSocketBridge tcp://127.0.0.1:$(cat "$SERVER_ROOT/lines.port")
    WebSocketBridgeFraming newline crlf
</Location>
CONF
        fi
        printf '%s\n' "$EXTRA_CONF"
        if [ -n "$TLS_PORT" ]; then https; fi
    } >"$SERVER_ROOT/httpd.conf"
    : >"$SERVER_ROOT/error_log"
}

httpd() {
    "$HTTPD" -d "$SERVER_ROOT" -f "$SERVER_ROOT/httpd.conf" "$@"
}

running() {
    [ -s "$SERVER_ROOT/httpd.pid" ] && kill -0 "$(cat "$SERVER_ROOT/httpd.pid")" 2>/dev/null
}

await() {
    for _ in $(seq 100); do
        if "$@"; then return 0; fi
        sleep 0.1
    done
    return 1
}

refuse_second() {
    if running; then
        echo "the private httpd is already running (process $(cat "$SERVER_ROOT/httpd.pid"));" \
            "make stop-test-server ends it" >&2
        exit 1
    fi
}

forget_pages() {
    if [ "$(id -u)" = 0 ] && [ -s "$SERVER_ROOT/pages.path" ]; then rm -rf "$(cat "$SERVER_ROOT/pages.path")"; fi
}

start() {
    refuse_second
    start_lines
    configure
    httpd -k start
    await running || { cat "$SERVER_ROOT/error_log" >&2; exit 1; }
    echo "http://localhost:$PORT/${TLS_PORT:+ and https://localhost:$TLS_PORT/} ($TEST_MPM MPM; log: $SERVER_ROOT/error_log)"
}

stop() {
    if running; then
        pid=$(cat "$SERVER_ROOT/httpd.pid")
        kill -TERM "$pid"
        gone() { ! kill -0 "$pid" 2>/dev/null; }
        await gone || { echo "httpd $pid does not stop" >&2; exit 1; }
    fi
    stop_lines
    forget_pages
}

case $command in
run)
    refuse_second
    start_lines
    configure
    # In the background httpd does not get the terminal's Ctrl-C; this script does, and ends it in an orderly way.
    "$HTTPD" -d "$SERVER_ROOT" -f "$SERVER_ROOT/httpd.conf" -DFOREGROUND &
    pid=$!
    trap 'kill -TERM $pid 2>/dev/null || :' INT TERM HUP
    await running || { cat "$SERVER_ROOT/error_log" >&2; kill $pid 2>/dev/null || :; stop_lines; exit 1; }
    echo
    echo "  open  http://localhost:$PORT/"
    if [ -n "$TLS_PORT" ]; then
        echo "  or    https://localhost:$TLS_PORT/ (a certificate of its own: the browser will ask)"
        [ "$TEST_MPM" = prefork ] || has_h2_websockets ||
            echo "        without HTTP/2: mod_http2 of this httpd has no WebSockets (httpd 2.4.58 or newer has)"
    fi
    echo
    echo "  $TEST_MPM MPM; log: $SERVER_ROOT/error_log; Ctrl-C stops it"
    # A trapped signal ends the first wait before httpd has ended.
    wait $pid || wait $pid || :
    stop_lines
    forget_pages
    ;;
start) start ;;
stop) stop ;;
restart)
    stop
    start
    ;;
debug)
    refuse_second
    start_lines
    configure
    # shellcheck disable=SC2086
    ${DEBUGGER:-gdb --args} "$HTTPD" -d "$SERVER_ROOT" -f "$SERVER_ROOT/httpd.conf" -X
    stop_lines
    forget_pages
    ;;
*)
    echo "server.sh: unknown command $command" >&2
    exit 2
    ;;
esac
