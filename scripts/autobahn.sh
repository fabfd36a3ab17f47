#!/bin/sh
# autobahn.sh [CASES]: installs the Autobahn TestSuite, starts a private httpd and runs the cases against its echo plugin.
#
# Environment: as for server.sh. The report is build/autobahn-$TEST_MPM/index.html.
set -eu
cd "$(dirname "$0")/.."
cases=${1:-*}
TEST_MPM=${TEST_MPM:-event}
PORT=${AUTOBAHN_PORT:-8766}
SERVER_ROOT=$(pwd)/build/autobahn-server
EXTRA_CONF='WebSocketCompression On'
export TEST_MPM PORT SERVER_ROOT EXTRA_CONF
autobahn/install.sh
scripts/server.sh start >/dev/null
trap 'scripts/server.sh stop' EXIT
autobahn/run.py --url "ws://127.0.0.1:$PORT/echo" --agent "$TEST_MPM" --cases "$cases" \
    --out "build/autobahn-$TEST_MPM"
