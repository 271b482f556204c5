"""A PostgreSQL server of our own, on a socket in a folder of its own, that can be stopped and started
again.
"""

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def programs():
    """The folder of initdb and pg_ctl; skips where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = (
        found[-1].parent
        if found
        else (Path(shutil.which("initdb")).parent if shutil.which("initdb") else None)
    )
    if path is None:
        pytest.skip(
            "PostgreSQL is not installed: no initdb under /usr/lib/postgresql/*/bin or on the path "
            "(Debian: apt-get install postgresql)"
        )
    return path


class Server:
    def __init__(self):
        self._programs = programs()
        self._folder = Path(
            tempfile.mkdtemp(prefix="pg", dir="/tmp")
        )  # short: the name of a socket has 107 characters at most
        self._as = []
        if os.geteuid() == 0:  # the server refuses to run as root
            user = next((u for u in ("postgres", "nobody") if u in {p.pw_name for p in pwd.getpwall()}), None)
            if user is None or shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")
            entry = pwd.getpwnam(user)
            self._as = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
            shutil.chown(self._folder, entry.pw_uid, entry.pw_gid)
        self._folder.chmod(0o755)
        self._call(
            "initdb",
            "-D",
            str(self._folder / "data"),
            "-A",
            "trust",
            "-U",
            "mpsearch",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        )
        self.url = f"postgresql://mpsearch@/postgres?host={self._folder}"
        self.start()

    def start(self):
        # fsync is for a machine that fails; without it a server that crashes still keeps every commit
        settings = (
            f"-k {self._folder} -c listen_addresses= -c fsync=off -c max_connections=60 -c "
            "shared_buffers=16MB"
        )
        self._call(
            "pg_ctl",
            "-D",
            str(self._folder / "data"),
            "-w",
            "-l",
            str(self._folder / "log"),
            "-o",
            settings,
            "start",
        )

    def stop(self, mode="immediate"):
        """`immediate` is a crash: no connection is told, nothing is written down that was not."""
        self._call("pg_ctl", "-D", str(self._folder / "data"), "-w", "-m", mode, "stop")

    def remove(self):
        self.stop()
        shutil.rmtree(self._folder)

    def _call(self, program, *arguments):
        done = subprocess.run(
            [*self._as, str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL, stderr=subprocess.STDOUT,
            cwd=self._folder, env={**os.environ, "LC_ALL": "C", "USER": getpass.getuser()}, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, (
            program,
            done.stdout,
            (self._folder / "log").read_text() if (self._folder / "log").exists() else "",
        )
