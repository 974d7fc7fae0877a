"""`python -m fpsim.recorder`, and what `python recorder.pyz` runs."""

import sys

from .command import main

sys.exit(main())
