"""A conversation with `compress serve`, with nothing but the standard library: the reply is shown as it comes.

    python examples/client.py [URL]

An empty line ends it. The server is started by `compress serve bundle`.
"""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator


def stream(url: str, messages: list[dict[str, str]]) -> Iterator[str]:
    """The pieces of one reply, from the server-sent events of /v1/chat/completions."""
    body = json.dumps({"messages": messages, "stream": True, "truncate": True}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            event = line.decode().strip().removeprefix("data: ")
            if event and event != "[DONE]":
                yield json.loads(event)["choices"][0]["delta"].get("content") or ""


def main(url: str = "http://127.0.0.1:8080") -> None:
    messages: list[dict[str, str]] = []
    while text := input("you: ").strip():
        messages.append({"role": "user", "content": text})
        print("bot: ", end="")
        reply = ""
        for piece in stream(url, messages):
            reply += piece
            print(piece, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": reply})


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except urllib.error.HTTPError as error:  # the server says in one line what to change
        sys.exit(json.load(error)["error"]["message"])
