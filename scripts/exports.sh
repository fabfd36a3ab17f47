#!/bin/sh
# exports.sh MODULE: checks that the module exports what httpd and framing libraries look up, and nothing else.
set -eu
found=$(nm -D --defined-only "$1" | awk '{ print $3 }' | LC_ALL=C sort | tr '\n' ' ')
[ "$found" = "core_framing core_register_framing websocket_draft76_module websocket_module " ] || {
    echo "exports.sh: $1 exports: $found" >&2
    exit 1
}
