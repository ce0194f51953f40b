"""Training in a process of its own, and its end by SIGKILL."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from chitchat.training.workfolder import TrainingFolder


def start(code: str, *arguments: object) -> subprocess.Popen:
    """Run Python code in a process of its own, on one thread as here."""
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here.parent), str(here)])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment)


def kill_after_checkpoint(process: subprocess.Popen, work: TrainingFolder) -> int:
    """SIGKILL the process once a complete checkpoint is there; returns its step."""
    while process.poll() is None:
        steps = [int(path.name.rpartition("-")[2]) for path in work.checkpoints()]
        if steps:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return max(steps)
        time.sleep(0.002)
    raise AssertionError(f"the run ended by itself with exit code {process.returncode}")
