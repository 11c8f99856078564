"""The Flight SQL clients of npm, in one Node process that answers a line of JSON with a line of JSON.

Needs `node` and `npm` on the path. The packages, in exactly the versions of package.json, are installed once into the
user's cache folder (30 MB); no lock file is written, since it would name the hosts of a registry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.missing import MissingTool

_FOLDER = Path(__file__).resolve().parents[1] / "contract" / "flight" / "npm"
_ATTEMPTS = 3
_PAUSE_S = 3.0
_ANSWER_S_MAX = 60


def modules() -> Path:
    """The folder with the packages installed. Raises MissingTool."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise MissingTool(f"{tool} is not on the path")
    wanted = (_FOLDER / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2"
    complete = cache / f"npm-{hashlib.sha256(wanted).hexdigest()[:16]}"
    if complete.is_dir():
        return complete
    cache.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    said = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE_S * attempt)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            filling = Path(work) / "npm"
            filling.mkdir()
            (filling / "package.json").write_bytes(wanted)
            done = subprocess.run(command, cwd=filling, capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            if done.returncode == 0:
                with contextlib.suppress(OSError):  # another process was first: its folder is as good
                    filling.rename(complete)
                return complete
    raise MissingTool(f"npm could not install the clients: {said.strip()[-300:]}")


class NpmError(Exception):
    """What the JavaScript client threw: its gRPC status code and its words."""

    def __init__(self, code: int | None, message: str) -> None:
        super().__init__(message)
        self.code = code


class NpmClients:
    """A Node process; closing ends it."""

    def __init__(self, uri: str) -> None:
        folder = modules()
        host, _, port = uri.rpartition("/")[2].rpartition(":")
        self._node = subprocess.Popen(
            ["node", str(_FOLDER / "clients.cjs"), host, port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NODE_PATH": str(folder / "node_modules")},
        )

    def ask(self, client: str, call: str, **arguments: Any) -> Any:
        """The answer of one call of `client`. Raises NpmError with what it threw."""
        assert self._node.stdin is not None and self._node.stdout is not None
        self._node.stdin.write(json.dumps({"client": client, "call": call, **arguments}) + "\n")
        self._node.stdin.flush()
        line = self._node.stdout.readline()
        if not line:
            raise RuntimeError(f"node ended with exit code {self._node.wait(_ANSWER_S_MAX)}")
        answer = json.loads(line)
        if "error" in answer:
            raise NpmError(answer["error"]["code"], answer["error"]["message"])
        return answer["answer"]

    def close(self) -> None:
        assert self._node.stdin is not None and self._node.stdout is not None
        self._node.stdin.close()
        try:
            self._node.wait(_ANSWER_S_MAX)
        except subprocess.TimeoutExpired:
            self._node.kill()
            self._node.wait()
        self._node.stdout.close()
