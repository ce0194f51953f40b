"""The processes of one run: torchrun or `accelerate launch` start several, and without a launcher there is one.

Process groups, devices and backends (gloo on CPUs, NCCL on GPUs) are accelerate's work.
"""

from typing import Any

import torch


class Processes:
    """The processes of a distributed run; one where there is no launcher."""

    def __init__(self) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.index: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.first: bool = self._state.is_main_process
        self.device: torch.device = self._state.device

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        self._state.wait_for_everyone()
