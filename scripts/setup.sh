#!/bin/sh
# setup.sh WHAT: installs the packages that the demo, the tests or a benchmark need and that are missing.
# WHAT is demo, check, bench or bench-channels.
#
# On Debian and its kin, with apt-get, and with sudo unless run as root. Elsewhere it names what is missing. Rust itself
# is not installed: when it is missing or too old, the package to take is named. Environment: CARGO, APXS.
set -eu
what=${1:?usage: setup.sh demo|check|bench|bench-channels}
cd "$(dirname "$0")/.."
missing=

# need COMMAND-OR-TEST PACKAGE...: notes the packages unless the command succeeds.
need() {
    probe=$1
    shift
    sh -c "$probe" >/dev/null 2>&1 || missing="$missing $*"
}

# at_least VERSION WANTED: whether the first is the second or newer.
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# The packages that have this version of Rust or a newer one; nothing if there are none. Debian 12 has an old one and,
# to build browsers with, another that is kept new.
rust_packages() {
    command -v apt-cache >/dev/null || return 0
    for suffix in "" -web; do
        offered=$(apt-cache policy "cargo$suffix" 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9][0-9.]*\).*/\1/p')
        if [ -n "$offered" ] && at_least "$offered" "$1"; then
            echo "cargo$suffix rustc$suffix"
            return 0
        fi
    done
}

wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
# shellcheck disable=SC2086
rust=$(${CARGO:-cargo} -V 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
if [ -z "$rust" ] || ! at_least "$rust" "$wanted"; then
    packages=$(rust_packages "$wanted")
    echo "setup: ${rust:+this is cargo $rust: }Rust $wanted or newer is needed:" \
        "${packages:+apt-get install $packages, or }see https://rustup.rs" >&2
    exit 1
fi

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
    # Formatter and linter have to come from where the compiler comes from.
    case $(dpkg -S "$(readlink -f "$(command -v "${CARGO:-cargo}")")" 2>/dev/null) in
    cargo-web:*) rustfmt=rustfmt-web clippy=rust-web-clippy ;;
    cargo:*) rustfmt=rustfmt clippy=rust-clippy ;;
    *) rustfmt= clippy= ;;
    esac
    if [ -n "$rustfmt" ]; then
        need "${CARGO:-cargo} fmt --version" $rustfmt
        need "${CARGO:-cargo} clippy -V" $clippy
    elif ! { ${CARGO:-cargo} fmt --version && ${CARGO:-cargo} clippy -V; } >/dev/null 2>&1; then
        echo "setup: rustfmt or clippy is missing: rustup component add rustfmt clippy" >&2
        exit 1
    fi
    need "command -v g++" g++
    need "d=\$(mktemp -d) && python3 -m venv \$d/v; s=\$?; rm -rf \$d; exit \$s" python3-venv
    need "command -v chromium || command -v chromium-browser || command -v google-chrome" chromium chromium-sandbox
    # Debian's needs it where the kernel gives no namespaces to users.
    need "! [ -d /usr/lib/chromium ] || [ -e /usr/lib/chromium/chrome-sandbox ]" chromium-sandbox
    need "command -v curl" curl
    # What notifies browsers in the documentation and the examples.
    need "command -v php" php-cli
    need "ls /usr/sbin/php-fpm*" php-fpm
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
case $what in
bench*) need "command -v ip" iproute2 ;;
esac
if [ "$what" = bench ]; then
    need "command -v npm" nodejs npm
fi
# The peer of channels, in benchmarks and in tests.
case $what in
check | bench-channels)
    need "test -x /usr/sbin/nginx" nginx-light
    need "test -e /usr/lib/nginx/modules/ngx_nchan_module.so" libnginx-mod-nchan
    ;;
esac
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || {
    echo "setup: please install these packages, or what your system calls them:$missing" >&2
    exit 1
}
# sudo keeps no proxy.
sudo= as_root=env
[ "$(id -u)" = 0 ] || sudo=sudo as_root="sudo env"
for name in http_proxy https_proxy no_proxy; do
    eval "value=\${$name:-}"
    [ -z "$value" ] || as_root="$as_root $name=$value"
done
[ -z "$sudo" ] || command -v sudo >/dev/null || {
    echo "setup: there is no sudo; please let root install what is missing: apt-get install$missing" >&2
    exit 1
}
echo "setup: installing$missing (with ${sudo:+$sudo }apt-get)"
# Debian starts a service as soon as it is installed; this one is not asked for.
policy=/usr/sbin/policy-rc.d
mark="made by mod_websocket's scripts/setup.sh"
if [ ! -e $policy ] || grep -qF "$mark" $policy; then
    trap '$sudo rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
fi
# shellcheck disable=SC2086
$as_root apt-get update -qq
# shellcheck disable=SC2086
$as_root DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
