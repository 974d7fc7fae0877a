"""What an installation promises: quick import, lazy names, no need of a home or a writable disk."""

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fpsim

ROOT = Path(__file__).parents[1]


def python(code, cwd=ROOT, env=None):
    """Run code in a fresh interpreter; its standard output."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_import_is_quick_and_loads_neither_torch_nor_numba():
    code = (
        "import sys, time; start = time.perf_counter(); import fpsim; seconds = time.perf_counter() - start;"
        "assert not {'torch', 'numba', 'scipy'} & set(sys.modules); print(seconds)"
    )
    seconds = min(float(python(code).stdout) for _ in range(3))
    assert seconds < 0.3


def test_formats_need_no_compiler():
    python("import fpsim, sys; fpsim.get_format('fp16'); assert not {'torch', 'numba'} & set(sys.modules)")


@pytest.mark.parametrize("name", fpsim.__all__)
def test_every_public_name_resolves(name):
    assert getattr(fpsim, name) is not None
    assert name in dir(fpsim)


def test_names_for_type_checkers_are_the_lazy_names():
    tree = ast.parse((ROOT / "fpsim" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    found = {node.module: {alias.asname for alias in node.names} for node in guarded.body}
    assert found == {module: set(names.split()) for module, names in fpsim._HOMES.items()}


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'rund'"):
        fpsim.rund  # noqa: B018


def test_public_functions_have_docstrings():
    missing = [name for name in fpsim.__all__ if callable(getattr(fpsim, name)) and not getattr(fpsim, name).__doc__]
    assert missing == []


ROUND_ONCE = "import fpsim; print(fpsim.round(0.1, 'fp16'))"


def installation(folder):
    """A copy of the package where caches cannot be written, by root either: a file stands where each would be."""
    target = folder / "site"
    shutil.copytree(ROOT / "fpsim", target / "fpsim", ignore=shutil.ignore_patterns("__pycache__"))
    for package in [target / "fpsim", *(path for path in (target / "fpsim").rglob("*") if path.is_dir())]:
        (package / "__pycache__").write_text("in the way")
    return target


def homeless(folder, **extra):
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, **extra, "PYTHONPATH": str(folder)}


def test_works_without_a_home_from_a_read_only_installation(tmp_path):
    site = installation(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = sorted(site.rglob("*"))
    done = python(ROUND_ONCE, cwd=tmp_path, env=homeless(site, TMPDIR=str(scratch)))
    assert sorted(site.rglob("*")) == before
    assert done.stdout == "0.0999755859375\n"
    assert "RuntimeWarning" not in done.stderr
    assert any(scratch.rglob("*.kernel")), "the kernels are kept in a temporary folder of the user"


def test_works_with_one_warning_where_no_folder_can_be_written(tmp_path):
    """Permission bits do not bind root, so every cache location lies under a regular file: mkdir fails for anyone."""
    site = installation(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    variables = {name: str(blocked / "under") for name in ("FPSIM_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    code = f"import tempfile; tempfile.tempdir = {str(blocked / 'tmp')!r}; " + ROUND_ONCE
    done = python(code, cwd=tmp_path, env=homeless(site, **variables))
    assert done.stdout == "0.0999755859375\n"
    assert done.stderr.count("RuntimeWarning") == 1
    assert "FPSIM_CACHE_DIR" in done.stderr


def test_without_numbas_compiler_kernels_say_what_forbids_it():
    code = (
        "import fpsim; fpsim.get_format('fp16')\n"
        "try: fpsim.round(1.1, 'fp16')\n"
        "except ImportError as error: assert 'NUMBA_DISABLE_JIT' in str(error) and 'unset it' in str(error)\n"
        "else: raise AssertionError"
    )
    python(code, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})


def test_a_second_process_finds_the_compiled_kernels(tmp_path):
    env = homeless(ROOT, FPSIM_CACHE_DIR=str(tmp_path))
    python(ROUND_ONCE, env=env)
    compiled = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.kernel")}
    start = time.perf_counter()
    python(ROUND_ONCE, env=env)
    assert time.perf_counter() - start < 10
    assert compiled == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.kernel")} != {}


def test_the_command_is_installed_under_its_name():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'name = "fpsim-numerics"' in text
    assert 'fpsim = "fpsim.cli:main"' in text


def test_every_requirement_is_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["demo"] + extras["report"] + extras["test"]
    names = {line.partition(">")[0].lower() for line in wanted}
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert names <= set(pins)
    assert pins["torch"] == "2.13.0"
