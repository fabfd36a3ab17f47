"""Fixtures: one server environment per run, one configuration per class or module.

A class or a module says what it wants served in its `CONF`. After each test the error log is
judged (see `Httpd.judge_log`).
"""

import contextlib

import pytest
from httpd import Httpd, raise_open_files
from ws_frame import Client


def pytest_configure():
    raise_open_files()


@pytest.fixture(scope="session")
def httpd():
    environment = Httpd()
    yield environment
    environment.stop()


def _serve(httpd, conf):
    return httpd.serve(conf) if conf else contextlib.nullcontext()


@pytest.fixture(scope="module", autouse=True)
def _module_conf(request, httpd):
    with _serve(httpd, getattr(request.module, "CONF", None)):
        yield


@pytest.fixture(scope="class", autouse=True)
def _class_conf(request, httpd, _module_conf):
    with _serve(httpd, request.cls and getattr(request.cls, "CONF", None)):
        yield


@pytest.fixture(autouse=True)
def _error_log_gate(httpd, _class_conf):
    yield
    httpd.judge_log()


@pytest.fixture
def connect(httpd):
    """Opens TCP connections to the server and closes what the test leaves open."""
    with contextlib.ExitStack() as stack:
        yield lambda **kw: stack.enter_context(Client(kw.pop("port", httpd.port), **kw))


@pytest.fixture
def ws(connect):
    """Opens WebSocket connections: `ws(path, headers, …)` gives a client after its 101."""

    def opened(path="/echo", headers=(), rcvbuf=None, **kw):
        client = connect(rcvbuf=rcvbuf)
        client.upgrade(path, headers, **kw)
        return client

    return opened


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    environment = item.funcargs.get("httpd") if hasattr(item, "funcargs") else None
    if report.failed and environment:
        lines = environment.new_log().splitlines()[-40:]
        report.sections.append(("error log, its new lines", "\n".join(lines)))


def pytest_terminal_summary(terminalreporter):
    """What failed at first and passed when it was tried once more is told all the same."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"{report.nodeid} failed at first", sep="_")
        terminalreporter.write_line(report.longreprtext)
        for title, text in report.sections:
            terminalreporter.section(title, sep="-")
            terminalreporter.write_line(text)
