"""What a venue is to the feed: how its streams are asked for, within which limits, and what its frames mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from common.datasets import Dataset
from common.errors import FeedProtocolError
from ingest.rest import RestRequest
from ingest.venues.events import Event, InstrumentInfo


class Dialect(Protocol):
    """How the streams of a venue are asked for. Pure."""

    @property
    def streams_per_connection_max(self) -> int: ...

    @property
    def messages_per_s_max(self) -> int:
        """How many messages the venue takes a second on one connection."""
        ...

    @property
    def connections_max(self) -> tuple[int, float]:
        """How many connections the venue takes in how many seconds."""
        ...

    def path_of(self, streams: Sequence[str]) -> str:
        """What follows the host in the URL of a connection with these streams."""
        ...

    def greetings(self, streams: Sequence[str]) -> list[str]:
        """What is said first on a connection with that path."""
        ...

    def subscribe(self, streams: Sequence[str]) -> list[str]:
        """What is said to get these streams too."""
        ...

    def unsubscribe(self, streams: Sequence[str]) -> list[str]:
        """What is said to get these streams no longer."""
        ...


class Session(Dialect, Protocol):
    """One venue's streams of some symbols. Pure, and without state of a connection: one serves any number of them."""

    @property
    def exchange(self) -> str: ...

    @property
    def asset_class(self) -> str: ...

    @property
    def symbols(self) -> tuple[str, ...]: ...

    @property
    def streams(self) -> tuple[str, ...]:
        """Everything that is asked for."""
        ...

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The datasets that its events go into; instruments are not among them."""
        ...

    def with_symbols(self, symbols: Sequence[str]) -> Session:
        """The same streams of other symbols. Raises SettingsError."""
        ...

    def receive_all(self, frames: Sequence[bytes], receive_time_us: int) -> list[Event | FeedProtocolError]:
        """What each frame means, or one sentence that says what is wrong with it."""
        ...

    def dataset_of_frame(self, frame: bytes) -> Dataset:
        """Whose dead letter a broken frame is, by the look of it."""
        ...


class VenueRest(Protocol):
    """What is asked of a venue's REST interface, and what the answers mean. Pure."""

    @property
    def symbols_per_request_max(self) -> int: ...

    def rest_url_of(self, websocket_url: str) -> str | None:
        """The REST interface beside a websocket; None when nothing is known of that host."""
        ...

    def server_time_request(self) -> RestRequest: ...

    def server_time_us_of(self, answer: Any) -> int:
        """Raises FeedProtocolError."""
        ...

    def instrument_request(self, symbols: Sequence[str]) -> RestRequest: ...

    def instruments_of(self, answer: Any) -> list[InstrumentInfo]:
        """Raises FeedProtocolError."""
        ...
