"""An S3 API over HTTP on loopback for tests: moto's server, in an environment that uv makes for the run.

It is no dependency of the project: it would bring boto3 and Flask. Needs `uv`, and the network or uv's cache. Objects
are in its memory. Who asked is told by the access key, so give each client one of its own; any secret will do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

_PACKAGES = ("moto[s3]", "flask", "flask-cors")
_BACKEND = Path(__file__).parent / "s3_backend.py"


class StoreUnavailable(Exception):
    """The server cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Request:
    """One request that the store has answered. `path` is /bucket/key."""

    who: str | None
    method: str
    path: str
    query: str
    range: str | None
    status: int


class S3Server:
    """From `start` to `stop`; buckets are made by whoever needs them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "requests.jsonl"
        self._child: subprocess.Popen[str] | None = None
        self.endpoint = ""

    def start(self) -> None:
        """Returns once it answers. Raises StoreUnavailable."""
        python = _environment(self._folder / "environment")
        self._log.touch()
        with (self._folder / "server.log").open("w") as errors:
            self._child = subprocess.Popen(
                [python, _BACKEND, self._log], stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._child.stdout is not None
        word, _, port = self._child.stdout.readline().partition(" ")
        if word != "ready":
            self.stop()
            raise StoreUnavailable(f"it did not start: {(self._folder / 'server.log').read_text()[-500:]}")
        self.endpoint = f"http://127.0.0.1:{int(port)}"

    def make_bucket(self, name: str) -> None:
        self.put(f"/{name}", b"")

    def put(self, path: str, content: bytes) -> None:
        """An object at /bucket/key, or a bucket."""
        request = urllib.request.Request(self.endpoint + path, data=content, method="PUT")
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request")
        with urllib.request.urlopen(request, timeout=30):
            pass

    def properties(self, who: str) -> dict[str, str]:
        """The catalog properties with which this client reads and writes here."""
        return {
            "s3.endpoint": self.endpoint,
            "s3.region": "us-east-1",
            "s3.access-key-id": who,
            "s3.secret-access-key": f"secret-of-{who}",
        }

    def requests(self, *, of: str | None = None, since: int = 0) -> list[Request]:
        """All requests but the first `since` ones, in the order of their answers; `of` one client alone."""
        lines = self._log.read_text(encoding="utf-8").splitlines()[since:]
        found = [Request(**json.loads(line)) for line in lines]
        return [request for request in found if of is None or request.who == of]

    def count(self) -> int:
        """How many there were so far."""
        return self._log.read_bytes().count(b"\n")

    def stop(self) -> None:
        """Idempotent."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child = None


def _environment(folder: Path) -> Path:
    uv = shutil.which("uv")
    command = [uv] if uv else [sys.executable, "-m", "uv"]
    python = folder / "bin" / "python"
    for step in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", str(python), *_PACKAGES],
    ):
        done = subprocess.run([*command, *step], capture_output=True, text=True, check=False, cwd=folder.parent)
        if done.returncode:
            raise StoreUnavailable(f"uv {' '.join(step[:2])}: {done.stderr.strip()[-500:]}")
    return python
