"""The Python files of the packages."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

ROOMS = ("chitchat", "compress", "serve", "export", "bench", "chitchat_compress")

FILES = sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
