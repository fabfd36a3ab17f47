#!/bin/sh
# fresh.sh 12|13 [demo|check]: the demo and the tests on a Debian that has just been installed, as root and as a user.
#
# A system is made by debootstrap in a temporary folder, with make, git, ca-certificates, Rust and, for the user, sudo,
# and gets a copy of what is committed. There `make demo` has to come up and to answer over http, ws, wss and HTTP/2, with
# wss detached, and to end by Ctrl-C; then `make check` has to pass. With demo or check only that is done. It needs root
# (for chroot and mounts) and debootstrap; mounts and processes are in namespaces that end with it.
#
# Environment: TURNS (user root): as whom; CHECK (check): the target instead of `make check`; FRESH_DIR: the folder to make
# the systems in, which then are kept, and used again when they are there; MIRROR; PORT and TLS_PORT of the demo. Settings of
# a proxy (http_proxy and the like), certificates (SSL_CERT_FILE) and CARGO_PROFILE_* reach the commands inside.
set -eu

usage() {
    echo "usage: fresh.sh 12|13 [demo|check]" >&2
    exit 2
}

say() {
    echo "fresh: $*"
}

release=${1:-}
case $release in
12) suite=bookworm rust="cargo-web rustc-web" ;;
13) suite=trixie rust=cargo ;;
*) usage ;;
esac
steps=${2:-demo check}
case $steps in
demo | check | "demo check") ;;
*) usage ;;
esac
: "${TURNS:=user root}" "${CHECK:=check}" "${MIRROR:=http://deb.debian.org}" "${PORT:=8765}" "${TLS_PORT:=8764}"
top=$(cd "$(dirname "$0")/.." && pwd)

# --- outside: the folder, and the namespaces ------------------------------------------------------

if [ -z "${FRESH_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] || {
        say "it needs root, for chroot and mounts: sudo $0 $*" >&2
        exit 1
    }
    for program in debootstrap unshare setpriv git; do
        command -v $program >/dev/null || {
            say "$program is missing (Debian: apt-get install debootstrap util-linux git)" >&2
            exit 1
        }
    done
    folder=${FRESH_DIR:-}
    if [ -n "$folder" ]; then mkdir -p "$folder"; else folder=$(mktemp -d "${TMPDIR:-/var/tmp}/fresh.XXXXXX"); fi
    folder=$(cd "$folder" && pwd)
    chmod 755 "$folder"
    inside=
    clean() {
        [ -z "$inside" ] || kill -KILL "$inside" 2>/dev/null || :
        wait
        [ -n "${FRESH_DIR:-}" ] || rm -rf --one-file-system "$folder"
    }
    trap clean EXIT
    trap 'exit 130' INT TERM HUP
    # All processes inside end when the first one does, and that one ends with this script.
    FRESH_INSIDE=$folder PORT=$PORT TLS_PORT=$TLS_PORT \
        setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc "$0" "$release" ${2:+"$2"} &
    inside=$!
    result=0
    wait $inside || result=$?
    inside=
    exit $result
fi

# --- inside ---------------------------------------------------------------------------------------

folder=$FRESH_INSIDE
table=$folder/table-$release
: >"$table"

# A new system with nothing but what the README asks for.
make_system() {
    system=$1
    say "Debian $release in $system"
    debootstrap --variant=minbase $suite "$system" "$MIRROR/debian" >"$folder/debootstrap-$release.log" 2>&1 || {
        tail -n 5 "$folder/debootstrap-$release.log" >&2
        return 1
    }
    {
        echo "deb $MIRROR/debian $suite main"
        echo "deb $MIRROR/debian $suite-updates main"
        echo "deb $MIRROR/debian-security $suite-security main"
    } >"$system/etc/apt/sources.list"
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost\n' "$(uname -n)" >"$system/etc/hosts"
    mounts "$system"
    inside "$system" root "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends make git ca-certificates sudo $rust" >"$folder/packages-$release.log" 2>&1 || {
        tail -n 5 "$folder/packages-$release.log" >&2
        return 1
    }
    chroot "$system" useradd --create-home --shell /bin/bash user
    echo 'user ALL=(ALL) NOPASSWD: ALL' >"$system/etc/sudoers.d/user"
    # Certificates that this machine has beside the usual ones.
    if [ -n "${SSL_CERT_FILE:-}" ]; then
        cp "$SSL_CERT_FILE" "$system/usr/local/share/ca-certificates/environment.crt"
        chroot "$system" update-ca-certificates >/dev/null 2>&1
    fi
    unmount "$system"
    touch "$system.made"
}

mounts() {
    mount -t proc proc "$1/proc"
    mount -t sysfs -o ro sysfs "$1/sys"
    mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
    mkdir -p "$1/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts"
    ln -sfn pts/ptmx "$1/dev/ptmx"
    cp -L /etc/resolv.conf "$1/etc/resolv.conf"
    settings >"$1/settings"
}

unmount() {
    # Lazily: what has just been killed may hold them for a moment.
    umount -l "$1/dev/pts" "$1/dev/shm" "$1/sys" "$1/proc"
}

# What the commands inside get of this environment, as shell code.
settings() {
    bundle=/etc/ssl/certs/ca-certificates.crt
    for name in http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY \
        CARGO_PROFILE_RELEASE_LTO CARGO_PROFILE_RELEASE_CODEGEN_UNITS CARGO_BUILD_JOBS CARGO_HTTP_MULTIPLEXING; do
        eval "value=\${$name:-}"
        [ -z "$value" ] || printf "export %s='%s'\n" $name "$value"
    done
    # Programs that look elsewhere than Debian's do.
    [ -z "${SSL_CERT_FILE:-}" ] ||
        echo "export SSL_CERT_FILE=$bundle PIP_CERT=$bundle REQUESTS_CA_BUNDLE=$bundle NODE_EXTRA_CA_CERTS=$bundle"
    echo "export PORT=$PORT TLS_PORT=$TLS_PORT"
}

# inside SYSTEM USER COMMAND: runs it as that user, in that user's folder, with Ctrl-C as a terminal has it.
inside() {
    home=/root path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    [ "$2" = root ] || home=/home/$2 path=/usr/local/bin:/usr/bin:/bin
    chroot "$1" env -i --default-signal=INT HOME=$home USER="$2" LOGNAME="$2" PATH=$path TERM=dumb LANG=C.UTF-8 SHELL=/bin/bash \
        setpriv --reuid="$2" --regid="$2" --init-groups sh -c ". /settings; cd; $3"
}

# note TURN STEP RESULT: a line of the table, with the seconds since `begin`.
begin() {
    began=$(date +%s)
}
note() {
    printf '%-6s %-32s %-8s %5d s\n' "$1" "$2" "$3" $(($(date +%s) - began)) >>"$table"
    say "$1: $2: $3"
    [ "$3" = passed ] || failed=1
}

# Waits up to so many seconds for a command to succeed.
await() {
    left=$1
    shift
    until "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 1
    done
}

demo() {
    system=$1 turn=$2 log=$folder/demo-$release-$2.log
    begin
    rm -f "$folder/keys"
    mkfifo "$folder/keys"
    : >"$log"
    # A terminal of its own, by script(1), on whose keyboard Ctrl-C is typed.
    inside "$system" "$turn" "export EXTRA_CONF='LogLevel websocket:debug'; cd mod_websocket; \
        exec script -qefc 'exec make demo' /dev/null" \
        <"$folder/keys" >"$log" 2>&1 &
    demo=$!
    exec 3>"$folder/keys"
    up() { grep -q 'Ctrl-C stops it' "$log" || ! kill -0 $demo 2>/dev/null; }
    if await 1800 up && kill -0 $demo 2>/dev/null; then
        note "$turn" "make demo comes up" passed
    else
        tail -n 30 "$log"
        note "$turn" "make demo comes up" FAILED
    fi
    if kill -0 $demo 2>/dev/null; then
        begin
        ask="python3 mod_websocket/scripts/ask_demo.py $PORT $TLS_PORT mod_websocket/build/server"
        if inside "$system" "$turn" "$ask"; then
            note "$turn" "ws, wss, HTTP/2 answer" passed
        else
            tail -n 30 "$system$home/mod_websocket/build/server/error_log" || :
            note "$turn" "ws, wss, HTTP/2 answer" FAILED
        fi
        begin
        printf '\003' >&3
        gone() { ! kill -0 $demo 2>/dev/null && ! pgrep_system "$system"; }
        if await 15 gone; then
            note "$turn" "Ctrl-C ends it" passed
        else
            pgrep_system "$system" || :
            tail -n 5 "$log"
            note "$turn" "Ctrl-C ends it" FAILED
        fi
    fi
    exec 3>&-
    end_system "$system"
    wait $demo || :
}

# The processes that have this system as their root.
pgrep_system() {
    found=1
    for process in /proc/[0-9]*; do
        if [ "$(readlink "$process/root" 2>/dev/null)" = "$1" ]; then
            echo "    ${process#/proc/}: $(tr '\0' ' ' <"$process/cmdline" 2>/dev/null)"
            found=0
        fi
    done
    return $found
}

end_system() {
    pgrep_system "$1" | sed 's/^ *\([0-9]*\):.*/\1/' | xargs -r kill -KILL 2>/dev/null || :
}

check() {
    system=$1 turn=$2 log=$folder/check-$release-$2.log
    begin
    if inside "$system" "$turn" "cd mod_websocket && exec make $CHECK" </dev/null >"$log" 2>&1; then
        grep -E 'left out|without AddressSanitizer|^make check' "$log" || :
        note "$turn" "make $CHECK" passed
    else
        tail -n 60 "$log"
        mkdir -p "$top/build"
        cp "$log" "$top/build/"
        say "all of it: build/${log##*/}"
        note "$turn" "make $CHECK" FAILED
    fi
    end_system "$system"
}

failed=0
base=$folder/debian-$release
[ -e "$base.made" ] || make_system "$base"
for turn in $TURNS; do
    if [ "$turn" = root ]; then home=/root; else home=/home/$turn; fi
    # Each turn has a system of its own, on which nothing else has been installed yet.
    system=$base-$turn
    rm -rf --one-file-system "$system"
    cp -a "$base" "$system"
    mounts "$system"
    printf '%-6s %s\n' "$turn" "Debian $(cat "$system/etc/debian_version"), $(chroot "$system" cargo -V)" >>"$table"
    git -C "$top" archive --prefix=mod_websocket/ HEAD | tar x -C "$system$home"
    chroot "$system" chown -R "$turn:" "$home"
    for step in $steps; do $step "$system" "$turn"; done
    unmount "$system"
    [ -n "${FRESH_DIR:-}" ] || rm -rf --one-file-system "$system"
done
if [ "$release" = 13 ]; then
    begin
    oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$top/Cargo.toml")
    if grep -q "cargo $oldest\." "$table"; then result=passed; else result=FAILED; fi
    note all "its cargo is Rust $oldest, the oldest" $result
fi
echo
cat "$table"
[ $failed = 0 ]
