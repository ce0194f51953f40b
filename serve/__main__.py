"""`python -m serve BUNDLE`: the HTTP server (or `--chat`: a terminal chat) where the command line is not installed."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from serve.errors import ServeError
from serve.options import PRESETS, check_option


def main(arguments: list[str] | None = None) -> int:
    """Serve a bundle; give the exit code: 0 done, 1 failed, 2 bad input, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m serve", description="Serve a chat model bundle over HTTP.")
    parser.add_argument("bundle", type=Path, help="bundle made by `compress export`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port, 0 for a free one (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="replies that are made at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the model (default: the physical cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="graph to run (default: cuda where it can)")
    parser.add_argument("--chat", action="store_true", help="talk in the terminal instead of serving")
    parser.add_argument("--preset", choices=PRESETS, help="with --chat: the sampling options of that project's chat")
    parser.add_argument("--history", type=int, help="with --chat: turns that the model is shown, 0 for all that fit")
    parser.add_argument("--save", type=Path, help="with --chat: file that each exchange is appended to")
    parser.add_argument("--quiet", action="store_true", help="with --chat: no line of figures after a reply")
    options = parser.parse_args(arguments)
    try:
        if options.chat:
            _chat(options)
        else:
            from serve.server import run_server  # heavy: not for --help

            run_server(
                options.bundle,
                options.host,
                options.port,
                options.queue,
                options.threads,
                slots=options.slots,
                device=options.device,
            )
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _chat(options: argparse.Namespace) -> None:
    from serve.bundle import Bundle
    from serve.engine import Engine
    from serve.terminal import run_terminal
    from serve.text import TextCodec
    from serve.transcript import check_file

    preset = dict(PRESETS[options.preset]) if options.preset else {}
    history = int(preset.pop("history", 0))
    history = history if options.history is None else options.history
    check_option("history", history)
    if options.save is not None:
        check_file(options.save)  # before the model is loaded
    bundle = Bundle.open(options.bundle)
    engine = Engine(bundle, options.threads, device=options.device)
    engine.choice.announce()
    run_terminal(
        engine,
        TextCodec.open(bundle.tokenizer_path),
        replace(bundle.sampling, **preset),  # type: ignore[arg-type]
        history=history,
        save=options.save,
        quiet=options.quiet,
        model=str(options.bundle),
    )


if __name__ == "__main__":
    sys.exit(main())
