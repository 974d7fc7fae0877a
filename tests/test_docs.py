"""Every snippet of the README and the docs runs, and says what the page says it says.

In a page the ```python blocks run one after the other in one namespace; a ```text block right after one is what it
prints.
A ```console block holds commands behind "$ ", each followed by what it prints ("..." stands for any lines).
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import quick_python

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "conformance.md")]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(language, text, whether only blank lines stand between it and the block before) for each block of a page."""
    text = page.read_text()
    end = 0
    for match in BLOCK.finditer(text):
        yield match[1], match[2], not text[end : match.start()].strip()
        end = match.end()


def name(page):
    return str(page.relative_to(ROOT))


def with_block(language):
    return [page for page in PAGES if any(found == language for found, _, _ in blocks(page))]


@pytest.mark.parametrize("page", with_block("python"), ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    printed = ""
    for language, text, follows in blocks(page):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(text, name(page), "exec"), namespace)
            printed = output.getvalue()
        elif language == "text" and follows:
            assert text.strip() and matches(printed, text), f"the page says\n{text}\nand it prints\n{printed}"


@pytest.mark.parametrize("page", with_block("console"), ids=name)
def test_console_blocks_run(page, tmp_path):
    for source in (ROOT / "docs").rglob("*.py"):
        (tmp_path / source.name).write_text(source.read_text())
    for language, text, _ in blocks(page):
        if language == "console":
            for command, expected in commands(text):
                code, printed = shell(command, tmp_path)
                assert code == (2 if expected.startswith("Error: ") else 0), f"$ {command}\n{printed}"
                assert matches(printed, expected), f"$ {command}\n{printed}"


def commands(text):
    """(command, expected output) for each "$ " line of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def shell(command, folder):
    """A command's exit code and all it prints, in a terminal of 80 columns; `fpsim` is this package's."""
    python = shlex.quote(quick_python.executable())
    program = f'fpsim() {{ {python} -m fpsim.cli "$@"; }}; python() {{ {python} "$@"; }}; {command}'
    env = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", program], cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def matches(printed, expected):
    """Whether the texts agree but for trailing blanks; "..." alone on a line stands for any lines."""
    if not expected.strip():
        return True
    lines = (line.rstrip() for line in expected.strip().splitlines())
    pattern = "".join("(?:.*\n)*" if line == "..." else re.escape(line) + "\n" for line in lines)
    return re.fullmatch(pattern, "".join(line.rstrip() + "\n" for line in printed.strip().splitlines())) is not None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    lines = [text.strip() for language, text, _ in blocks(ROOT / "README.md") if language == "bash"]
    assert [line.rpartition("&& ")[2] for line in lines] == ["fpsim demo", "pytest"]
    for line in lines:
        assert "-c constraints.txt" in line
        ending = "&& " + line.rpartition("&& ")[2]
        assert f"readme_command '{ending}'" in script


def test_pages_name_no_package_index():
    script = ROOT / ".ci" / "run"
    for page in [*PAGES, script, ROOT / "pyproject.toml"]:
        assert not re.search(r"index-url|find-links|pypi|https?://", page.read_text(), re.IGNORECASE), name(page)
