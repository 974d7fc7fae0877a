"""How many threads a process of the experiments has."""

from __future__ import annotations

import os
import sys


def one_thread() -> None:
    """Runs are small: two processes are faster than two threads."""
    os.environ["OMP_NUM_THREADS"] = "1"  # which torch reads when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
