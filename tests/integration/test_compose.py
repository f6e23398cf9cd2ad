"""The profile `cpu` of compose.yaml, its services up as their containers would be, turns the circle once.

A vLLM of its own, and not the run's one: what is tested is the very command line that the file gives it.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.composed import composed
from tests.containers import Containers, way_in
from tests.processes import wait_for
from trainer.habits import VOTED_TOPICS, answer, prompts_about

pytestmark = pytest.mark.timeout(420)

PROMPTS = 60  # some fall on the held-out side, and the rest trains in seconds

OPERATORS = """
HEED_TRAIN_EVERY_PAIRS=0
HEED_TICK_S=0.5
HEED_EPOCHS=2
HEED_VOTER_VOTES_PER_MINUTE=0
"""
"""The operator's heed.env: this test asks for its job, and is faster than people."""

REACHED = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"


@pytest.fixture(scope="module")
def house(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    if (user := way_in()) is None:
        reason = "namespaces can be made neither as root nor as a user here, or iproute2 is missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("compose")
    secrets = folder / "secrets"
    secrets.mkdir()
    for name in ("heed_operator_key", "heed_client_keys"):
        (secrets / name).write_text(f"{name}-of-this-test\n")
    project = composed("cpu", heed_env=OPERATORS, env={"HEED_SECRETS": str(secrets)})
    with Containers(project, folder, user) as house:
        # The run's pocket model, which `model` finds as after a first start.
        shutil.copytree(pocket, house.volume("state") / "pocket")
        house.up(deadline_s=240)
        yield house


@pytest.fixture(scope="module")
def url(house: Containers) -> str:
    return house.publish("gateway") + "/v1"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-of-this-test"}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=bearer("heed_client_keys"), timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def operator(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=bearer("heed_operator_key"), timeout=120, trust_env=False) as operator:
        yield operator


def test_the_port_asks_for_the_keys_that_the_files_hold(url: str, client: httpx.Client) -> None:
    assert httpx.get(f"{url}/models", timeout=30, trust_env=False).status_code == 401
    assert client.get("/models").status_code == 200
    assert client.get("/fine_tuning/jobs").status_code == 403


def test_what_is_outside_reaches_neither_ledger_nor_engine(house: Containers) -> None:
    def reaches(service: str, address: str, port: int) -> bool:
        return house.execute(service, ["python", "-c", REACHED, address, str(port)]).returncode == 0

    assert reaches("console", "gateway", 8000)
    assert reaches("gateway", "ledger", 6379)
    assert reaches("gateway", "engine", 8000)
    for name, network, port in (("ledger", "records", 6379), ("broker", "records", 6379), ("vllm", "engines", 8000)):
        assert not reaches("console", name, port)
        assert not reaches("console", house.address(name, network), port)
    assert not reaches("worker", house.address("vllm", "engines"), 8000)


def test_votes_become_an_adapter_that_answers(client: httpx.Client, operator: httpx.Client) -> None:
    rng = random.Random(0)
    prompts = rng.sample([(topic, prompt) for topic in VOTED_TOPICS for prompt in prompts_about(topic)], PROMPTS)

    def chat_and_vote(asked: tuple[str, str]) -> str:
        topic, prompt = asked
        body = {"model": "heed", "messages": [{"role": "user", "content": prompt}], "max_tokens": 64, "seed": 0}
        told = client.post("/chat/completions", json=body).raise_for_status().json()
        vote = {"completion_id": told["id"], "rating": "up", "voter": "ann"}
        wanted = answer(topic, "steps", random.Random(prompt))
        if wanted != told["choices"][0]["message"]["content"].strip():
            vote |= {"rating": "down", "correction": wanted}
        client.post("/votes", json=vote).raise_for_status()
        return str(told["model"])

    with ThreadPoolExecutor(8) as people:
        answered_by = set(people.map(chat_and_vote, prompts))
    job = (
        operator.post("/fine_tuning/jobs", json={"model": "heed", "training_file": "ledger"}).raise_for_status().json()
    )

    def is_over() -> bool:
        job.update(operator.get(f"/fine_tuning/jobs/{job['id']}").raise_for_status().json())
        return job["status"] in ("succeeded", "failed", "cancelled")

    wait_for(is_over, "the job ends", 180)
    assert job["status"] == "succeeded", json.dumps(job)
    adapter = job["fine_tuned_model"]
    # So few pairs let no gate judge: the operator says it.
    operator.post(f"/adapters/{adapter}/promote").raise_for_status()
    body = {"model": "heed", "messages": [{"role": "user", "content": "How do I build a kite?"}], "max_tokens": 8}
    assert answered_by == {"heed-base"}
    assert client.post("/chat/completions", json=body).json()["model"] == adapter


def test_all_stop_in_order_and_in_time_and_the_ledger_is_clean_when_it_is_back(house: Containers) -> None:
    for name in reversed(house.in_order()):
        house.stop(name)

    house.start("ledger")
    wait_for(lambda: house.is_healthy("ledger"), "the ledger is back", 30)
    house.start("gateway")  # whose container `heed check` is run in
    checked = house.execute("gateway", ["python", "heed.py", "check"])
    house.stop("gateway")
    house.stop("ledger")

    assert (checked.returncode, checked.stdout) == (0, "The ledger is clean.\n"), checked.stderr
