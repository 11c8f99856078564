"""How K2 waits and tries again: one place that turns settings into tenacity's policies."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from common.errors import K2Error


def is_retryable(error: BaseException) -> bool:
    """True for our own errors that say of themselves that the same call may succeed later."""
    return isinstance(error, K2Error) and error.retryable


def retrying(
    *, first_wait_s: float, wait_s_max: float, give_up_after_s: float, sleep: Callable[[float], None] | None = None
) -> Retrying:
    """Retry retryable K2 errors with jittered doubling waits; the last error comes out unchanged."""
    options: dict[str, Any] = {} if sleep is None else {"sleep": sleep}
    return Retrying(
        retry=retry_if_exception(is_retryable),
        wait=wait_random_exponential(multiplier=first_wait_s, max=wait_s_max),
        stop=stop_after_delay(give_up_after_s),
        reraise=True,
        **options,
    )


def jittered_wait_s(failures: int, *, first_s: float, max_s: float, draw: Callable[[], float] = random.random) -> float:
    """How long to wait after so many failures in a row, the first being 1: a random part of a bound that doubles.

    For loops that tell by more than an exception whether to go on; others use `retrying`.
    """
    return draw() * min(max_s, first_s * 2.0 ** min(failures - 1, 30))
