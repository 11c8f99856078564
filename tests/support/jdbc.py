"""The official Flight SQL JDBC driver, from Maven Central, in a JVM inside this process (JPype).

Needs `java` 17 or newer and `mvn` on the path. The jar (45 MB) lies in the user's cache folder afterwards, and is used
only when its digest is the known one. Measured on 2 cores: the JVM 0.5 s, the first connection 1.8 s, a query 5 ms.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jpype
import jpype.config

from tests.support.canonical import Row, binary, interval, number
from tests.support.missing import MissingTool

VERSION = "18.3.0"
_SHA256 = "3f418b46c880e263558c5de669bdbede2c5d4375527ced116fb29f795b03704c"
_ARTIFACT = f"org.apache.arrow:flight-sql-jdbc-driver:{VERSION}"
_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_ATTEMPTS = 3
_PAUSE_S = 3.0
#: Small and quick to start; the driver reads Arrow buffers through java.nio; instants are shown in UTC.
_OPTIONS = (
    "-Xmx512m",
    "-Xrs",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Duser.timezone=UTC",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
)


def driver_jar() -> Path:
    """The driver, fetched by Maven on first use. Raises MissingTool."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise MissingTool(f"{tool} is not on the path")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2"
    complete = cache / f"flight-sql-jdbc-driver-{VERSION}.jar"
    if complete.is_file() and _digest(complete) == _SHA256:
        return complete
    cache.mkdir(parents=True, exist_ok=True)
    said = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE_S * attempt)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            command = ["mvn", "-q", "-B", _GOAL, f"-Dartifact={_ARTIFACT}", f"-DoutputDirectory={work}"]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            said = (done.stdout + done.stderr).strip()
            fetched = Path(work) / complete.name
            if fetched.is_file():
                if _digest(fetched) != _SHA256:
                    raise MissingTool(f"{_ARTIFACT} came with another digest than the known one")
                fetched.replace(complete)
                return complete
    raise MissingTool(f"Maven could not fetch {_ARTIFACT}: {said[:300]}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def start_jvm() -> None:
    """One JVM for the life of this process. Raises MissingTool."""
    if jpype.isJVMStarted():
        return
    jar = driver_jar()
    # The JVM ends with the process; waiting for the driver's threads would keep pytest from its exit.
    jpype.config.onexit = False
    try:
        jpype.startJVM(*_OPTIONS, classpath=[str(jar)])
    except (jpype.JVMNotFoundException, OSError) as error:
        raise MissingTool(f"no JVM can be started in this process: {error}") from None
    # The JVM's own handler does not use the alternate stack, on which Go insists: ADBC's driver, in this same process,
    # would abort it at the first connection that breaks. Python had the signal ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    logging = jpype.JPackage("java.util.logging")
    logging.Logger.getLogger("").setLevel(logging.Level.OFF)


def url_of(uri: str, **parameters: str) -> str:
    """The JDBC URL for a server at `uri` (grpc://host:port), without TLS. Unknown parameters become headers."""
    options = {"useEncryption": "false", **parameters}
    return f"jdbc:arrow-flight-sql://{uri.rpartition('/')[2]}/?" + "&".join(f"{k}={v}" for k, v in options.items())


@contextlib.contextmanager
def connected(uri: str, properties: Mapping[str, str] | None = None, **parameters: str) -> Iterator[Any]:
    """A java.sql.Connection, closed at the end."""
    java_properties = jpype.JClass("java.util.Properties")()
    for name, value in (properties or {}).items():
        java_properties.setProperty(name, value)
    connection = jpype.JClass("java.sql.DriverManager").getConnection(url_of(uri, **parameters), java_properties)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def statement_of(connection: Any) -> Iterator[Any]:
    """A java.sql.Statement, closed at the end."""
    statement = connection.createStatement()
    try:
        yield statement
    finally:
        statement.close()


@contextlib.contextmanager
def prepared(connection: Any, sql: str) -> Iterator[Any]:
    """A java.sql.PreparedStatement, closed at the end."""
    statement = connection.prepareStatement(sql)
    try:
        yield statement
    finally:
        statement.close()


def query(connection: Any, sql: str) -> tuple[list[str], list[Row]]:
    """Column names and rows, in the form of tests.support.canonical."""
    with statement_of(connection) as statement:
        return read(statement.executeQuery(sql))


def read(result: Any) -> tuple[list[str], list[Row]]:
    """Everything in a java.sql.ResultSet, which is closed."""
    try:
        metadata = result.getMetaData()
        count = metadata.getColumnCount()
        names = [str(metadata.getColumnLabel(index + 1)) for index in range(count)]
        types = [int(metadata.getColumnType(index + 1)) for index in range(count)]
        rows = []
        while result.next():
            rows.append([_cell(result, index + 1, types[index]) for index in range(count)])
        return names, rows
    finally:
        result.close()


def records(result: Any) -> list[dict[str, Any]]:
    """A java.sql.ResultSet, which is closed, as dictionaries."""
    names, rows = read(result)
    return [dict(zip(names, row, strict=True)) for row in rows]


_TIMESTAMP_WITH_TIMEZONE = 2014


def _cell(result: Any, index: int, sql_type: int) -> Any:
    if sql_type == _TIMESTAMP_WITH_TIMEZONE:
        # The driver's getObject(int) is not implemented for these.
        value = result.getObject(index, jpype.JClass("java.time.Instant").class_)
        return None if value is None else _trimmed(str(value))
    return canonical(result.getObject(index))


def canonical(value: Any) -> Any:
    """A Java object as tests.support.canonical writes its value."""
    if value is None:
        return None
    name = value.getClass().getName() if hasattr(value, "getClass") else type(value).__name__
    simple = str(name).rpartition(".")[2]
    if simple in ("String", "Text"):
        return str(value)
    if simple == "Boolean":
        return bool(value)
    if simple in ("Byte", "Short", "Integer", "Long"):
        return int(value)
    if simple in ("Float", "Double"):
        return number(float(value))
    if simple == "BigDecimal":
        return str(value.toPlainString())
    if simple == "Timestamp":
        return _trimmed(str(value.toLocalDateTime()))
    if simple == "LocalDateTime":
        return _trimmed(str(value))
    if simple == "Date":
        return str(value.toLocalDate())
    if simple == "ArrowFlightJdbcTime":
        return _without_zeros(str(value))
    if simple == "[B":
        return binary(bytes(bytearray(byte & 0xFF for byte in value)))
    if simple == "PeriodDuration":
        period, duration = value.getPeriod(), value.getDuration()
        return interval(int(period.toTotalMonths()), int(period.getDays()), int(duration.toNanos()))
    if simple == "ArrowFlightJdbcArray":
        return [canonical(item) for item in value.getArray()]
    if simple == "JsonStringArrayList":
        return [canonical(item) for item in value]
    if simple == "JsonStringHashMap":  # structs and maps alike; members that are null are not in it
        return {str(entry.getKey()): canonical(entry.getValue()) for entry in value.entrySet()}
    return f"{simple}: {value}"


def _trimmed(text: str) -> str:
    """java.time leaves out seconds that are zero, and writes fractions in threes."""
    zone = "Z" if text.endswith("Z") else ""
    day, _, clock = text.removesuffix("Z").partition("T")
    return f"{day}T{_without_zeros(clock + ':00' if clock.count(':') == 1 else clock)}{zone}"


def _without_zeros(clock: str) -> str:
    return clock.rstrip("0").rstrip(".") if "." in clock else clock
