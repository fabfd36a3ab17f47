#!/bin/bash
# install.sh [VENV]   (default: build/autobahn-venv at the top of the repository)
#
# Installs the Autobahn TestSuite (517 cases, Python 2 code) for Python 3 into
# a virtual environment of its own, from the package index alone; afterwards
# VENV/bin/wstest runs. Returns at once when that is already done. It is built
# beside its place and renamed, so an interrupted call leaves nothing half done.
#
# PYTHON names another interpreter than python3 (3.9 to 3.13).
set -eu

HERE=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python3}
VENV=${1:-$(dirname "$HERE")/build/autobahn-venv}

mkdir -p "$(dirname "$VENV")"
VENV=$(cd "$(dirname "$VENV")" && pwd)/$(basename "$VENV")
NEW=$VENV.new

say() { echo "autobahn: $*" >&2; }
stamp() { (cd "$HERE" && cat install.sh convert_py3.py requirements.txt) | sha256sum | cut -d' ' -f1; }
done_already() {
    [ "$(cat "$VENV/stamp" 2>/dev/null)" = "$STAMP" ] && "$VENV/bin/python" -c '' 2>/dev/null
}

STAMP=$(stamp)
done_already && exit 0

# one installation at a time; the second one finds the first one's work
if command -v flock >/dev/null; then
    exec 9>"$VENV.lock"
    flock 9
    done_already && exit 0
fi

if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
    say "$VENV exists and is not a virtual environment; it stays untouched"
    exit 1
fi
if ! command -v "$PYTHON" >/dev/null; then
    say "$PYTHON not found; on Debian: apt-get install python3 python3-venv"
    exit 1
fi

say "installing the test suite into $VENV"
rm -rf "$NEW"
trap 'rm -rf "$NEW" "$NEW.log"' EXIT
trap 'exit 1' HUP INT TERM

if ! "$PYTHON" -m venv "$NEW" >"$NEW.log" 2>&1; then
    cat "$NEW.log" >&2
    say "$PYTHON cannot create a virtual environment; on Debian: apt-get install python3-venv"
    exit 1
fi

PY=$NEW/bin/python
PIP="env PIP_DISABLE_PIP_VERSION_CHECK=1 $PY -m pip -q"
cd "$NEW"
$PIP install --prefer-binary -r "$HERE/requirements.txt"
# the WebSocket implementation the suite is written for: source packages, pure Python
$PIP install --no-deps --no-build-isolation txaio==2.1.0 autobahn==0.10.9
# the suite itself: the Python 2 wheel is only unpacked, its code is then converted
$PIP download --no-deps -d wheel --only-binary=:all: --python-version 27 --implementation py \
    --abi none --platform any autobahntestsuite==25.10.1
SITE=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$PY" -m zipfile -e wheel/autobahntestsuite-*.whl "$SITE"
rm -rf wheel
"$PY" "$HERE/convert_py3.py" "$SITE/autobahntestsuite" "$SITE/autobahn"

# scripts that name the place of construction would not survive the renaming
find bin -type f ! -name 'python*' -delete
cat >bin/wstest <<'W'
#!/bin/sh
exec "$(dirname "$0")/python" -W ignore -m autobahntestsuite.wstest "$@"
W
chmod +x bin/wstest
bin/wstest -a >&2
echo "$STAMP" >stamp

cd "$HERE"
if [ -e "$VENV" ]; then
    rm -rf "$VENV.old"
    mv "$VENV" "$VENV.old"
fi
mv "$NEW" "$VENV"
rm -rf "$VENV.old"
