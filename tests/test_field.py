"""Stand-ins of the three families, as they are published, through every verb in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WALK = Path(__file__).parent / "field" / "walk.py"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["chitchat", "dialogpt", "gpt2"])
def test_a_published_checkpoint_goes_the_whole_way(family: str, tmp_path: Path) -> None:
    """Each of the three stopped at a verb of its own: at `info`, at the first save, or at its vocabulary."""
    command = [sys.executable, str(WALK), "--family", family, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / family / "figures.json").read_text(encoding="utf-8"))
    assert figures["info"]["layers"] == 3
    assert figures["data"]["conversations"] > 200
    assert figures["data"]["unknown_tokens"] == 0
    assert figures["train"]["perplexity"] < figures["eval"]["perplexity"], "it learnt something"
    assert figures["prune"]["parameters"] < 0.71 * figures["info"]["parameters"]
    assert figures["export fp32"]["perplexity"] == pytest.approx(figures["eval"]["perplexity"], rel=1e-4)
    assert figures["eval w8"]["top1"] > 0.9
    assert figures["eval"]["empty_replies"] == 0
    assert figures["chat"]["replies"] == 1
    assert figures["serve"]["choices"][0]["message"]["content"]
