"""Before anything imports torch: its threads sleep while they wait, for several workers of pytest share the processors."""

import gc
import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True, scope="module")
def collections_look_at_what_is_new() -> None:
    """Many tests ask whether something is collected: none of them looks again through all that imports have made."""
    gc.collect()
    gc.freeze()
