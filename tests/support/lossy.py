"""A simulator whose streams lose and repeat trades, while its REST interface has them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ingest.capture import CaptureFrame
from ingest.simulated_rest import SimulatedRest
from ingest.simulator import Simulator

#: What becomes of a trade, by its number within its stream: so many copies are sent.
Copies = Callable[[int], int]


def every_50th_lost_every_70th_twice(number: int) -> int:
    return 0 if number % 50 == 49 else 2 if number % 70 == 69 else 1


class LossySimulator(Simulator):
    """A replay that sends each trade as often as `copies` says. Made by `replay`, as any; set `copies` before `start`.

    A stream's last trade should not be lost: that nothing followed it is no gap to anybody.
    """

    copies: Copies = staticmethod(every_50th_lost_every_70th_twice)

    def _frames(self) -> Iterator[CaptureFrame]:
        numbers: dict[str, int] = {}
        for frame in super()._frames():
            if not frame.stream.endswith("@trade"):
                yield frame
                continue
            number = numbers[frame.stream] = numbers.get(frame.stream, -1) + 1
            for _ in range(self.copies(number)):
                yield frame

    def _rest_of_captures(self) -> SimulatedRest:
        return Simulator.replay(self._captures)._rest_of_captures()
