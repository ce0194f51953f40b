"""The front door: one verb per stage. It parses, calls the room that does the work, and prints its figures.

Nothing imports this module. Rooms are imported inside the verbs, so that `--help` answers at once and an edge box can
serve a bundle without torch.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chitchat_compress.cli.console import INTERRUPTED, Verbs, call, quiet_libraries, show, show_table
from chitchat_compress.cli.parameters import (
    Checkpoint,
    DataOption,
    Device,
    DialogueFamily,
    Json,
    MaxTokens,
    MaybeData,
    MaybeSeed,
    MinP,
    Model,
    NoRepeatNgram,
    Out,
    PortablePython,
    RepetitionPenalty,
    Seed,
    Temperature,
    Threads,
    Tokenizer,
    TopK,
    TopP,
    Unused,
)

app = typer.Typer(
    name="compress",
    help="Conversations in, a small fast chat model on an edge box out: quality and speed measured at every step.",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def data(
    corpora: Annotated[
        list[str],
        typer.Argument(
            help="Files (.txt .json .jsonl .csv .tsv .pkl, each also .gz or .zst), installed corpora (byu, "
            "chatterbot:<language>) or data sets (hf:NAME[:split])."
        ),
    ],
    out: Annotated[Path, Out("the data set")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Checkpoint, hub id or BERT vocab.txt (default: train one).")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Tokens of a tokenizer trained here (byte-level BPE).")] = 4096,
    validation: Annotated[str, typer.Option(help="Share of conversations held out, or a corpus held out whole.")] = (
        "0.05"
    ),
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of .csv, .tsv and hf: by name or number; the turns in order (question,answer), or "
            "conversation=id,speaker=who,text=said."
        ),
    ] = None,
    dialogue: Annotated[str | None, typer.Option(help="Dialogue format: chitchat or dialogpt.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Conversations → tokenised data set, split by conversation."""
    from chitchat.data.builder import build_dataset

    figures = build_dataset(
        corpora,
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        validation=validation,
        columns=columns,
        dialogue=dialogue,
        seed=seed,
    )
    show(figures, as_json)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Data set made by `compress data`.")],
    out: Annotated[Path, Out("the checkpoint")],
    init: Annotated[
        str | None, typer.Option(help="Fine-tune this checkpoint or hub id (default: from scratch).")
    ] = None,
    tokenizer: Tokenizer = None,
    layers: Annotated[int | None, typer.Option(help="Layers, from scratch.")] = None,
    width: Annotated[int | None, typer.Option(help="Width (n_embd), from scratch.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, from scratch.")] = None,
    ffn: Annotated[int | None, typer.Option(help="FFN width (n_inner), from scratch; default 4 x width.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens the model sees at most.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training conversations.")] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="Train for these minutes, loading and saving included, whatever the machine does."),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Begin the end after this many evaluations without a better validation loss.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows per optimizer step, over all processes.")] = None,
    grad_accumulation: Annotated[int, typer.Option(help="Parts that a step's batch is computed in.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout of embeddings, attention and residuals.")] = None,
    loss: Annotated[str, typer.Option(help="Turns that count in the loss: all or replies.")] = "all",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run of the same options stopped.")] = (
        False
    ),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Data set → fine-tuned GPT-2 (the teacher)."""
    from chitchat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()  # before the libraries are loaded: the minutes are the user's
    from chitchat.training.options import TrainOptions
    from chitchat.training.train import train as run_training

    given: dict[str, Any] = {
        "init": init,
        "tokenizer": tokenizer,
        "layers": layers,
        "width": width,
        "heads": heads,
        "ffn": ffn,
        "context": context,
        "epochs": epochs,
        "max_minutes": max_minutes,
        "patience": patience,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "dropout": dropout,
    }
    options = TrainOptions(
        **{name: value for name, value in given.items() if value is not None},
        grad_accumulation=grad_accumulation,
        loss=loss,
        seed=seed,
    )
    show(run_training(data, out, options, resume=resume, stopwatch=stopwatch), as_json)


@app.command()
def prune(
    checkpoint: Checkpoint,
    data: DataOption,
    out: Annotated[Path | None, Out("the smaller checkpoint (not with --plan)")] = None,
    keep: Annotated[float | None, typer.Option(help="Budget: share of the parameters, between 0 and 1.")] = None,
    max_mb: Annotated[float | None, typer.Option(help="Budget: MB of the bundle, by --scheme.")] = None,
    max_ms_per_token: Annotated[
        float | None, typer.Option(help="Budget: decode time here, by --scheme, in the engine that ships.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Layers to keep.")] = None,
    width: Annotated[int | None, typer.Option(help="Width to keep: a multiple of the head size.")] = None,
    ffn: Annotated[int | None, typer.Option(help="FFN width to keep.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Tokens to keep; the tokenizer is rewritten.")] = None,
    context: Annotated[int | None, typer.Option(help="Positions to keep.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what the budget buys, and do nothing.")] = False,
    candidates: Annotated[int, typer.Option(help="Shapes of a budget that are tried; 1: the likeliest.")] = 4,
    scheme: Annotated[str, typer.Option(help="Bundle that MB and ms are counted in: fp32, w8, w8a8 or w4.")] = "w8",
    importance: Annotated[
        str, typer.Option(help="What ranks the units: obs, activation, magnitude, taylor or random.")
    ] = "obs",
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Leave out the repair by least squares.")] = False,
    heal_epochs: Annotated[float | None, typer.Option(help="Heal for these passes over the conversations.")] = None,
    heal_minutes: Annotated[
        float | None, typer.Option(help="Heal for these minutes, trials included; cutting comes on top; 0: not at all.")
    ] = None,
    heal_loss: Annotated[str, typer.Option(help="kl (from the teacher) or ce (from the text alone).")] = "kl",
    heal_labels: Annotated[
        float, typer.Option(help="Share of the text's own cross-entropy beside the KL, 0 to below 1.")
    ] = 0.0,
    own_replies: Annotated[
        float, typer.Option(help="Share of the healing that goes to the student's own replies.")
    ] = 0.1,
    teacher: Annotated[str | None, typer.Option(help="Heal from this checkpoint (default: the unpruned one).")] = None,
    tokenizer: Tokenizer = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run of the same options stopped.")] = (
        False
    ),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Checkpoint → smaller checkpoint: cut, refitted, and healed by distillation from the unpruned one."""
    from chitchat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()
    from bench.cost.probe import CostProbe
    from chitchat.errors import BadInput
    from compress.prune.options import PruneOptions
    from compress.prune.stage import plan as run_plan
    from compress.prune.stage import prune as run_pruning

    options = PruneOptions(
        keep=keep,
        max_mb=max_mb,
        max_ms_per_token=max_ms_per_token,
        layers=layers,
        width=width,
        ffn=ffn,
        vocab=vocab,
        context=context,
        candidates=candidates,
        scheme=scheme,
        importance=importance,
        no_refit=no_refit,
        heal_epochs=heal_epochs,
        heal_minutes=heal_minutes,
        heal_loss=heal_loss,
        heal_labels=heal_labels,
        own_replies=own_replies,
        teacher=teacher,
        tokenizer=tokenizer,
        seed=seed,
    )
    if plan:
        figures = run_plan(checkpoint, data, options, CostProbe.of(checkpoint, scheme, tokenizer))
        show_table(figures["candidates"])
        show(figures, as_json)
        return
    if out is None:
        raise BadInput("--out: say where the smaller checkpoint goes, or --plan to see what the budget buys")
    clock = CostProbe.of(checkpoint, scheme, tokenizer)
    show(run_pruning(checkpoint, data, out, options, resume=resume, clock=clock, stopwatch=stopwatch), as_json)


@app.command()
def quantize(
    checkpoint: Checkpoint,
    data: DataOption,
    out: Annotated[Path, Out("the quantized checkpoint")],
    scheme: Annotated[str, typer.Option(help="Integers: w8, w8a8, w4, or auto (4 and 8 bits within --max-kl).")],
    method: Annotated[
        str, typer.Option(help="How the integers are decided: rtn, mse (scales searched), gptq, kd (gptq, fine-tuned).")
    ] = "gptq",
    block_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale (default: 128 for w8 and w8a8, 64 for w4).")
    ] = None,
    max_kl: Annotated[float | None, typer.Option(help="What auto may lose, nats per held-out token.")] = None,
    kd_minutes: Annotated[
        float, typer.Option(help="Minutes of the fine-tune of kd; gptq before it comes on top.")
    ] = 4.0,
    tokenizer: Tokenizer = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fine-tune (kd) that was stopped.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Checkpoint → checkpoint of blockwise integers, checked on held-out conversations."""
    from chitchat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()
    from compress.quantize.options import QuantizeOptions
    from compress.quantize.stage import quantize as run_quantization

    options = QuantizeOptions(
        scheme=scheme,
        method=method,
        block_size=block_size,
        max_kl=max_kl,
        kd_minutes=kd_minutes,
        seed=seed,
        tokenizer=tokenizer,
    )
    figures = run_quantization(checkpoint, data, out, options, resume=resume, stopwatch=stopwatch)
    show(figures | _pace(out), as_json)


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, Out("the bundle")],
    target: Annotated[
        str, typer.Option(help="cpu or cuda (our graphs), cpu+cuda (both), portable (standard ONNX, through optimum).")
    ] = "cpu",
    kv: Annotated[
        str, typer.Option(help="Numbers of the cpu graph's KV cache: float32, or int8 (calibrated on --data).")
    ] = "float32",
    genai: Annotated[bool, typer.Option("--genai", help="Add what onnxruntime-genai reads.")] = False,
    portable_python: PortablePython = None,
    data: MaybeData = None,
    tokenizer: Tokenizer = None,
    dialogue: DialogueFamily = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Checkpoint → ONNX graph with an in-place KV cache → bundle, once it proved equal to torch."""
    from export.stage import export as run_export

    figures = run_export(
        checkpoint,
        out,
        target=target,
        data=data,
        seed=seed,
        dialogue=dialogue,
        kv=kv,
        genai=genai,
        tokenizer=tokenizer,
        portable_python=portable_python,
    )
    if figures["scheme"] != "fp32" and "cpu" in target:
        figures |= _pace(Path(checkpoint))
    show(figures, as_json)


@app.command("eval")
def evaluate(
    model: Model,
    data: DataOption,
    teacher: Annotated[
        str | None, typer.Option(help="Compare with this model of the same vocabulary: KL, top-1, ratios.")
    ] = None,
    max_tokens: MaxTokens = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Replies drawn to held-out prompts (default: 200, or as many as there are); 0: none.", min=0),
    ] = None,
    tokenizer: Tokenizer = None,
    threads: Threads = None,
    seed: Unused = 0,
    as_json: Json = False,
) -> None:
    """Quality on held-out conversations and the health of its replies, through the runtime that ships."""
    from bench.evaluate.measure import evaluate as run_evaluation

    figures = run_evaluation(
        model, data, max_tokens=max_tokens, threads=threads, teacher=teacher, samples=samples, tokenizer=tokenizer
    )
    show(figures, as_json)


@app.command()
def bench(
    models: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints, quantized checkpoints, bundles or hub ids.")
    ] = None,
    out: Annotated[Path | None, Out("the report")] = None,
    data: MaybeData = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(help="New tokens of a reply.", min=2)] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cpu,cuda: a row on each.")] = "cpu",
    repetitions: Annotated[int, typer.Option(help="Rounds; each runs every model once, in turn.")] = 7,
    threads: Threads = None,
    max_tokens: MaxTokens = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also whole replies, several turns, conversations at once, and sweeps.")
    ] = False,
    peers: Annotated[
        str | None, typer.Option(help="Tools that run the first model too: all, or some as llama.cpp:Q8_0,ctranslate2.")
    ] = None,
    peers_python: Annotated[
        str | None, typer.Option(help="The interpreter that has them (default: PEERS_PYTHON, or .venv-peers).")
    ] = None,
    portable_python: PortablePython = None,
    tokenizer: Tokenizer = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two report.json: what changed beyond noise.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Latency, memory and quality side by side, each model in its own process; the first one is the yardstick."""
    from chitchat.errors import BadInput

    if compare is not None:
        from bench.report.compare import compare as run_comparison

        found = run_comparison(*compare)
        print("\n".join(found.lines()))
        show(found.as_json(), as_json)
        return
    if out is None:
        raise BadInput("--out: say where the report goes")
    from bench.report.document import print_table
    from bench.run.options import BenchOptions
    from bench.run.stage import bench as run_bench

    work = BenchOptions(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        device=device,
        repetitions=repetitions,
        threads=threads,
        max_tokens=max_tokens,
        seed=seed,
        full=full,
        peers=peers,
        peers_python=peers_python,
        tokenizer=tokenizer,
        portable_python=portable_python,
    )
    report = run_bench(models or [], out, data, work)
    print_table(report)
    show({"out": str(out), "rows": report["rows"]}, as_json)
    if report["partial"]:
        raise typer.Exit(INTERRUPTED)


@app.command()
def chat(
    model: Model,
    temperature: Temperature = 0.8,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.1,
    no_repeat_ngram: NoRepeatNgram = 0,
    length: Annotated[int, typer.Option(help="Tokens of a reply at most.", min=1)] = 64,
    tokenizer: Tokenizer = None,
    dialogue: DialogueFamily = None,
    seed: MaybeSeed = None,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """A conversation in the terminal."""
    from bench.models.open import open_model
    from serve.options import SamplingOptions
    from serve.terminal import run_terminal

    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
        max_new_tokens=length,
        seed=seed,
    )
    opened = open_model(model, dialogue, tokenizer)
    generator = opened.generator(threads, device)
    opened.announce(device)
    replies = run_terminal(generator, opened.codec(), options)
    if as_json:
        show({"model": model, "replies": replies}, as_json)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option(help="What was said (default: nothing; whole conversations are drawn freely).")
    ] = None,
    samples: Annotated[int, typer.Option(help="Texts to draw.", min=1)] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a text at most.", min=1)] = 64,
    temperature: Temperature = 1.0,
    top_k: TopK = 40,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    no_repeat_ngram: NoRepeatNgram = 0,
    tokenizer: Tokenizer = None,
    dialogue: DialogueFamily = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Replies to a prompt; without one, conversations out of nothing, as GPT-2's own sampler draws them."""
    from bench.models.open import open_model
    from serve.options import SamplingOptions
    from serve.terminal import sample_text

    opened = open_model(model, dialogue, tokenizer)
    generator, codec = opened.generator(threads, device), opened.codec()
    texts = []
    for sample in range(samples):
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            max_new_tokens=length,
            seed=seed + sample,
        )
        texts.append(sample_text(generator, codec, options, prompt))
        print(texts[-1], flush=True)
    if as_json:
        show({"texts": texts}, as_json)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by `compress export`.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8080,
    queue: Annotated[int, typer.Option(help="Requests that may wait; one more is answered 429.", min=1)] = 16,
    slots: Annotated[int, typer.Option(help="Replies that are made at once.", min=1, max=64)] = 4,
    threads: Threads = None,
    device: Device = None,
    seed: MaybeSeed = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, url and model, once it serves.")
    ] = False,
) -> None:
    """OpenAI-compatible HTTP server over a bundle; needs no torch."""
    from serve.server import run_server

    run_server(bundle, host, port, queue, threads, slots=slots, device=device, seed=seed, as_json=as_json)


@app.command()
def info(model: Model, tokenizer: Tokenizer = None, seed: Unused = 0, as_json: Json = False) -> None:
    """What a model is: shape, parameters, bytes, dialogue format, lineage."""
    from bench.models.open import open_model

    opened = open_model(model, tokenizer=tokenizer)
    show(opened.figures(), as_json)
    opened.announce()


@app.command()
def run(
    out: Annotated[Path, Out("everything the recipe makes")],
    recipe: Annotated[Path | None, typer.Argument(help="Recipe (default: the demo that ships with compress).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every stage whose recipe names none.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """The whole pipeline of a recipe; finished stages are not run again."""
    from bench.report.document import print_table
    from chitchat_compress.pipeline.run import run as run_pipeline

    show(run_pipeline(recipe, out, seed=seed, show_report=print_table), as_json)


def _pace(quantized: Path) -> dict[str, float]:
    """Ask this machine whether the integers pay; say so where they do not, and give the figures."""
    from bench.cost.speedup import measure_speedup

    found = measure_speedup(quantized)
    if warning := found.warning():
        print(warning, file=sys.stderr, flush=True)
    return found.as_json()


def main() -> None:
    """Entry point of the console script `compress` and of `python -m chitchat_compress`."""
    from serve.quiet import silence

    silence()
    quiet_libraries()
    call(lambda: app(standalone_mode=False))
