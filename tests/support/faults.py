"""What can go wrong between the sink and the two services it writes to, scripted: the catalog and the object store.

Both stay real. A fault strikes the next write to the one or the other once it is armed, and only that.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from enum import Enum
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.io import OutputFile
from pyiceberg.io.pyarrow import PyArrowFileIO

#: The catalog property that names the faults of a client's file store; see FaultyFileIO.
FAULTS_PROPERTY = "k2-test-faults"


class Ill(Enum):
    """How a service can fail the one request that it strikes."""

    FAILS = "fails"
    SLOW = "is slow: its client gives up, and the request arrives after others have gone on"
    LATE = "does it, and its answer is lost"


class Service:
    """One client's way to a service. Requests that are held up arrive when `deliver` is called."""

    def __init__(self) -> None:
        self._armed: Ill | None = None
        self._held_up: list[Callable[[], object]] = []
        self.struck = 0

    def arm(self, ill: Ill) -> None:
        """The next request meets this."""
        self._armed = ill

    def request(self, do: Callable[[], Any]) -> Any:
        ill, self._armed = self._armed, None
        if ill is None:
            return do()
        self.struck += 1
        if ill is Ill.SLOW:
            self._held_up.append(do)
            raise TimeoutError("no answer in time (scripted)")
        if ill is Ill.LATE:
            do()
            raise ConnectionResetError("the connection was lost before the answer came (scripted)")
        raise ConnectionRefusedError("connection refused (scripted)")

    def deliver(self) -> list[BaseException]:
        """What was held up arrives now; returns what its senders would have been told."""
        answers: list[BaseException] = []
        while self._held_up:
            try:
                self._held_up.pop(0)()
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody is there to hear it
                answers.append(error)
        return answers


def commits_through(catalog: Catalog, service: Service) -> None:
    """Let this client's commits of tables go through `service`."""
    real = catalog.commit_table
    catalog.commit_table = lambda *arguments: service.request(lambda: real(*arguments))  # type: ignore[method-assign]


#: Whose writes of files go through which service, by the value of FAULTS_PROPERTY in the catalog's properties.
STORES: dict[str, Service] = {}


class FaultyFileIO(PyArrowFileIO):
    """PyIceberg's own, for the catalog property `py-io-impl`; each object that is written is one request."""

    def new_output(self, location: str) -> OutputFile:
        return _Output(super().new_output(location), STORES[self.properties[FAULTS_PROPERTY]])


class _Output(OutputFile):
    def __init__(self, real: OutputFile, store: Service) -> None:
        super().__init__(real.location)
        self._real = real
        self._store = store

    def __len__(self) -> int:
        return len(self._real)

    def exists(self) -> bool:
        return bool(self._real.exists())

    def to_input_file(self) -> Any:
        return self._real.to_input_file()

    def create(self, overwrite: bool = False) -> Any:
        return _Upload(lambda content: self._store.request(lambda: self._put(content, overwrite)))

    def _put(self, content: bytes, overwrite: bool) -> None:
        with self._real.create(overwrite=overwrite) as stream:
            stream.write(content)


class _Upload(io.BytesIO):
    """Gathers an object and sends it whole when it is closed, as an object store takes it; not after an error."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._send = send
        self._failed = False

    def __exit__(self, kind: object, *rest: object) -> None:
        self._failed = kind is not None
        self.close()

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            if not self._failed:
                self._send(content)
