"""Draw docs/images/demo.svg from README's table: `python docs/images/draw_demo.py`. A test holds the two together."""

import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
STEPS = {  # row of the table: what it is called in the picture, and what was done to get there
    "teacher": ("fine-tuned", "transformers, float32"),
    "pruned": ("pruned to half, healed", "transformers, float32"),
    "bundle-fp32": ("exported", "ONNX, KV cache in place"),
    "bundle": ("8-bit integers", "the bundle that ships"),
}
WIDTH, ROW, TOP, LEFT = 880, 50, 96, 230
FONT = "font-family='Segoe UI, Helvetica, Arial, sans-serif'"
DARK, GREY, BLUE, GREEN, PALE = "#1f2933", "#6b7785", "#2f6fde", "#1a936f", "#eef2f7"


def rows(readme: str) -> dict[str, dict[str, str]]:
    """README's one table: `{model: {column: text}}`, without what stands in brackets behind a model's name."""
    lines = re.findall(r"^\|.*\|$", readme, re.MULTILINE)
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0].split(" ")[0].strip("*"): dict(zip(head, cells, strict=True)) for cells in body}


def text(x: float, y: float, words: str, size: int = 13, fill: str = DARK, extra: str = "") -> str:
    return f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{fill}' {FONT} {extra}>{words}</text>"


def bar(x: float, y: float, width: float, fill: str) -> str:
    return f"<rect x='{x:g}' y='{y:g}' width='{max(width, 3):.0f}' height='20' rx='3' fill='{fill}'/>"


def draw(readme: str) -> str:
    """The picture: a row a step; megabytes and tokens per second as bars, perplexity as a number."""
    table = rows(readme)
    height = TOP + ROW * len(STEPS) + 6
    size_x, speed_x, quality_x = LEFT, LEFT + 190, LEFT + 560
    scale = {column: max(_number(table[row][column]) for row in STEPS) for column in ("file MB", "tokens/s")}
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>",
        f"<rect width='{WIDTH}' height='{height}' rx='10' fill='#ffffff'/>",
        text(
            24, 36, "One run of make demo: real conversations → a small fast chat model", 17, extra="font-weight='600'"
        ),
        text(size_x, 76, "file, MB", 13, GREY),
        text(speed_x, 76, "new tokens per second, two CPU cores", 13, GREY),
        text(quality_x, 76, "perplexity ↓", 13, GREY),
    ]
    for index, (row, (title, runtime)) in enumerate(STEPS.items()):
        y = TOP + ROW * index
        cells = table[row]
        size = 110 * _number(cells["file MB"]) / scale["file MB"]
        speed = 250 * _number(cells["tokens/s"]) / scale["tokens/s"]
        parts += [
            f"<rect x='12' y='{y - 6}' width='{WIDTH - 24}' height='{ROW - 6}' rx='6' fill='{PALE}'/>"
            if index % 2
            else "",
            text(24, y + 12, title, 14, extra="font-weight='600'"),
            text(24, y + 30, runtime, 12, GREY),
            bar(size_x, y + 6, size, BLUE),
            text(size_x + size + 8, y + 21, cells["file MB"]),
            bar(speed_x, y + 6, speed, GREEN),
            text(speed_x + max(speed, 3) + 8, y + 21, f"{_number(cells['tokens/s']):,.0f}"),
            text(speed_x + max(speed, 3) + 50, y + 21, f"{_number(cells['speed'].split()[0]):.1f} ×", 13, GREY),
            text(quality_x, y + 21, cells["perplexity"]),
        ]
    return "\n".join([*filter(None, parts), "</svg>"]) + "\n"


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


if __name__ == "__main__":
    (HERE / "demo.svg").write_text(draw(README.read_text(encoding="utf-8")), encoding="utf-8")
