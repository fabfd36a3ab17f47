#!/usr/bin/env python3
"""Runs the tests against a real httpd, each module of tests in each mode, several side by side.

usage: run.py [--all] [--jobs N] [MODE...]

A mode is an MPM, or `blocking`: event with every connection on one of httpd's threads. The first one named runs every
test, the others leave out what is marked `once`. With --all every mode runs every test, attacks and loads at full size.

A job is one module of tests in one mode: a pytest of its own, with a ServerRoot, ports and logs of its own. What fails
fails, but for a test that is marked `timing`: the machine may have been busy, so it is tried once more, alone, when all
others are done. The last lines name it. A crash, a sanitizer's word or an unexpected line in the error log is never
tried again.

The environment is that of the tests (lib/httpd.py); output and logs are kept in build/test.
"""

import argparse
import collections
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "build/test"
MODES = {
    "event": {"TEST_MPM": "event"},
    "worker": {"TEST_MPM": "worker"},
    "prefork": {"TEST_MPM": "prefork"},
    "blocking": {"TEST_MPM": "event", "WS_DETACH": "Off"},
}
NO_TESTS = 5  # pytest's exit status when all are left out
PATIENCE = 1200  # seconds that a job may take


class Job:
    """Some tests in one mode."""

    def __init__(self, mode, tests, choice):
        self.mode, self.tests, self.choice = mode, tests, choice
        self.name = f"{mode}-{Path(tests[0].partition('::')[0]).stem.removeprefix('test_')}"

    def run(self, place, name=None):
        """Runs it; `place` makes its ports different from those of the others at work."""
        folder = OUT / (name or self.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        failures = folder / "failures"
        env = {
            **os.environ, **MODES[self.mode], "WS_TEST_ROOT": str(folder), "WS_FAILURES": str(failures),
            "WS_TEST_PORTS": str(20_000 + 1000 * place),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--color=no", *self.choice, *self.tests]
        begun = time.monotonic()
        with open(folder / "output", "w") as output:
            try:
                self.status = subprocess.run(
                    command, cwd=HERE, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    timeout=PATIENCE, check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                self.status = f"not done within {PATIENCE} s"
        self.seconds = time.monotonic() - begun
        self.output = (folder / "output").read_text(errors="replace")
        self.failed = {}  # each with whether it was nothing but slow
        for line in failures.read_text().splitlines() if failures.exists() else ():
            told = json.loads(line)
            self.failed[told["test"]] = self.failed.get(told["test"], True) and told["slow"]
        return self

    @property
    def passed(self):
        return self.status in (0, NO_TESTS)

    @property
    def counts(self):
        """What pytest's last line says: how many passed, were skipped, and so on."""
        last = self.output.rstrip().rpartition("\n")[2]
        return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last.partition(" in ")[0])}

    @property
    def slow(self):
        """The tests to be tried again, if nothing worse than slowness has happened."""
        return list(self.failed) if self.status == 1 and self.failed and all(self.failed.values()) else []


def run_all(jobs, workers):
    """Runs the jobs, the longest modules first, so many at a time; yields them as they are done."""
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for job in sorted(jobs, key=lambda job: -(HERE / job.tests[0]).stat().st_size):
        waiting.put(job)

    def work(place):
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            done.put(job.run(place))

    for place in range(workers):
        threading.Thread(target=work, args=(place,), daemon=True).start()
    for _ in jobs:
        yield done.get()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every test in every mode, at full size")
    parser.add_argument("--jobs", type=int, default=5, help="how many at a time (%(default)s)")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)} (all)")
    options = parser.parse_args()
    modes = options.modes or list(MODES)
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(unknown)}")
    if options.all:
        os.environ["WS_FULL"] = "1"
    begun, counts, failed, slow = time.monotonic(), collections.Counter(), [], []
    modules = sorted(path.name for path in HERE.glob("test_*.py"))
    full = [] if options.all else ["not full"]
    jobs = []
    for mode in modes:
        wanted = full + ([] if options.all or mode == modes[0] else ["not once"])
        choice = ["-m", " and ".join(wanted)] if wanted else []
        jobs += [Job(mode, [module], choice) for module in modules]
    for job in run_all(jobs, options.jobs):
        counts.update(job.counts)
        said = ", ".join(f"{number} {word}" for word, number in job.counts.items()) or f"status {job.status}"
        if job.status != NO_TESTS:
            print(f"{job.mode:8} {job.tests[0]:26} {said}, {job.seconds:.0f} s", flush=True)
        if job.slow:
            slow.append(job)
        elif not job.passed:
            failed.append(job.name)
            print(job.output, flush=True)
    again = []
    for job in slow:
        for test in job.slow:
            second = Job(job.mode, [test], []).run(0, f"{job.name}-again")
            again.append(f"{'passed' if second.passed else 'FAILED'} when tried again, alone: {job.mode} {test}")
            print(job.output if len(job.slow) == 1 or test == job.slow[0] else "", second.output, flush=True)
            if not second.passed:
                failed.append(job.name)
    total = ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
    print(f"\n{total} in {time.monotonic() - begun:.0f} s", *again, sep="\n")
    if failed:
        print("FAILED:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
