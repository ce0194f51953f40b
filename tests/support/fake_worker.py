"""A bench worker with known times, for tests of the controller: `fake_worker.py LOG`. The spec says how it behaves.

`fast` and `slow` take 2 and 6 ms for everything; `crash`, `hang`, `refuse` and `babble` go wrong at the first timed
sample. Every operation is a line `spec op` in LOG.
"""

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def answer(spec: str, request: dict[str, Any], samples: int) -> dict[str, Any]:
    """The answer to one request, or the end of this process."""
    step = {"slow": 0.006}.get(spec, 0.002)
    if request["op"] == "sample":
        if samples > 1 and spec == "crash":
            print("loading\nno kernel for GroupQueryAttention", file=sys.stderr)
            os._exit(3)
        if samples > 1 and spec == "hang":
            time.sleep(60)
        if samples > 1 and spec == "refuse":
            return {"ok": False, "error": "token id 7: the vocabulary has 0 to 5"}
        if samples > 1 and spec == "babble":
            return {}
        marks = [time.perf_counter()]
        for _ in range(request["new_tokens"]):
            time.sleep(step)
            marks.append(time.perf_counter())
        steps = [(after - before) * 1000 for before, after in pairwise(marks[1:])]
        return {
            "ok": True,
            "ttft_ms": (marks[1] - marks[0]) * 1000,
            "token_ms": steps,
            "ids": request["prompt"][:1] * len(marks[1:]),
        }
    quality = {"bits_per_byte": 2.5, "teacher": request.get("teacher")}
    answers = {"load": {"load_s": 0.5}, "memory": {"peak_rss_mb": 42.0}, "quality": {"quality": quality}}
    return {"ok": True, **answers[request["op"]]}


def main(log: str) -> None:
    """Answer until stdin ends."""
    spec, samples = "", 0
    for line in sys.stdin:
        request = json.loads(line)
        spec = request.get("spec", spec)
        samples += request["op"] == "sample"
        with Path(log).open("a") as file:
            print(spec, request["op"], file=file)
        said = answer(spec, request, samples)
        print(json.dumps(said) if said else "Downloading: 100%", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
