#!/bin/sh
# fuzz.sh SECONDS [TARGET...]: runs the fuzz targets, or those named, SECONDS each and two at a time.
#
# libFuzzer is driven directly, so neither cargo-fuzz nor a nightly toolchain is needed. Inputs that reach something new
# are kept in build/fuzz/corpus, findings in build/fuzz/artifacts. JOBS sets how many run at a time.
set -eu
seconds=${1:?usage: fuzz.sh SECONDS [TARGET...]}
shift
cd "$(dirname "$0")/.."
out=build/fuzz
built=${CARGO_TARGET_DIR:-test/fuzz/target}
host=$(rustc -vV | sed -n 's/^host: //p')
[ $# -gt 0 ] || set -- $(cd test/fuzz/src/bin && ls ./*.rs | sed 's/^\.\/\(.*\)\.rs$/\1/')

# What tells libFuzzer which code an input reached, and which comparisons it failed.
flags="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$option"
done
if ls "$(rustc --print target-libdir)"/librustc*rt.asan.a >/dev/null 2>&1; then
    flags="$flags -Zsanitizer=address"
else
    echo "fuzz: without AddressSanitizer, whose runtime this toolchain lacks"
fi
RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags ${RUSTFLAGS:-}" CARGO_TARGET_DIR=$built \
    cargo build --quiet --release --bins --target "$host" --manifest-path test/fuzz/Cargo.toml

mkdir -p $out/corpus $out/artifacts $out/log
rustc --edition 2024 -o $out/seeds.bin test/fuzz/seeds.rs
$out/seeds.bin $out/seeds

# One target: libFuzzer's words go to its log, the last one is the exit status.
one='target=$1
mkdir -p "$out/corpus/$target" "$out/artifacts/$target" "$out/seeds/$target"
"$bin/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$out/artifacts/$target/" "$out/corpus/$target" "$out/seeds/$target" >"$out/log/$target" 2>&1
echo "exit $?" >>"$out/log/$target"'
bin=$built/$host/release
export out bin seconds
printf '%s\n' "$@" | xargs -n 1 -P "${JOBS:-2}" sh -c "$one" sh

findings=0
for target; do
    log=$out/log/$target
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    ran=$(sed -n 's/^Done .* in \([0-9]*\) second.*/\1/p' "$log")
    line="$target: ${executions:-?} executions, ${edges:-0} edges, ${ran:-?} s"
    if [ "$(tail -n 1 "$log")" = "exit 0" ]; then
        echo "$line"
        continue
    fi
    findings=$((findings + 1))
    artifact=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    echo "$line: FOUND"
    grep -a -A 1 -E 'panicked at|^==[0-9]+== ?ERROR|^SUMMARY' "$log" | sed 's/^/    /' | head -n 12
    echo "    input: ${artifact:-none written; see $log}"
    [ -z "$artifact" ] || echo "    again: $bin/$target $artifact"
done
[ $findings -eq 0 ]
