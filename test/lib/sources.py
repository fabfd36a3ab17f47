"""Whether the module that was built is the one in the sources."""

import os
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
MODULE = TOP / "build/mod_websocket.so"


def stale_module():
    """What to do if the module that is to be loaded is older than one of its sources; else nothing. A module that
    WS_MODULE names is taken as it is."""
    if os.environ.get("WS_MODULE") or not MODULE.exists():
        return ""
    names = "src/**/*", "include/*", "Cargo.toml", "Cargo.lock", "build.rs"
    sources = [path for name in names for path in TOP.glob(name) if path.is_file()]
    newest = max(sources, key=lambda path: path.stat().st_mtime, default=MODULE)
    if newest.stat().st_mtime <= MODULE.stat().st_mtime:
        return ""
    return f"{MODULE.relative_to(TOP)} is older than {newest.relative_to(TOP)}: run 'make module'"
