"""Running the server as a process: load the bundle, try it, bind the address, serve until a signal.

The application itself is `serve.app`: it knows no socket, and runs under any ASGI server.
"""

import json
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn

from serve.app import Settings, create_app
from serve.bundle import Bundle
from serve.engine import MAX_SLOTS, Engine
from serve.errors import BadBundle, BadRequest
from serve.options import SamplingOptions
from serve.protocols import Generator
from serve.scheduler import Scheduler
from serve.text import TextCodec

DRAIN_S = 25  # replies that run at SIGTERM may take this long; below the usual 30 s of supervisors


def run_server(
    bundle: str | Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    queue: int = 16,
    threads: int | None = None,
    *,
    slots: int = 4,
    device: str | None = None,
    seed: int | None = None,
    as_json: bool = False,
) -> None:
    """Serve a bundle until SIGTERM (then it returns) or Ctrl-C (KeyboardInterrupt); replies that run are finished.

    `slots` replies are made at once, `queue` more requests wait. `port` 0 takes a free one; the line on stderr names
    it, and with `as_json` an object on stdout. Requests that name no seed are drawn with `seed`. Nothing listens before
    the bundle is verified, loaded and has given a token. Raises BadBundle, and BadRequest for an option or for an
    address that cannot be bound.
    """
    settings = Settings(queue=queue)
    if not 1 <= slots <= MAX_SLOTS:
        raise BadRequest(f"--slots {slots}: give a number from 1 to {MAX_SLOTS}")
    if not 0 <= port <= 65535:
        raise BadRequest(f"--port {port}: give a number from 0 (any free port) to 65535")
    opened = Bundle.open(bundle)
    codec = TextCodec.open(opened.tokenizer_path)
    if codec.vocab_size > opened.geometry.vocab:
        raise BadBundle(
            f"{opened.tokenizer_path}: has {codec.vocab_size} tokens, the model {opened.geometry.vocab}; export again"
        )
    engine = Engine(opened, threads, slots=slots, device=device)
    settings = replace(
        settings, model=opened.folder.resolve().name or "chitchat", options=replace(opened.sampling, seed=seed)
    )
    warm_up(engine)
    listener = _listen(host, port)
    config = uvicorn.Config(
        create_app(Scheduler(engine), codec, settings),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    engine.choice.announce()
    print(f"Serving {settings.model} on {url}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"url": url, "model": settings.model}), flush=True)
    if host not in ("127.0.0.1", "::1", "localhost"):
        print(
            "warning: --host: anyone who reaches this address may use it; there is no authentication", file=sys.stderr
        )
    # uvicorn raises the signal again once it has shut down; without a handler that would kill a clean exit.
    before = signal.signal(signal.SIGTERM, _ignore)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()


def warm_up(generator: Generator) -> None:
    """Make one token, so that a model that cannot run fails here and the first request does not pay for set-up."""
    dialogue = generator.dialogue
    prompt = list(dialogue.unconditional_prompt_ids) or [dialogue.end_of_turn_id]
    options = SamplingOptions(temperature=0.0, max_new_tokens=1, min_new_tokens=1)
    if not list(generator.stream(prompt, options)):
        raise BadBundle("the bundle's model gives no token; export the bundle again")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadRequest(f"--host {host} --port {port}: cannot listen there ({reason}); choose another") from error


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
