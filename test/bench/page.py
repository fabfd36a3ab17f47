"""Tables: printed, and with PUBLISH=1 also written into docs/performance.md, with date, machine and command."""

import datetime
import os
import platform
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"


def machine():
    """What was measured on, in a few words."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    cores = len(os.sched_getaffinity(0))
    kernel = platform.release().split("-")[0]
    return f"{model[1] if model else platform.machine()}, {cores} cores, {platform.system()} {kernel}"


def table(columns, rows):
    """The first column is words, the others are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def publish(name, columns, rows, command, load, page=PAGE):
    """Prints a table; with PUBLISH=1 it takes the place of the one of this name. `load` is the load average before."""
    text = table(columns, rows)
    print(text + "\n", flush=True)
    if not os.environ.get("PUBLISH"):
        return
    measured = f"{datetime.date.today()}, `{command}` on {machine()}; load average before: {load:.1f}."
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->\n"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n{measured}\n\n{text}\n\n{end}{after}")
