"""What is there when a service is up is not looked at by the collector again; what comes later is."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc, weakref
from k2.runner import run_until_stopped
class Ring:
    def __init__(self):
        self.me = self
class Service:
    failure = None
    def start(self):
        self.frozen_before = gc.get_freeze_count()
    def stop(self, seconds):
        later = weakref.ref(Ring())
        gc.collect()
        print(self.frozen_before, gc.get_freeze_count() > 10_000, later() is None)
service = Service()
def announce():
    service.failure = KeyError("over")
try:
    run_until_stopped(service, announce)
except KeyError:
    print("over")
"""


def test_what_is_there_when_a_service_is_up_is_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0 True True", "over"]
