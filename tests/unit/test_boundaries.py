"""Who may import whom: every import statement of every file, also those inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "app": ("app", "flows", "store", "serving", "training"),
    "flows": ("flows", "tasks", "training.schemas", "training.config", "training.errors"),
    "tasks": ("tasks", "store", "serving", "training"),
    "store": ("store", "training.schemas", "training.errors"),
    "serving": ("serving", "training.schemas", "training.errors"),
    "training": ("training",),
}
"""Package → the modules of ours that it may import, with everything below them."""
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]
NO_MAIL_NO_DATABASE = ("store", "serving", "psycopg", "training.mail", "lingua", "quotequail")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full dotted name of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively; Prefect cannot load that"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def lies_in(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def test_every_package_has_files() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ALLOWED)


def test_no_package_imports_against_the_arrows() -> None:
    wrong = []
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        wrong += [
            f"{path.relative_to(ROOT)}:{line} imports {name}"
            for line, name in imports(path)
            if lies_in(name, tuple(ALLOWED)) and not lies_in(name, ALLOWED[package])
        ]
    assert wrong == []


def test_nothing_imports_the_tests() -> None:
    wrong = [f"{path}:{line}" for path in FILES for line, name in imports(path) if lies_in(name, ("tests",))]
    assert wrong == []


@pytest.mark.parametrize("name", ["schemas.py", "errors.py"])
def test_the_shared_words_need_nothing_but_pydantic(name: str) -> None:
    foreign = {
        imported.split(".")[0]
        for _, imported in imports(ROOT / "training" / name)
        if imported.split(".")[0] not in sys.stdlib_module_names
    }
    assert foreign <= {"pydantic"}


def test_the_packages_are_this_repositorys() -> None:
    # The names are generic; another distribution's `tasks` would shadow ours without a word.
    assert Path(tasks.__file__ or "").resolve().is_relative_to(ROOT)


def test_no_flow_file_has_the_name_of_an_importable_module() -> None:
    # Prefect loads a flow file by its stem with its folder first on the path.
    taken = {*ALLOWED, *sys.stdlib_module_names, "ollama", "evaluate", "datasets", "peft"}
    flows = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert flows and flows.isdisjoint(taken)


def test_the_gpu_side_loads_no_database_no_mail_and_no_engine() -> None:
    script = (
        "import sys, flows.train_adapters\n"
        "from training import base_models, dataset, evaluate, export, lora, measure, recipe, references\n"
        "from training import neutral_tasks, panel_file\n"
        "assert neutral_tasks.neutral_examples() and not panel_file.from_panel_jsonl('')\n"
        f"heavy = {NO_MAIL_NO_DATABASE!r}\n"
        "print(*[m for m in sys.modules if any(m == h or m.startswith(h + '.') for h in heavy)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == ""
