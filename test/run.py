#!/usr/bin/env python3
"""Runs the tests against a real httpd, each module of tests in each mode, several side by side.

usage: run.py [--all] [--jobs N] [--beside NAME=COMMAND]... [MODE...]

A mode is an MPM, or `blocking`: event with every connection on one of httpd's threads. The first one named runs every
test, the others leave out what is marked `once`. With --all every mode runs every test, attacks and loads at full size.

A job is one module of tests in one mode: a pytest of its own, with a ServerRoot, ports and logs of its own. What fails
fails, but for a test that is marked `timing`: the machine may have been busy, so it is tried once more, alone, when all
others are done. The last lines name it. A crash, a sanitizer's word or an unexpected line in the error log is never
tried again.

A command that is named with --beside is a job as well: it has to succeed, and its last line is told. These come one after
the other.

The environment is that of the tests (lib/httpd.py); output and logs are kept in build/test.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "lib"))
from sources import MODULE, stale_module  # noqa: E402

OUT = HERE.parent / "build/test"
MODES = {
    "event": {"TEST_MPM": "event", "WS_DETACH": "Auto"},
    "worker": {"TEST_MPM": "worker", "WS_DETACH": "Auto"},
    "prefork": {"TEST_MPM": "prefork", "WS_DETACH": "Auto"},
    "blocking": {"TEST_MPM": "event", "WS_DETACH": "Off"},
}
NO_TESTS = 5  # pytest's exit status when all are left out
PATIENCE = 1200  # seconds that a module of tests may take
# Modules that take longer than their text is long, since they wait for clocks.
WAITS = {"limits/test_clocks.py": 10, "service/test_detached.py": 2, "ends/test_handshake_ends.py": 2}

# At full size these measure how long others wait beside as many attackers as the machine bears: nothing else runs then.
ALONE = {"limits/test_bystanders.py"}

running = set()
gate = threading.Lock()  # nothing is started any more once the end has come
is_over = False


def start(command, **kw):
    """Starts a job, unless the end has come."""
    with gate:
        if is_over:
            raise InterruptedError("the run has been ended")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **kw)
        running.add(process)
    return process


def end_all():
    """Ends what runs, and has nothing more begin."""
    global is_over
    with gate:
        is_over = True
        left = list(running)
    end(left)


def reserve_ports():
    """The first of the ports of this run: six thousand that no other run on this machine has. A name that the kernel
    forgets with the process stands for them."""
    if "WS_TEST_PORTS" in os.environ:
        return int(os.environ["WS_TEST_PORTS"]), None
    for first in (20_000, 14_000):
        mark = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            mark.bind(f"\0mod_websocket tests {first}")
            return first, mark
        mark.close()
    sys.exit("run.py: two runs are going on; there are no ports for more")


def end(processes):
    """Ends jobs before their time: with Ctrl-C, for which they stop their servers, and then for good."""
    for number, seconds in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + seconds
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))


class Job:
    """A command with a folder of its own."""

    slow, counts, skipped, patience = (), {}, (), None

    def __init__(self, name, command):
        self.name, self.command, self.env = name, command, {}

    def run(self, ports):
        """Runs it, with a thousand ports of its own."""
        self.folder = OUT / self.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        env = {**os.environ, **self.env, "WS_TEST_ROOT": str(self.folder), "WS_TEST_PORTS": str(ports)}
        begun = time.monotonic()
        with open(self.folder / "output", "w") as output:
            process = start(self.command, cwd=HERE.parent, env=env, stdout=output, stderr=output)
            try:
                self.status = process.wait(self.patience)
            except subprocess.TimeoutExpired:
                self.status = f"not done within {self.patience} s"
                end([process])
            running.discard(process)
        self.seconds = time.monotonic() - begun
        self.output = (self.folder / "output").read_text(errors="replace")
        return self

    @property
    def passed(self):
        return self.status == 0

    @property
    def told(self):
        """What it says at its end."""
        return f"{self.name:8} {self.output.rstrip().rpartition(chr(10))[2]}"


class Tests(Job):
    """Some tests in one mode."""

    patience = PATIENCE

    def __init__(self, mode, tests, choice=(), again=""):
        module = tests.partition("::")[0]
        name = f"{mode}-{Path(module).stem.removeprefix('test_')}{again}"
        super().__init__(
            name, [sys.executable, "-m", "pytest", "-q", "--no-header", "--color=no", *choice, f"test/{tests}"]
        )
        self.choice = choice
        self.mode, self.module, self.size = mode, module, (HERE / module).stat().st_size * WAITS.get(module, 1)
        self.failures = OUT / name / "failures"
        # Named, the module stays the one to be tested though a source is changed during the run.
        tested = os.environ.get("WS_MODULE") or str(MODULE)
        self.env = {**MODES[mode], "WS_FAILURES": str(self.failures), "WS_MODULE": tested}

    @property
    def passed(self):
        """Where some are left out that may be all of them; otherwise a module has tests."""
        return self.status == 0 or (self.status == NO_TESTS and bool(self.choice))

    @property
    def counts(self):
        """What pytest's last line says: how many passed, were skipped, and so on."""
        last = self.output.rstrip().rpartition("\n")[2]
        return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last.partition(" in ")[0])}

    @property
    def skipped(self):
        """Why tests were left out, and how many."""
        found = collections.Counter()
        for number, why in re.findall(r"^SKIPPED \[(\d+)\] \S+: (.*)", self.output, re.MULTILINE):
            found[why] += int(number)
        return found

    @property
    def told(self):
        said = ", ".join(f"{number} {word}" for word, number in self.counts.items()) or f"status {self.status}"
        return f"{self.mode:8} {self.module:33} {said}"

    @property
    def slow(self):
        """The tests to be tried again, if nothing worse than slowness has happened."""
        failed = {}
        for line in self.failures.read_text().splitlines() if self.failures.exists() else ():
            told = json.loads(line)
            failed[told["test"]] = failed.get(told["test"], True) and told["slow"]
        return list(failed) if self.status == 1 and failed and all(failed.values()) else []


def find_modules():
    """The modules of tests in the folders. No two may have the same file name, after which their jobs are named."""
    found = sorted(HERE.glob("*/test_*.py"))
    count = collections.Counter(path.name for path in found)
    if twice := [name for name in count if count[name] > 1]:
        sys.exit(f"run.py: more than one file is named {', '.join(twice)}")
    return [str(path.relative_to(HERE)) for path in found]


def run_all(tests, beside, workers, ports):
    """Runs the modules of tests, the longest first, so many at a time, and the other commands beside them, one after
    the other; yields all as they are done."""
    modules, commands, done = queue.SimpleQueue(), queue.SimpleQueue(), queue.SimpleQueue()
    for job in sorted(tests, key=lambda job: -job.size):
        modules.put(job)
    for job in beside:
        commands.put(job)

    def work(waiting, ports):
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                job.run(ports)
            except Exception:
                job.status, job.seconds, job.output = "not run", 0, traceback.format_exc()
            done.put(job)

    # Within another run there is a thousand for all.
    step = 0 if "WS_TEST_PORTS" in os.environ else 1000
    for place in range(workers + 1):
        args = (modules if place else commands, ports + step * place)
        threading.Thread(target=work, args=args, daemon=True).start()
    for _ in (*tests, *beside):
        yield done.get()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every test in every mode, at full size")
    parser.add_argument("--jobs", type=int, default=5, help="how many at a time (%(default)s)")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=COMMAND", help="to be run as well")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)} (all)")
    options = parser.parse_args()
    modes = options.modes or list(MODES)
    if not 1 <= options.jobs <= 5:
        parser.error("--jobs: 1 to 5")
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(unknown)}")
    if wrong := stale_module():
        sys.exit(f"run.py: {wrong}")
    if options.all:
        os.environ["WS_FULL"] = "1"
        Tests.patience *= 3
    begun, counts, skipped, failed, slow = time.monotonic(), collections.Counter(), collections.Counter(), [], []
    modules = find_modules()
    beside = [Job(name, ["sh", "-c", command]) for name, _, command in (job.partition("=") for job in options.beside)]
    tests = []
    for mode in modes:
        choice = [] if options.all or mode == modes[0] else ["-m", "not once"]
        tests += [Tests(mode, module, choice) for module in modules]
    ports, mark = reserve_ports()
    alone = [job for job in tests if options.all and job.module in ALONE]
    others = [job for job in tests if job not in alone]
    for job in itertools.chain(run_all(others, beside, options.jobs, ports), run_all(alone, [], 1, ports)):
        counts.update(job.counts)
        skipped.update(job.skipped)
        if job.status != NO_TESTS or not job.passed:
            print(f"{job.told}, {job.seconds:.0f} s", flush=True)
        if job.slow:
            slow.append(job)
        elif not job.passed:
            failed.append(job.name)
            print(job.output, flush=True)
    again = []
    for job in slow:
        print(job.output, flush=True)
        for number, test in enumerate(job.slow, 1):
            second = Tests(job.mode, test, again=f"-again-{number}").run(ports)
            again.append(f"{'passed' if second.passed else 'FAILED'} when tried again, alone: {job.mode} {test}")
            if not second.passed:
                failed.append(job.name)
                print(second.output, flush=True)
    if skipped:
        print("\nSkipped:", *(f"{count:5} {why}" for why, count in sorted(skipped.items())), sep="\n")
    if mark:
        mark.close()
    total = ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
    print(f"\n{total} in {time.monotonic() - begun:.0f} s", *again, sep="\n")
    if failed:
        print("FAILED:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    # Also where SIGINT was ignored, as by a shell in the background; the jobs must heed it, too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        sys.exit(main())
    finally:
        end_all()  # after Ctrl-C and the like
