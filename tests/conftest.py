"""Before anything imports torch: its threads sleep while they wait, for several workers of pytest share the processors."""

import gc
import os
import signal
import sys

import pytest

from tests import quick_python

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Tests of many seconds: begun first, they end while the other worker still has work.
LONGEST = (
    "tests/test_processors.py::test_a_level_gives",
    "tests/test_report_memory.py",
    "tests/test_crosscheck.py::test_recordings_do_not_depend",
    "tests/exhaustive/test_sweeps.py::test_sweep",
    "tests/test_certificates.py::test_no",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))  # stable


@pytest.fixture(autouse=True, scope="module")
def collections_look_at_what_is_new() -> None:
    """Many tests ask whether something is collected: none of them looks again through all that imports have made."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def quick_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package starts begins at once."""
    monkeypatch.setattr(sys, "executable", quick_python.executable())
