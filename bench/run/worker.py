"""One model in one process: `python -m bench.run.worker`, requests and answers as JSON lines on stdin and stdout.

A process of its own gives every model its own memory figure and its own thread pools, and a crash costs one row of
the table. Requests are `{"op": …}` with the arguments of the method of `BenchWorker` that is called so (`sample`:
`_sample`); answers are `{"ok": true, …}` with what it gives, or `{"ok": false, "error": one line}`.

It ends at the end of stdin. What libraries print to stdout goes to stderr, so that it cannot break the protocol. It
imports neither torch nor onnxruntime before a model asks for one: the memory figure is that of the runtime that ships.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine.memory import device_mb, peak_rss_mb
from bench.models.kind import find_kind
from bench.models.loaded import Ids, LoadedModel
from bench.models.text_pipeline import TextPipeline


class BenchWorker:
    """Answers requests about the one model that it was told to load."""

    def __init__(self) -> None:
        self._loaded: LoadedModel | None = None
        self._text_pipeline: TextPipeline | None = None
        self._threads_and_device: tuple[int, str] = (1, "cpu")

    @property
    def _model(self) -> LoadedModel:
        assert self._loaded is not None, "load comes first"
        return self._loaded

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what `request["op"]` names and give its figures."""
        operation = getattr(self, f"_{request.pop('op')}")
        return dict(operation(**request))

    def _load(self, spec: str, kind: str, threads: int, device: str, slots: int = 1) -> dict[str, Any]:
        """`load_s`, and `version`, that of the runtime's package. `kind` is an address of `find_kind`."""
        found = find_kind(kind)
        found.import_packages()  # which is not what load_s measures
        started = time.perf_counter()
        self._threads_and_device = threads, device
        self._loaded = found.model.open(spec, threads, device, slots=slots)
        return {"load_s": time.perf_counter() - started, "version": found.version()}

    def _sample(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, reuse: bool = False) -> dict[str, Any]:
        """`ttft_ms`, `token_ms` (one a token after the first), `ids`, and `cpu_s`, the CPU seconds of it all."""
        used = time.process_time()
        sample = self._model.generate(prompt, new_tokens, end_of_turn_id, reuse=reuse)
        return {**asdict(sample), "cpu_s": time.process_time() - used}

    def _concurrent(self, prompts: Sequence[Ids], new_tokens: int, end_of_turn_id: int) -> dict[str, Any]:
        """`samples`, as above, of each prompt, and `ms` until the last token."""
        started = time.perf_counter()
        samples = self._model.generate_concurrent(prompts, new_tokens, end_of_turn_id)
        took = time.perf_counter() - started
        return {"samples": [asdict(sample) for sample in samples], "ms": took * 1000}

    def _reply(self, text: str, seed: int, new_tokens: int, text_pipeline: dict[str, Any]) -> dict[str, Any]:
        """`ms`, `first_ms`, `tokens`, `text`; see `bench.models.text_pipeline.TextPipeline`."""
        if self._text_pipeline is None:
            self._text_pipeline = TextPipeline(self._model, **text_pipeline)
        return self._text_pipeline.reply(text, seed, new_tokens)

    def _margin(self, ids: Ids, chosen: int, other: int) -> dict[str, Any]:
        """`margin`: how much likelier `chosen` is after `ids` than `other`, in logits; `spread`: their deviation."""
        logits = self._model.logits(ids)[-1]
        return {"margin": float(logits[chosen] - logits[other]), "spread": float(logits.std())}

    def _memory(self) -> dict[str, Any]:
        """`peak_rss_mb` of this process and its children, up to now; `device_mb`, null without a GPU."""
        return {"peak_rss_mb": peak_rss_mb(), "device_mb": device_mb()}

    def _convert(self, kind: str, weight_format: str, source: str, out: str, threads: int) -> dict[str, Any]:
        """Nothing; the folder `out`, complete or absent, is then what the peer at the address `kind` loads."""
        peer: Any = find_kind(kind)
        partial = Path(f"{out}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        peer.convert(Path(source), partial, weight_format, threads)
        partial.rename(out)
        return {}

    def _quality(self, data: str, task: dict[str, Any], teacher: dict[str, str] | None) -> dict[str, Any]:
        """`quality`, a `Quality` as JSON. `task` are the fields of an `EvalTask`, `teacher` is a spec and a kind."""
        from bench.evaluate.measure import EvalTask, measure_quality, open_held_out

        compared = None
        if teacher is not None:
            kind = find_kind(teacher["kind"])
            kind.import_packages()
            compared = kind.model.open(teacher["spec"], *self._threads_and_device)
        quality = measure_quality(self._model, open_held_out(Path(data)), EvalTask(**task), compared)
        return {"quality": quality.as_json()}


def main() -> None:
    """Answer requests until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = BenchWorker()
    for line in sys.stdin:
        try:
            answer = {"ok": True, **worker.answer(json.loads(line))}
        except Exception as error:
            reason = " ".join(str(error).split())
            named = reason if hasattr(error, "exit_code") else f"{type(error).__name__}: {reason}"
            answer = {"ok": False, "error": named}
        print(json.dumps(answer), file=channel, flush=True)


if __name__ == "__main__":
    main()
