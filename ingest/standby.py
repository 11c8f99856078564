"""A standby: an ingest that follows the log and waits, and takes over when the one that writes dies or stalls.

It writes nothing and is connected to no venue until then. Its ledger is as old as the last look at the log, so that at
the take-over a few seconds of the log are left to read; what the venue sent meanwhile is a gap, and comes back.
"""

from __future__ import annotations

import threading
from typing import Final

from common.clock import Clock, SystemClock
from common.errors import K2Error
from common.telemetry import get_logger
from ingest.service import IngestService

#: How often the ledger is brought up to date.
_FOLLOW_S: Final = 2.0


class StandbyIngest:
    """An IngestService that starts by itself when it is its turn. In the shape of a service; one instance runs once."""

    def __init__(self, service: IngestService, *, clock: Clock | None = None) -> None:
        self.service = service
        self._clock = clock or SystemClock()
        self._log = get_logger("ingest")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="k2-ingest-standby")
        self._failure: BaseException | None = None
        #: Set once the service writes.
        self.active = threading.Event()

    def start(self) -> None:
        """Follow the log from now on. Raises SettingsError, BrokerError."""
        self.service.open_state()
        try:
            self.service.follow()
        except BaseException:
            self.service.stop()
            raise
        self._log.info("on standby")
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the waiting, or the service. Idempotent."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self.service.stop(timeout_s)

    @property
    def failure(self) -> BaseException | None:
        """Why it ended by itself; None while it waits or runs, and after `stop`."""
        return self._failure or self.service.failure

    def _run(self) -> None:
        try:
            if self._wait():
                self._log.warning("the ingest that wrote is silent: this one takes over")
                self.service.start()
                self.active.set()
        except K2Error as error:
            self._failure = error
        except BaseException as error:  # noqa: BLE001  (a thread's last word: it is kept for whoever owns the service)
            self._log.exception("a thread ended by an unexpected error", thread=self._thread.name)
            self._failure = error

    def _wait(self) -> bool:
        """True when it is this one's turn, False when it is to stop."""
        listener = self.service.listener()
        followed_s = self._clock.monotonic_s()
        try:
            while not self._stopping.is_set():
                if listener.listen():
                    return True
                if self._clock.monotonic_s() - followed_s >= _FOLLOW_S:
                    try:
                        self.service.follow()
                    except K2Error as error:
                        self._log.warning("the standby cannot follow the log", reason=error.message)
                    followed_s = self._clock.monotonic_s()
        finally:
            listener.close()
        return False
