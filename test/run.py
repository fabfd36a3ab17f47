#!/usr/bin/env python3
"""Runs the tests against a real httpd, each module of tests in each mode, several side by side.

usage: run.py [--all] [--jobs N] [--beside NAME=COMMAND]... [MODE...]

A mode is an MPM, or `blocking`: event with every connection on one of httpd's threads. The first one named runs every
test, the others leave out what is marked `once`. With --all every mode runs every test, attacks and loads at full size.

A job is one module of tests in one mode: a pytest of its own, with a ServerRoot, ports and logs of its own. What fails
fails, but for a test that is marked `timing`: the machine may have been busy, so it is tried once more, alone, when all
others are done. The last lines name it. A crash, a sanitizer's word or an unexpected line in the error log is never
tried again.

A command that is named with --beside is a job as well: it has to succeed, and its last line is told.

The environment is that of the tests (lib/httpd.py); output and logs are kept in build/test.
"""

import argparse
import collections
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
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
WAITS = {"test_25_clocks.py": 10, "test_12_service.py": 2, "test_20_handshake_ends.py": 2}
running = set()


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

    size, slow, counts = sys.maxsize, (), {}  # it takes longer than any module of tests
    patience = None

    def __init__(self, name, command):
        self.name, self.command, self.env = name, command, {}

    def run(self, place):
        """Runs it; `place` makes its ports different from those of the others at work."""
        self.folder = OUT / self.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        env = {**os.environ, **self.env, "WS_TEST_ROOT": str(self.folder), "WS_TEST_PORTS": str(20_000 + 1000 * place)}
        begun = time.monotonic()
        with open(self.folder / "output", "w") as output:
            process = subprocess.Popen(
                self.command, cwd=HERE.parent, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )
            running.add(process)
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
        self.env = {**MODES[mode], "WS_FAILURES": str(self.failures)}

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
    def told(self):
        said = ", ".join(f"{number} {word}" for word, number in self.counts.items()) or f"status {self.status}"
        return f"{self.mode:8} {self.module:26} {said}"

    @property
    def slow(self):
        """The tests to be tried again, if nothing worse than slowness has happened."""
        failed = {}
        for line in self.failures.read_text().splitlines() if self.failures.exists() else ():
            told = json.loads(line)
            failed[told["test"]] = failed.get(told["test"], True) and told["slow"]
        return list(failed) if self.status == 1 and failed and all(failed.values()) else []


def run_all(jobs, workers):
    """Runs the jobs, the longest modules first, so many at a time; yields them as they are done."""
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for job in sorted(jobs, key=lambda job: -job.size):
        waiting.put(job)

    def work(place):
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                job.run(place)
            except Exception:
                job.status, job.seconds, job.output = "not run", 0, traceback.format_exc()
            done.put(job)

    for place in range(workers):
        threading.Thread(target=work, args=(place,), daemon=True).start()
    for _ in jobs:
        yield done.get()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every test in every mode, at full size")
    parser.add_argument("--jobs", type=int, default=5, help="how many at a time (%(default)s)")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=COMMAND", help="to be run as well")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)} (all)")
    options = parser.parse_args()
    modes = options.modes or list(MODES)
    if options.jobs < 1:
        parser.error("--jobs: one at least")
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(unknown)}")
    if options.all:
        os.environ["WS_FULL"] = "1"
    begun, counts, failed, slow = time.monotonic(), collections.Counter(), [], []
    modules = sorted(path.name for path in HERE.glob("test_*.py"))
    jobs = [Job(name, ["sh", "-c", command]) for name, _, command in (job.partition("=") for job in options.beside)]
    for mode in modes:
        choice = [] if options.all or mode == modes[0] else ["-m", "not once"]
        jobs += [Tests(mode, module, choice) for module in modules]
    for job in run_all(jobs, options.jobs):
        counts.update(job.counts)
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
            second = Tests(job.mode, test, again=f"-again-{number}").run(0)
            again.append(f"{'passed' if second.passed else 'FAILED'} when tried again, alone: {job.mode} {test}")
            if not second.passed:
                failed.append(job.name)
                print(second.output, flush=True)
    total = ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
    print(f"\n{total} in {time.monotonic() - begun:.0f} s", *again, sep="\n")
    if failed:
        print("FAILED:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        end(list(running))  # after Ctrl-C
