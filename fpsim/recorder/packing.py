"""This folder as one file that Python runs."""

from __future__ import annotations

import os
import tempfile
import zipapp
from pathlib import Path
from shutil import copytree, ignore_patterns

_START = "import sys\n\nfrom recorder.command import main\n\nsys.exit(main())\n"


def write_recorder(path: str | os.PathLike[str]) -> None:
    """Write the recorder as a zip application: `python recorder.pyz --help`, on a machine that has torch."""
    with tempfile.TemporaryDirectory() as folder:
        copytree(Path(__file__).parent, Path(folder) / "recorder", ignore=ignore_patterns("__pycache__"))
        (Path(folder) / "__main__.py").write_text(_START)
        zipapp.create_archive(folder, Path(path), interpreter="/usr/bin/env python3", compressed=True)
