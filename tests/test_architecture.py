"""The rules of the house that nothing else would notice."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("search_spaces", "evaluators", "cluster", "evomerge")
LEAVES = PACKAGES[:3]
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
HEAVY = ("torch", "ray", "lm_eval", "transformers", "dash")
ONLY_IN = {  # library -> places that may import it
    "ray": ("cluster/",),
    "lm_eval": ("evaluators/",),
    "cma": ("evomerge/optimizers/cma_es.py",),
    "cmaes": ("evomerge/optimizers/cat_cma.py",),
    "numba": ("evomerge/merging/compiled/",),
    "llvmlite": ("evomerge/merging/compiled/",),
    "py3langid": ("evaluators/languages.py",),
    "moocore": ("evomerge/archives/pareto.py",),
    "optuna": ("evomerge/optuna_journal.py", "evomerge/optuna_view.py", "evomerge/optimizers/"),
    "dash": ("evomerge/dashboard/",),
    "flask": ("evomerge/dashboard/",),
    "waitress": ("evomerge/dashboard/",),
    "psycopg": (),  # SQLAlchemy loads it
    "sqlalchemy": (
        "evomerge/store.py",
        "evomerge/losses.py",
        "evomerge/crews.py",
        "evomerge/columns.py",
        "evomerge/schema.py",
        "evomerge/database.py",
        "evomerge/driver_lock.py",
        "evomerge/storage_url.py",
    ),
}
WITHOUT_TORCH = ("search_spaces/", "evomerge/optimizers/", "evomerge/archives/", "cluster/", "evomerge/store.py")
MOST_LINES = 400


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file, *, at_import_time=False):
    """Absolute names that ``file`` imports; with ``at_import_time`` only those that importing it runs."""
    found = []
    for node in walk(ast.parse(file.read_text(encoding="utf-8")), at_import_time):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def walk(tree, at_import_time):
    for node in ast.iter_child_nodes(tree):
        if at_import_time and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_typing_only(node)):
            continue
        yield node
        yield from walk(node, at_import_time)


def is_typing_only(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def place(file):
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=place)
def test_leaves_import_no_sibling_and_libraries_stay_in_their_place(file):
    roots = {name.partition(".")[0] for name in imports_of(file)}
    package = file.relative_to(ROOT).parts[0]
    if package in LEAVES:
        assert not roots & (set(PACKAGES) - {package})
    for library, places in ONLY_IN.items():
        assert library not in roots or place(file).startswith(places), f"{library} belongs into {places}"
    if place(file).startswith(WITHOUT_TORCH):
        assert "torch" not in roots


def test_no_import_cycles():
    modules = {module_of(file): file for file in FILES}
    graph = {}
    for module, file in modules.items():
        names = imports_of(file)
        used = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (used & set(modules)) - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_archives_and_merging_import_no_optimizer():
    for file in FILES:
        if place(file).startswith(("evomerge/archives/", "evomerge/merging/")):
            assert not any(name.startswith("evomerge.optimizers") for name in imports_of(file)), place(file)


def test_no_module_is_named_like_a_library_it_wraps():
    names = {file.stem for file in FILES}
    assert not names & {"ray", "lm_eval", "cma", "cmaes", "pymoo", "moocore", "dash", "optuna", "torch", "sqlalchemy"}


@pytest.mark.parametrize("file", FILES, ids=place)
def test_modules_are_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("module", ["evomerge", "evomerge.cli", "search_spaces.recipe", "evaluators", "cluster"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_nothing_reads_pickles_or_runs_remote_code():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, place(file)
        assert "torch.load(" not in text, place(file)
        assert "pickle.load(" not in text, place(file)
        roots = {name.partition(".")[0] for name in imports_of(file)}
        assert not roots & {"dill", "shelve", "marshal"}, place(file)
