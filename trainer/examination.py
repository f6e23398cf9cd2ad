"""The examination of a job's adapter: what is measured of it, beside what, and what the gate makes of that."""

import asyncio

from feedback import pairs, voters
from feedback.adapters import digest_of
from feedback.records import Pair
from feedback.texts import fault_of
from trainer import dataset, electorate, gate, guards, limits, manifest, sources
from trainer.arbiter import Arbiter
from trainer.child import Event, RecipeFailed, ended, run_recipe
from trainer.evaluation import Evaluation
from trainer.files import write_whole
from trainer.gate import Preflight, Verdict
from trainer.limits import Limits
from trainer.manifest import Manifest
from trainer.work import Work

EARLIER = 200
"""Held-out pairs of jobs before, newest first: known to 7 points, and measured in a second by a pocket model."""

SAYS = {"pass": "lets it pass", "canary-only": "leaves it to an operator", "fail": "says no"}


async def examine(work: Work, known: Manifest) -> Verdict:
    """Made once; the verdict stands although the settings change before the job is taken up again.

    Raises RecipeFailed, OSError.
    """
    if known.gate is not None:
        return Verdict.model_validate(known.gate)
    taught = await sources.standing(work, sorted({*known.dataset.train, *known.dataset.held_out}))
    earlier = await _earlier(work)
    write_whole(work.folder / "earlier.jsonl", dataset.Dataset([], earlier).held_out_bytes)
    measured = [pair for pair in taught if pair.split == "held_out"]
    counted = await work.patiently(lambda: voters.count(work.ledger))
    voting = electorate.of(taught, [*measured, *earlier], sum(counted.values()))
    within = await asyncio.to_thread(limits.of, known.base.name, work.settings)
    async with work.stage(known, "evaluate"):
        found, preflight = await _measure(work, known, within, has_earlier=bool(earlier))
        verdict = gate.judge(found, within, voting, preflight)
        if verdict.eta < 1:
            await asyncio.to_thread(_scale, work, verdict.eta)
        known.gate = verdict.model_dump()
        known.golden = [one.model_dump() for one in found.golden]
        known.evaluation = {"weights": found.weights, "voters": voting.model_dump(exclude={"bunches"})}
    await work.tell(
        f"The gate {SAYS[verdict.decision]}: {'; '.join(verdict.reasons)}",
        level="info" if verdict.passed else "warn",
        data={"stage": "evaluate", "seconds": known.seconds["evaluate"], **verdict.numbers},
    )
    return verdict


async def _measure(work: Work, known: Manifest, within: Limits, *, has_earlier: bool) -> tuple[Evaluation, Preflight]:
    measuring = asyncio.create_task(Arbiter(work).run(["evaluate", *_flags(work, known, within, has_earlier)], _ignore))
    # Beside it: importing vLLM takes as long as measuring.
    loading = asyncio.create_task(_load(work))
    async with ended(measuring, loading):
        await asyncio.gather(measuring, loading)
    found = Evaluation.model_validate_json((work.folder / "eval.json").read_bytes())
    preflight = loading.result()
    now = await asyncio.to_thread(manifest.describe_base, known.base.name)
    if known.trained and await asyncio.to_thread(digest_of, work.folder / "adapter") != known.trained:
        preflight.fault = "its files are not those that were trained"
    elif now.revision != known.base.revision:
        preflight.fault = "the base model was changed while the job ran"
    elif found.base and found.base != known.base.name:
        preflight.fault = "its config says that it was made for another base model than the job's"
    return found, preflight


async def _load(work: Work) -> Preflight:
    """A vLLM that cannot be imported here says nothing about the adapter."""
    flags = ["--adapter", str(work.folder / "adapter"), "--max-lora-rank", str(work.settings.max_lora_rank)]
    try:
        done = await run_recipe(["loadable", *flags], work.folder / "loadable.log", work.settings.nice, _ignore)
    except RecipeFailed as failed:
        return Preflight(trouble=str(failed))
    return Preflight(is_checked=done["is_checked"], fault=done["fault"])


async def _ignore(event: Event) -> None:
    """The last event repeats the report."""


def _flags(work: Work, known: Manifest, within: Limits, has_earlier: bool) -> list[str]:
    settings, folder = work.settings, work.folder
    flags = ["--base", known.base.name, "--adapter", str(folder / "adapter"), "--out", str(folder / "eval.json")]
    flags += ["--heldout", str(folder / "heldout.jsonl"), "--train", str(folder / "train.jsonl")]
    flags += ["--beta", f"{known.hyperparameters.get('beta', 0.1):g}", "--limits", within.model_dump_json()]
    if known.parent:
        flags += ["--live", str(settings.adapters / known.parent)]
    if has_earlier:
        flags += ["--earlier", str(folder / "earlier.jsonl")]
    for place in settings.guard_folders:
        flags += ["--guards", str(place)]
    if settings.judge_reward:
        flags += ["--judge-reward", str(settings.judge_reward.resolve())]
    if settings.judge_url:
        flags += ["--judge-url", settings.judge_url, "--judge-model", settings.judge_model]
    return flags


def expect_guards(work: Work) -> None:
    """Before anything is trained. Raises GuardsInvalid."""
    guards.read(work.settings.guard_folders)


def _scale(work: Work, eta: float) -> None:
    from trainer import weights

    weights.scale(work.folder / "adapter", eta, work.folder / "scaled")


async def _earlier(work: Work) -> list[Pair]:
    """Held-out pairs that stand from the jobs before this one: what is live was measured by them."""
    waiting = set(await work.patiently(lambda: pairs.waiting(work.ledger)))
    everything = await work.patiently(lambda: pairs.ids(work.ledger))
    learnt = await work.patiently(lambda: pairs.get_many(work.ledger, sorted(set(everything) - waiting)))
    held_out = [pair for pair in learnt if pair.split == "held_out" and fault_of(pair) is None]
    return sorted(held_out, key=lambda pair: -pair.created)[:EARLIER]
