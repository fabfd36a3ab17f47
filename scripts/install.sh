#!/bin/sh
# install.sh module | examples FILE... | websocksy | remove FILE...: puts what was built where httpd finds it, and takes
# all of it away again. FILEs are the built examples.
#
# Environment: APXS, HTTPD, DESTDIR, PREFIX (/usr/local).
set -eu
cd "$(dirname "$0")/.."
command=${1:?usage: install.sh module|examples|websocksy|remove}
shift
: "${APXS:=$(command -v apxs || command -v apxs2)}" "${DESTDIR:=}" "${PREFIX:=/usr/local}"
: "${HTTPD:=$("$APXS" -q SBINDIR)/$("$APXS" -q PROGNAME)}"
modules=$("$APXS" -q LIBEXECDIR)
include=$("$APXS" -q INCLUDEDIR)
conf=$("$APXS" -q SYSCONFDIR)
# Debian's: a2enmod enables what is there.
available=$conf/mods-available
websocksy=$PREFIX/bin/websocksy
# Beside those of httpd's programs, or of others in PREFIX.
manual=$("$APXS" -q mandir)/man8/mod_websocket.8
websocksy_manual=$PREFIX/share/man/man1/websocksy.1

# put SOURCE FOLDER: installs a file there.
put() {
    install -D -m 644 "$1" "$DESTDIR$2/${1##*/}"
    echo "installed: $DESTDIR$2/${1##*/}"
}

# put_manual FILE: installs a manual page if it has been made.
put_manual() {
    if [ -e "build/man/${1##*/}" ]; then
        put "build/man/${1##*/}" "${1%/*}"
    else
        echo "left out: the manual page ${1##*/}, because there is no go-md2man to make it"
    fi
}

# drop FILE...: removes those that are there.
drop() {
    for file; do
        if [ -e "$DESTDIR$file" ] || [ -L "$DESTDIR$file" ]; then
            rm -f "$DESTDIR$file"
            echo "removed: $DESTDIR$file"
        fi
    done
}

# kept FILE SHIPPED: says of a file that stays whether somebody has changed it.
kept() {
    if cmp -s "$1" "$2"; then
        echo "kept: $1, which is as shipped"
    else
        echo "kept: $1, which differs from the shipped one: diff '$1' '$PWD/$2'"
    fi
}

# take_back FOLDER FILE...: removes those files that were installed there and are still the same.
take_back() {
    folder=$1
    shift
    for file; do
        there=$DESTDIR$folder/${file##*/}
        if cmp -s "$there" "$file"; then
            drop "$folder/${file##*/}"
        elif [ -e "$there" ]; then
            kept "$there" "$file"
        fi
    done
}

# The lines of httpd's configuration that load the module, as file:number:line. Fedora has some beside that folder.
loaded() {
    grep -RsnEi --include='*.conf' --include='*.load' --exclude-dir='*-available' \
        '^[[:space:]]*LoadModule[[:space:]]+websocket_(draft76_)?module[[:space:]]' \
        "$DESTDIR$conf" "$DESTDIR${conf%/*}/conf.d" "$DESTDIR${conf%/*}/conf.modules.d" || :
}

install_module() {
    newer=$(find src include Cargo.toml Cargo.lock build.rs -newer build/mod_websocket.so -type f | head -n 1)
    if [ -n "$newer" ]; then
        echo "note: build/mod_websocket.so is older than $newer; 'make' builds it anew" >&2
    fi
    put build/mod_websocket.so "$modules"
    if [ -e build/mod_websocket.so.debug ]; then put build/mod_websocket.so.debug "$modules"; fi
    ln -sf mod_websocket.so "$DESTDIR$modules/mod_websocket_draft76.so"
    echo "installed: $DESTDIR$modules/mod_websocket_draft76.so"
    for header in include/*.h; do put "$header" "$include"; done
    put_manual "$manual"
    debian=
    if [ -d "$DESTDIR$available" ] || [ -d "$available" ]; then debian=yes; fi
    for file in ${debian:+conf/*.conf conf/*.load}; do
        there=$DESTDIR$available/${file##*/}
        if [ -e "$there" ]; then kept "$there" "$file"; else put "$file" "$available"; fi
    done
    if [ -n "$(loaded)" ]; then
        echo "now: restart httpd"
    elif [ -n "$debian" ]; then
        echo "now: a2enmod websocket, then restart apache2"
    else
        echo "now: add this line to $conf/$("$APXS" -q PROGNAME).conf, and what you need of conf/websocket.conf:"
        echo "LoadModule websocket_module $modules/mod_websocket.so"
    fi
}

install_websocksy() {
    sed -e "s|@HTTPD@|$HTTPD|" -e "s|@MODULES@|$modules|" -e "s|@MODULE@|$modules/mod_websocket.so|" \
        scripts/websocksy | install -D -m 755 /dev/stdin "$DESTDIR$websocksy"
    echo "installed: $DESTDIR$websocksy"
    put_manual "$websocksy_manual"
}

# remove EXAMPLE...
remove() {
    lines=$(loaded)
    if [ -n "$lines" ]; then
        echo "uninstall: without the module httpd would not start, because its configuration loads it:"
        echo "$lines"
        echo "uninstall: nothing was removed. First disable the module (Debian: a2dismod websocket_draft76 websocket;" \
            "elsewhere delete these lines) and restart httpd."
        exit 1
    fi >&2
    # The C module's file has the same name, and says no version of this one.
    there=$DESTDIR$modules/mod_websocket.so
    if grep -aqs 'mod_websocket/[0-9]' "$there"; then
        drop "$modules/mod_websocket.so" "$modules/mod_websocket.so.debug"
    elif [ -e "$there" ]; then
        echo "kept: $there, which is another module"
    fi
    drop "$manual"
    # Another file of this name is the C module's.
    if [ -L "$DESTDIR$modules/mod_websocket_draft76.so" ]; then drop "$modules/mod_websocket_draft76.so"; fi
    take_back "$modules" "$@"
    take_back "$include" include/*.h
    # The program websocksy has the same name.
    if grep -qs mod_websocket "$DESTDIR$websocksy"; then drop "$websocksy" "$websocksy_manual"; fi
    take_back "$available" conf/*.conf conf/*.load
}

case $command in
module) install_module ;;
examples) for example; do put "$example" "$modules"; done ;;
websocksy) install_websocksy ;;
remove) remove "$@" ;;
*)
    echo "install.sh: unknown command $command" >&2
    exit 2
    ;;
esac
