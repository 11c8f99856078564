"""Apache Spark with Iceberg's runtime, from Maven Central, in a JVM of its own: a reader that is not Python.

Needs `java` 17 or newer and `mvn` on the path. The jars (248 MB) lie in the user's cache folder afterwards. Spark reads
K2's own catalog, as Iceberg's JDBC catalog. `python -m tests.support.spark JARS CATALOG WAREHOUSE` answers each line of
JSON on its standard input, an SQL text, with a line: the rows as Spark writes them in JSON, or an error. A list of a
catalog and a warehouse begins another session.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import jpype

from tests.support.missing import MissingTool

SPARK, ICEBERG, SQLITE = "4.0.1", "1.10.1", "3.46.1.3"
#: What Spark takes along for streaming, other clouds and encryption, and a query of a local file does not load.
_LEFT_OUT = (
    "org.rocksdb:rocksdbjni",
    "org.apache.zookeeper:*",
    "org.apache.curator:*",
    "com.google.crypto.tink:tink",
    "com.ibm.icu:icu4j-localespi",
)
_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_OPENED = (
    "java.lang",
    "java.lang.invoke",
    "java.lang.reflect",
    "java.io",
    "java.net",
    "java.nio",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "sun.nio.ch",
    "sun.nio.cs",
    "sun.security.action",
    "sun.util.calendar",
)
_OPTIONS = (
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
    "-Xmx1g",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djdk.reflect.useDirectMethodHandle=false",
    "-Duser.timezone=UTC",
    "-Dlog4j2.level=ERROR",
)


def jars() -> Path:
    """The folder with the jars, resolved with Maven on first use. Raises MissingTool."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise MissingTool(f"{tool} is not on the path")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2"
    complete = cache / f"spark-{SPARK}-iceberg-{ICEBERG}"
    if complete.is_dir():
        return complete
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        pom, filling = Path(work) / "pom.xml", Path(work) / "jars"
        pom.write_text(_pom())
        command = ["mvn", "-q", "-B", "-f", str(pom), _GOAL, f"-DoutputDirectory={filling}", "-DincludeScope=runtime"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
            raise MissingTool(f"Maven could not resolve Spark {SPARK}: {lines[0][:300]}")
        try:
            filling.rename(complete)  # atomic: what lies in the cache is whole
        except OSError:
            if not complete.is_dir():  # else another process was first
                raise
    return complete


def _pom() -> str:
    without = "".join(
        f"<exclusion><groupId>{group}</groupId><artifactId>{artifact}</artifactId></exclusion>"
        for group, artifact in (name.split(":") for name in _LEFT_OUT)
    )
    needed = (
        ("org.apache.spark", "spark-sql_2.13", SPARK, f"<exclusions>{without}</exclusions>"),
        ("org.apache.iceberg", "iceberg-spark-runtime-4.0_2.13", ICEBERG, ""),
        ("org.xerial", "sqlite-jdbc", SQLITE, ""),
    )
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>{rest}"
        "</dependency>"
        for group, artifact, version, rest in needed
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>k2</groupId>'
        f"<artifactId>spark</artifactId><version>1</version><dependencies>{dependencies}</dependencies></project>"
    )


class Spark:
    """A session on one catalog, from start to `stop`."""

    def __init__(self, catalog: Path, warehouse: str, folder: Path) -> None:
        """Raises MissingTool."""
        command = [sys.executable, "-m", "tests.support.spark", str(jars()), str(catalog), warehouse]
        self._errors = folder / "spark.log"
        with self._errors.open("w") as errors:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"SPARK_LOCAL_IP": "127.0.0.1"},
            )

    def sql(self, text: str) -> list[dict[str, Any]]:
        """The rows of a statement. Values are as Spark's JSON has them; numbers are exact, as Python's Decimal."""
        return [json.loads(row, parse_float=Decimal) for row in self._ask(text)]

    def _ask(self, asked: str | list[str]) -> list[str]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(asked) + "\n")
        self._child.stdin.flush()
        for line in self._child.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                assert "error" not in answer, answer["error"]
                rows: list[str] = answer["rows"]
                return rows
        raise AssertionError(f"Spark ended: {self._errors.read_text()[-2_000:]}")

    def connect(self, catalog: Path, warehouse: str) -> None:
        """Go on with this catalog, by a connection of its own.

        Who has read from SQLite by one connection cannot write by it once another process has written.
        """
        self._ask([str(catalog), warehouse])

    def stop(self) -> None:
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def _catalog(catalog: str, warehouse: str) -> dict[str, str]:
    """The settings of the catalog k2: its name in Spark is the name under which PyIceberg keeps the tables."""
    return {
        "spark.sql.catalog.k2": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.k2.catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
        "spark.sql.catalog.k2.uri": f"jdbc:sqlite:{catalog}",
        "spark.sql.catalog.k2.jdbc.schema-version": "V1",
        "spark.sql.catalog.k2.warehouse": warehouse,
        "spark.sql.catalog.k2.cache-enabled": "false",
    }


def main() -> None:
    folder, catalog, warehouse = sys.argv[1:]
    jpype.startJVM(*_OPTIONS, classpath=[f"{folder}/*"])
    settings = {
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.jsonGenerator.ignoreNullFields": "false",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.defaultCatalog": "k2",
        **_catalog(catalog, warehouse),
    }
    builder = jpype.JClass("org.apache.spark.sql.SparkSession").builder().master("local[1]").appName("k2")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if isinstance(asked, list):
                session = session.newSession()
                for name, value in _catalog(*asked).items():
                    session.conf().set(name, value)
            rows = [] if isinstance(asked, list) else session.sql(asked).toJSON().collectAsList()
            answer: dict[str, Any] = {"rows": [str(row) for row in rows]}
        except jpype.JException as error:
            answer = {"error": _told(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    session.stop()


def _told(error: Any) -> str:
    """The exception with what caused it."""
    causes = []
    while error is not None and len(causes) < 5:
        causes.append(str(error)[:500])
        error = error.getCause()
    return "; ".join(causes)


if __name__ == "__main__":
    main()
