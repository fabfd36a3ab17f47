"""The runner tells the truth: what is tried again, what is not, and what its exit status is."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import pytest
from httpd import TOP, wait_until

pytestmark = pytest.mark.once

HEAD = """
import os
import signal
from pathlib import Path

import pytest
from httpd import echo, wait_until

CONF = echo()


def is_first_time():
    seen = Path(__file__).with_suffix(".seen")
    first = not seen.exists()
    seen.touch()
    return first
"""
SLOW = """
@pytest.mark.timing
def test_it():
    assert not is_first_time()
"""
# Each fails at first only: whoever tried it again would not notice.
FAILS = {
    "a test without the mark": SLOW.replace("@pytest.mark.timing\n", ""),
    "a crash": """
@pytest.mark.timing
def test_it(httpd, ws):
    if is_first_time():
        os.kill(httpd.child_of(ws()), signal.SIGSEGV)
        wait_until(lambda: "exit signal" in httpd.new_log())
        assert not "quick"
""",
    "a line in the error log": """
@pytest.mark.timing
def test_it(httpd):
    if is_first_time():
        with open(httpd.error_log, "a") as log:
            log.write("[websocket:warn] a surprise\\n")
""",
    "a sanitizer's word": """
@pytest.mark.timing
def test_it(httpd):
    if is_first_time():
        with open(httpd.error_log, "a") as log:
            log.write("==1==ERROR: AddressSanitizer: heap-use-after-free\\n")
        assert not "quick"
""",
    "a server that dies": """
@pytest.mark.timing
def test_it(httpd):
    if is_first_time():
        httpd.process.kill()
        httpd.stop()
""",
    "a server that does not start": """
@pytest.mark.timing
def test_it(httpd):
    httpd.stop()
    httpd.start(CONF + ("NoDirective\\n" if is_first_time() else ""))
""",
    "a module without tests": "",
    "a module that cannot be read": "import nothing_of_this_name\n",
}


@pytest.fixture
def run(httpd, tmp_path):
    """Runs a module of tests in a copy of the tests' folder: the exit status and what was said. `meanwhile` gets the
    process. `module` is the one to be tested; "" is that of the copy, build/mod_websocket.so."""

    def ran(text, *words, meanwhile=None, module=httpd.module):
        folder = tmp_path / "test"
        shutil.copytree(TOP / "test/lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("run.py", "conftest.py", "pytest.ini"):
            shutil.copy(TOP / "test" / name, folder)
        (folder / "some").mkdir()
        (folder / "some/test_it.py").write_text(HEAD + text)
        env = {
            **os.environ, "WS_MODULE": str(module), "WS_EXAMPLES": str(httpd.examples),
            "WS_PLUGINS": str(httpd.plugins),
        }
        for name in ("WS_FAILURES", "PYTEST_CURRENT_TEST"):
            env.pop(name, None)
        command = [sys.executable, str(folder / "run.py"), *words, "event"]
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            if meanwhile:
                meanwhile(process)
            said, _ = process.communicate(timeout=120)
        return process.returncode, said

    return ran


def test_slowness_is_tried_again_and_named(run):
    status, said = run(SLOW)
    assert status == 0
    assert said.splitlines()[-1] == "passed when tried again, alone: event some/test_it.py::test_it"


def test_slowness_twice_is_a_failure(run):
    status, said = run("\n@pytest.mark.timing\ndef test_it():\n    assert False\n")
    assert status == 1
    assert said.splitlines()[-2:] == [
        "FAILED when tried again, alone: event some/test_it.py::test_it", "FAILED: event-it"
    ]


@pytest.mark.parametrize("name", FAILS)
def test_nothing_else_is(run, name):
    status, said = run(FAILS[name])
    assert status == 1 and "tried again" not in said
    assert said.splitlines()[-1] == "FAILED: event-it"


def test_no_two_files_have_one_name(run, tmp_path):
    (tmp_path / "test/other").mkdir(parents=True)
    (tmp_path / "test/other/test_it.py").touch()
    assert run(SLOW) == (1, "run.py: more than one file is named test_it.py\n")


@pytest.mark.parametrize("command, status", [("true", 0), ("exit 3", 1), ("kill -9 $$", 1)])
def test_commands_beside(run, command, status):
    found, said = run("\ndef test_it():\n    pass\n", "--beside", f"other={command}")
    assert found == status
    assert status == 0 or said.splitlines()[-1] == "FAILED: other"


@pytest.mark.parametrize("name", ["src/httpd/mod.rs", "include/websocket_plugin.h", "Cargo.toml", "Cargo.lock", "build.rs"])
def test_a_stale_module_is_not_tested(run, httpd, tmp_path, name):
    """Neither by the runner nor by pytest alone, unless WS_MODULE names it."""
    built, source = tmp_path / "build/mod_websocket.so", tmp_path / name
    for path in (built, source):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(httpd.module, built)
    source.touch()
    os.utime(built, (1, 1))
    sentence = f"build/mod_websocket.so is older than {name}: run 'make module'"
    status, said = run("\ndef test_it():\n    pass\n", module="")
    assert (status, said) == (1, f"run.py: {sentence}\n")

    def pytest_alone(module):
        env = {
            **os.environ, "WS_MODULE": module, "WS_EXAMPLES": str(httpd.examples), "WS_PLUGINS": str(httpd.plugins),
            "WS_TEST_ROOT": str(tmp_path / "alone"),
        }
        command = [sys.executable, "-m", "pytest", "-q", tmp_path / "test"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = pytest_alone("")
    assert status == 1 and said.count(sentence) == 1
    assert pytest_alone(str(built))[0] == 0
    os.utime(source, (1, 1))
    assert pytest_alone("")[0] == 0


def session_of(pid):
    """The processes of a session."""
    return subprocess.run(["pgrep", "-s", str(pid)], capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_it(run, tmp_path, number):
    """Neither what runs when it is ended, nor what would have come next."""
    pids = tmp_path / "pids"
    job = f"echo $$ >> {pids}; exec sleep 100"

    def end(process):
        wait_until(pids.exists, 60, "a job")
        process.send_signal(number)

    words = [word for name in "ab" for word in ("--beside", f"{name}={job}")]
    status, _ = run("\ndef test_it():\n    pass\n", *words, meanwhile=end)
    assert status != 0
    started = pids.read_text().split()
    assert len(started) == 1 and not session_of(started[0])


def test_runs_side_by_side_have_ports_of_their_own(tmp_path):
    """Each of two gets six thousand; there are none for a third."""
    code = "import run; kept = run.reserve_ports(); print(kept[0], flush=True); input()"
    env = {name: value for name, value in os.environ.items() if name != "WS_TEST_PORTS"}
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(3):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code], env=env, cwd=TOP / "test", stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )
            )
            stack.callback(process.kill)
            found.append(process.stdout.readline().strip())
        numbers = {int(ports) for ports in found if ports.isdigit()}
        assert len(numbers) < 3 and numbers <= {14_000, 20_000}
        assert found[-1] == "run.py: two runs are going on; there are no ports for more"
