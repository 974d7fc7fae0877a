"""Before anything imports torch: its threads sleep while they wait, for several workers of pytest share the processors."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
