"""The public Python API of chitchat-compress; the command line is a thin caller of it.

    import chitchat_compress as cc

    data = cc.build_dataset("talks.jsonl", "data")
    cc.train(data, "teacher", max_minutes=5)
    small = cc.prune("teacher", data, keep=0.5)
    q = cc.quantize(small, data, scheme="w4")
    bot = cc.load(cc.export(q, data=data))
    print(bot.reply("hello"))

Names are imported when they are first used, so that this costs nothing. See `chitchat_compress.api` for the rules that
all functions share.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.evaluate.options import EvalOptions as EvalOptions
    from bench.run.options import BenchOptions as BenchOptions
    from chitchat.data.options import DataOptions as DataOptions
    from chitchat.errors import BadInput as BadInput
    from chitchat.errors import WorkFailed as WorkFailed
    from chitchat.training.options import TrainOptions as TrainOptions
    from chitchat_compress.api import bench as bench
    from chitchat_compress.api import build_dataset as build_dataset
    from chitchat_compress.api import evaluate as evaluate
    from chitchat_compress.api import export as export
    from chitchat_compress.api import generate as generate
    from chitchat_compress.api import info as info
    from chitchat_compress.api import plan_pruning as plan_pruning
    from chitchat_compress.api import prune as prune
    from chitchat_compress.api import prune_model as prune_model
    from chitchat_compress.api import quantize as quantize
    from chitchat_compress.api import run_recipe as run_recipe
    from chitchat_compress.api import serve as serve
    from chitchat_compress.api import train as train
    from chitchat_compress.chat import Bot as Bot
    from chitchat_compress.chat import Conversation as Conversation
    from chitchat_compress.chat import load as load
    from chitchat_compress.options import ChatOptions as ChatOptions
    from chitchat_compress.options import GenerateOptions as GenerateOptions
    from chitchat_compress.options import ServeOptions as ServeOptions
    from chitchat_compress.results import Report as Report
    from chitchat_compress.results import Result as Result
    from chitchat_compress.texts import DrawnText as DrawnText
    from chitchat_compress.texts import Texts as Texts
    from compress.prune.options import PruneOptions as PruneOptions
    from compress.quantize.options import QuantizeOptions as QuantizeOptions
    from export.options import ExportOptions as ExportOptions

_HOMES = {
    "chitchat_compress.api": (
        *("build_dataset", "train", "prune", "plan_pruning", "prune_model", "quantize", "export", "evaluate", "bench"),
        *("generate", "info", "run_recipe", "serve"),
    ),
    "chitchat_compress.chat": ("load", "Bot", "Conversation"),
    "chitchat_compress.results": ("Result", "Report"),
    "chitchat_compress.options": ("ChatOptions", "GenerateOptions", "ServeOptions"),
    "chitchat_compress.texts": ("Texts", "DrawnText"),
    "chitchat.data.options": ("DataOptions",),
    "chitchat.training.options": ("TrainOptions",),
    "compress.prune.options": ("PruneOptions",),
    "compress.quantize.options": ("QuantizeOptions",),
    "export.options": ("ExportOptions",),
    "bench.evaluate.options": ("EvalOptions",),
    "bench.run.options": ("BenchOptions",),
    "chitchat.errors": ("BadInput", "WorkFailed"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
