"""Stands in for the command line in tests of the pipeline: makes small folders whose content follows their inputs.

Usage: fake_compress.py LOG VERB ARGUMENT... --out OUT [--OPTION VALUE]... [--resume] --json. Every call is a line in
LOG. A prune with the tokenizer `fail` or `slow` fails, or waits until it is killed; a training with `same` makes the
same whatever its other options say.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

from chitchat.lineage import Stage, identity, write_lineage
from chitchat.system.folder import staged_folder

KINDS = {"data": "data", "train": "checkpoint", "prune": "checkpoint", "quantize": "checkpoint", "export": "bundle"}


def content_of(word: str) -> str:
    """What a word of the command line stands for: a folder or a file by what is in it."""
    path = Path(word)
    if path.is_dir():
        return identity(path)
    return path.read_text() if path.is_file() else word


def make(verb: str, out: Path, words: list[str], how: str) -> None:
    """Write the output folder of a verb."""
    text = "teacher" if how == "same" else " ".join([verb, *map(content_of, words)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    with staged_folder(out, KINDS.get(verb, "report")) as staging:
        if verb == "bench":
            (staging / "report.md").write_text("![picture](report.png)\n")
            (staging / "report.png").write_bytes(b"png")
            (staging / "report.json").write_text(json.dumps({"rows": [{"name": word} for word in words]}))
        elif verb == "export":
            (staging / "bundle.json").write_text(digest)
        else:
            (staging / "data.json").write_text(digest)
            write_lineage(staging, Stage(verb, {}, seed=0))


def main(log: str, verb: str, *rest: str) -> int:
    """One command."""
    with Path(log).open("a") as file:
        print(" ".join([verb, *rest]), file=file)
    words = [word for word in rest if word not in ("--json", "--resume")]
    index = words.index("--out")
    out = Path(words[index + 1])
    options = dict(zip(words[index + 2 :: 2], words[index + 3 :: 2], strict=True))
    how = options.get("--tokenizer", "")
    if how == "fail":
        print("compress: --keep 7: too much", file=sys.stderr)
        return 2
    if how == "slow" and not Path(log).with_name("go").exists():
        try:
            with Path(log).open("a") as file:
                print("waiting", file=file)
            time.sleep(60)
        except KeyboardInterrupt:
            with Path(log).open("a") as file:
                print("cleaned up", file=file)
            return 130
    print("a figure  1")
    given = [value for name, value in options.items() if name != "--tokenizer"]
    make(verb, out, words[:index] + given, how)
    print(json.dumps({"verb": verb}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
