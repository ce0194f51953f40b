"""Nothing of ours sends anything anywhere, or leaves anything in a home folder: read from the source, and traced."""

import ast
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.source_tree import FILES, ROOT
from support.traced import Trace, need_no_network, need_strace, trace

from serve.quiet import ABSENT, SWITCHES

# Packages with telemetry, or that import one.
LOUD = ("onnxruntime", "onnxruntime_genai", "openvino", "nncf", "optimum")

COMPRESS = (sys.executable, "-m", "chitchat_compress")
# matplotlib keeps its list of the machine's fonts, which takes seconds to make.
FONTS, PARENTS = (".cache/matplotlib/", ".config/matplotlib/"), (".cache", ".config")


def loud_imports(source: str) -> list[str]:
    """Lines that import a package that reports, other than for the type checker; also by name, with `import_module`."""
    tree = ast.parse(source)
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import) and id(node) not in typing:
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and id(node) not in typing:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [str(getattr(argument, "value", "onnxruntime")) for argument in node.args[:1]]
            names = [] if ast.unparse(node.args[0]).startswith("f'bench.") else names
        found += [f"{node.lineno}: {ast.unparse(node)}" for name in names if name.split(".")[0] in LOUD]
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file != "serve/quiet.py"])
def test_a_library_that_reports_is_imported_through_load_alone(file: str) -> None:
    """One plain import of onnxruntime, in any process, wrote a device id and looked an events host up."""
    assert loud_imports((ROOT / file).read_text(encoding="utf-8")) == []


def test_the_reading_sees_every_way_of_importing() -> None:
    """A rule that sees nothing forbids nothing."""
    for line in (
        "import onnxruntime as ort",
        "def f():\n    from optimum.onnxruntime import ORTModelForCausalLM",
        "import os, nncf",
        "importlib.import_module('openvino')",
        "importlib.import_module(name)",
    ):
        assert loud_imports(line), line
    assert not loud_imports("if TYPE_CHECKING:\n    import onnxruntime\nload('onnxruntime')\nimport onnx")


def test_load_tells_the_libraries_before_they_come_and_leaves_the_users_own_word() -> None:
    """Whoever wants to report may; and a switch that is set after the import turns nothing off."""
    code = (
        "import json, os, sys; from serve.quiet import load, SWITCHES, ABSENT\n"
        "before = [name for name in SWITCHES if name in os.environ], [name for name in ABSENT if name in sys.modules]\n"
        "load('json.tool')\n"
        "print(json.dumps([before, {name: os.environ[name] for name in SWITCHES}]))\n"
        "for name in ABSENT:\n"
        "    try: __import__(name)\n"
        "    except ImportError: continue\n"
        "    sys.exit(f'{name} can be imported')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment["ORT_DISABLE_TELEMETRY"] = "0"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert before == [["ORT_DISABLE_TELEMETRY"], []]
    assert after == {**SWITCHES, "ORT_DISABLE_TELEMETRY": "0"}
    assert ABSENT


def test_the_trace_sees_a_device_id_a_look_up_and_a_connection(tmp_path: Path) -> None:
    """A trace that sees nothing proves nothing."""
    code = (
        "import pathlib, socket\n"
        "pathlib.Path.home().joinpath('id').write_text('x')\n"
        "pathlib.Path('beside').mkdir()\n"
        "for call in (lambda: socket.getaddrinfo('events.invalid', 443),\n"
        "             lambda: socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9)),\n"
        "             lambda: socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9))):\n"
        "    try: call()\n"
        "    except OSError: pass"
    )
    found = trace([*need_no_network(), sys.executable, "-c", code], tmp_path)
    assert found.code == 0, found.said
    assert found.lookups
    assert any("192.0.2.1" in line for line in found.addresses)
    assert not any("127.0.0.1" in line for line in found.addresses)
    assert found.in_home() == {"id"}
    assert found.outside(found.home) == {tmp_path / "beside"}


def test_onnxruntime_by_itself_leaves_something_and_through_load_nothing(tmp_path: Path) -> None:
    """The fault itself; where a release no longer does it, the switch can go."""
    plain = trace([*need_no_network(), sys.executable, "-c", "import onnxruntime"], tmp_path)
    if not plain.in_home():
        pytest.skip("this onnxruntime leaves nothing in the home folder by itself")
    quiet = trace(
        [
            sys.executable,
            "-c",
            "from serve.engine import Engine; from serve.graph_selection import find_providers as f; f()",
        ],
        tmp_path,
    )
    assert quiet.code == 0, quiet.said
    assert_quiet(quiet)


def assert_quiet(found: Trace, *outputs: Path) -> None:
    """No host looked up, none reached; nothing written but outputs, temporary files, and what is named of the home."""
    assert found.lookups == []
    assert found.addresses == []
    assert {path for path in found.in_home() if not f"{path}/".startswith(FONTS) and path not in PARENTS} == set()
    assert found.outside(found.home, *found.home.parent.glob("tmp*"), *outputs) == set()


PEERS = {
    "openvino and nncf": """
import numpy, sys
from serve.quiet import load
ov, ops = load("openvino"), load("openvino.opset13")
x, table = ops.parameter([1, 64], numpy.float32), ops.constant(numpy.eye(64, dtype=numpy.float32))
model = ov.Model([ops.matmul(x, table, False, False)], [x])
nncf = load("nncf")
model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
ov.Core().compile_model(model, "CPU")(numpy.ones((1, 64), numpy.float32))
""",
    "onnxruntime-genai": "from serve.quiet import load; load('onnxruntime_genai').Config",
    "ctranslate2": "from bench.peers.registry import PEERS; PEERS['ctranslate2'].import_packages()",
    "llama.cpp": "from bench.peers.registry import PEERS; PEERS['llama.cpp'].import_packages()",
}


@pytest.mark.parametrize("code", PEERS.values(), ids=PEERS.keys())
def test_the_peers_are_quiet(code: str, tmp_path: Path) -> None:
    """NNCF told an analytics host of each call, whatever its own variable said, and left a client's number."""
    python = os.environ.get("PEERS_PYTHON")
    if python is None:
        pytest.skip("PEERS_PYTHON does not name the interpreter of `make peers`")
    found = trace([python, "-c", code], tmp_path)
    if "No module named" in found.said:
        pytest.skip(f"{python}: {found.said.strip().splitlines()[-1]}")
    assert found.code == 0, found.said
    assert_quiet(found)


@pytest.mark.slow
def test_every_verb_is_quiet(tmp_path: Path, tiny_corpus: Path) -> None:
    """Each verb in a process of its own, as a user types it, from conversations to a report; with a new home."""
    need_strace()
    out = tmp_path / "out"
    out.mkdir()
    shape = ("--layers", "2", "--width", "32", "--heads", "2", "--context", "64", "--epochs", "1")
    data = ("--data", out / "data")
    verbs: list[tuple[object, ...]] = [
        ("data", tiny_corpus, "--out", out / "data", "--vocab-size", "300", "--validation", "0.2"),
        ("train", out / "data", "--out", out / "teacher", *shape),
        ("info", out / "teacher"),
        ("prune", out / "teacher", *data, "--out", out / "pruned", "--ffn", "64", "--heal-epochs", "1"),
        ("quantize", out / "pruned", *data, "--out", out / "integers", "--scheme", "w8", "--method", "rtn"),
        ("export", out / "integers", "--out", out / "bundle", *data, "--genai"),
        ("generate", out / "bundle", "--prompt", "hello", "--length", "8"),
        ("generate", out / "teacher", "--prompt", "hello", "--length", "8"),
        ("eval", out / "bundle", *data),
        (
            "bench",
            out / "teacher",
            out / "bundle",
            "--out",
            out / "report",
            *data,
            "--prompt-tokens",
            "8",
            "--new-tokens",
            "4",
        ),
    ]
    for verb in verbs:
        found = trace([*COMPRESS, *map(str, verb)], tmp_path)
        assert found.code == 0, f"{verb}: {found.said}"
        assert_quiet(found, out)


def test_optimum_is_quiet_in_its_own_environment(portable_python: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It brings an onnxruntime of its own, and looks models up by name."""
    need_strace()
    out = tmp_path / "out"
    out.mkdir()
    verb = ("export", tiny_checkpoint, "--out", out / "bundle", "--target", "portable")
    found = trace([*COMPRESS, *map(str, verb), "--portable-python", portable_python], tmp_path)
    assert found.code == 0, found.said
    assert_quiet(found, out)


def test_a_folder_that_is_missing_asks_no_hub(tmp_path: Path) -> None:
    """A slip of the finger in a path told a host about it, and took seconds."""
    found = trace([*COMPRESS, "info", "./missing"], tmp_path)
    assert found.code == 2
    assert "no such checkpoint folder" in found.said
    assert_quiet(found)


@pytest.mark.parametrize("program", [("-m", "serve"), ("-m", "chitchat_compress", "serve")], ids=["serve", "compress"])
def test_a_server_with_a_request_is_quiet(program: tuple[str, ...], tiny_bundle: Path, tmp_path: Path) -> None:
    """An edge box told an events host that it was there."""

    def ask(process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Serving "):
                break
        url = line.split()[-1]
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(request, timeout=60).status == 200

    found = trace([sys.executable, *program, str(tiny_bundle), "--port", "0", "--threads", "1"], tmp_path, ask)
    assert found.code == 0, found.said
    assert_quiet(found)
