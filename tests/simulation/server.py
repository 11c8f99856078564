"""The flight server of a world: what it is told and when, what it publishes, and how that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.datasets import Dataset
from common.errors import BrokerError, K2Error
from common.log import TopicInfo
from flight_server.storage.read_view import Snapshot
from flight_server.storage.tail import Publisher
from tests.simulation.parts import BARS_KEPT, DATASETS, SETTINGS, SealedDatabase
from tests.simulation.producers import NAMES, REGISTRY, TOPICS

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Statements of a publication that has news of every table.
_STATEMENTS = 24


class Server:
    """`number` picks among what there is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.settings = SETTINGS

    # -- actions

    def ask_catalog(self, number: int) -> None:
        """The catalog is asked for news; what it says arrives later, or never. As by the lake, for the bars last: then
        the sinks may have gone on, so that bars are ahead of the trades that the server knows."""
        if number % 3 == 0:
            every = [*self.datasets, *BARS_KEPT]
            self._ask([every[number // 3 % len(every)]])
            return
        self._ask(self.datasets)
        if number % 6 == 2:
            self._world.sinks.go_on()
        self._ask(BARS_KEPT)

    def hear_catalog(self, _number: int) -> None:
        """What it said is published; what cannot be is tried again, as flight_server.storage.lake does it."""
        says, self._catalog_says = self._catalog_says, {}
        if not says:
            return
        try:
            self.publisher.adopt(says)
        except K2Error:
            for name, snapshot in says.items():
                try:
                    self.publisher.adopt({name: snapshot})
                except K2Error:
                    self._catalog_says[name] = snapshot

    def ask_broker(self, number: int) -> None:
        """The broker is asked for its topics, now and then one of them is missing from its answer; and which tables
        that nobody used before have a topic or rows by now."""
        if self._world.log.down:
            return
        for dataset in DATASETS:
            if dataset not in self.datasets and dataset.name not in self._arrived and self._is_awake(dataset):
                with contextlib.suppress(K2Error):  # of a table of which nobody knows what it holds
                    self._arrived[dataset.name] = self._world.tables.newest(dataset)
        left_out = NAMES[number // 16 % len(NAMES)] if number % 16 == 0 else None
        topics = self._world.log.topics.items()
        self._broker_says = [info for name, info in topics if name != left_out and TOPICS[name] in self.datasets]

    def hear_broker(self, _number: int) -> None:
        for name, snapshot in list(self._arrived.items()):
            dataset = next(dataset for dataset in DATASETS if dataset.name == name)
            try:
                self.publisher.add(dataset, snapshot)
                self.datasets = (*self.datasets, dataset)
            except K2Error:
                pass  # tried again when the broker is asked next
            del self._arrived[name]
        if self._broker_says is not None:
            try:
                self.publisher.assign(self._world.log.cluster_id, self._broker_says)
                self._broker_says = None
            except K2Error:
                assert self.publisher.gap is not None

    def refresh(self, number: int) -> None:
        """Both are asked, and heard at once."""
        self.ask_catalog(number)
        self.ask_broker(1)
        self.hear_catalog(number)
        self.hear_broker(number)

    def tail_poll(self, _number: int) -> None:
        try:
            self.publisher.poll(0.0)
        except K2Error:
            assert self.publisher.gap is not None

    def publication_fault(self, number: int) -> None:
        """One of the next publications fails, at any of its statements: all of it is shown or nothing."""
        self.database.fails_after = number % _STATEMENTS

    def hot_window(self, number: int) -> None:
        """Another server: one that keeps nothing, little or all of what was committed in memory."""
        self.settings = SETTINGS.model_copy(update={"hot_window_bytes": (0, 20_000, 1_000_000)[number % 3]})
        self.restart_server(number)

    def restart_server(self, _number: int) -> None:
        self.stop()
        self.start()

    # -- what others do

    def start(self) -> None:
        world = self._world
        self.database = SealedDatabase.take()
        self._reader = world.log.reader()
        self.datasets = tuple(dataset for dataset in DATASETS if self._is_awake(dataset))
        self.publisher = Publisher(
            self.database,
            self._reader,
            REGISTRY,
            self.settings,
            world.clock,
            self.datasets,
            topic_ids=self._topic_ids,
            bars=BARS_KEPT,
        )
        self._catalog_says: dict[str, Snapshot] = {}
        self._broker_says: list[TopicInfo] | None = None
        self._arrived: dict[str, Snapshot] = {}
        world.tables.server_started()
        self.refresh(1)
        self.tail_poll(0)
        world.subscribers.server_started()

    def stop(self) -> None:
        """Readers' transactions end, as they do when a process does."""
        self._world.queries.server_stops()
        self._world.subscribers.server_stops()
        self._world.counts.failed += self.database.failures
        self._reader.close()
        self.database.give_back()

    # -- inside

    def _ask(self, datasets: Iterable[Dataset]) -> None:
        for dataset in datasets:
            with contextlib.suppress(K2Error):
                self._catalog_says[dataset.name] = self._world.tables.newest(dataset)

    def _is_awake(self, dataset: Dataset) -> bool:
        """One that is optional is there once it has a topic, or rows."""
        has_topic = any(TOPICS[name] is dataset for name in self._world.log.topics)
        return not dataset.optional or has_topic or self._world.tables.stores[dataset.name].current is not None

    def _topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        if self._world.log.down:
            raise BrokerError("the fake broker is down")
        wanted = set(names)
        return {name: info.topic_id for name, info in self._world.log.topics.items() if name in wanted}
