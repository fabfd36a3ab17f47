"""What an administrator installs, sees and removes: files, versions, debug symbols."""

import os
import re
import shlex
import shutil
import subprocess
import urllib.request

import pytest
from httpd import TOP, echo
from ws_frame import TEXT, frame

pytestmark = pytest.mark.once

VERSION = "mod_websocket/" + re.search(r'^version = "(.+)"', (TOP / "Cargo.toml").read_text(), re.M)[1]
BUILT = TOP / "build"
CONF_FILES = {path.name for path in (TOP / "conf").iterdir()}
SYMBOLS = "mod_websocket.so.debug"


def run(*command, **kw):
    return subprocess.run(command, capture_output=True, text=True, check=False, **kw)


def apxs(name):
    return run(os.environ.get("APXS", "apxs"), "-q", name).stdout.strip()


def make(*words, env=()):
    """`make` with these words, as somebody types it."""
    outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return run("make", "--no-print-directory", "-C", str(TOP), *words, env={**outer, **dict(env)})


def done(*words, **kw):
    """What it says; it has to succeed."""
    result = make(*words, **kw)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files(folder):
    """The files below a folder."""
    return {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def inside(folder, path):
    """Where an absolute path is below `folder`."""
    return folder / str(path).lstrip("/")


class TestInstall:
    """With DESTDIR, in Debian's layout."""

    @pytest.fixture
    def dest(self, tmp_path):
        self.modules = inside(tmp_path, apxs("LIBEXECDIR"))
        self.headers = inside(tmp_path, apxs("INCLUDEDIR"))
        self.conf = inside(tmp_path, apxs("SYSCONFDIR"))
        self.available = self.conf / "mods-available"
        self.available.mkdir(parents=True)
        self.man, self.prefix = inside(tmp_path, apxs("mandir")), tmp_path / "opt/here"
        self.words = [f"DESTDIR={tmp_path}", "PREFIX=/opt/here"]
        return tmp_path

    def manuals(self):
        """They come along if they can be made."""
        made = shutil.which("go-md2man")
        return [self.man / "man8/mod_websocket.8", self.prefix / "share/man/man1/websocksy.1"] if made else []

    def test_everything_comes_and_goes(self, dest):
        said = done("install", "install-examples", "install-websocksy", *self.words)
        examples = {f"mod_websocket_{path.stem}.so" for path in (TOP / "examples").glob("*.c")}
        libraries = {"mod_websocket.so", SYMBOLS, "mod_websocket_draft76.so", "mod_websocket_echo_rs.so"} | examples
        assert files(dest) == {
            *(self.modules / name for name in libraries),
            *(self.headers / path.name for path in (TOP / "include").iterdir()),
            *(self.available / name for name in CONF_FILES),
            dest / "opt/here/bin/websocksy",
            *self.manuals(),
        }
        assert {f"installed: {path}" for path in files(dest)} <= set(said.splitlines())
        assert (self.modules / "mod_websocket.so").read_bytes() == (BUILT / "mod_websocket.so").read_bytes()
        assert os.readlink(self.modules / "mod_websocket_draft76.so") == "mod_websocket.so"
        websocksy = dest / "opt/here/bin/websocksy"
        assert os.access(websocksy, os.X_OK)
        assert not re.search("@[A-Z]+@", websocksy.read_text())

        everything = files(dest)
        said = done("uninstall", *self.words)
        assert files(dest) == set()
        assert {f"removed: {path}" for path in everything} == set(said.splitlines())
        assert done("uninstall", *self.words) == ""

    def test_a_configuration_that_was_changed(self, dest):
        done("install", *self.words)
        said = done("install", *self.words)
        for name in CONF_FILES:
            assert f"kept: {self.available / name}, which is as shipped\n" in said
        changed = self.available / "websocket.conf"
        changed.write_text(changed.read_text() + "# Ours.\n")

        said = done("install", *self.words)
        assert changed.read_text().endswith("# Ours.\n")
        command = re.search(rf"kept: {changed}, which differs from the shipped one: (.*)\n", said).group(1)
        assert "# Ours." in run(*shlex.split(command)).stdout

        said = done("uninstall", *self.words)
        assert f"kept: {changed}, which differs" in said
        assert files(dest) == {changed}

    @pytest.mark.parametrize("name", ["websocket", "websocket_draft76"])
    def test_not_while_it_is_enabled(self, dest, name):
        done("install", *self.words)
        enabled = self.conf / f"mods-enabled/{name}.load"
        enabled.parent.mkdir()
        enabled.symlink_to(f"../mods-available/{name}.load")
        everything = files(dest)
        result = make("uninstall", *self.words)
        assert result.returncode != 0
        assert f"{enabled}:" in result.stderr and "a2dismod" in result.stderr
        assert files(dest) == everything
        assert "now: restart httpd\n" in done("install", *self.words)
        enabled.unlink()
        done("uninstall", *self.words)
        assert files(dest) == set()

    def test_what_others_have_put_there(self, dest):
        """The C module, and the program websocksy."""
        others = [self.modules / "mod_websocket_draft76.so", self.modules / "mod_other.so"]
        others += [dest / "opt/here/bin/websocksy", self.headers / "httpd.h", self.available / "ssl.conf"]
        same_name = [self.modules / "mod_websocket.so", self.modules / "mod_websocket_echo.so"]
        same_name += [self.headers / "websocket_plugin.h"]
        others += same_name
        for path in others:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("of somebody else")
        said = done("uninstall", *self.words).splitlines()
        assert len(said) == 3 and all(any(f"kept: {path}" in line for line in said) for path in same_name), said
        assert files(dest) == set(others)


class TestPrefix:
    """A httpd that was built from source: one prefix, no mods-available."""

    def test_everything_comes_and_goes(self, httpd, ws, tmp_path, monkeypatch):
        modules, conf = tmp_path / "modules", tmp_path / "conf/httpd.conf"
        where = {"LIBEXECDIR": modules, "SYSCONFDIR": conf.parent, "INCLUDEDIR": tmp_path / "include"}
        where["mandir"] = tmp_path / "man"
        where["PROGNAME"] = "httpd"
        cases = "".join(f"'-q {name}') echo '{answer}' ;;\n" for name, answer in where.items())
        tool = tmp_path / "apxs"
        tool.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}*) exec {os.environ.get("APXS", "apxs")} "$@" ;;\nesac\n')
        tool.chmod(0o755)
        conf.parent.mkdir()
        conf.write_text("")
        before = files(tmp_path)
        here = (f"APXS={tool}", f"PREFIX={tmp_path}/local")
        said = done("install", *here)
        module = modules / "mod_websocket.so"
        line = f"LoadModule websocket_module {module}"
        assert said.splitlines()[-2:] == [
            f"now: add this line to {conf}, and what you need of conf/websocket.conf:",
            line,
        ]
        monkeypatch.setattr(httpd, "module", module)
        assert line in httpd.text("").replace('"', "")
        with httpd.serve(echo()):
            client = ws()
            client.send(frame(TEXT, "installed"))
            client.expect(TEXT, "installed")
            client.close()

        fedora = tmp_path / "conf.modules.d/10-websocket.conf"
        fedora.parent.mkdir()
        for loading in (conf, fedora):
            loading.write_text(f"Listen 80\n  {line.replace('LoadModule', 'loadmodule')}\n")
            result = make("uninstall", *here)
            assert result.returncode != 0 and f"{loading}:2:" in result.stderr
            assert module.exists()
            loading.write_text(f"#{line}\n")
        fedora.unlink()
        done("uninstall", *here)
        assert files(tmp_path) == before


class TestSymbols:
    def test_they_are_found_beside_the_module(self, tmp_path):
        """A tool that follows the link in the stripped module names a function and its line."""
        done("install", f"DESTDIR={tmp_path}")
        module = inside(tmp_path, apxs("LIBEXECDIR")) / "mod_websocket.so"
        symbols = module.with_name(SYMBOLS)
        names = run("nm", "-C", str(symbols)).stdout
        address = re.search(r"^([0-9a-f]+) t .*hook_post_config", names, re.M).group(1)
        assert run("nm", str(module)).stdout == ""
        command = ["addr2line", "-f", "-C", "-e", str(module), address]
        found = run(*command).stdout
        assert "hook_post_config" in found and "src/httpd/mod.rs:" in found
        symbols.unlink()
        found = run(*command).stdout  # at most an exported function in front of it, by some versions
        assert "hook_post_config" not in found and ".rs:" not in found


class TestVersion:
    SITE = "<Location /status>\n    SetHandler server-status\n</Location>\n"

    def answer(self, httpd, query=""):
        with urllib.request.urlopen(f"http://127.0.0.1:{httpd.port}/status{query}") as response:
            return response.headers["Server"], response.read().decode()

    def test_in_the_library(self):
        """It can be told without starting it."""
        found = run("grep", "-ao", "mod_websocket/[0-9.]*", str(BUILT / "mod_websocket.so")).stdout
        assert set(found.split()) == {VERSION}

    def test_at_start(self, httpd):
        with httpd.serve(""):
            httpd.graceful()
            lines = [line for line in httpd.error_log.read_text().splitlines() if VERSION in line]
        assert len(lines) >= 2
        assert all(":notice]" in line and "resuming normal operations" in line for line in lines[-2:])

    @pytest.mark.parametrize("tokens, shown", [("Full", True), ("OS", False), ("Prod", False)])
    def test_in_server_status(self, httpd, tokens, shown):
        """Whatever clients are told."""
        with httpd.serve(f"ServerTokens {tokens}\n{self.SITE}"):
            server, page = self.answer(httpd)
            assert re.search(rf"Server Version: .*{VERSION}\b", page)
            assert re.search(rf"^ServerVersion: .*{VERSION}$", self.answer(httpd, "?auto")[1], re.M)
        assert (VERSION in server) == shown
