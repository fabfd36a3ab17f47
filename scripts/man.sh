#!/bin/sh
# man.sh PAGE.md MANUAL: makes a manual page of a page of docs/ that begins with <!-- man: NAME SECTION "DESCRIPTION" -->.
#
# go-md2man does the work. Before that the title becomes the section NAME, links become their text (and where they lead, for
# those out of this project), and tables become lists, which suit a terminal better: the table at the head of a directive one
# of lines, any other a definition list.
set -eu
page=${1:?usage: man.sh PAGE.md MANUAL}
manual=${2:?usage: man.sh PAGE.md MANUAL}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$(dirname "$0")/../Cargo.toml" | head -n 1)
mkdir -p "$(dirname "$manual")"
text=$(awk -v version="$version" '
    function die(why) { print "man.sh: " FILENAME ": " why >"/dev/stderr"; exit failed = 1 }
    # The text of links, which may go on on the next line: the whole page is one string by now.
    function unlinked(text,    at, link, words, target) {
        while (match(text, /\[[^][]*\]\([^)]*\)/)) {
            link = substr(text, RSTART, RLENGTH)
            at = index(link, "](")
            words = substr(link, 2, at - 2)
            target = substr(link, at + 2, length(link) - at - 2)
            if (target ~ /^https?:/) words = words " (" target ")"
            text = substr(text, 1, RSTART - 1) words substr(text, RSTART + RLENGTH)
        }
        return text
    }
    function row(line,    i, count) {
        gsub(/\\\|/, "\001", line)
        sub(/^\| */, "", line); sub(/ *\|$/, "", line)
        count = split(line, cells, / *\| */)
        for (i = 1; i <= count; i++) gsub(/\001/, "|", cells[i])
        return count
    }
    function item(    i, said) {
        if (headings[1] == "Description") { page = page "**" cells[1] "**: " cells[2] "  \n"; return }
        said = ""
        for (i = 2; i <= columns; i++)
            if (cells[i] != "")
                said = said (said == "" ? "" : "; ") (i > 2 && headings[i] != "" ? headings[i] ": " : "") cells[i]
        page = page cells[1] "\n: " said "\n\n"
    }
    NR == 1 {
        if (!match($0, /^<!-- man: [a-z_]+ [0-9] ".*" -->$/)) die("the first line is no <!-- man: NAME SECTION \"DESCRIPTION\" -->")
        says = $0; sub(/^[^"]*"/, "", says); sub(/" -->$/, "", says)
        page = "% " $3 " " $4 " \"\" \"mod_websocket " version "\" \"mod_websocket\"\n\n# NAME\n\n" $3 " - " says "\n\n# DESCRIPTION\n"
        next
    }
    /^```/ { fenced = !fenced; page = page "```\n"; next }
    fenced { page = page $0 "\n"; next }
    /^# / || /^<!-- .* -->$/ { next } # the title, and what is for tests
    /^\|/ {
        columns = row($0)
        if (!table++) { for (i in cells) headings[i] = cells[i]; if (headings[1] == "Description") item() }
        else if ($0 !~ /^\|[-:| ]*\|$/) item()
        next
    }
    { table = 0 }
    /^##/ { $0 = substr($0, 2) }
    /^# / { $0 = toupper($0) }
    { page = page $0 "\n" }
    END { if (!failed) printf "%s", unlinked(page) }
' "$page")
printf '%s\n' "$text" >"$manual.md"
go-md2man -in "$manual.md" -out "$manual"
rm "$manual.md"
