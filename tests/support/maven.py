"""Jars from Maven Central for tests, once: they lie in the user's cache folder afterwards."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
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
_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2"
    complete = cache / name
    if complete.is_dir():
        return complete
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        pom, filling = Path(work) / "pom.xml", Path(work) / "jars"
        pom.write_text(_POM.format(dependencies="\n".join(map(_dependency, artifacts))))
        command = ["mvn", "-q", "-B", "-f", str(pom), _GOAL, f"-DoutputDirectory={filling}", "-DincludeScope=runtime"]
        resolved = subprocess.run(command, capture_output=True, text=True, check=False)
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
