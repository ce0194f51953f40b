"""Which of a bundle's graphs runs: by what the bundle has, what the runtime finds, and what was asked for.

Nothing is loaded here. The choice is printed with its reason.
"""

import ctypes
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.bundle import Bundle, Graph
from serve.cpu import cpu_features, lost_features
from serve.errors import BadBundle, BadRequest
from serve.quiet import load

DEVICES = ("cpu", "cuda")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class SelectedGraph:
    """The graph for `target` ("cpu" or "cuda"), onnxruntime's name of what runs it, and why it was chosen.

    `why` is a phrase, or "" where there was nothing to choose from. `warning` is one line on what may differ from the
    recorded figures on this CPU, or "".
    """

    target: str
    path: Path
    graph: Graph
    provider: str
    why: str
    warning: str = ""

    def announce(self) -> None:
        """Say on stderr which of several graphs runs and why, and the warning if there is one."""
        if self.why:
            print(f"Runs the {self.target} graph: {self.why}.", file=sys.stderr, flush=True)
        if self.warning:
            print(f"warning: {self.warning}", file=sys.stderr, flush=True)


def choose(
    bundle: Bundle, device: str | None, providers: Sequence[str], features: Collection[str] | None = None
) -> SelectedGraph:
    """Pick a graph. `device` None takes cuda when the bundle has it and it can run here, else cpu.

    `providers` are the execution providers that can run (`find_providers`), `features` those of the CPU (default:
    `cpu_features()`). Raises BadBundle for a bundle that has no graph for this runtime or whose integers would
    overflow on this CPU, and BadRequest for a device that the bundle or the machine does not have.
    """
    graphs = bundle.manifest.graphs
    ours = [target for target in DEVICES if target in graphs]
    if not ours:
        raise BadBundle(
            f"{bundle.folder}: is a portable bundle; load it with optimum's "
            "ORTModelForCausalLM.from_pretrained, or export with --target cpu"
        )
    cuda_runs = PROVIDERS["cuda"] in providers
    if device is not None:
        _check_device(bundle, device, ours, cuda_runs)
        target, why = device, "as asked for"
    elif "cuda" in ours and cuda_runs:
        target, why = "cuda", "the bundle has a cuda graph and a CUDA device is here"
    elif "cpu" in ours:
        target = "cpu"
        why = "it has a cuda graph too, but no CUDA device can be used here" if "cuda" in ours else ""
    else:
        raise BadBundle(
            f"{bundle.folder}: has a cuda graph only, and no CUDA device can be used here; install onnxruntime-gpu "
            "on a machine with one, or export with --target cpu+cuda"
        )
    graph, warning = graphs[target], ""
    if target == "cpu":
        present = cpu_features() if features is None else features
        _check_integers(bundle, graph, present)
        warning = lost_features(bundle.manifest.cpu_features, present)
    return SelectedGraph(target, bundle.graph_path(target), graph, PROVIDERS[target], why, warning)


def find_providers() -> list[str]:
    """Onnxruntime's execution providers that can run here.

    A build with CUDA lists CUDAExecutionProvider on any machine, so the driver is asked for devices.
    """
    listed: list[str] = load("onnxruntime").get_available_providers()  # heavy: only once a bundle is to run
    return [name for name in listed if name != PROVIDERS["cuda"] or count_cuda_devices() > 0]


def count_cuda_devices() -> int:
    """CUDA devices that the driver gives to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _check_integers(bundle: Bundle, graph: Graph, present: Collection[str]) -> None:
    if graph.needs and present and not set(graph.needs) & set(present):
        raise BadBundle(
            f"{bundle.folder}: its 8-bit products overflow on a CPU without any of {', '.join(graph.needs)} (this one "
            f"has {', '.join(sorted(present))}) and would be wrong; export another scheme, such as w8"
        )


def _check_device(bundle: Bundle, device: str, ours: Sequence[str], cuda_runs: bool) -> None:
    if device not in DEVICES:
        raise BadRequest(f"--device {device}: no such device; give one of {', '.join(DEVICES)}")
    if device not in ours:
        raise BadRequest(
            f"--device {device}: {bundle.folder} has a {ours[0]} graph only; leave --device out, or export it with "
            "--target cpu+cuda"
        )
    if device == "cuda" and not cuda_runs:
        raise BadRequest(
            "--device cuda: no CUDA device can be used here; install onnxruntime-gpu on a machine with one, or "
            "leave --device out"
        )
