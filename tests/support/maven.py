"""Jars and archives from Maven Central for tests, once: they lie in the user's cache folder afterwards."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.missing import MissingTool

JAVA_VERSION_MIN = 17
#: What keeps a JVM for tests small and quick to start.
JVM_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>k2.tests</groupId>
  <artifactId>jars</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""


def java_and_maven(*tools: str) -> None:
    """Raises MissingTool when Java or Maven, or one of `tools`, are missing or too old."""
    for tool in ("java", "mvn", *tools):
        if shutil.which(tool) is None:
            raise MissingTool(f"{tool} is not on the path")
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < JAVA_VERSION_MIN:
        raise MissingTool(f"Java {JAVA_VERSION_MIN} is needed, here is: {said.splitlines()[:1]}")


def jars(name: str, artifacts: Iterable[str]) -> Path:
    """The folder `name` with these artifacts (group:artifact:version[:classifier]) and all that they need at run time.

    Raises MissingTool.
    """

    def fill(work: Path, filling: Path) -> list[str]:
        pom = work / "pom.xml"
        pom.write_text(_POM.format(dependencies="\n".join(map(_dependency, artifacts))))
        goal = [f"{_PLUGIN}:copy-dependencies", f"-DoutputDirectory={filling}", "-DincludeScope=runtime"]
        return ["-f", str(pom), *goal]

    return _kept(name, fill)


def unpacked(name: str, artifact: str) -> Path:
    """The folder `name` with what an archive (group:artifact:version:type:classifier) holds. Raises MissingTool."""

    def fill(_work: Path, filling: Path) -> list[str]:
        return [f"{_PLUGIN}:unpack", f"-Dartifact={artifact}", f"-DoutputDirectory={filling}"]

    return _kept(name, fill)


def _kept(name: str, fill: Callable[[Path, Path], list[str]]) -> Path:
    """The folder `name` in the cache. Where there is none Maven fills it: `fill` gives its arguments for a folder to
    work in and the one to fill.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2"
    complete = cache / name
    if complete.is_dir():
        return complete
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        filling = Path(work) / "filling"
        command = ["mvn", "-q", "-B", *fill(Path(work), filling)]
        resolved = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if resolved.returncode != 0:
            lines = (resolved.stdout + resolved.stderr).strip().splitlines() or ["it said nothing"]
            raise MissingTool(f"Maven could not resolve {name}: {lines[0][:300]}")
        try:
            filling.rename(complete)  # atomic: what lies in the cache is whole
        except OSError:
            if not complete.is_dir():  # else another process was first
                raise
    return complete


def _dependency(artifact: str) -> str:
    parts = zip(("groupId", "artifactId", "version", "classifier"), artifact.split(":"), strict=False)
    return "    <dependency>" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in parts) + "</dependency>"
