#!/bin/sh
# autobahn.sh [CASES]: installs the Autobahn TestSuite, starts a private httpd and runs the cases against its echo plugin.
#
# Environment: as for server.sh; WS_TLS=On speaks wss://, WS_DETACH=Off keeps connections on httpd's threads, and On takes
# them off prefork's. The report is build/autobahn-$TEST_MPM/index.html; with WS_TLS=On and WS_DETACH=Off the folder's name
# ends in -wss, -off or both.
set -eu
cd "$(dirname "$0")/.."
cases=${1:-*}
TEST_MPM=${TEST_MPM:-event}
PORT=${AUTOBAHN_PORT:-${WS_TEST_PORTS:-8766}}
: "${WS_TLS:=Off}" "${WS_DETACH:=Auto}" "${APXS:=$(command -v apxs || command -v apxs2)}"
EXTRA_CONF="WebSocketCompression On
WebSocketDetach $WS_DETACH
LogLevel websocket:debug"
name=$TEST_MPM
[ "$WS_TLS" != On ] || name=$name-wss
[ "$WS_DETACH" != Off ] || name=$name-off
SERVER_ROOT=$(pwd)/build/autobahn-server-$name
scheme=ws

case $WS_TLS in
Off) ;;
On)
    scheme=wss
    mkdir -p "$SERVER_ROOT"
    # The suite's client does not ask who has signed it.
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \
        -keyout "$SERVER_ROOT/key.pem" -out "$SERVER_ROOT/cert.pem" 2>/dev/null
    EXTRA_CONF="$EXTRA_CONF
<IfModule !ssl_module>
    LoadModule ssl_module \"$("$APXS" -q LIBEXECDIR)/mod_ssl.so\"
</IfModule>
SSLEngine On
SSLCertificateFile \"$SERVER_ROOT/cert.pem\"
SSLCertificateKeyFile \"$SERVER_ROOT/key.pem\""
    ;;
*)
    echo "autobahn.sh: WS_TLS is On or Off, not '$WS_TLS'" >&2
    exit 2
    ;;
esac

TLS_PORT=
export APXS TEST_MPM PORT TLS_PORT SERVER_ROOT EXTRA_CONF
autobahn/install.sh
rm -f "$SERVER_ROOT/error_log"
scripts/server.sh start >/dev/null
trap 'scripts/server.sh stop' EXIT
trap 'exit 130' INT TERM HUP
autobahn/run.py --url "$scheme://127.0.0.1:$PORT/echo" --agent "$name" --cases "$cases" --out "build/autobahn-$name"

if grep -E 'exit signal|panicked|Sanitizer' "$SERVER_ROOT/error_log" >&2; then
    echo "autobahn.sh: a child has crashed" >&2
    exit 1
fi
# Each connection has to have lived where it was meant to.
detached='ws([0-9]*) detached'
blocking="ws([0-9]*) served on httpd's thread"
case $WS_DETACH$TEST_MPM in
Off* | Autoprefork) here=$blocking elsewhere=$detached ;;
*) here=$detached elsewhere=$blocking ;;
esac
if grep -m 3 "$elsewhere" "$SERVER_ROOT/error_log" >&2 || ! grep -q "$here" "$SERVER_ROOT/error_log"; then
    echo "autobahn.sh: connections lived elsewhere than they should" >&2
    exit 1
fi
