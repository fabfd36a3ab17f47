#!/usr/bin/env python3
"""Run the Autobahn TestSuite against a server and compare with what is expected.

usage: run.py --url ws://127.0.0.1:PORT/echo --agent NAME [--cases '7.*,10.*']
              [--out DIR] [--expected FILE] [--update] [--shards N]
              [--timeout SECONDS] [--wstest FILE]

Writes the suite's report to DIR (index.html, index.json, a page for each case),
prints one line of counts and every case that is not entirely OK.

Exit status: 0 every selected case ran and came out as expected, 1 something
differs or did not run, 2 the run could not start.
"""
import argparse
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

HERE = os.path.dirname(os.path.abspath(__file__))
VERDICTS = ("behavior", "behaviorClose")
COUNTED = ("OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", "FAILED")

# Both run in the suite's own interpreter.
LIST_CASES = """
from autobahntestsuite import fuzzing as f
s = f.CaseSet(f.CaseSetname, f.CaseBasename, f.Cases, f.CaseCategories, f.CaseSubCategories)
print(*s.CasesIndices)
"""
# The suite writes its summary at the end of a process, for the cases of that process. The same code
# writes it here for all cases, from the page of data that each case has left.
WRITE_SUMMARY = """
import glob, json, os, sys
from autobahntestsuite import fuzzing as f
out, agent = sys.argv[1:]
factory = f.FuzzingFactory(out)
factory.CaseSet = f.CaseSet(f.CaseSetname, f.CaseBasename, f.Cases, f.CaseCategories, f.CaseSubCategories)
factory.agents[agent] = {}
for path in glob.glob(os.path.join(glob.escape(out), "*_case_*.json")):
    with open(path, encoding="utf-8") as file:
        case = json.load(file)
    factory.agents[agent][case["id"]] = case
factory.createMasterReportHTML(out)
factory.createMasterReportJSON(out)
"""


class Error(Exception):
    """The run cannot start."""


def say(text):
    print("autobahn: " + text, file=sys.stderr, flush=True)


def natural(case_id):
    return tuple(int(part) for part in case_id.split("."))


def select(patterns, ids):
    """The ids that match one of the patterns; `*` stands for anything, the whole id must match."""
    chosen = set()
    for pattern in patterns:
        regex = re.compile(".*".join(re.escape(part) for part in pattern.split("*")))
        matching = [i for i in ids if regex.fullmatch(i)]
        if not matching:
            raise Error("no case matches %r (a section is written '7.*')" % pattern)
        chosen.update(matching)
    return sorted(chosen, key=natural)


def deal(ids, shards):
    """Disjoint parts of about the same weight: neighbours cost alike, so they are dealt out to and fro."""
    parts = [[] for _ in range(shards)]
    for n, case_id in enumerate(ids):
        turn, seat = divmod(n, shards)
        parts[seat if turn % 2 == 0 else shards - 1 - seat].append(case_id)
    return [part for part in parts if part]


def suite(python, code, *args):
    run = subprocess.run([python, "-W", "ignore", "-c", code, *args],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        raise Error("the test suite does not run:\n" + run.stderr)
    return run.stdout


def check_server(url):
    address = urlsplit(url)
    port = address.port or {"ws": 80, "wss": 443}.get(address.scheme)
    if not address.hostname or not port:
        raise Error("%r is not a ws:// or wss:// URL" % url)
    try:
        socket.create_connection((address.hostname, port), timeout=10).close()
    except OSError as error:
        raise Error("no server at %s: %s" % (url, error)) from error


def clear(out):
    """Remove what an earlier run has left, and nothing else."""
    os.makedirs(out, exist_ok=True)
    for name in ("index.html", "index.json", "*_case_*.html", "*_case_*.json", "wstest-*.json",
                 "wstest-*.log"):
        for path in glob.glob(os.path.join(glob.escape(out), name)):
            os.remove(path)


def run_suite(wstest, spec, parts, out, timeout):
    """Run one wstest for each part; returns what went wrong, in sentences.

    All of them write into the same folder: the pages of the cases have different names, and the two
    summaries, which the last one to end would leave, are written anew afterwards.
    """
    running = {}
    problems = []
    try:
        for n, part in enumerate(parts, 1):
            spec_path = os.path.join(out, "wstest-%d.json" % n)
            with open(spec_path, "w") as file:
                json.dump(dict(spec, outdir=out, cases=part), file, indent=3)
            with open(log_path(out, n), "wb") as log:
                running[n] = subprocess.Popen(
                    [wstest, "-m", "fuzzingclient", "-s", spec_path], stdin=subprocess.DEVNULL,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    env=dict(os.environ, PYTHONUNBUFFERED="1"))
        end = time.monotonic() + timeout
        for n in list(running):
            try:
                status = running[n].wait(max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                problems.append("wstest %d was stopped after %d s%s" % (n, timeout, last_case(out, n)))
                continue
            del running[n]
            if status != 0:
                problems.append("wstest %d ended with status %d%s" % (n, status, last_case(out, n)))
            # a refused connection ends the run of this process, with status 0
            problems += re.findall(r"^Connection to .* failed .*", read_log(out, n), re.M)
    finally:
        for process in running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    return problems


def log_path(out, n):
    return os.path.join(out, "wstest-%d.log" % n)


def read_log(out, n):
    with open(log_path(out, n), encoding="utf-8", errors="replace") as log:
        return log.read()


def last_case(out, n):
    cases = re.findall(r"Running test case ID (\S+)", read_log(out, n))
    return " (last case begun: %s; log: %s)" % (cases[-1] if cases else "none", log_path(out, n))


def load_results(out):
    """Case id → what its page of data says."""
    results = {}
    for path in glob.glob(os.path.join(glob.escape(out), "*_case_*.json")):
        try:
            with open(path, encoding="utf-8") as file:
                case = json.load(file)
        except ValueError:
            say("%s is cut short" % path)
            continue
        results[case["id"]] = case
    return results


def count(results):
    """One entry for each case; whoever closes wrongly is not counted as OK."""
    counts = dict.fromkeys(COUNTED, 0)
    wrong_close = 0
    for case in results.values():
        behavior, close = (case[v] for v in VERDICTS)
        if behavior == "OK" and close != "OK":
            wrong_close += 1
        else:
            counts[behavior if behavior in counts else "FAILED"] += 1
    text = ", ".join("%d %s" % (counts[v], v) for v in COUNTED)
    return text + (", %d WRONG CLOSE" % wrong_close if wrong_close else "")


def compare(selected, expected, results):
    """A line for each difference."""
    lines = []
    missing = [i for i in selected if i not in results]
    if missing:
        lines.append("%d cases did not run: %s" % (len(missing), " ".join(missing)))
    for case_id in selected:
        case = results.get(case_id)
        if case is None:
            continue
        for verdict, reason in (("behavior", "result"), ("behaviorClose", "resultClose")):
            want = expected.get(case_id, {}).get(verdict, "nothing")
            if case[verdict] != want:
                lines.append("%-8s %s: expected %s, got %s: %s (close code received: %s)"
                             % (case_id, verdict, want, case[verdict], case[reason],
                                case["remoteCloseCode"]))
    for case_id in sorted(set(results) - set(selected), key=natural):
        lines.append("%-8s ran without being selected" % case_id)
    return lines


def load_expected(path, must_exist):
    if not os.path.exists(path) and not must_exist:
        return {}
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Error("cannot read the expected results: %s: %s" % (path, error)) from error


def save_expected(path, expected):
    lines = ['  %s: {"behavior": %s, "behaviorClose": %s}'
             % (json.dumps(i), json.dumps(expected[i]["behavior"]), json.dumps(expected[i]["behaviorClose"]))
             for i in sorted(expected, key=natural)]
    with open(path + ".new", "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
    os.replace(path + ".new", path)


def arguments():
    venv = os.path.join(os.path.dirname(HERE), "build", "autobahn-venv")
    parser = argparse.ArgumentParser(description="Run the Autobahn TestSuite against a WebSocket server.")
    parser.add_argument("--url", required=True, help="the echo endpoint, ws://127.0.0.1:PORT/PATH")
    parser.add_argument("--agent", required=True, help="the server's name in the report")
    parser.add_argument("--cases", default="*", help="patterns with commas between, such as '7.*,10.*' (default: *)")
    parser.add_argument("--out", default=os.path.join("build", "autobahn"), help="folder of the report")
    parser.add_argument("--expected", default=os.path.join(HERE, "expected-results.json"))
    parser.add_argument("--update", action="store_true", help="write the results to the expected ones")
    parser.add_argument("--shards", type=int, default=2, help="processes that share the cases (default: 2)")
    parser.add_argument("--timeout", type=float, default=1500, help="seconds for the whole run (default: 1500)")
    parser.add_argument("--wstest", default=os.path.join(venv, "bin", "wstest"))
    args = parser.parse_args()
    if args.shards < 1:
        parser.error("--shards must be at least 1")
    return args


def run(args):
    out = os.path.abspath(args.out)
    python = os.path.join(os.path.dirname(os.path.abspath(args.wstest)), "python")
    if not os.path.exists(args.wstest) or not os.path.exists(python):
        raise Error("%s is missing: call %s first" % (args.wstest, os.path.join(HERE, "install.sh")))

    ids = suite(python, LIST_CASES).split()
    expected = load_expected(args.expected, must_exist=not args.update)
    if not args.update and set(expected) != set(ids):
        raise Error("%s has %d cases, the suite %d; these are in one of them only: %s"
                    % (args.expected, len(expected), len(ids),
                       " ".join(sorted(set(expected) ^ set(ids), key=natural))))
    selected = select([p.strip() for p in args.cases.split(",") if p.strip()], ids)
    if not selected:
        raise Error("no cases selected")
    check_server(args.url)

    with open(os.path.join(HERE, "fuzzingclient.json")) as file:
        spec = json.load(file)
    spec["servers"] = [dict(spec["servers"][0], agent=args.agent, url=args.url)]
    parts = deal(selected, args.shards)
    clear(out)
    say("%d cases against %s, processes: %d" % (len(selected), args.url, len(parts)))
    begin = time.monotonic()
    problems = run_suite(os.path.abspath(args.wstest), spec, parts, out, args.timeout)
    seconds = time.monotonic() - begin

    results = load_results(out)
    print("%s: %d cases: %s" % (args.agent, len(results), count(results)))
    for case_id in sorted(results, key=natural):
        case = results[case_id]
        if any(case[v] != "OK" for v in VERDICTS):
            print("  %-8s %s, close %s" % (case_id, *(case[v] for v in VERDICTS)))
    try:
        suite(python, WRITE_SUMMARY, out, args.agent)
        say("%.0f s, report: %s" % (seconds, os.path.join(out, "index.html")))
    except Error as error:
        problems.append(str(error))

    if args.update:
        complete = not problems and set(results) == set(selected)
        if complete:
            expected.update({i: {v: results[i][v] for v in VERDICTS} for i in selected})
            save_expected(args.expected, expected)
            say("%s updated" % args.expected)
            return 0
        problems.append("%s stays as it was: the run is not complete" % args.expected)
    differences = compare(selected, expected, results)
    if differences:
        print("%s: differs from %s:" % (args.agent, args.expected))
        for line in differences:
            print("  " + line)
    for problem in problems:
        print("%s: %s" % (args.agent, problem))
    return 1 if differences or problems else 0


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments())
    except Error as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
