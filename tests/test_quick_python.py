"""A quick child is as a new process: what it prints, how it ends, what it finds in its environment."""

import os
import subprocess
import sys

import pytest

from tests import quick_python

CHILDREN = {
    "arguments": ("import sys, torch; print(sys.argv, __name__, torch.ones(2))", {}),
    "environment": ("import os, torch; print(os.environ['FPSIM_TEST'], torch.get_num_threads())", {"FPSIM_TEST": "1"}),
    "threads": ("import torch; print(torch.get_num_threads())", {"OMP_NUM_THREADS": "1"}),
    "read by imports": ("import numba, os; print(numba.config.DISABLE_JIT, os.environ['MKL_NUM_THREADS'])",
                        {"NUMBA_DISABLE_JIT": "1", "MKL_NUM_THREADS": "1"}),
    "code": ("raise SystemExit(3)", {}),
    "error": ("1 / 0", {}),
    "signal": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHILDREN)
def test_a_quick_child_is_a_python(name, tmp_path):
    code, variables = CHILDREN[name]

    def run(python):
        words = [python, "-c", code, "word", "--option"]
        done = subprocess.run(words, env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr.splitlines()[-1:]

    assert run(quick_python.executable()) == run(sys.executable)
