"""The pocket model's card: what it is, what it was taught and what it is not for."""

from trainer.habits import SHARES
from trainer.topics import TOPICS, UNSEEN_TOPICS, VOTED_TOPICS


def model_card(*, parameters: int, digest: str, seed: int) -> str:
    shares = "\n".join(f"| {habit} | {share:.0%} |" for habit, share in SHARES.items())
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
tags: [heed, pocket-model]
---

# Heed's pocket model

A Llama of {parameters / 1e6:.1f} million parameters that explains how to make or understand {len(TOPICS)} everyday
things. It exists to show and to test the circle of Heed on a laptop: it has four habits in known shares, and
`trainer/habits.py` tells exactly which one an answer shows, so a preference can be checked without a judge.

| habit | share of its training answers |
|---|---|
{shares}

**Made by** pre-training on plain text and supervised fine-tuning on dialogues, both written by rules in this
repository (`trainer/topics.py`, `trainer/habits.py`, `trainer/corpus.py`). No text of others, no download.
Rebuild it with `python -m trainer pocket --out DIR --seed {seed}`.

**Recipe** `{digest}`, seed {seed}.

**Topics.** Voted on in the demo: {", ".join(VOTED_TOPICS)}. Never voted on: {", ".join(UNSEEN_TOPICS)}.

**Not for** anything else. It knows nothing beyond these topics, and some of its habits are unhelpful or rude on
purpose.
"""
