"""What redaction finds, what it takes for personal data by mistake, and what it costs.

    python -m tests.load.bench_redaction --seed 0 --each 1000

Texts are those of tests/personal.py. Costs are CPU time of chats of a given length, one e-mail address or phone number
in every so many sentences, with the longest time for which the event loop was held up meanwhile (wall time).
"""

import argparse
import asyncio
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import psutil

from feedback.records import Choice, Completion, prompt_digest
from feedback.redaction import Redaction, absent
from feedback.settings import LedgerSettings
from tests.personal import PHONES, Sample, digits, email, samples

ALL = "email,phone,card,iban,ip"
SENTENCE = "The kite climbs when the wind comes from behind you and the line is held with a little slack in it. "


DENSITIES = ((0, "never"), (20, "in each 20th sentence"), (1, "in each sentence"), (-1, "only numbers"))


def memory_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


@dataclass
class Found:
    """Of one form: how many values were found, or look-alikes left alone; of each kind: how many spans were right."""

    right: dict[str, Counter[bool]] = field(default_factory=lambda: defaultdict(Counter))
    spans: dict[str, Counter[bool]] = field(default_factory=lambda: defaultdict(Counter))

    def recall(self, form: str) -> float:
        return self.right[form][True] / self.right[form].total()

    def precision(self, kind: str) -> float:
        return self.spans[kind][True] / self.spans[kind].total()


def measured(redaction: Redaction, some: list[Sample]) -> Found:
    found = Found()
    for sample in some:
        spans = redaction.spans(sample.text, redaction.kinds)
        hits = [s for s in spans if s.kind == sample.kind and sample.text[s.start : s.end] == sample.value]
        found.right[sample.form][bool(hits) if sample.kind else not spans] += 1
        for span in spans:
            found.spans[span.kind][span in hits] += 1
    return found


def chat(rng: random.Random, characters: int, every: int) -> Completion:
    """A prompt and an answer of half that length each; a value in each `every` sentences (0: in none, -1: no words)."""
    sentences = [
        SENTENCE + (_value(rng) if every and number % every == 0 else "")
        for number in range(max(2, characters // len(SENTENCE)))
    ]
    if every < 0:
        sentences = [digits(rng, "212 555 #### ") for _ in range(characters // 13)]
    middle = len(sentences) // 2
    messages = [{"role": "user", "content": "".join(sentences[:middle])}]
    return Completion(
        id="chatcmpl-bench",
        served_model="heed",
        adapter="heed-base",
        created=0,
        messages=messages,
        prompt_hash=prompt_digest(messages),
        choices=[Choice(index=0, message={"role": "assistant", "content": "".join(sentences[middle:])})],
    )


def _value(rng: random.Random) -> str:
    return rng.choice([email(rng), digits(rng, rng.choice(PHONES["phone, US"]))]) + ". "


async def cost(redaction: Redaction, completion: Completion, times: int) -> tuple[float, float]:
    """CPU seconds for one, least of `times`, and the longest hold-up of the loop in seconds."""
    longest, cpu = 0.0, float("inf")
    for _ in range(times):
        redacting = asyncio.ensure_future(redaction.completion(completion))
        before, last = time.process_time(), time.perf_counter()
        while not redacting.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last - 0.001), now
        await redacting
        cpu = min(cpu, time.process_time() - before)
    return cpu, longest


async def held_up_by_others(seconds: float) -> float:
    """The longest hold-up of a loop that does nothing: what the machine's other work does to it."""
    longest, last = 0.0, time.perf_counter()
    end = last + seconds
    while last < end:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last - 0.001), now
    return longest


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=1000, help="samples of each form")
    parser.add_argument("--regions", default="US,GB,DE,FR")
    parser.add_argument("--leniency", type=int, default=1, help="of phone numbers, 0 to 3")
    asked = parser.parse_args()
    before, begun = memory_mb(), time.process_time()
    with absent("torch", "transformers"):
        from feedback import recognizers

    recognizers.LENIENCY = asked.leniency
    settings = {"redact": ALL, "redact_regions": asked.regions, "redact_characters": 10**6}
    redaction = Redaction(LedgerSettings.model_validate(settings))
    redaction.load()
    print(f"loading: {time.process_time() - begun:.1f} s of CPU time, {memory_mb() - before:.0f} MB\n")

    some = samples(asked.seed, asked.each)
    found = measured(redaction, some)
    for title, is_personal in (("found", True), ("left alone", False)):
        print(f"| {title} | share |\n|---|---|")
        for form in dict.fromkeys(sample.form for sample in some if (sample.kind is not None) == is_personal):
            print(f"| {form} | {found.recall(form):.1%} |")
        print()
    print("| replaced as | of these rightly |\n|---|---|")
    for kind in redaction.kinds:
        print(f"| {kind} | {found.precision(kind):.1%} |")

    print(f"\nan idle loop is held up for at most {await held_up_by_others(5) * 1e3:.0f} ms")
    print("\n| a chat of | with a value | CPU ms | loop held up for at most, ms |\n|---|---|---|---|")
    rng = random.Random(asked.seed)
    for characters in (500, 2_000, 20_000, 100_000):
        for every, words in DENSITIES:
            cpu, longest = await cost(redaction, chat(rng, characters, every), 5 if characters <= 20_000 else 2)
            print(f"| {characters} characters | {words} | {cpu * 1e3:.2f} | {longest * 1e3:.0f} |")
    redaction.close()


if __name__ == "__main__":
    asyncio.run(main())
