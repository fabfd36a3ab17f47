#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# news.sh [TEXT]: publishes the text to the demo's news; without one, the time every five seconds until Ctrl-C.
#
# Environment: PORT (8765), the demo's; NEWS_URL, to publish somewhere else.
set -eu
: "${NEWS_URL:=http://127.0.0.1:${PORT:-8765}/publish/news}"

publish() {
    # By standard input: curl takes an argument that begins with @ for the name of a file.
    printf '%s' "$1" | curl -fsS --noproxy '*' --max-time 10 -o /dev/null \
        -H 'Content-Type: text/plain; charset=utf-8' --data-binary @- "$NEWS_URL"
}

if [ $# -gt 0 ]; then
    publish "$*"
    exit
fi
while :; do
    # httpd may just be restarting.
    publish "It is $(date +%T)." || :
    sleep 5
done
