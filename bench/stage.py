"""`compress bench`: any number of models side by side, speed and memory beside quality, into a report folder.

It checks the input, makes the prompts, has the models measured (`bench.latency`), and writes the report
(`bench.report`). The first model is the yardstick of the ratios.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.candidates import pruning_candidates
from bench.environment import cores, environment, load_average
from bench.latency import Job, Plan, measure
from bench.measured import MeasuredModel
from bench.model import open_model
from bench.quality import Task, check_vocabulary, open_held_out
from bench.report import FORMAT, build_rows, write_report
from chitchat.errors import BadInput, WorkFailed
from chitchat.folder import check_output, staged_folder

WARMUPS = 2
KL_TOKENS = 4_096  # every row computes the first row's predictions again, so fewer than `compress eval` takes
DEVICES = ("cpu", "cuda")


def bench(
    models: Sequence[str],
    out: Path,
    data: Path | None = None,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    device: str = "cpu",
    repetitions: int = 7,
    threads: int | None = None,
    seed: int = 0,
    max_eval_tokens: int | None = None,
) -> dict[str, Any]:
    """Measure `models` and write report.json, report.md and report.png into the folder `out`; give the report.

    With `data` (a data set folder) prompts are held-out conversations and quality is measured on them, in windows of
    the smallest context, so that all models score the same tokens, with replies to the same prompts and, where the
    vocabulary is the same, against the first model; without it prompts are random ids. `threads` is for
    every runtime, by default the cores that this process may use. Raises `BadInput`, and `WorkFailed` when no model at
    all could be measured.
    """
    out = Path(out)
    check_output(out, "report")
    _check_numbers(models, prompt_tokens, new_tokens, repetitions, threads)
    _check_device(device)
    opened = [open_model(spec) for spec in models]
    for model in opened:
        _check_context(model, prompt_tokens, new_tokens)
    held_out = _open_data(data, opened)
    machine = environment(threads or cores())
    prompts = make_prompts(opened, held_out, prompt_tokens, WARMUPS + repetitions, seed)
    plan = Plan(
        warmups=prompts[:WARMUPS],
        prompts=prompts[WARMUPS:],
        new_tokens=new_tokens,
        threads=machine["threads"],
        device=device,
        data=data,
        task=asdict(Task(min(model.context for model in opened), max_eval_tokens, kl_tokens=KL_TOKENS)),
    )
    names = unique_names(opened)
    jobs = [
        Job(name, model.spec, model.kind, model.dialogue.end_of_turn_id, compared=_is_comparable(model, opened[0]))
        for name, model in zip(names, opened, strict=True)
    ]
    with staged_folder(out, "report") as staging:
        measured = measure(jobs, plan)
        if all(result.error for result in measured):
            raise WorkFailed(f"no model could be measured; {jobs[0].name}: {measured[0].error}")
        report = {
            "format": FORMAT,
            "rows": build_rows(names, opened, measured, device),
            "samples": {result.job.name: result.samples for result in measured},
            "quality": {result.job.name: result.quality for result in measured if result.quality},
            "candidates": pruning_candidates(names, opened),
            "settings": {
                "prompt_tokens": prompt_tokens,
                "new_tokens": new_tokens,
                "repetitions": repetitions,
                "warmups": WARMUPS,
                "seed": seed,
                "data": held_out.identity if held_out else None,
                "context": plan.task["context"],
                "max_eval_tokens": max_eval_tokens,
            },
            "environment": {**machine, "load_average_after": load_average()},
        }
        write_report(staging, report)
    return report


def make_prompts(models: Sequence[MeasuredModel], data: Any, tokens: int, count: int, seed: int) -> list[list[int]]:
    """`count` prompts of exactly `tokens` ids that every model has: held-out conversations, else random ids.

    A held-out prompt is the beginning of a conversation, further conversations following where one is too short; it may
    end within a turn, since all prompts of a run are of one length.
    """
    random = np.random.default_rng(seed)
    if data is None:
        start = list(models[0].dialogue.start_ids)
        size = min(model.geometry["vocab"] for model in models)
        banned = {token for model in models for token in (*model.dialogue.banned_ids, model.dialogue.end_of_turn_id)}
        usable = np.setdiff1d(np.arange(size), sorted(banned))
        return [(start + random.choice(usable, tokens).tolist())[:tokens] for _ in range(count)]
    order = random.permutation(len(data.validation))
    prompts: list[list[int]] = []
    taken = 0
    while len(prompts) < count:
        ids: list[int] = []
        while len(ids) < tokens:
            ids += data.validation[int(order[taken % len(order)])]["input_ids"]
            taken += 1
        prompts.append(ids[:tokens])
    return prompts


def unique_names(models: Sequence[MeasuredModel]) -> list[str]:
    """Folder names; where two are the same, as much of the path before them as tells them apart."""
    names = [model.name for model in models]
    parts = [Path(os.path.abspath(model.folder)).parts for model in models]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        if depth > max(len(part) for part in parts):
            raise BadInput(f"MODEL {models[_first_repeated(names)].spec}: given twice; give each model once")
        names = [
            "/".join(part[-depth:]) if names.count(name) > 1 else name for name, part in zip(names, parts, strict=True)
        ]
    return names


def _first_repeated(names: Sequence[str]) -> int:
    return next(place for place, name in enumerate(names) if name in names[:place])


def _is_comparable(model: MeasuredModel, first: MeasuredModel) -> bool:
    """Whether a model's predictions can be compared with the first one's: every id means the same to both."""
    same = model.vocabulary == first.vocabulary and model.geometry["vocab"] == first.geometry["vocab"]
    return model is not first and same


def _check_numbers(
    models: Sequence[str], prompt_tokens: int, new_tokens: int, repetitions: int, threads: int | None
) -> None:
    if not models:
        raise BadInput("MODEL: none given; name the checkpoints, bundles or hub ids to measure")
    for option, value, least in (
        ("--prompt-tokens", prompt_tokens, 1),
        ("--new-tokens", new_tokens, 2),
        ("--repetitions", repetitions, 1),
        ("--threads", threads if threads is not None else 1, 1),
    ):
        if value < least:
            raise BadInput(f"{option} {value}: too few; give at least {least}")


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise BadInput(f"--device {device}: no such device; give one of {', '.join(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("--device cuda: torch finds no CUDA GPU on this machine; use --device cpu")


def _check_context(model: MeasuredModel, prompt_tokens: int, new_tokens: int) -> None:
    if prompt_tokens + new_tokens > model.context:
        raise BadInput(
            f"--prompt-tokens {prompt_tokens} and --new-tokens {new_tokens}: "
            f"{prompt_tokens + new_tokens} tokens do not fit the context of {model.spec}, {model.context}; give fewer"
        )


def _open_data(data: Path | None, models: Sequence[MeasuredModel]) -> Any:
    if data is None:
        return None
    opened = open_held_out(data)
    for model in models:
        check_vocabulary(model, opened)
    return opened
