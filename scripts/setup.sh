#!/bin/sh
# setup.sh demo|check|bench: installs the packages that the demo, the tests or the benchmark need and that are missing.
#
# On Debian and its kin, with apt-get, and with sudo unless run as root. Elsewhere it names what is missing.
set -eu
what=${1:?usage: setup.sh demo|check|bench}
missing=

# need COMMAND-OR-TEST PACKAGE...: notes the packages unless the command succeeds.
need() {
    probe=$1
    shift
    sh -c "$probe" >/dev/null 2>&1 || missing="$missing $*"
}

APXS=${APXS:-$(command -v apxs || command -v apxs2 || echo apxs)}
need "command -v cc" gcc libc6-dev
need "'$APXS' -q INCLUDEDIR" apache2 apache2-dev
need "test -x \"\$('$APXS' -q SBINDIR)/\$('$APXS' -q PROGNAME)\"" apache2
# The names that bindgen looks for; libclang-cpp.so is another library.
need "find -L \${LIBCLANG_PATH:-/usr/lib} /usr/lib/llvm*/lib /usr/lib*/*-linux-gnu /usr/lib64 -maxdepth 1 \
    \( -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' \) 2>/dev/null | grep ." libclang-dev
need "command -v openssl" openssl
need "command -v python3" python3
if [ "$what" = check ]; then
    need "command -v g++" g++
    need "d=\$(mktemp -d) && python3 -m venv \$d/v; s=\$?; rm -rf \$d; exit \$s" python3-venv
    need "command -v chromium" chromium
    need "command -v curl" curl
    need "perl -MProtocol::WebSocket -e 1" libprotocol-websocket-perl
    # Peers of the bridge, and what is compared with it.
    need "command -v redis-server" redis-server
    need "PATH=\$PATH:/usr/sbin command -v mosquitto" mosquitto
    need "PATH=\$PATH:/usr/sbin command -v dnsmasq" dnsmasq-base
    need "command -v Xtigervnc" tigervnc-standalone-server
    need "command -v xsetroot" x11-xserver-utils
    need "command -v socat" socat
    need "command -v npm" npm
    # The manual pages, and what looks at them.
    need "command -v go-md2man" go-md2man
    need "command -v man" man-db
    need "command -v strace" strace
    need "command -v valgrind" valgrind libc6-dbg
fi
if [ "$what" = bench ]; then
    need "command -v ip" iproute2
    need "command -v npm" nodejs npm
fi
command -v cargo >/dev/null || {
    echo "setup: cargo is missing: install Rust 1.85 or newer (Debian 13: apt-get install cargo)" >&2
    exit 1
}
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || {
    echo "setup: please install these packages, or what your system calls them:$missing" >&2
    exit 1
}
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
echo "setup: installing$missing (with ${sudo:+$sudo }apt-get)"
# Debian starts a service as soon as it is installed; this one is not asked for.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
    trap '$sudo rm -f $policy' EXIT
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
