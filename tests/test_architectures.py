"""What is GPT-2 stands in one package: nothing else names its modules, its fields of config.json or its classes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("chitchat_compress", "bench", "export", "compress", "chitchat", "serve")
ALLOWED = ("chitchat/architectures/gpt2", "export/graph/gpt2.py")
NAMES = re.compile(
    r"\bGPT2\w*|\b(wte|wpe|c_attn|c_fc|c_proj|n_embd|n_layer|n_head|n_inner|n_positions|ln_1|ln_2|ln_f)\b"
    r"|\btransformer\.(h|wte|wpe|ln_f)\b|\.transformer\b|[\"']gpt2[\"']"
)
PROSE = re.compile(r"\bGPT2-chitchat\b")  # a project: its formats of text, its vocabulary, its loop
# Where a name of the family must stand all the same, and why.
EXEMPT = {
    "serve/geometry.py": ({'"gpt2"'}, "bundle.json of a GPT-2 names no architecture, as before there were others"),
    "chitchat/architectures/registry.py": ({"GPT2"}, "the table of architectures"),
    "chitchat/training/options.py": ({"n_embd", "n_inner"}, "help of --width and --ffn: their names in config.json"),
    "chitchat/formats/kinds.py": ({"GPT2LMHeadModel"}, "a remedy for TensorFlow weights, which are of this family"),
    "bench/peers/llama_cpp.py": ({'"gpt2"'}, "llama.cpp's name of a byte-level BPE"),
}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def names_in(text: str) -> list[tuple[int, str]]:
    """`(line, name)` of what belongs to the family, in code, strings and comments."""
    lines = enumerate(PROSE.sub("", text).splitlines(), 1)
    return [(number, found.group()) for number, line in lines for found in NAMES.finditer(line)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_architecture_knows_its_names(path: Path) -> None:
    """A second family would have to be taught to 60 files."""
    file = str(path.relative_to(ROOT))
    if file.startswith(ALLOWED):
        return
    exempt = EXEMPT.get(file, (set(), ""))[0]
    found = [(line, name) for line, name in names_in(path.read_text(encoding="utf-8")) if name not in exempt]
    assert not found, f"{file}: say it to chitchat/architectures/: {found}"


def test_every_exemption_is_needed() -> None:
    """An exemption that outlives its cause hides the next name."""
    for file, (names, reason) in EXEMPT.items():
        assert reason
        assert names <= {name for _, name in names_in((ROOT / file).read_text(encoding="utf-8"))}, file


def test_the_pattern_finds_what_it_looks_for() -> None:
    """A pattern that matches nothing passes everywhere."""
    text = 'model.transformer.h[0].attn.c_attn  # GPT2Config\n"transformer.wte.weight"\nn_embd = 1\nGPT2-chitchat\n'
    assert {line for line, _ in names_in(text)} == {1, 2, 3}
    assert not names_in("num_attention_heads, attention_heads, lm_head, n_layers, transformers.h")


def test_configurations_are_read_without_torch() -> None:
    """`compress info` and every refusal of a checkpoint waited seconds for an import."""
    code = (
        "import sys, chitchat.architectures.registry; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
