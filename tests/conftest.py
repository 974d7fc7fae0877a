"""Before anything imports torch: its threads sleep while they wait, for several workers of pytest share the processors."""

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_finish() -> None:
    """Tests that ask whether something is collected need not look through all that importing has made, each time."""
    gc.collect()
    gc.freeze()
