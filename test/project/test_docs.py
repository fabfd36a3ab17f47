"""The documentation: its links lead somewhere, its commands and configurations work, and its page of directives is what
the module tells httpd. docs/testing.md describes the conventions.

A check is a function that returns what is wrong, as sentences. `TestMistakes` shows each of them mistaken documents.
"""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from channels import publish, publishing
from httpd import STATUS, TOP, echo, free_port, wait_until
from metrics import METRICS, ask, families
from ws_frame import TEXT, Client

pytestmark = pytest.mark.once

PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
PAGES += sorted(f"docs/{page.name}" for page in (TOP / "docs").glob("*.md"))
LANGUAGES = {"apache", "c", "js", "php", "python", "rust", "sh", "text"}
COMMENTS = {"file", "demo", "server", "not run", "man", "table", "end"}
# What apache blocks may use besides the modules that every test has.
HTTPD_MODULES = ["rewrite", "proxy", "proxy_http", "socache_shmcb", "ssl", "http2", "authz_user"]
# Words in code that begin like directives, and are none.
NO_DIRECTIVES = {"WebSocketServer", "WebSocketPlugin", "WebSocketPluginCalls"}
NO_DIRECTIVES |= {"WebSocketConnections", "WebSocketConnectionsDetached", "WebSocketMessagesIn", "WebSocketCloses1006"}
FOLDERS = re.compile(r"(autobahn|conf|docs|examples|include|scripts|src|test)/[\w./-]*$")
DIRECTIVE = re.compile(r"\b(?:WebSocket[A-Z]\w+|SupportDraft75|MaxMessageSize)\b")


class Block(NamedTuple):
    """A fenced block, and what the comment before it says."""

    line: int
    language: str
    text: str
    comment: str  # the part before the colon
    value: str  # the part behind it


class Page(NamedTuple):
    """A document, taken apart."""

    name: str
    blocks: list
    prose: str  # the text without the blocks; their lines are empty
    wrong: list  # what of its form is wrong

    @property
    def words(self):
        """The prose without code."""
        return re.sub(r"`[^`]*`", lambda code: re.sub(r"[^\n]", "x", code[0]), self.prose)

    @property
    def code(self):
        """What stands between single backticks, each with its line."""
        return [(self.prose.count("\n", 0, m.start()) + 1, m[1]) for m in re.finditer(r"`([^`]+)`", self.prose)]

    @property
    def anchors(self):
        """What links to headings may name, made as GitHub makes them."""
        found = []
        for title in re.findall(r"^#+ (.*)$", self.prose, re.M):
            anchor = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
            found.append(anchor + (f"-{found.count(anchor)}" if anchor in found else ""))
        return found


def parse(name, text):
    blocks, prose, wrong, fence, comment = [], [], [], None, ("", "")
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"( *)```(.*)$", line)
        if mark and fence is None:
            fence, lines = (number, mark[2], comment), []
            if mark[2] not in LANGUAGES:
                wrong.append(f"{name}:{number}: the block's language '{mark[2]}' is none of {sorted(LANGUAGES)}")
        elif mark:
            start, language, (key, value) = fence
            blocks.append(Block(start, language, "\n".join(lines) + "\n", key, value))
            fence = None
        elif fence is not None:
            lines.append(line)
        note = re.match(r"<!-- ([a-z ]+?)(?:: (.*?))? -->$", line)
        if fence is None and line.startswith("<!--"):
            comment = (note[1], note[2] or "") if note else ("?", "")
            if comment[0] not in COMMENTS or (comment[0] == "not run" and not comment[1]):
                wrong.append(f"{name}:{number}: {line} is no comment that docs/testing.md describes")
        elif line.strip():
            comment = ("", "")
        prose.append("" if fence is not None or mark else line)
        if fence is None and not mark and re.match(r" {4,}\S", line) and not prose[-2:][0].strip():
            wrong.append(f"{name}:{number}: an indented block, whose language nobody knows")
    if fence is not None:
        wrong.append(f"{name}:{fence[0]}: the block does not end")
    return Page(name, blocks, "\n".join(prose), wrong)


def read(name):
    return parse(name, (TOP / name).read_text())


def links(page):
    """The links of a page, each with its line."""
    found = re.finditer(r"\[(?:[^][]|\[[^][]*\])*\]\(([^)]*)\)", page.words)
    return [(page.words.count("\n", 0, m.start()) + 1, m[1]) for m in found]


def broken_links(page, pages):
    """`pages`: those that links may lead to, by name."""
    wrong = []
    for line, target in links(page):
        where = f"{page.name}:{line}: the link to {target}"
        if re.match(r"[a-z]+:", target):
            parts = urlsplit(target)
            if parts.scheme not in ("http", "https") or "." not in parts.netloc or re.search(r"\s", target):
                wrong.append(f"{where} is no address")
            continue
        path, _, anchor = target.partition("#")
        name = os.path.relpath(TOP / Path(page.name).parent / path, TOP) if path else page.name
        if not (TOP / name).exists() and name not in pages:
            wrong.append(f"{where} leads to no file")
        elif anchor and name in pages and anchor not in pages[name].anchors:
            wrong.append(f"{where} leads to no heading")
        elif anchor and name not in pages:
            wrong.append(f"{where} leads into a file that has no headings")
    for left in re.finditer(r"\]\[|^\[[^]]+\]:", page.words, re.M):
        line = page.words.count("\n", 0, left.start()) + 1
        wrong.append(f"{page.name}:{line}: a link in two parts, which is not followed here")
    return wrong


@functools.lru_cache
def make_targets():
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    said = subprocess.run(["make", "-s", "help"], cwd=TOP, env=env, capture_output=True, text=True, check=True).stdout
    return {word for line in said.splitlines() for word in re.split(r"\s{2,}", line.strip())[0].split()}


def unknown_targets(where, command):
    """What a line of the shell asks of make, and make does not know."""
    wrong, known = [], make_targets()
    variables = set(re.findall(r"\b[A-Z_]{4,}\b", (TOP / "Makefile").read_text()))
    lexer = shlex.shlex(re.sub(r"(^|\s)#.*", r"\1", command, flags=re.M), posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    commands = [[]]
    for word in lexer:
        if word.strip(";&|\n"):
            commands[-1].append(word)
        else:
            commands.append([])
    for words in commands:
        words = words[1:] if words[:1] == ["sudo"] else words
        for word in words[1:] if words[:1] == ["make"] else []:
            name, is_variable, _ = word.partition("=")
            if word.startswith("-") or name in (variables if is_variable else known):
                continue
            wrong.append(f"{where}: make knows no {'variable' if is_variable else 'target'} {name}")
    return wrong


def unknown_names(page, directives):
    """Files, tests, make targets, directives and tags in the text that do not exist."""
    wrong = []
    tests = {path.name: path.read_text() for path in (TOP / "test").rglob("*.py")}
    classes = {name for text in tests.values() for name in re.findall(r"^class (\w+)", text, re.M)}
    source = "".join(path.read_text() for path in (TOP / "src").rglob("*.rs"))
    for line, code in page.code:
        where = f"{page.name}:{line}"
        if code.startswith("make "):
            wrong += unknown_targets(where, code)
        if FOLDERS.match(code) and not (TOP / code).exists():
            wrong.append(f"{where}: there is no {code}")
        if re.match(r"test_\w+\.py$", code) and code not in tests:
            wrong.append(f"{where}: there is no {code}")
        if re.match(r"Test[A-Z]\w+$", code) and code not in classes:
            wrong.append(f"{where}: there are no tests {code}")
        unknown = set(DIRECTIVE.findall(code)) - directives - NO_DIRECTIVES
        wrong += [f"{where}: there is no {name}" for name in unknown]
    version = re.search(r'^version = "(.*)"', (TOP / "Cargo.toml").read_text(), re.M)[1]
    versions = set(re.findall(r"mod_websocket[/ ](\d[\d.]*\d)", page.prose)) - {version}
    wrong += [f"{page.name}: the module's version is {version}, not {other}" for other in versions]
    tags = set(re.findall(r"WS\d{4}", page.prose))
    return wrong + [f"{page.name}: the module has no {tag}" for tag in tags if tag not in source]


# --- the blocks ----------------------------------------------------------------------------------


class Scratch:
    """A copy of the project, in which a page's blocks are tried one after the other."""

    def __init__(self, httpd, page):
        self.httpd, self.page = httpd, page
        self.folder = httpd.root / "docs" / page.name.replace("/", "-")
        self.version = tuple(map(int, re.search(r"/(\d+)\.(\d+)\.(\d+)", httpd._run("-v").stdout).groups()))
        left_out = shutil.ignore_patterns(".git", "build", "target", "__pycache__", "corpus", "artifacts")
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(TOP, self.folder, ignore=left_out)
        build, programs = self.folder / "build", self.folder / "bin"
        build.mkdir()
        programs.mkdir()
        (build / "mod_websocket.so").symlink_to(httpd.module)
        (build / "examples").symlink_to(httpd.examples)
        (programs / "websocksy").symlink_to(self.folder / "scripts/websocksy")
        (programs / "apxs").write_text(f'#!/bin/sh\nexec {shlex.quote(os.environ.get("APXS") or "apxs")} "$@"\n')
        (programs / "apxs").chmod(0o755)
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        if os.environ.get("APXS") in (None, "apxs"):
            (programs / "apxs").unlink()
        self.env = {**os.environ, "PATH": ":".join(path), "TEST_MPM": httpd.mpm, "HTTPD": httpd.binary}
        self.env |= {"MODULES": str(httpd.modules), "MODULE": str(httpd.module), "TMPDIR": str(httpd.root)}
        # What `modules/` is relative to ServerRoot.
        modules = httpd.root / "modules"
        if not modules.exists():
            modules.mkdir()
            for library in (httpd.module, *httpd.examples.glob("*.so")):
                (modules / library.name).symlink_to(library)

    def try_all(self):
        name, blocks = self.page.name, self.page.blocks
        for block in blocks:
            if block.comment == "file":
                path = self.folder / block.value
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
        wrong = [f"{name}:{block.line}: {what}" for block in blocks for what in self.wrong_with(block)]
        if not wrong:
            shutil.rmtree(self.folder)
        return wrong

    def wrong_with(self, block):
        if block.language == "sh":
            yield from unknown_targets("the command", block.text)
            yield from self._run("sh", "-n", "-c", block.text)
        if block.comment != "not run":
            yield from getattr(self, f"_try_{block.language}")(block)

    def _run(self, *command, input=None):
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, input=input, capture_output=True, text=True, timeout=120,
            check=False,
        )
        if done.returncode:
            yield f"{shlex.join(command[:2])} … ends with {done.returncode}: {done.stdout}{done.stderr}"

    def _try_text(self, block):
        return []

    def _try_c(self, block):
        flags = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Iinclude"]
        return self._run("cc", *flags, "-fsyntax-only", "-x", "c", "-", input=block.text)

    def _try_rust(self, block):
        options = ["--edition", "2024", "--crate-type", "lib", "--crate-name", "block", "--emit", "metadata"]
        return self._run("rustc", *options, "--out-dir", "build", "-", input=block.text)

    def _try_python(self, block):
        program = "import sys; compile(sys.stdin.read(), 'block', 'exec')"
        return self._run(sys.executable, "-c", program, input=block.text)

    def _try_js(self, block):
        return self._run("node", "--check", "-", input=block.text) if shutil.which("node") else []

    def _try_php(self, block):
        return self._run("php", "-l", input=block.text) if shutil.which("php") else []

    def _try_apache(self, block):
        if "H2WebSockets" in block.text and self.version < (2, 4, 58):
            return
        conf = block.text.replace("/path/to", str(self.folder))
        if "server.pem" in conf:
            cert = self.httpd.certificate()
            (self.folder / "server.pem").write_text(cert.read_text() + (cert.parent / "key.pem").read_text())
        modules = [name for name in HTTPD_MODULES if (self.httpd.modules / f"mod_{name}.so").exists()]
        if "H2WebSockets" in conf:
            modules.remove("http2")
        said = self.httpd.check(conf, modules=modules)
        if not said.ok or "[websocket:" in said.output:
            yield f"httpd -t says: {said.output}"

    def _try_sh(self, block):
        if block.comment == "server":
            yield from self._serve(block)
        elif block.comment == "demo":
            ports = {"PORT": str(free_port()), "TLS_PORT": str(free_port())}
            self.env |= {**ports, "SERVER_ROOT": str(self.folder / "build/server")}
            yield from self._run("scripts/server.sh", "start")
            try:
                text = block.text.replace("8765", ports["PORT"]).replace("8764", ports["TLS_PORT"])
                yield from self._run("sh", "-eu", "-c", text)
            finally:
                yield from self._run("scripts/server.sh", "stop")
        else:
            yield from self._run("sh", "-eu", "-c", block.text)

    def _serve(self, block):
        """A command that is a server: it has to answer a handshake, if only to say that its peer is not there."""
        port = str(free_port())
        if not re.search(rf"\b{block.value}\b", block.text):
            yield f"the command does not name its port {block.value}"
            return
        command = re.sub(rf"\b{block.value}\b", port, block.text)
        with open(self.folder / "build/said", "w+") as said:
            server = subprocess.Popen(
                ["sh", "-euc", f"exec {command}"], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=said,
                stderr=said, start_new_session=True,
            )
            try:
                wait_until(lambda: server.poll() is not None or self._answers(int(port)), 20, "the server's answer")
            finally:
                ended = server.poll()
                server.send_signal(signal.SIGTERM)
                server.wait(20)
            if ended is not None:
                said.seek(0)
                yield f"the server ends with {ended}: {said.read()}"

    @staticmethod
    def _answers(port):
        handshake = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        handshake += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                client.sendall(handshake)
                return client.recv(100).startswith((b"HTTP/1.1 101", b"HTTP/1.1 502"))
        except OSError:
            return False


# --- the directives ------------------------------------------------------------------------------

DRAFT = 'LoadModule websocket_draft76_module "${MODULE}"\n'
# What httpd says to a directive without arguments, and the number it takes.
ARGUMENTS = {
    "takes one argument": "one",
    "takes two arguments": "two",
    "takes 1-2 arguments": "one or two",
    "requires at least one argument": "any",
    "must be On or Off": "one",
}


class Directive(NamedTuple):
    """A directive, as httpd or the documentation has it."""

    name: str
    contexts: str
    override: str
    arguments: str
    module: str


def registered(httpd):
    """The directives of the module, by name."""
    conf = httpd.check(DRAFT).conf
    said = httpd._run("-f", str(conf), "-L").stdout
    found = {}
    for name, module, rest in re.findall(r"^(\w+) \((mod_websocket\w*)\.c\)\n((?:\t.*\n)*)", said, re.M):
        allowed = re.sub(r"\s+", " ", rest[rest.index("\tAllowed in") :]).strip()
        contexts = {
            "Allowed in *.conf anywhere": "server config, virtual host, directory",
            "Allowed in *.conf anywhere and in .htaccess when AllowOverride includes AuthConfig":
                "server config, virtual host, directory, .htaccess",
            "Allowed in *.conf only outside <Directory>, <Files>, <Location>, or <If>": "server config, virtual host",
        }[allowed]
        alone = httpd.check(f"{DRAFT}{name}\n").output
        arguments = next(number for said, number in ARGUMENTS.items() if f"{name} {said}" in alone)
        override = "AuthConfig" if "AuthConfig" in allowed else ""
        found[name] = Directive(name, contexts, override, arguments, module)
    return found


def described(page):
    """The tables at the heads of a page's directives, by name."""
    found = {}
    for name, table in re.findall(r"^### (\w+)\n\n((?:\|.*\n)+)", page.prose, re.M):
        rows = [re.match(r"\| (.*?) \| (.*) \|$", row) for row in table.splitlines() if not row.startswith("|:")]
        if rows[0][1] == "Description":
            found[name] = {row[1]: row[2].replace("\\|", "|") for row in rows}
    return found


def arguments_of(syntax):
    """How many arguments a line of syntax describes."""
    words = syntax.strip("`").split()[1:]
    if words[-1] == "...":
        return "any"
    return {"a": "one", "aa": "two", "a[]": "one or two"}["".join("[]" if word[0] == "[" else "a" for word in words)]


def wrong_directives(page, registered, main_only):
    """What a page says otherwise than httpd. `main_only`: the directives that a virtual host may not have."""
    tables, wrong = described(page), []
    wrong += [f"{name} is not described" for name in registered.keys() - tables.keys()]
    wrong += [f"{name} does not exist" for name in tables.keys() - registered.keys()]
    names = list(tables)
    wrong += [f"{name} is not in its place in the alphabet" for name, so in zip(names, sorted(names)) if name != so]
    contents = page.prose[: page.prose.index("\n## ")]
    wrong += [f"{name} is missing in the list above" for name in names if f"[{name}](#{name.lower()})" not in contents]
    for name in registered.keys() & tables.keys():
        table, real = tables[name], registered[name]
        known = ["Description", "Syntax", "Default", "Context", "Override", "Module", "Compatibility"]
        if list(table) != [row for row in known if row in table]:
            wrong.append(f"{name}: the rows are not {known}, in this order")
        syntax = table.get("Syntax", "``")
        if not re.match(rf"`{name} [^`]+`$", syntax):
            wrong.append(f"{name}: the syntax {syntax} does not begin with its name")
        elif arguments_of(syntax) != real.arguments:
            wrong.append(f"{name}: the syntax {syntax} has another number of arguments than {real.arguments}")
        contexts = "server config" if name in main_only else real.contexts
        for row, is_so in (("Context", contexts), ("Override", real.override), ("Module", real.module)):
            if table.get(row, "") != is_so:
                wrong.append(f"{name}: {row} is not '{table.get(row, '')}' but '{is_so}'")
        default = table.get("Default", "")
        if default.startswith("`") and not default.startswith(f"`{name} "):
            wrong.append(f"{name}: the default {default} does not begin with its name")
    return wrong


def defaults(page):
    """The defaults that are lines of configuration, by directive."""
    tables = described(page)
    found = {name: table.get("Default", "").strip("`") for name, table in tables.items()}
    return {name: default for name, default in found.items() if default.startswith(f"{name} ")}


def shipped(conf):
    """The lines of a configuration whose lines are commented out without a blank, as they would be."""
    return re.sub(r"^( *)#(?=[A-Z<]| {4,}[A-Z<])", r"\1", conf, flags=re.M)


def main_only(httpd, registered):
    """The directives that are refused in a virtual host."""
    candidates = [name for name, real in registered.items() if real.contexts == "server config, virtual host"]
    lines = defaults(read("docs/directives.md"))
    return {name for name in candidates if not httpd.check(f"<VirtualHost *:1>\n{lines[name]}\n</VirtualHost>").ok}


# --- the tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(httpd):
    return registered(httpd)


@pytest.mark.parametrize("name", PAGES)
class TestPages:
    def test_form(self, name):
        assert read(name).wrong == []

    def test_links(self, name):
        assert broken_links(read(name), {page: read(page) for page in PAGES}) == []

    def test_names(self, name, table):
        # The changelog also names what is gone.
        if name != "CHANGELOG.md":
            assert unknown_names(read(name), set(table)) == []

    def test_blocks(self, name, httpd):
        page = read(name)
        if page.blocks:
            assert Scratch(httpd, page).try_all() == []


def test_every_page_can_be_found():
    """From the README, by one link or two."""
    near = {os.path.normpath(target.split("#")[0]) for _, target in links(read("README.md"))}
    far = {os.path.normpath(f"docs/{target.split('#')[0]}") for page in near if page.startswith("docs/")
           for _, target in links(read(page))}
    assert set(PAGES) - near - far == {"README.md"}


class TestDirectives:
    PAGE = "docs/directives.md"

    def test_page(self, httpd, table):
        assert len(table) > 30
        assert wrong_directives(read(self.PAGE), table, main_only(httpd, table)) == []

    def test_defaults_are_accepted(self, httpd):
        lines = defaults(read(self.PAGE))
        assert len(lines) > 20
        said = httpd.check(DRAFT + "\n".join(lines.values()))
        assert said.ok, said.output

    def test_defaults_are_those_of_the_shipped_configuration(self):
        conf = (TOP / "conf/websocket.conf").read_text()
        for name, default in defaults(read(self.PAGE)).items():
            if name != "MaxMessageSize":
                first = re.search(rf"^ *#({name} .*)$", conf, re.M)
                assert first, f"{name} is not in conf/websocket.conf"
                assert first[1] == default

    def test_shipped_configuration(self, httpd, table):
        """Each directive in it exists, and all of it is accepted when nothing is commented out."""
        conf = shipped((TOP / "conf/websocket.conf").read_text())
        named = {name for name in re.findall(r"^ *(\w+) ", conf, re.M) if DIRECTIVE.fullmatch(name)}
        assert named - set(table) == set()
        assert set(table) - named == {"MaxMessageSize"}
        (httpd.root / "websocksy.conf").write_text("[backend]\nhost = tcp://127.0.0.1:1\n")
        (httpd.root / "peers").mkdir(exist_ok=True)
        for path, here in (
            ("/etc/websocksy.conf", "${ROOT}/websocksy.conf"),
            ("/etc/apache2/peers", "${ROOT}/peers"),
            ("/usr/lib/apache2/modules/mod_websocket_echo.so", "${EXAMPLES}/mod_websocket_echo.so"),
        ):
            assert path in conf
            conf = conf.replace(path, here)
        said = httpd.check(DRAFT + conf)
        assert said.ok, said.output

    def test_notes_and_variables(self):
        """Each one that the module sets for the access log."""
        source = "".join(path.read_text() for path in (TOP / "src/httpd").rglob("*.rs"))
        names = set(re.findall(r'c"((?:websocket-|SSL_)\w[\w-]*)"', source))
        names -= {"websocket-handler", "websocket-publish", "websocket-metrics"}
        assert len(names) > 7
        code = {code for _, code in read(self.PAGE).code}
        assert names - code == set()
        assert {code for code in code if re.match(r"websocket-\w[\w-]*$", code)} - names == set()


def test_leaks_that_are_none():
    """What the soak test leaves out is named by the paths of sources."""
    for name in re.findall(r"^leak:(httpd/.*)$", (TOP / "test/soak/leaks.supp").read_text(), re.M):
        assert (TOP / "src" / name).exists(), name


def test_manual_pages(tmp_path):
    if not shutil.which("go-md2man"):
        pytest.skip("there is no go-md2man")
    for page, name in (("docs/directives.md", "mod_websocket.8"), ("docs/websocksy.md", "websocksy.1")):
        subprocess.run([TOP / "scripts/man.sh", page, tmp_path / name], cwd=TOP, check=True)
        manual = (tmp_path / name).read_text()
        for left in ("](", "<!--", "```", "\\|", "| "):
            assert left not in re.sub(r"^\.nf$.*?^\.fi$", "", manual, flags=re.M | re.S), f"{left} is left in {name}"
        for title in re.findall(r"^##+ (.*)$", read(page).prose, re.M):
            assert re.search(rf"^\.S[HS] {title}$", manual, re.M | re.I), f"{name} has no section {title}"
        shown = subprocess.run(["man", "--warnings", "-l", tmp_path / name], capture_output=True, text=True, check=True,
                               env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"})
        assert shown.stderr == ""


class TestPublishedTables:
    """What `make bench PUBLISH=1` writes into docs/performance.md."""

    @staticmethod
    def bench_page(monkeypatch):
        monkeypatch.syspath_prepend(TOP / "test/bench")
        import page

        return page

    def test_table_is_replaced(self, monkeypatch, tmp_path, capsys):
        page = self.bench_page(monkeypatch)
        path = tmp_path / "performance.md"
        shutil.copy(TOP / "docs/performance.md", path)
        old = path.read_text()
        monkeypatch.delenv("PUBLISH", raising=False)
        page.publish("bridge", ["Relay", "MiB/s"], [["it", 1]], "make bench-bridge", 0.5, path)
        assert path.read_text() == old
        monkeypatch.setenv("PUBLISH", "1")
        page.publish("bridge", ["Relay", "MiB/s"], [["it", 1]], "make bench-bridge", 0.5, path)
        new = path.read_text()
        between = new[new.index("<!-- table: bridge -->") : new.index("<!-- end: bridge -->")]
        assert re.search(r"\n[\d-]{10}, `make bench-bridge` on .+ cores, Linux .+; load average .*: 0.5.\n", between)
        assert between.endswith("\n| Relay | MiB/s |\n|---|---:|\n| it | 1 |\n\n")
        was = old[old.index("<!-- table: bridge") : old.index("<!-- end: bridge")]
        assert new.replace(between, was) == old
        assert capsys.readouterr().out.count("| it | 1 |") == 2

    def test_each_has_its_place(self):
        """And no other: what is published is what the programs name."""
        programs = "".join((TOP / f"test/bench/{name}.py").read_text() for name in ("run", "idle", "bridge", "fanout"))
        named = set(re.findall(r'publish\(f?"([a-z-]+)', programs)) - {"idle-"}
        named |= {f"idle-{mpm}" for mpm in ("event", "worker", "prefork")}
        text = (TOP / "docs/performance.md").read_text()
        assert re.findall(r"<!-- table: (.*) -->", text) == re.findall(r"<!-- end: (.*) -->", text)
        assert set(re.findall(r"<!-- table: (.*) -->", text)) == named


class TestOrigins:
    """What docs/security.md says about names and TLS terminators."""

    @staticmethod
    def status(httpd, host, origin):
        with Client(httpd.port) as client:
            return client.ask("/echo", Host=host, Origin=origin).status

    @staticmethod
    def block(text):
        return next(block.text for block in read("docs/security.md").blocks if text in block.text)

    def test_name_that_is_not_ours(self, httpd):
        evil, ours = f"evil.example:{httpd.port}", f"www.example.com:{httpd.port}"
        with httpd.serve(echo()):
            assert self.status(httpd, evil, f"http://{evil}") == 101
        conf = self.block("catch-all").replace("*:80", "*:${PORT}").replace("/vnc", "/echo")
        plugin = "WebSocketHandler ${EXAMPLES}/mod_websocket_echo.so echo_init"
        conf = conf.replace("WebSocketBridge tcp://127.0.0.1:5900", plugin)
        with httpd.serve(conf):
            httpd.allow_log("AH01630")
            assert self.status(httpd, evil, f"http://{evil}") == 403
            assert self.status(httpd, ours, f"http://{ours}") == 101

    def test_canonical_name(self, httpd):
        evil, ours = f"evil.example:{httpd.port}", "http://intranet.example.com:8080"
        with httpd.serve(self.block("UseCanonicalName") + echo()):
            assert self.status(httpd, evil, f"http://{evil}") == 403
            assert self.status(httpd, evil, ours) == 101

    def test_behind_a_terminator(self, httpd):
        with httpd.serve(echo()):
            assert self.status(httpd, "www.example.com", "https://www.example.com") == 403
        with httpd.serve(self.block("ServerName https") + echo()):
            assert self.status(httpd, "www.example.com", "https://www.example.com") == 101
            assert self.status(httpd, "www.example.com", "http://www.example.com") == 403


class TestMetrics:
    """The table of docs/directives.md, and what it configures."""

    @staticmethod
    def section():
        text = read("docs/directives.md").prose
        return text[text.index("\n### Metrics\n") :]

    def test_table(self, httpd):
        """Each metric that the page has is in the table, in its order, with its label and its name in server-status."""
        rows = re.findall(r"^\| `(websocket_\w+)` \|(?: `(\w+)`[^|]*)? +\| `(\w+)` \| ", self.section(), re.M)
        with httpd.serve(METRICS + STATUS + publishing()):
            publish(httpd, "a", "1")
            told, sums = families(ask(httpd)[2]), httpd.sums()
        found = [(family.samples[0].name, "".join(family.samples[0].labels)) for family in told]
        assert [(name, label) for name, label, _ in rows] == found
        for family, (_, _, short) in zip(told, rows):
            if not family.name.endswith("_seconds"):
                assert sums[short] == sum(sample.value for sample in family.samples), short
        # Those of labels are behind these names.
        assert {name for name in sums if not any(name.startswith(short) for _, _, short in rows)} == set()

    def test_a_port_of_its_own(self, httpd):
        block = next(block.text for block in read("docs/directives.md").blocks if "websocket-metrics" in block.text)
        port = free_port()
        with httpd.serve(block.replace("8081", str(port))):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert families(answer.read().decode())


class TestChannels:
    """What docs/channels.md configures, publishes and has in its pages."""

    @staticmethod
    def blocks(language, text="", comment=None):
        """Those with a comment of this kind, or without regard to it those that the demo does not run."""
        blocks = [block for block in read("docs/channels.md").blocks if block.language == language and text in block.text]
        return [block.text for block in blocks if (block.comment == comment if comment else block.comment != "demo")]

    @pytest.fixture
    def port(self, httpd):
        """The port of those who publish, of a server with the page's first two blocks."""
        port = str(free_port())
        conf = "".join(self.blocks("apache")[:2]).replace("8081", port)
        # As Debian has it.
        denied = '<Directory "/">\nRequire all denied\n</Directory>\n<Directory "${ROOT}/htdocs">\nRequire all granted\n</Directory>\n'
        with httpd.serve(denied + conf):
            yield port

    @staticmethod
    def run(command, program, port):
        return subprocess.run(
            command, input=program.replace("8081", port), capture_output=True, text=True, check=True, timeout=20
        ).stdout

    @pytest.fixture
    def listening(self, httpd, port):
        with Client(httpd.port) as client:
            client.upgrade("/live/kitchen")
            yield client

    def test_shell(self, listening, port):
        publishing, other, _ = self.blocks("sh")
        answers = [json.loads(line) for line in self.run(["sh", "-eu"], publishing, port).splitlines()]
        assert [(about["channel"], about["subscribers"]) for about in answers] == [("room/kitchen", 1)] * 3
        listening.expect(TEXT, "hello")
        listening.expect(TEXT, '{"oven": 180}')
        assert "load average" in listening.read_frame().payload.decode()
        shown = [json.loads(line) for line in self.blocks("text", '"channel"')[-1].splitlines()]
        answers = [json.loads(line) for line in self.run(["sh", "-eu"], other, port).splitlines()]
        assert [list(about) for about in answers] == [list(about) for about in shown]
        assert (answers[0]["messages"], answers[0]["subscribers"]) == (3, 1)
        listening.expect_close(1000)

    def test_cron(self, listening, port):
        [line] = self.blocks("text", "*/5")
        assert self.run(["sh", "-eu"], line.split(None, 5)[5], port) == ""
        assert "load average" in listening.read_frame().payload.decode()

    def test_python(self, listening, port):
        [program] = self.blocks("python")
        self.run([sys.executable], program, port)
        listening.expect(TEXT, "hello from Python")

    def test_php(self, listening, port):
        if not shutil.which("php"):
            pytest.skip("there is no PHP")
        with_curl, without, page = self.blocks("php")
        if "curl" in self.run(["php", "-m"], "", port):
            assert self.run(["php"], with_curl, port) == ""
            listening.expect(TEXT, "hello from PHP")
        assert self.run(["php"], without, port) == ""
        listening.expect(TEXT, '{"oven":180}')
        about = json.loads(self.run(["curl", "-s", f"http://127.0.0.1:{port}/publish/kitchen"], "", port))
        assert f'let last = "{about["newest"]}";' in self.run(["php"], page, port)

    @staticmethod
    def publish(port, text, method="POST"):
        url = f"http://127.0.0.1:{port}/publish/kitchen"
        request = urllib.request.Request(url, text.encode(), {"Content-Type": "text/plain"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return json.load(answer)

    def subscribed(self, port):
        wait_until(lambda: self.publish(port, "", "GET")["subscribers"] == 1, 20, "the page's subscription")

    def open_page(self, httpd, page, script):
        path = httpd.root / "htdocs" / "channel.html"
        path.write_text(f'<!doctype html><p id="news"></p><script>\n{script}</script>')
        path.chmod(0o644)
        page.open(f"http://localhost:{httpd.port}/channel.html")

    def test_page(self, httpd, port, page):
        plain, _, _ = self.blocks("js")
        self.open_page(httpd, page, plain)
        self.subscribed(port)
        self.publish(port, "one")
        page.wait_text("news", "one")
        httpd.restart()
        httpd.outlived()
        self.subscribed(port)
        self.publish(port, "two")
        page.wait_text("news", "two")
        self.publish(port, "", "DELETE")
        wait_until(lambda: self.publish(port, "", "GET")["subscribers"] == 0, what="the end")
        assert page.text("news") == "two"

    def test_page_with_ids(self, httpd, port, page):
        _, with_ids, _ = self.blocks("js")
        self.open_page(httpd, page, with_ids)
        self.subscribed(port)
        expected = ""
        for turn in range(3):
            self.publish(port, f"there {turn}")
            httpd.graceful()
            for n in range(20):
                self.publish(port, f"{turn}.{n}")
            self.subscribed(port)
            expected += f"there {turn}\n" + "".join(f"{turn}.{n}\n" for n in range(20))
            page.wait(f"document.getElementById('news').textContent === {json.dumps(expected)}", 30)
        page.run("last = '0-0-0'; loaded = false")
        httpd.graceful()
        # The gap has the page loaded again. While it is, it knows of neither.
        page.wait("typeof loaded === 'undefined' && typeof last !== 'undefined' && last === null", 30)

    def test_page_with_events(self, httpd, port, page):
        _, _, with_events = self.blocks("js")
        self.open_page(httpd, page, with_events)
        expected = ""
        for turn in range(2):
            self.subscribed(port)
            httpd.graceful()
            for n in range(20):
                self.publish(port, f"{turn}.{n}")
                expected += f"{turn}.{n}\n"
            page.wait(f"document.getElementById('news').textContent === {json.dumps(expected)}", 30)
        self.subscribed(port)
        self.publish(port, "", "DELETE")
        page.wait("source.readyState === EventSource.CLOSED")

    def test_events_in_a_terminal(self, httpd, port):
        self.publish(port, "hello")
        with Client(httpd.port) as client:
            path = f"/live/kitchen?last_event_id={self.publish(port, '', 'GET')['oldest']}"
            client.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
            self.publish(port, "hello")
            got = b""
            while b"hello" not in got:
                got += client.sock.recv(4096)
        body = got.split(b"\r\n\r\n", 1)[1].decode()
        [shown] = self.blocks("text", "data: hello")
        fields = [re.sub(r"[0-9a-f]+-[0-9a-f]+-[0-9a-f]+", "…", text).split("\n")[:4] for text in (shown, body)]
        assert fields[0] == fields[1]

    def test_events_for_other_sites(self, httpd):
        [cors] = self.blocks("apache", "Access-Control-Allow-Origin")
        with httpd.serve("".join(self.blocks("apache")[:1]) + cors):
            answers = {}
            for origin in "https://example.org", "https://evil.example":
                with Client(httpd.port) as client:
                    fields = f"Host: localhost\r\nOrigin: {origin}\r\nAccept: text/event-stream"
                    client.sock.sendall(f"GET /live/kitchen HTTP/1.1\r\n{fields}\r\n\r\n".encode())
                    got = b""
                    while b"\r\n\r\n" not in got:
                        got += client.sock.recv(4096)
                    answers[origin] = got.decode()
        allowed, refused = answers.values()
        assert allowed.startswith("HTTP/1.1 200 ") and refused.startswith("HTTP/1.1 403 ")
        assert "\r\nAccess-Control-Allow-Origin: https://example.org\r\n" in allowed
        assert re.search(r"\r\nVary: Accept, *Origin\r\n|\r\nVary: Origin, *Accept\r\n", allowed)

    def test_demo(self, httpd, page, other_page):
        """Two pages of the demo see what a newcomer publishes, with a graceful restart in between."""
        commands, news = self.blocks("sh", comment="demo")
        port = str(free_port())
        # The commands have build/server in their folder; the module's build is not written to.
        folder = httpd.root / "demo"
        (folder / "build").mkdir(parents=True)
        (folder / "examples").symlink_to(TOP / "examples")
        env = {**os.environ, "PORT": port, "TLS_PORT": "", "SERVER_ROOT": str(folder / "build/server")}
        env |= {"TEST_MPM": httpd.mpm, "HTTPD": httpd.binary, "MODULE": str(httpd.module), "TMPDIR": str(httpd.root)}
        server = [str(TOP / "scripts/server.sh")]
        subprocess.run([*server, "start"], env=env, check=True, capture_output=True, timeout=30)
        try:
            for one in page, other_page:
                one.open(f"http://localhost:{port}/chat.html")
                one.wait_text("status", "open")
            subprocess.run(["sh", "-euc", commands.replace("8765", port)], cwd=folder, env=env, check=True, timeout=20)
            for one in page, other_page:
                one.wait("document.getElementById('log').textContent === 'before\\nafter\\n'", 20)
            page.open(f"http://localhost:{port}/news.html")
            page.wait_text("status", "open")
            subprocess.run(["sh", "-euc", news], cwd=folder, env=env, check=True, timeout=20)
            page.wait_text("log", "The oven is hot.")
        finally:
            page.open("about:blank")
            other_page.open("about:blank")
            subprocess.run([*server, "stop"], env=env, check=True, timeout=30)


class TestMistakes:
    """Each mistake is found."""

    @pytest.mark.parametrize("text, what", [
        ("```\nx\n```\n", "language ''"),
        ("```ruby\nx\n```\n", "language 'ruby'"),
        ("```sh\nx\n", "does not end"),
        ("text\n\n    x\n", "indented block"),
        ("<!-- not run -->\n```sh\nx\n```\n", "no comment"),
        ("<!-- not-run: slow -->\n```sh\nx\n```\n", "no comment"),
    ])
    def test_form(self, text, what):
        assert what in " ".join(parse("x.md", text).wrong)

    @pytest.mark.parametrize("target, what", [
        ("docs/nothing.md", "no file"),
        ("#nothing", "no heading"),
        ("README.md#nothing", "no heading"),
        ("src/lib.rs#x", "no headings"),
        ("https:/example.com/", "no address"),
        ("https://example/", "no address"),
    ])
    def test_links(self, target, what):
        page = parse("x.md", f"# A title\n\na [link](#a-title), another\n[over\nlines]({target})\n")
        wrong = broken_links(page, {"x.md": page, "README.md": read("README.md")})
        assert len(wrong) == 1
        assert "x.md:4" in wrong[0]
        assert what in wrong[0]

    @pytest.mark.parametrize("code", [
        "make chekc", "make check PROT=1", "src/nothing.rs", "test_nothing.py", "TestNothing", "WebSocketNothing On",
    ])
    def test_names(self, code):
        assert len(unknown_names(parse("x.md", f"`{code}`\n"), set())) == 1

    @pytest.mark.parametrize("text", ["see WS9999 and WS0405", "this is `mod_websocket/9.9.9`"])
    def test_tags_and_versions(self, text):
        assert len(unknown_names(parse("x.md", text), set())) == 1

    @pytest.mark.parametrize("text", [
        "```apache\nWebSocketNothing On\n```\n",
        "```apache\nWebSocketThreads 0\n```\n",
        "```c\nint f(void) { return; }\n```\n",
        "```rust\nfn f() -> u8 { 256 }\n```\n",
        "```python\nprint(\n```\n",
        pytest.param("```js\nlet = ;\n```\n", marks=pytest.mark.skipif(not shutil.which("node"), reason="no node")),
        pytest.param("```php\n<?php f(;\n```\n", marks=pytest.mark.skipif(not shutil.which("php"), reason="no PHP")),
        "```sh\nfalse; true\n```\n",
        "```sh\nmake nothing\n```\n",
        "<!-- not run: slow -->\n```sh\nmake nothing\n```\n",
        "<!-- not run: slow -->\n```sh\nif\n```\n",
        "<!-- server: 6080 -->\n```sh\nwebsocksy -p 6080 -c nothing=1\n```\n",
        "<!-- server: 6081 -->\n```sh\nwebsocksy -p 6080\n```\n",
        "<!-- demo -->\n```sh\npython3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 1))'\n```\n",
        "<!-- file: x.h -->\n```c\nint x;\n```\n\n```sh\ntest -e y.h\n```\n",
    ])
    def test_blocks(self, httpd, text):
        page = parse("x.md", text)
        assert page.wrong == []
        wrong = Scratch(httpd, page).try_all()
        assert wrong
        assert all(what.startswith("x.md:") for what in wrong)

    @pytest.mark.parametrize("old, new", [
        ("### WebSocketThreads\n", "### WebSocketThread\n"),
        ("`WebSocketThreads number`", "`WebSocketThreads number [number]`"),
        ("`WebSocketThreads number`", "`WebSocketThread number`"),
        ("`WebSocketThreads 32`", "`WebSocketThread 32`"),
        ("| Syntax | `WebSocketThreads number` |\n", ""),
        ("| Context | server config |", "| Context | server config, virtual host |"),
        ("| Override | AuthConfig |\n", ""),
        ("| Module | mod_websocket_draft76 |", "| Module | mod_websocket |"),
        ("[WebSocketThreads](#websocketthreads)", "WebSocketThreads"),
        ("`WebSocketHandler library init-function`", "`WebSocketHandler library`"),
        ("`WebSocketTrustedOrigin origin [origin] ...`", "`WebSocketTrustedOrigin origin`"),
    ])
    def test_directives(self, httpd, table, old, new):
        text = (TOP / "docs/directives.md").read_text()
        assert old in text
        page = parse("docs/directives.md", text.replace(old, new, 1))
        main_only = {"WebSocketThreads", "WebSocketDrainTime", "WebSocketMemoryLimit"}
        assert wrong_directives(page, table, main_only) != []
