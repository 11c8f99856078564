"""The exchange of the soak of the feed, as a process: a random market that is told when to open and when to close, does
wrong in between, and knows what it owes.

    python -m tests.soak.exchange --symbols 500 --rate 1000 --seed 1 --seconds 1800 --every 5

It says its URL, and trades. Told `open`, it makes one trade of every symbol, says their ids, and begins with its plan
of faults. Told `close`, it does no more wrong, trades on for a while, makes one trade of every symbol again, says their
ids and what it inflicted, and trades no more; REST stays. A feed that was connected at `open` owes every id in between.
That a trade is missing is seen by a later one of its symbol: so nothing goes wrong while the rounds are sent.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping

from ingest.faults import FaultPlan
from ingest.market import Market, MarketFrame, market_symbols
from ingest.simulator import Simulator
from k2.runner import stop_on_signals

#: Behind the last fault the market trades on for so long: until whatever a fault began is over.
_CALM_S = 45.0
#: What was made is written to a socket within this time, whatever waits before it.
_WRITTEN_S = 3.0


class RoundMarket(Market):
    """A market that makes one trade of every symbol when it is asked to. `last_ids` has each symbol's newest trade."""

    def __init__(self, symbols: Iterable[str], *, seed: int) -> None:
        super().__init__(symbols, seed=seed)
        self._due: deque[int] = deque()
        self.last_ids: dict[str, int] = {}

    def next_symbol(self) -> int:
        return self._due.popleft() if self._due else super().next_symbol()

    def step(self, now_us: int) -> tuple[MarketFrame, MarketFrame]:
        frames = super().step(now_us)
        symbol, trade_id = self.last_trade
        self.last_ids[symbol] = trade_id
        return frames

    def ask_for_round(self) -> None:
        """From any thread."""
        self._due.extend(range(len(self.symbols)))

    @property
    def round_is_made(self) -> bool:
        return not self._due


class Exchange:
    """The simulator, and what it is told to do."""

    def __init__(self, market: RoundMarket, simulator: Simulator, plan: FaultPlan) -> None:
        self._market = market
        self._simulator = simulator
        self._plan = plan
        self._closed = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="faults", daemon=True)

    def open(self) -> Mapping[str, object]:
        """The ids of the first round; faults from now on."""
        ids = self._round()
        self._follower.start()
        return {"opened": ids}

    def close(self) -> Mapping[str, object]:
        """The ids of the last round, and what was inflicted; no trade behind them."""
        self._closed.set()
        self._follower.join()
        time.sleep(_CALM_S)
        ids = self._round()
        self._simulator.close_market()
        stats = self._simulator.stats()
        return {"closed": ids, "inflicted": stats.faults, "withheld": stats.trades_withheld}

    def _round(self) -> dict[str, int]:
        self._market.ask_for_round()
        while not self._market.round_is_made:
            time.sleep(0.02)
        ids = dict(self._market.last_ids)
        time.sleep(_WRITTEN_S)
        return ids

    def _follow(self) -> None:
        begin_s = time.monotonic()
        for fault in self._plan.faults:
            if self._closed.wait(max(0.0, begin_s + fault.at_s - time.monotonic())):
                return
            self._simulator.inflict(fault)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("symbols", int), ("rate", float), ("seed", int), ("seconds", float), ("every", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    market = RoundMarket(market_symbols(given.symbols), seed=given.seed)
    simulator = Simulator.random_market(market, trades_per_s=given.rate, goes_on=True)
    plan = FaultPlan.seeded(given.seed, seconds=given.seconds, every_s=given.every)
    exchange = Exchange(market, simulator, plan)
    simulator.start()
    _say(f"exchange at {simulator.url}")
    with stop_on_signals() as stop:
        threading.Thread(target=_obey, args=(exchange,), name="told", daemon=True).start()
        while not stop.wait(0.2):
            if simulator.failure is not None:
                raise simulator.failure
    simulator.stop()


def _obey(exchange: Exchange) -> None:
    told = {"open": exchange.open, "close": exchange.close}
    for line in sys.stdin:
        _say(json.dumps(told[line.strip()]()))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
