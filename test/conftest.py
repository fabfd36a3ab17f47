"""Fixtures: one server environment per run, one configuration per class or module.

A class or a module says what it wants served in its `CONF`. After each test the error log is
judged (see `Httpd.judge_log`). A module with `EVERY_TRANSPORT = True` is run over each transport,
detached and blocking.
"""

import contextlib
import json
import os

import pytest
from browser import devtools, other_page, page  # noqa: F401 (fixtures)
from httpd import DETACH, DETACHED, PREFORK, TLS, BadEnd, Httpd, MissingLog, StaleModule, UnexpectedLog, raise_open_files
from peers import Listener
from ws_frame import Client
from ws_h2 import Connection

# How a connection can be served: detached, blocking (on one of httpd's threads), as a stream of HTTP/2.
TRANSPORTS = ["ws", "wss", "blocking ws", "blocking wss", *([] if PREFORK else ["h2"])] if DETACHED else ["blocking ws"]


def every_transport(httpd):
    """What a module with EVERY_TRANSPORT is served with besides: a client's header makes its connection a blocking one."""
    http2 = "H2WebSockets On\nProtocols h2 http/1.1\n" if "h2" in TRANSPORTS and httpd.has_h2_websockets() else ""
    return DETACH + TLS + http2 + "<If \"%{HTTP:X-Served-As} == 'blocking'\">\n    WebSocketDetach Off\n</If>\n"


def pytest_generate_tests(metafunc):
    """A test that makes connections itself has no stream of HTTP/2."""
    if getattr(metafunc.module, "EVERY_TRANSPORT", False):
        transports = [name for name in TRANSPORTS if name != "h2" or "connect" not in metafunc.fixturenames]
        metafunc.parametrize("served_as", transports, indirect=True)


def pytest_configure():
    raise_open_files()


@pytest.fixture(scope="session")
def httpd():
    try:
        environment = Httpd()
    except StaleModule as wrong:
        pytest.exit(str(wrong), 1)
    yield environment
    environment.stop()


def _serve(httpd, conf):
    return httpd.serve(conf) if conf else contextlib.nullcontext()


@pytest.fixture(scope="module", autouse=True)
def _module_conf(request, httpd):
    conf = getattr(request.module, "CONF", None)
    if getattr(request.module, "EVERY_TRANSPORT", False):
        conf += every_transport(httpd)
    with _serve(httpd, conf):
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
def served_as(request, httpd, _error_log_gate):
    """How the test's connections are served; the error log has to say that they were."""
    way = getattr(request, "param", None)
    yield way
    if way:
        detached, blocking = " detached, ", "served on httpd's thread"
        meant, other = (detached, blocking) if way in ("ws", "wss") else (blocking, detached)
        log = httpd.new_log()
        assert meant in log and other not in log, f"a connection was served otherwise, or none as {way}"


@pytest.fixture
def connect(httpd, served_as):
    """Opens connections to the server, over TLS if they are to be served so, and closes what the test leaves open."""
    tls = served_as and "wss" in served_as
    usual = {"port": httpd.tls_port, "tls": httpd.tls_context()} if tls else {"port": httpd.port}
    with contextlib.ExitStack() as stack:

        def opened(**kw):
            client = Client(**{**usual, **kw})
            if served_as and "blocking" in served_as:
                client.headers = [("X-Served-As", "blocking")]
            return stack.enter_context(client)

        yield opened


@pytest.fixture
def ws(request, httpd, served_as):
    """Opens WebSocket connections: `ws(path, headers, …)` gives a client after its 101."""
    if served_as == "h2":
        if not httpd.has_h2_websockets():
            pytest.skip("mod_http2 of this httpd has no WebSockets (H2WebSockets came with httpd 2.4.58)")
        with contextlib.ExitStack() as stack:

            def stream(path="/echo", headers=(), Sec_WebSocket_Version="13"):
                connection = stack.enter_context(Connection(httpd.tls_port, httpd.tls_context()))
                return connection.websocket(path, headers, version=str(Sec_WebSocket_Version))

            yield stream
        return
    connect = request.getfixturevalue("connect")

    def opened(path="/echo", headers=(), rcvbuf=None, **kw):
        client = connect(rcvbuf=rcvbuf)
        client.upgrade(path, headers, **kw)
        return client

    yield opened


@pytest.fixture
def over(httpd, connect):
    """Opens WebSocket connections in clear text or over TLS: `over("wss", path, headers, …)`."""

    def opened(kind, path="/echo", headers=(), rcvbuf=None):
        tls = {"port": httpd.tls_port, "tls": httpd.tls_context()} if kind == "wss" else {}
        client = connect(rcvbuf=rcvbuf, **tls)
        client.upgrade(path, headers)
        return client

    return opened


@pytest.fixture
def listen():
    """Makes stream peers, and closes what a test leaves open."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kw: stack.enter_context(Listener(*args, **kw))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    environment = item.funcargs.get("httpd") if hasattr(item, "funcargs") else None
    if report.failed and environment:
        lines = environment.new_log().splitlines()[-40:]
        report.sections.append(("error log, its new lines", "\n".join(lines)))
    if report.failed and os.environ.get("WS_FAILURES"):
        # Slowness alone may be tried again: neither what the error log says nor an end that did not come.
        told = call.excinfo.errisinstance((UnexpectedLog, BadEnd))
        slow = item.get_closest_marker("timing") and not told
        slow = slow and (call.when == "call" or call.excinfo.errisinstance(MissingLog))
        with open(os.environ["WS_FAILURES"], "a") as failures:
            print(json.dumps({"test": item.nodeid, "slow": bool(slow)}), file=failures)
