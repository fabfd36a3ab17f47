#!/bin/sh
# oldest-rust.sh: compiles and lints everything with the oldest Rust that Cargo.toml promises, where that is installed.
#
# It is looked for as the default cargo and as a toolchain of rustup's. Nothing is installed. Environment: CARGO.
set -eu
cd "$(dirname "$0")/.."
oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
: "${CARGO:=cargo}"
case $($CARGO -V) in
"cargo $oldest."*) cargo=$CARGO ;;
*)
    if ! rustup toolchain list 2>/dev/null | grep -q "^$oldest[.-]"; then
        echo "Rust $oldest is left out, since it is not installed here (rustup toolchain install $oldest)"
        exit 0
    fi
    toolchain=$(rustup toolchain list | sed -n "s/^\($oldest[^ ]*\).*/\1/p" | head -n 1)
    cargo="cargo +$toolchain"
    # What the default one has built stays usable.
    export CARGO_TARGET_DIR=target/rust-$oldest
    ;;
esac
echo "with Rust $oldest: $cargo"
for features in "" --no-default-features; do
    if $cargo clippy -V >/dev/null 2>&1; then
        # shellcheck disable=SC2086
        $cargo clippy --all-targets $features -- -D warnings
    else
        echo "without clippy, which this toolchain lacks (rustup component add clippy --toolchain $oldest)"
        # shellcheck disable=SC2086
        $cargo check --all-targets $features
    fi
done
