"""The training curve: `training-log.json` and `training-curve.png` beside the weights.

Both depend on the losses alone, so the same run gives the same files.
"""

import json
from collections.abc import Sequence
from pathlib import Path


def save_curve(folder: Path, log: Sequence[dict[str, float]], label: str = "loss (nats per token)") -> None:
    """Write the log and its plot into `folder`. Entries have `step` and `loss` or `eval_loss`."""
    (folder / "training-log.json").write_text(json.dumps(list(log), indent=1) + "\n", encoding="utf-8")
    # Not pyplot, which has global state and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, style, title in (("loss", "-", "training"), ("eval_loss", "o-", "validation")):
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=title, markersize=4)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "training-curve.png", dpi=120, metadata={"Software": None})
