"""nginx with nchan, for which clients of channels were written: a peer to compare with."""

import contextlib
import os
import shutil
import socket
import subprocess
import textwrap
from pathlib import Path

from httpd import wait_until

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")  # Debian's place
THERE = bool(NGINX) and MODULE.exists()
CONF = """
    load_module {module};
    {user}
    daemon off;
    worker_processes 1;
    worker_rlimit_nofile {files};
    pid {folder}/nginx.pid;
    events {{
        worker_connections {connections};
    }}
    http {{
        access_log {folder}/access.log;
        client_body_temp_path {folder}/body;
        fastcgi_temp_path {folder}/fastcgi;
        proxy_temp_path {folder}/proxy;
        scgi_temp_path {folder}/scgi;
        uwsgi_temp_path {folder}/uwsgi;
        keepalive_requests 100000000;
        nchan_shared_memory_size 128M;
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            {server}
        }}
    }}
"""


@contextlib.contextmanager
def nchan(folder, port, server, files=1024):
    """It runs inside the block, with one worker, its `server` configured so: its process. It may open so many files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    user = "user www-data;" if os.geteuid() == 0 else ""
    conf = textwrap.dedent(CONF).format(
        module=MODULE, user=user, folder=folder, port=port, server=server, files=files, connections=files - 64
    )
    (folder / "nginx.conf").write_text(conf)
    said, command = folder / "said", [NGINX, "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"]
    with open(said, "w+") as log:
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def up():
        assert process.poll() is None, said.read_text()
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(up, 15, "nginx")
        yield process
    finally:
        process.terminate()
        process.wait(10)
