"""`python -m trainer`: the recipes, each the same command for a person, a test and a worker.

Imports are inside the commands: torch reads the thread count when it is imported, and `--help` needs none of it.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trainer import machine
from trainer.progress import RecipeRefused, Reporter

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Style = Annotated[
    Literal["jsonl", "bar"] | None,
    typer.Option("--progress", help="jsonl for a program; a bar where there is a terminal"),
]
Base = Annotated[str, typer.Option(help="Folder of the base model, or its Hub id")]
Out = Annotated[Path, typer.Option(help="The adapter's folder; must not exist")]
Work = Annotated[Path, typer.Option(help="Checkpoints; a file `cancel` in it stops the run")]
Init = Annotated[Path | None, typer.Option(help="Start from this adapter's weights; the reference stays the base")]
References = Annotated[Path | None, typer.Option(help="Folder where the base's log-probabilities are remembered")]

PLACES = {"base", "train", "out", "work", "references", "references_most", "report_to", "engine_share"}
"""Options that say where; the others are the recipe's hyperparameters."""
ReportTo = Annotated[
    str | None,
    typer.Option(envvar="HEED_REPORT_TO", help="tensorboard, trackio, mlflow, wandb, or several"),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"] | None,
    typer.Option(envvar="HEED_PRECISION", help="What is computed in; auto: what is faster on this machine"),
]
Qlora = Annotated[
    bool | None, typer.Option(envvar="HEED_QLORA", help="Hold the base in 4 bits: slower, for a GPU that is small")
]

EngineShare = Annotated[
    float | None, typer.Option(help="Part of the GPU's memory that vLLM holds; the run is held to what is left")
]


@app.command()
def pocket(out: Annotated[Path, typer.Option()], seed: int = 0, progress: Style = None) -> None:
    """Make the pocket model, or leave a finished one of the same recipe alone."""

    def recipe(reporter: Reporter) -> int:
        from trainer.pocket import build

        def report(step: int, steps: int, loss: float) -> None:
            reporter.emit("step", step=step, steps=steps, metrics={"loss": loss})

        made = build(out, seed, report)
        reporter.emit("done", model=str(out), made=made)
        return 0

    _run(recipe, "pocket model", progress, None)


@app.command()
def zero(
    base: Base,
    out: Annotated[Path, typer.Option()],
    lora_rank: int = 16,
    progress: Style = None,
) -> None:
    """Write an adapter that changes nothing, through which vLLM on CPU serves the base."""

    def recipe(reporter: Reporter) -> int:
        from trainer.weights import write_zero_adapter

        made = write_zero_adapter(base, out, lora_rank)
        reporter.emit("done", adapter=str(out), made=made)
        return 0

    _run(recipe, "zero adapter", progress, base)


@app.command()
def dpo(
    base: Base,
    train: Annotated[Path, typer.Option(help="JSONL of pairs: prompt, chosen, rejected")],
    out: Out,
    work: Work,
    init: Init = None,
    beta: float | None = None,
    sft_weight: float | None = None,
    sft_doubt: float | None = None,
    sft_length: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    lora_rank: int | None = None,
    seed: int | None = None,
    max_length: int | None = None,
    checkpoint_steps: int | None = None,
    qlora: Qlora = None,
    precision: Precision = None,
    references: References = None,
    references_most: int | None = None,
    report_to: ReportTo = None,
    engine_share: EngineShare = None,
    progress: Style = None,
) -> None:
    """Train an adapter on pairs. Exit code 75: interrupted and resumable, 76: cancelled."""
    _train("dpo", locals())


@app.command()
def unpaired(
    base: Base,
    train: Annotated[Path, typer.Option(help="JSONL of rated answers: prompt, completion, label")],
    out: Out,
    work: Work,
    init: Init = None,
    beta: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    lora_rank: int | None = None,
    seed: int | None = None,
    max_length: int | None = None,
    checkpoint_steps: int | None = None,
    qlora: Qlora = None,
    precision: Precision = None,
    references: References = None,
    references_most: int | None = None,
    report_to: ReportTo = None,
    engine_share: EngineShare = None,
    progress: Style = None,
) -> None:
    """Train an adapter on lone thumbs. Exit codes as of dpo."""
    _train("unpaired", locals())


@app.command()
def supervised(
    base: Base,
    train: Annotated[Path, typer.Option(help="JSONL of answers to learn by heart: prompt, completion")],
    out: Out,
    work: Work,
    init: Init = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    lora_rank: int | None = None,
    seed: int | None = None,
    max_length: int | None = None,
    checkpoint_steps: int | None = None,
    qlora: Qlora = None,
    precision: Precision = None,
    report_to: ReportTo = None,
    engine_share: EngineShare = None,
    progress: Style = None,
) -> None:
    """Train an adapter on corrections. Exit codes as of dpo."""
    _train("supervised", locals())


@app.command()
def reward(
    base: Base,
    train: Annotated[Path, typer.Option(help="JSONL of pairs: prompt, chosen, rejected")],
    out: Annotated[Path, typer.Option(help="The reward model's folder; must not exist")],
    work: Work,
    centre: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    lora_rank: int | None = None,
    seed: int | None = None,
    max_length: int | None = None,
    checkpoint_steps: int | None = None,
    precision: Precision = None,
    report_to: ReportTo = None,
    engine_share: EngineShare = None,
    progress: Style = None,
) -> None:
    """Train a model that judges answers, on pairs. Exit codes as of dpo."""
    _train("reward", locals())


@app.command()
def appraise(
    base: Base,
    reward: Annotated[Path, typer.Option(help="The reward model's folder")],
    heldout: Annotated[Path, typer.Option(help="JSONL of pairs that were not trained on")],
    progress: Style = None,
) -> None:
    """Count how often a reward model prefers what people preferred."""

    def recipe(reporter: Reporter) -> int:
        from trainer.reward import appraise

        right, pairs = appraise(base, reward, heldout)
        reporter.emit("done", right=right, pairs=pairs)
        return 0

    _run(recipe, "appraise", progress, base)


@app.command()
def evaluate(
    base: Base,
    adapter: Annotated[Path, typer.Option()],
    heldout: Annotated[Path, typer.Option(help="JSONL of pairs that were not trained on")],
    out: Annotated[Path, typer.Option(help="Where eval.json goes")],
    live: Annotated[Path | None, typer.Option(help="The adapter that is live; without it, the base")] = None,
    earlier: Annotated[Path | None, typer.Option(help="JSONL of held-out pairs of jobs before")] = None,
    train: Annotated[Path | None, typer.Option(help="JSONL of pairs that were trained on")] = None,
    guards: Annotated[list[Path] | None, typer.Option(help="Folders of guards; default, the shipped ones")] = None,
    limits: Annotated[str, typer.Option(help="JSON of trainer/limits.py; default, by the size of the base")] = "",
    judge_url: Annotated[str, typer.Option(help="OpenAI-compatible; its key is HEED_JUDGE_KEY")] = "",
    judge_model: str = "",
    judge_reward: Annotated[Path | None, typer.Option(help="A reward model's folder, to judge instead")] = None,
    beta: Annotated[float, typer.Option(help="Scale of the margin, as in training")] = 0.1,
    progress: Style = None,
) -> None:
    """Measure an adapter for the gate: on held-out pairs, by what it says, by guards and by a judge."""

    def recipe(reporter: Reporter) -> int:
        from trainer import evaluate as measuring
        from trainer import guards as guarding
        from trainer.judge import Judge, ModelJudge, by_reward
        from trainer.limits import Limits, by_width
        from trainer.settings import SHIPPED_GUARDS
        from trainer.weights import base_config

        given = Limits.model_validate_json(limits) if limits else by_width(int(base_config(base)["hidden_size"]))
        judge: Judge | None = by_reward(base, judge_reward) if judge_reward else None
        if judge_url:
            judge = ModelJudge(judge_url, judge_model, os.environ.get("HEED_JUDGE_KEY", ""))
        found = guarding.read(guards or [SHIPPED_GUARDS])
        task = measuring.Task(base, adapter, live, heldout, earlier, train, beta, given, found, judge)
        report = measuring.evaluate(task, out)
        reporter.emit("done", weights=report.weights, eta=report.taken.eta if report.taken else None)
        return 0

    _run(recipe, "evaluate", progress, base)


@app.command()
def share(
    base: Base,
    gpu_gb: Annotated[float, typer.Option(help="Memory of the GPU, in GiB")],
    gpu_share: Annotated[float | None, typer.Option(envvar="HEED_GPU_SHARE", help="vLLM's part, to be tried")] = None,
    lora_rank: int = 16,
    max_length: int = 512,
    qlora: Qlora = None,
    progress: Style = None,
) -> None:
    """Compute which parts of a GPU vLLM and the trainer can have, or say why they do not fit on it together."""

    def recipe(reporter: Reporter) -> int:
        from trainer import sharing
        from trainer.weights import base_config

        parted = sharing.part(
            base_config(base),
            int(gpu_gb * 2**30),
            rank=lora_rank,
            length=max_length,
            engine=gpu_share,
            is_quantised=bool(qlora),
        )
        shares = {"engine": parted.engine, "trainer": parted.trainer, "least": parted.least, "most": parted.most}
        reporter.emit("done", **{name: round(value, 3) for name, value in shares.items()})
        return 0

    _run(recipe, "share", progress, base)


@app.command()
def rerun(
    manifest: Annotated[Path, typer.Option(help="A job's manifest.json, or the folder with it")],
    out: Annotated[Path, typer.Option(help="Where its rows, checkpoints and adapter go")],
    progress: Style = None,
) -> None:
    """Train a job's adapter again from the ledger. Exit code 3: its bytes are others."""

    def recipe(reporter: Reporter) -> int:
        from trainer.rerun import run

        return run(manifest, out, reporter)

    _run(recipe, "rerun", progress, None)


@app.command()
def loadable(
    adapter: Annotated[Path, typer.Option()],
    max_lora_rank: Annotated[int, typer.Option(help="As vLLM is started with")] = 16,
    progress: Style = None,
) -> None:
    """Ask vLLM's own loader whether it takes an adapter."""

    def recipe(reporter: Reporter) -> int:
        from trainer.loader import fault_of

        try:
            reporter.emit("done", is_checked=True, fault=fault_of(adapter, max_lora_rank))
        except ImportError:
            reporter.emit("done", is_checked=False, fault=None)
        return 0

    _run(recipe, "loader", progress, str(adapter))


def _train(method: str, given: dict[str, Any]) -> None:
    """`given` are a command's options; those left out are the recipe's to choose."""

    def recipe(reporter: Reporter) -> int:
        from trainer.training import Run

        module = importlib.import_module(f"trainer.{method}")
        given.pop("progress")
        told = {name: value for name, value in given.items() if value is not None}
        places = {name: told.pop(name) for name in PLACES & told.keys()}
        run = Run(init=told.pop("init", None), settings=module.Hyperparameters(**told), **places)
        return int(module.train(run, reporter))

    _run(recipe, method, given["progress"], given["base"])


def _run(
    recipe: Callable[[Reporter], int], title: str, style: Literal["jsonl", "bar"] | None, base: str | None
) -> None:
    machine.die_with_parent()
    # Only the pocket model has no base: `make run` makes it before it starts anything else.
    machine.prepare_environment(base, alone=base is None)
    reporter = Reporter(style, title)
    try:
        code = recipe(reporter)
    except (RecipeRefused, OSError, ValueError) as error:
        reporter.close()
        reporter.emit("error", message=str(error))
        if os.environ.get("HEED_TRACEBACK"):
            raise
        code = 1
    reporter.close()
    sys.exit(code)


if __name__ == "__main__":
    app()
