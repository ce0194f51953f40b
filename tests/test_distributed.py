"""What counts as a distributed run, and what variables that were left behind must not do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chitchat.errors import BadInput
from chitchat.training.distributed import Distributed, launched, no_leftovers

ROOT = Path(__file__).parents[1]
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LEFTOVERS = [
    {"RANK": "1"},
    {"WORLD_SIZE": "4"},
    {"LOCAL_RANK": "1"},
    {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **MEETING},
    {"RANK": "", "WORLD_SIZE": "", **MEETING},
    {"RANK": "one", "WORLD_SIZE": "two", "LOCAL_RANK": "x", **MEETING},
    {"RANK": "4", "WORLD_SIZE": "4", **MEETING},
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    {"PMI_RANK": "1", "PMI_SIZE": "2"},
    {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"},
    {"ACCELERATE_USE_DEEPSPEED": "true", "LOCAL_RANK": "0"},
    {"ACCELERATE_USE_FSDP": "true"},
    {"ACCELERATE_USE_MEGATRON_LM": "true"},
    {"ACCELERATE_TORCH_DEVICE": "cuda:3"},
    {"CUDA_VISIBLE_DEVICES": ""},
]


def names(environment: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in environment.items())


@pytest.mark.parametrize("left", LEFTOVERS, ids=names)
def test_what_a_shell_or_a_cluster_left_behind_is_no_launcher(left, monkeypatch):
    """Stops: a run that waits for processes that nobody started, or leaves the writing to one that is not there."""
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert not launched(os.environ)
    processes = Distributed()
    assert (processes.index, processes.count, processes.is_main) == (0, 1, True)


@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
    ],
    ids=names,
)
def test_number_size_and_meeting_place_are_a_launcher(told):
    """Stops: a launched run whose every process takes itself for the only one."""
    assert launched({**told, **MEETING})
    assert not launched(told)


def test_leftovers_are_hidden_and_come_back(monkeypatch):
    """Stops: accelerate seeing what we ignore; a caller who loses his environment."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    with no_leftovers():
        assert "LOCAL_RANK" not in os.environ
    assert os.environ["LOCAL_RANK"] == "1"
    launch = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MEETING}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with no_leftovers():
        assert {name: os.environ.get(name) for name in launch} == launch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "left"),
    [
        ("train", {"RANK": "1"}),
        ("train", {"ACCELERATE_USE_DEEPSPEED": "true", "LOCAL_RANK": "0"}),
        ("prune", {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}),
        ("quantize", {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "ACCELERATE_USE_FSDP": "true"}),
    ],
)
def test_a_verb_works_and_speaks_whatever_was_left_behind(verb, left, tiny_data, tiny_checkpoint, tmp_path):
    """Stops: exit 0 without figures, an output that is not there, a rendezvous that never ends (fault 16)."""
    out = tmp_path / "out"
    arguments = {
        "train": [tiny_data, "--layers", 1, "--width", 16, "--heads", 2, "--context", 32, "--epochs", 0.2],
        "prune": [tiny_checkpoint, "--data", tiny_data, "--layers", 1, "--heal-epochs", 0.2],
        "quantize": [tiny_checkpoint, "--data", tiny_data, "--scheme", "w4", "--method", "kd", "--kd-minutes", 0.02],
    }[verb]
    command = [sys.executable, "-m", "chitchat_compress", verb, *map(str, arguments), "--out", str(out), "--json"]
    environment = {**os.environ, **left, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["perplexity"] > 1
    assert (out / "lineage.json").is_file()


TWO = """
import json, sys
from pathlib import Path
from chitchat.errors import BadInput
from chitchat.training.distributed import Distributed
run, folder = Distributed(), Path(sys.argv[1])

def write():
    (folder / "written").open("a").write("once")
    return [run.index, "of main"]

def refuse():
    raise BadInput("no")

found = [run.count, run.run_on_main(write), (folder / "written").read_text(), run.broadcast(run.index)]
try:
    run.run_on_main(refuse)
except BadInput as error:
    found.append(str(error))
run.barrier()
(folder / f"process-{run.index}").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_what_runs_on_main_is_done_once_and_known_to_all(tmp_path):
    """Stops: a file that every process writes, a read before it is there, an error that leaves others waiting."""
    script = tmp_path / "run.py"
    script.write_text(TWO, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(tmp_path)], env=environment, check=True, timeout=120)
    for index in range(2):
        assert json.loads((tmp_path / f"process-{index}").read_text()) == [2, [0, "of main"], "once", 0, "no"]


def test_alone_it_is_main_and_waits_for_nobody():
    """Stops: a single process that hangs at a barrier, or loses an error that is not ours."""
    run = Distributed()
    run.barrier()
    assert run.run_on_main(lambda: 3) == run.broadcast(3) == 3
    with pytest.raises(ZeroDivisionError):
        run.run_on_main(lambda: 1 / 0)
    with pytest.raises(BadInput, match="no"):
        run.run_on_main(refuse)


def refuse():
    raise BadInput("no")
