"""The processes of one run: several under torchrun or `accelerate launch`, one without a launcher.

accelerate sets up process groups, devices and backends (gloo on CPUs, NCCL on GPUs). But it takes a single `LOCAL_RANK`
or `WORLD_SIZE`, perhaps left in the environment, for a launcher, and waits for processes that do not exist. So a run
counts as launched only if all variables of torch's `env://` rendezvous are set.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from chitchat.errors import ChitchatError

T = TypeVar("T")

# Variables of torch's launchers (https://docs.pytorch.org/docs/stable/elastic/run.html) and of MPI's: rank and size.
_NUMBERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
# Variables of launchers and of accelerate, which are hidden from a run of one process.
_LEFTOVERS = (
    *(name for names in _NUMBERS for name in names),
    *("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    *("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_SAGEMAKER"),
    *("ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_TORCH_DEVICE", "FORK_LAUNCHED"),
)


class Distributed:
    """The processes of a run; one without a launcher. `is_main`: whether this one writes files."""

    def __init__(self) -> None:
        self.index, self.count = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if launched(os.environ):
            from accelerate import PartialState

            _announce_others(os.environ)
            if not torch.distributed.is_initialized():
                atexit.register(_leave_process_group)
            self._state = PartialState(cpu=not torch.cuda.is_available())
            self.index, self.count = self._state.process_index, self._state.num_processes
            self.device = self._state.device
        self.is_main = self.index == 0

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process; return its result, or raise its `ChitchatError`, in every process."""
        result: Any = None
        if self.is_main:
            try:
                result = work()
            except ChitchatError as error:
                result = error
        result = self.broadcast(result)
        if isinstance(result, ChitchatError):
            raise result
        return result

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            self._state.wait_for_everyone()


def launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of several: rank, size and rendezvous are all set."""
    if not all(environment.get(name) for name in _RENDEZVOUS):
        return False
    for rank, size in _NUMBERS:
        numbers = environment.get(rank, ""), environment.get(size, "")
        if all(number.isdecimal() for number in numbers) and int(numbers[0]) < int(numbers[1]) > 1:
            return True
    return False


@contextmanager
def no_leftovers() -> Iterator[None]:
    """A context without variables of launchers, unless one started this process."""
    hidden: dict[str, str] = {}
    if not launched(os.environ):
        hidden = {name: os.environ.pop(name) for name in _LEFTOVERS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _leave_process_group() -> None:
    """End the process group before the interpreter: a gloo thread that still runs would abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _announce_others(environment: Mapping[str, str]) -> None:
    """A notice if the variables are not torchrun's: without the other processes this one waits."""
    if torch.distributed.is_initialized() or "TORCHELASTIC_RUN_ID" in environment:
        return
    print(
        "compress: RANK, WORLD_SIZE and MASTER_ADDR (or MPI's) are set: this is one of several processes, and waits "
        "for the others; unset them to run alone",
        file=sys.stderr,
        flush=True,
    )
