"""Imports point one way, as the layout says."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fpsim"

# From the bottom up: a module imports from its own row and the rows above it, never from a row below.
LAYERS = (
    ("backend", "recorder"),
    ("numbers",),
    ("accumulation",),
    ("theory",),
    ("sums",),
    ("running",),
    ("arrays", "bounds"),
    ("hardware",),
    ("report",),
    ("emulation",),
    ("optim", "callbacks"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
WITH_TORCH = {"recorder", "emulation", "optim", "callbacks", "cli"}


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, when_loaded=False):
    """Every absolute module name that a file imports: anywhere in it, or only when the file itself is loaded."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text())
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path):
    assert part(path) in LEVEL, f"give {part(path)!r} a row in LAYERS"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top != "fpsim" or (part(path) == "cli" and rest in ("", "__version__")):
            continue  # the command line may use the package as anyone does
        target = rest.partition(".")[0]
        assert target in LEVEL, f"{module_name(path)} imports {name}: import from the module that defines it"
        assert LEVEL[target] <= LEVEL[part(path)], f"{module_name(path)} imports {name}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_is_loaded_by_the_emulation_alone(path):
    """Others may import it inside a function that was handed a tensor."""
    loads_torch = any(name.partition(".")[0] == "torch" for name in imports(path, when_loaded=True))
    assert not loads_torch or part(path) in WITH_TORCH, f"{module_name(path)} loads torch"


def rows_of(needs):
    """The names in the order in which each needs only earlier ones; those in or behind a circle are left out."""
    done = set()
    while ready := {name for name, wanted in needs.items() if name not in done and wanted <= done}:
        done |= ready
    return done


def needs_of(room):
    """What each room imports of others, wherever in a file it does; `room(module name)` is where a module is."""
    names = {module_name(path): path for path in FILES}
    needs = {room(name): set() for name in names}
    for name, path in names.items():
        needs[room(name)] |= {room(longest(names, imported)) for imported in imports(path)} - {room(name), ""}
    return needs


def test_modules_of_the_package_are_not_entangled():
    """No circle among the files, counting imports inside functions and those for types alone."""
    needs = needs_of(lambda name: name)
    assert set(needs) == rows_of(needs), f"in or behind a circle: {sorted(set(needs) - rows_of(needs))}"


def test_folders_of_the_emulation_are_not_entangled():
    """The same of its folders: machines know nothing of the modes that hand them operations."""
    needs = needs_of(lambda name: ".".join(name.split(".")[:3]))
    folders = {f"fpsim.emulation.{path.parent.name}" for path in (PACKAGE / "emulation").glob("*/__init__.py")}
    between = {name: needs[name] & folders for name in folders}
    assert folders == rows_of(between), f"in or behind a circle: {sorted(folders - rows_of(between))}"


def longest(names, imported):
    """The module that an imported name is, or is in; "" for those of other packages."""
    while imported and imported not in names:
        imported = imported.rpartition(".")[0]
    return imported


def test_what_a_kernel_observes_is_imported_from_the_module_that_does_it():
    """A number from the list that deals them alone would find no operation where nothing else had imported that module."""
    source, dealt = "fpsim.backend.numba.observed", {"NOTHING", "TILE_OPERATIONS", "observes"}
    asked = 0
    for path in FILES:
        tree = ast.parse(path.read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == source]
        wanted = {alias.name for node in nodes for alias in node.names} - dealt
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "observes"]
        assert wanted <= {ast.unparse(item) for call in calls for item in call.args}, path
        asked += len(wanted)
    assert asked
