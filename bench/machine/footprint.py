"""`python -m bench.machine.footprint BUNDLE`: what one process with one bundle costs, apart from its speed.

Printed as two JSON lines. The first one as soon as the first token is there, so that whoever started the process knows
how long a cold start takes. The second one holds

    rss_mb           resident memory after load and first token, MB of 10^6 bytes
    load_s           verifying the bundle, the tokenizer and the graph, without the interpreter and the imports
    outside_share    of a token with the default sampling options and its text, what is not spent in onnxruntime
    idle_cpu_share   of a core, over two seconds without work, which begin half a second after the last token

It imports only what an edge box has.
"""

import json
import sys
import time
from typing import Any

from bench.machine.memory import status_mb

PROMPT = "你好"
IDLE_AFTER_S = 0.5
IDLE_S = 2.0
REPLIES = 8
NEW_TOKENS = 64


class TimedSession:
    """An onnxruntime session that counts the seconds spent in its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        """Run, and count."""
        started = time.perf_counter()
        self._session.run_with_iobinding(binding)
        self.seconds += time.perf_counter() - started


def main(path: str, threads: str) -> None:
    """Load the bundle, talk to it, and print what it cost."""
    started = time.perf_counter()
    from serve.bundle import Bundle
    from serve.engine import Engine
    from serve.options import SamplingOptions
    from serve.text import TextCodec

    imported = time.perf_counter()
    bundle = Bundle.open(path)
    codec = TextCodec.open(bundle.tokenizer_path)
    engine = Engine(bundle, int(threads))
    loaded = time.perf_counter()
    prompt = engine.dialogue.encode([codec.encode(PROMPT)])
    next(engine.stream(prompt, SamplingOptions(seed=0)))
    print(json.dumps({"first_token_s": time.perf_counter() - started}), flush=True)
    figures = {
        "import_s": imported - started,
        "load_s": loaded - imported,
        "file_mb": bundle.file_bytes / 1e6,
        "rss_mb": status_mb("VmRSS"),
        "outside_share": outside_share(engine, codec, prompt),
        "idle_cpu_share": idle_cpu_share(),
    }
    print(json.dumps(figures), flush=True)


def outside_share(engine: Any, codec: Any, prompt: list[int]) -> float:
    """The share of decoding that is not onnxruntime's: sampling with the default options, bindings, text. Median."""
    from serve.options import SamplingOptions

    runs = engine._runs
    timed = runs.session = TimedSession(runs.session)
    runs._kept.clear()  # they hold the session as it was
    shares = []
    for seed in range(REPLIES):
        options = SamplingOptions(seed=seed, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
        decoder, stream = codec.stream(), engine.stream(prompt, options)
        decoder.feed(next(stream))  # the prompt is not what is measured
        timed.seconds, started = 0.0, time.perf_counter()
        for token in stream:
            decoder.feed(token)
        shares.append(1 - timed.seconds / (time.perf_counter() - started))
    return sorted(shares)[len(shares) // 2]


def idle_cpu_share() -> float:
    """CPU seconds of this process per second of doing nothing."""
    time.sleep(IDLE_AFTER_S)
    used, started = time.process_time(), time.perf_counter()
    time.sleep(IDLE_S)
    return (time.process_time() - used) / (time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
