"""A kind of model: the class that runs it, and the packages that the class imports when it loads one.

A descriptor stands in the module of its class, in the tuple `KINDS`, so that a worker process finds it by its address.
All kinds get the same prompt ids, decode greedily, and give exactly the number of new tokens that was asked for, so
that every model does the same work. Time to first token runs from ids in to the first id out, sampling included.
"""

import sys
from dataclasses import dataclass

from bench.models.loaded import LoadedModel
from serve.quiet import load


@dataclass(frozen=True, kw_only=True)
class RuntimeKind:
    """What runs a model.

    `modules` are the import names of what `model` needs; the first one says the version. `reads_stored_weights`:
    whether decoding reads the bytes of the model's files once a token, so that a memory ceiling can be told.
    """

    name: str
    model: type[LoadedModel]
    modules: tuple[str, ...]
    reads_stored_weights: bool = True

    @property
    def address(self) -> str:
        """Where `find_kind` finds it: `module:name`."""
        return f"{self.model.__module__}:{self.name}"

    def import_packages(self) -> None:
        """Import what the class needs, so that loading a model is timed without it."""
        for module in self.modules:
            load(module)

    def version(self) -> str | None:
        """The version of the first package, which is imported; None where it does not say."""
        version = getattr(sys.modules.get(self.modules[0]), "__version__", None)
        return None if version is None else str(version).split("-")[0]  # OpenVINO adds its build


def find_kind(address: str) -> RuntimeKind:
    """The descriptor at `module:name`: that of this name in the module's `KINDS`."""
    module, _, name = address.partition(":")
    kinds: tuple[RuntimeKind, ...] = load(module).KINDS
    return next(kind for kind in kinds if kind.name == name)
