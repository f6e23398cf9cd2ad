"""What Heed relies on of a reward model behind vLLM's pooling runner, asked of the scripted one and of the real one.

The real one is the pocket model with a LoRA and a head of one number, drawn at random and loaded as docs/best-of.md
says. It is held against transformers' own numbers, and starts in 20 CPU seconds, a first time in 30.
"""

import math
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from serve.engine import Engine
from serve.scorer import Scorer, ScorerFailed
from tests.processes import ROOT, free_port, running, wait_for
from tests.scripted_scorer import scripted_scorer

PROMPT = [{"role": "user", "content": "How do I make pasta?"}]
ANSWERS = ["Boil water.", "No.", "First, boil water. Then add salt.", ""]


@dataclass
class RealScorer:
    url: str
    rewards: list[float]


@pytest.fixture(scope="module")
def real_scorer(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealScorer]:
    folder = tmp_path_factory.mktemp("scorer")
    rewards = make_reward_model(pocket, folder / "reward")
    port = free_port()
    flags = {
        "--model": str(pocket),
        "--port": str(port),
        "--host": "127.0.0.1",
        "--runner": "pooling",
        "--convert": "classify",
        "--hf-overrides": '{"num_labels": 1}',
        "--lora-modules": f"reward={folder / 'reward'}",
        "--dtype": "float32",
        "--distributed-executor-backend": "uni",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enable-lora", "--enforce-eager"]
    env = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CACHE_ROOT": str(ROOT / "var" / "cache" / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = folder / "scorer.log"
    with running(
        ["nice", "-n", "5", *command, *(part for flag in flags.items() for part in flag)], log, env
    ) as process:

        def is_healthy() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        wait_for(is_healthy, "the scorer is healthy", 240)
        yield RealScorer(f"http://127.0.0.1:{port}", rewards)


def make_reward_model(base: Path, folder: Path) -> list[float]:
    """Write one, and tell what transformers makes of ANSWERS with it."""
    torch.manual_seed(1)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    shape = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["q_proj", "down_proj"], modules_to_save=["score"])
    model = get_peft_model(model, shape).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rewards = []
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.normal_(0, 0.1)
        for answer in ANSWERS:
            chat = [*PROMPT, {"role": "assistant", "content": answer}]
            ids = tokenizer.apply_chat_template(chat, return_dict=False)
            rewards.append(model(input_ids=torch.tensor([ids])).logits.item())
    model.save_pretrained(str(folder))
    return rewards


@pytest.fixture(params=["scripted", "real"])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    if request.param == "real":
        yield request.getfixturevalue("real_scorer").url
        return
    async with scripted_scorer() as scripted:
        yield scripted.url


@pytest.fixture
async def scorer(url: str) -> AsyncIterator[Scorer]:
    scorer = Scorer(Engine(url), "reward", timeout_s=60)
    yield scorer
    await scorer.engine.close()


async def test_every_answer_has_its_reward_and_always_the_same(scorer: Scorer) -> None:
    once = await scorer.rewards(PROMPT, ANSWERS)
    again = await scorer.rewards(PROMPT, ANSWERS[::-1])

    assert len(set(once)) == len(ANSWERS)
    assert once == pytest.approx(again[::-1], abs=1e-3)


async def test_a_reward_is_the_number_itself_and_not_a_share(scorer: Scorer) -> None:
    asked = {"model": "reward", "messages": [*PROMPT, {"role": "assistant", "content": ANSWERS[0]}]}

    (reward,) = await scorer.rewards(PROMPT, ANSWERS[:1])

    async with httpx.AsyncClient(base_url=scorer.engine.url, timeout=60) as http:
        share = (await http.post("/classify", json=asked)).json()["data"][0]["probs"]
    assert share == [pytest.approx(1 / (1 + math.exp(-reward)), abs=1e-5)]


async def test_an_answer_too_long_to_score_is_a_failure_for_all(scorer: Scorer) -> None:
    with pytest.raises(ScorerFailed, match=r"400: .*maximum context length"):
        await scorer.rewards(PROMPT, ["Boil water.", "word " * 4000])


async def test_a_name_that_is_not_the_reward_models_is_a_failure(scorer: Scorer) -> None:
    scorer.model = "nobody"

    with pytest.raises(ScorerFailed, match="404"):
        await scorer.rewards(PROMPT, ANSWERS[:1])


async def test_vllm_computes_the_rewards_that_transformers_computes(real_scorer: RealScorer) -> None:
    scorer = Scorer(Engine(real_scorer.url), "reward", timeout_s=60)

    rewards = await scorer.rewards(PROMPT, ANSWERS)

    await scorer.engine.close()
    assert rewards == pytest.approx(real_scorer.rewards, abs=1e-3)
