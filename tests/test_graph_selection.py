"""Which graph of a bundle runs, and the reason that is said."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.bundles import exported, random_gpt2

from serve.bundle import Bundle, Geometry, Graph, Manifest
from serve.cpu import EXACT_BYTE_SUMS
from serve.errors import BadBundle, BadRequest
from serve.graph_selection import choose, count_cuda_devices, find_providers
from serve.session import open_session

CPU_ONLY = ["CPUExecutionProvider"]
WITH_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def bundle(*targets: str, needs: tuple[str, ...] = (), recorded: tuple[str, ...] = ()) -> Bundle:
    """A bundle with graphs for `targets`; choosing reads no file."""
    graphs = {target: Graph(f"{target}.onnx", (), (), 1, needs=needs) for target in targets}
    geometry = Geometry(layers=1, heads=1, head_dim=8, width=8, ffn=8, vocab=8, context=8)
    empty: dict = {}
    manifest = Manifest(graphs, "fp32", geometry, 1, empty, empty, recorded, (), empty, empty, empty)
    return Bundle(Path("box"), manifest)


@pytest.mark.parametrize(
    ("targets", "device", "providers", "target", "why"),
    [
        (["cpu"], None, CPU_ONLY, "cpu", ""),
        (["cpu"], None, WITH_CUDA, "cpu", ""),
        (["cpu", "cuda"], None, WITH_CUDA, "cuda", "a CUDA device is here"),
        (["cpu", "cuda"], None, CPU_ONLY, "cpu", "no CUDA device can be used here"),
        (["cpu", "cuda"], "cpu", WITH_CUDA, "cpu", "as asked for"),
        (["cuda"], None, WITH_CUDA, "cuda", "a CUDA device is here"),
    ],
)
def test_the_graph_is_chosen_by_what_is_found(
    targets: list[str], device: str | None, providers: list[str], target: str, why: str
) -> None:
    """A GPU that stays idle, or a box without one that does not start."""
    choice = choose(bundle(*targets), device, providers)
    assert (choice.target, choice.path) == (target, Path("box") / f"{target}.onnx")
    assert choice.graph.file == f"{target}.onnx"
    assert choice.provider == {"cpu": CPU_ONLY[0], "cuda": WITH_CUDA[0]}[target]
    assert why in choice.why if why else choice.why == ""
    assert choice.warning == ""


def test_what_was_chosen_is_said_where_there_was_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody wonders why the GPU is idle, and a bundle of one graph starts without a word."""
    choose(bundle("cpu"), None, CPU_ONLY).announce()
    assert capsys.readouterr().err == ""
    choose(bundle("cpu", "cuda"), "cpu", WITH_CUDA, ["avx2"]).announce()
    assert capsys.readouterr().err == "Runs the cpu graph: as asked for.\n"
    choose(bundle("cpu", recorded=("avx_vnni",)), None, CPU_ONLY, ["avx2"]).announce()
    assert capsys.readouterr().err.startswith("warning: this CPU has no avx_vnni, which the bundle was measured with")


@pytest.mark.parametrize(
    ("targets", "device", "providers", "error", "match"),
    [
        (["portable"], None, CPU_ONLY, BadBundle, "ORTModelForCausalLM"),
        (["cuda"], None, CPU_ONLY, BadBundle, "has a cuda graph only.*cpu"),
        (["cpu"], "cuda", WITH_CUDA, BadRequest, "--device cuda: box has a cpu graph only"),
        (["cuda"], "cpu", WITH_CUDA, BadRequest, "--device cpu: box has a cuda graph only"),
        (["cpu", "cuda"], "cuda", CPU_ONLY, BadRequest, "--device cuda: no CUDA device"),
        (["cpu"], "tpu", CPU_ONLY, BadRequest, "--device tpu: no such device; give one of cpu, cuda"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    targets: list[str], device: str | None, providers: list[str], error: type, match: str
) -> None:
    """onnxruntime would fall back to the CPU in silence, with a graph that was made for CUDA."""
    with pytest.raises(error, match=match) as caught:
        choose(bundle(*targets), device, providers)
    assert "\n" not in str(caught.value)


def test_cuda_is_found_where_the_driver_has_a_device_only() -> None:
    """onnxruntime-gpu lists CUDAExecutionProvider on a machine without a GPU, too."""
    found = find_providers()
    assert "CPUExecutionProvider" in found
    assert "CUDAExecutionProvider" not in found or count_cuda_devices() > 0


@pytest.mark.parametrize(
    ("recorded", "present", "lost"),
    [
        (("avx2",), ("avx2",), ""),
        (("avx2",), ("avx2", "avx_vnni"), ""),
        (("avx2", "avx_vnni"), ("avx2",), "no avx_vnni"),
        (("avx2", "avx512f"), ("asimd",), "no avx2, avx512f"),
        (("avx2",), (), ""),
    ],
)
def test_a_lesser_cpu_than_the_measured_one_is_told(
    recorded: tuple[str, ...], present: tuple[str, ...], lost: str
) -> None:
    """The box is slower than bundle.json says, and nobody knows why."""
    warning = choose(bundle("cpu", recorded=recorded), None, CPU_ONLY, present).warning
    assert lost in warning
    assert bool(warning) == bool(lost)
    assert "\n" not in warning


def test_integers_that_would_overflow_are_refused() -> None:
    """Byte products saturate without VNNI: half the value, no error, and fluent nonsense."""
    needing = bundle("cpu", "cuda", needs=EXACT_BYTE_SUMS)
    with pytest.raises(BadBundle, match=r"box: its 8-bit products overflow .*this one has avx2, avx512f.*such as w8"):
        choose(needing, "cpu", CPU_ONLY, ("avx512f", "avx2"))
    for present in (("avx2", "avx_vnni"), ("asimd", "asimddp"), ()):
        assert choose(needing, "cpu", CPU_ONLY, present).target == "cpu"
    assert choose(needing, None, WITH_CUDA, ("avx2",)).target == "cuda"


@pytest.mark.skipif(count_cuda_devices() > 0, reason="there is a CUDA device here, which starts")
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_device_that_does_not_start_is_not_the_cpu_in_silence(tmp_path: Path) -> None:
    """With a library missing, onnxruntime runs a cuda graph on the CPU, twenty times slower."""
    choice = choose(exported(random_gpt2(), tmp_path), None, CPU_ONLY)
    with pytest.raises(BadRequest, match=r"CUDAExecutionProvider: onnxruntime could not start it.*--device cpu"):
        open_session(replace(choice, provider=WITH_CUDA[0]), threads=1)
