"""The allowed import edges between the packages, and what may not happen at import."""

import ast
import subprocess
import sys

import pytest
from support.source_tree import FILES, ROOMS, ROOT

# package → packages that it may import. chitchat_compress may import all, inside its functions.
ALLOWED = {
    "chitchat": {"chitchat"},
    "compress": {"compress", "chitchat"},
    "serve": {"serve"},
    "export": {"export", "chitchat", "compress", "serve"},
    "bench": {"bench", "chitchat", "compress", "serve", "export"},
}
# Types and small functions of `serve` that need no other package, which all may use.
FOR_ALL = {"serve.dialogue", "serve.digest", "serve.geometry", "serve.quiet", "serve.scored"}
API = "chitchat_compress"
# Modules without torch, numpy or a runtime, which the command line and the Python API may import at once.
LIGHT = {"chitchat.errors", "chitchat.options", "chitchat.system.notices"} | {
    file.removesuffix(".py").replace("/", ".") for file in FILES if file.endswith("/options.py")
}
SERVE_STACK = {"numpy", "onnxruntime", "tokenizers", "starlette", "uvicorn"}


def imports(file: str) -> list[tuple[str, bool]]:
    """`(module, whether at the top level)` of every import in a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the edge"
            names = [node.module or ""]
        found += [(name, id(node) in top) for name in names]
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_package_imports_only_what_the_table_allows(file: str) -> None:
    """One forgotten import made the edge runtime need torch."""
    owner = file.split("/")[0]
    for name, at_top in imports(file):
        package = name.split(".")[0]
        if package in ROOMS and owner == API:
            light = package == API or name in LIGHT or file.startswith("chitchat_compress/pipeline/")
            assert not at_top or light, f"{file}: {name} belongs inside the function"
        elif package in ROOMS:
            assert name in FOR_ALL or package in ALLOWED[owner], f"{file}: {owner} may not import {package}"
        elif owner == "serve":
            assert package in SERVE_STACK | sys.stdlib_module_names, f"{file}: {package} is not on an edge box"


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "tests").glob("test_*.py")))
def test_a_test_file_imports_from_no_other(file: str) -> None:
    """What two share belongs to tests/support: else one file cannot be changed, or run, without the other."""
    assert not [name for name, _ in imports(f"tests/{file}") if name.startswith("test_")]


def test_options_and_the_python_api_import_nothing_heavy() -> None:
    """`compress prune --help` took four seconds since its options knew the rankings; so would `import`."""
    modules = [*sorted(LIGHT), "chitchat_compress", "chitchat_compress.api", "chitchat_compress.chat"]
    code = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "onnxruntime", "datasets", "numpy", "rich"} & set(ran.stdout.split()) == set()


INITS = [file for file in FILES if file.endswith("__init__.py") and file != "chitchat_compress/__init__.py"]


@pytest.mark.parametrize("file", INITS)
def test_every_init_is_a_docstring(file: str) -> None:
    """Work or re-exports in an __init__ make every import of the package pay for all of it."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("file", FILES)
def test_every_module_opens_with_a_docstring(file: str) -> None:
    """A newcomer reads the folder from the top lines."""
    assert ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))), file


def test_there_are_no_import_cycles_between_modules() -> None:
    """A cycle is two files that are really one."""
    edges: dict[str, set[str]] = {}
    for file in FILES:
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        edges[module] = {name for name, at_top in imports(file) if at_top and name.split(".")[0] in ROOMS}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in edges.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_help_imports_nothing_heavy() -> None:
    """`compress --help` once took four seconds, all of them torch."""
    code = (
        "import sys; from chitchat_compress.cli import app as cli; cli.make_app()(['train', '--help'])\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'datasets', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    assert "--max-minutes" in ran.stdout
