"""What flows through every projection of a model, by hooks on whole forward runs, in float64: an oracle for walkers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.states import last_hidden


@dataclass
class Flow:
    """Rows of one sublayer without padding, float64: `read` and `targets` of its in-projections, side by side,
    `inputs` of its out-projection, the stream `before` and `after` it."""

    read: np.ndarray
    targets: np.ndarray
    inputs: np.ndarray
    before: np.ndarray
    after: np.ndarray


def flows(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[Flow]:
    """A flow a sublayer, in the order in which they run."""
    sublayers = architecture_of(model).all_sublayers(model)
    found: list[dict[str, list[np.ndarray]]] = [{} for _ in sublayers]
    mask = torch.zeros(0)

    def keep(index: int, name: str, rows: torch.Tensor) -> None:
        found[index].setdefault(name, []).append(rows[mask].double().numpy())

    hooks = []
    for index, sublayer in enumerate(sublayers):
        norm, out = sublayer.norm, sublayer.out_proj.module
        hooks.append(norm.register_forward_pre_hook(lambda _m, x, i=index: keep(i, "before", x[0])))
        hooks.append(norm.register_forward_hook(lambda _m, _x, y, i=index: keep(i, "read", y)))
        hooks.append(out.register_forward_pre_hook(lambda _m, x, i=index: keep(i, "inputs", x[0])))
        hooks.append(out.register_forward_hook(lambda _m, _x, y, i=index: keep(i, "added", y)))
        for number, projection in enumerate(sublayer.in_projs):
            hooks.append(
                projection.module.register_forward_hook(lambda _m, _x, y, i=index, n=number: keep(i, f"target{n}", y))
            )
    with torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"].bool()
            last_hidden(model.eval(), batch["input_ids"])
    for hook in hooks:
        hook.remove()
    return [_flow({name: np.concatenate(parts) for name, parts in rows.items()}) for rows in found]


def _flow(rows: dict[str, np.ndarray]) -> Flow:
    targets = np.concatenate([rows[name] for name in sorted(rows) if name.startswith("target")], axis=1)
    return Flow(rows["read"], targets, rows["inputs"], rows["before"], rows["before"] + rows["added"])


def ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray, damping: float, bias: bool = True) -> np.ndarray:
    """The textbook's weight [in, out] for y = x W (+ b), pulled towards `weight`."""
    penalty = damping * np.square(x).sum(0).mean() * np.eye(x.shape[1])
    if bias:
        x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.solve(x.T @ x + penalty, x.T @ y + penalty @ weight)
