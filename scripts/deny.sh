#!/bin/sh
# deny.sh [install]: checks the dependencies with cargo-deny, as deny.toml says; `install` only installs it.
#
# Licences, bans and sources are checked where cargo-deny can be had, advisories where their database can be had, too: a line
# says what is left out, which is no failure. cargo-deny is compiled into build/cargo-deny, which takes a minute or two. Environment: CARGO.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"

# The last version that the minimum Rust compiles, and one for compilers that are new enough. The first cannot read
# advisories that are rated by CVSS 4.0, and gives up the whole database for them.
version=0.18.3 reads_advisories=
rust=$($CARGO -V | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n1.88\n' "$rust" | sort -V | head -n 1)" = 1.88 ]; then
    version=0.20.2 reads_advisories=yes
fi
not_checked() {
    echo "deny: the dependencies are not checked: $1"
    exit 0
}
home=build/cargo-deny
deny=$home/$version/bin/cargo-deny

if [ ! -x $deny ]; then
    echo "deny: compiling cargo-deny $version into $home"
    # Without optimisation it is compiled in a third of the time, and checks in a second all the same.
    CARGO_PROFILE_DEV_DEBUG=0 $CARGO install --quiet --debug --locked --version $version --root $home/$version \
        --target-dir $home/target cargo-deny || not_checked "cargo-deny $version cannot be installed"
    rm -rf $home/target
fi
# It reads the packages of every system, those that are not built here as well.
$CARGO fetch --quiet --locked || not_checked "their packages cannot be fetched"
[ "${1:-}" != install ] || exit 0

$deny --locked check licenses bans sources
if [ -z "$reads_advisories" ]; then
    echo "advisories are left out: cargo-deny $version, the last for Rust $rust, cannot read their database"
elif timeout 60 $deny fetch db >/dev/null 2>&1; then
    $deny --locked --offline check advisories
else
    echo "advisories are left out: their database cannot be had here"
fi
