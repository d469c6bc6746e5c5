"""Imports point only downwards, the engine needs only the standard library (docs/DESIGN.md, Layers).

The imports are read from the source, so one inside a function or under TYPE_CHECKING counts like any other.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "harmony"

# Lowest first; a layer may import itself and what stands before it. Nothing ranks the package's own __init__.
LAYERS = ("ul", "dimse", "dicom", "send", "audit", "archive", "http", "jmix", "gateway", "__main__")
ENGINE = ("ul", "dimse")
EXTRAS = {
    PACKAGE / "dicom" / "rendering.py": "render",
    PACKAGE / "gateway" / "json_web_token.py": "jwt",
    PACKAGE / "gateway" / "kerberos.py": "kerberos",
    PACKAGE / "gateway" / "saml.py": "saml",
    PACKAGE / "gateway" / "token_signing.py": "jwt",
}
"""The only modules that need an extra."""
EMPTY_NAMES = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}

SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The absolute name of everything that a module imports, with the statement that does it."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, node.module] if node.module else above)
            # `from harmony import gateway` imports the module harmony.gateway.
            names = [f"harmony.{alias.name}" for alias in node.names] if origin == "harmony" else [origin]
            yield from ((name, node) for name in names)


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "harmony" and len(parts) > 1 and parts[1] in LAYERS else None


def guarded(path: Path) -> set[int]:
    """Lines inside the `try` part of a statement that catches ImportError."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Try) and any(
            handler.type is not None and "ImportError" in ast.unparse(handler.type)
            for handler in node.handlers
        ):
            lines.update(
                line for inner in node.body for line in range(inner.lineno, (inner.end_lineno or 0) + 1)
            )
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_only_downwards(path: Path) -> None:
    own = layer_of(module_name(path))
    if own is None:
        assert path == PACKAGE / "__init__.py", f"{module_name(path)} belongs to no layer of docs/DESIGN.md"
    # The package's __init__ runs before every layer, so it may import none of them.
    allowed = LAYERS[: LAYERS.index(own) + 1] if own else ()
    upwards = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
        for name, node in imports(path)
        if (layer := layer_of(name)) is not None and layer not in allowed
    ]
    assert not upwards


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if layer_of(module_name(path)) in ENGINE], ids=module_name
)
def test_engine_imports_only_the_standard_library(path: Path) -> None:
    optional = guarded(path)
    foreign = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
        for name, node in imports(path)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top != "harmony"
        and not (top == "uvloop" and node.lineno in optional)
    ]
    assert not foreign


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    undeclared = {
        name
        for path in SOURCES
        for name, _ in imports(path)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top != "harmony"
        and top not in declared(project["dependencies"] + extras.get(EXTRAS.get(path), []))
    }
    assert not undeclared


def declared(requirements: list[str]) -> set[str]:
    """The names that the packages are imported by."""
    names = {re.split(r"[^A-Za-z0-9_-]", each)[0].replace("-", "_") for each in requirements}
    imported = {"pillow": {"PIL"}, "pyjwt": {"jwt", "cryptography"}, "google_re2": {"re2"}}
    return names.union(*(imported.get(name, set()) for name in names))


def test_importing_the_engine_loads_only_the_standard_library() -> None:
    # What the interpreter loaded before (an editable install has its own finder) is not the engine's doing.
    program = (
        "import sys; before = set(sys.modules)\n"
        "import harmony.ul, harmony.dimse\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    loaded = set(finished.stdout.split())
    assert "harmony" in loaded
    assert loaded - {"harmony"} <= sys.stdlib_module_names


def test_module_names_say_what_is_inside() -> None:
    names = {part for path in SOURCES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & EMPTY_NAMES
