"""What pages tell readers to type is typed here as it stands there, against a scripted engine."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from feedback import completions, votes
from feedback.connection import Ledger
from tests.gateways import OPERATOR, RunningGateway
from tests.processes import ROOT

ADDRESS = "http://127.0.0.1:8000"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = """set -euo pipefail
curl() { command curl --fail-with-body --silent --show-error --max-time 20 "$@"; }
"""


def sections(page: str) -> dict[str, list[tuple[str, str]]]:
    """The blocks under each heading of the page, with their languages."""
    text = (ROOT / "docs" / page).read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return {title: BLOCK.findall(part) for title, part in zip(parts[::2], parts[1::2], strict=True)}


CONNECTING = sections("connecting.md")
SCRIPTS = {title: code for title, blocks in CONNECTING.items() for language, code in blocks if language == "python"}


async def typed(gateway: RunningGateway, folder: Path, *command: str) -> str:
    """What a command printed, to whom the gateway is at the address of the pages."""
    (folder / "var").mkdir(exist_ok=True)
    (folder / "var" / "operator.key").write_text(OPERATOR)
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LLM_USER_PATH": str(folder / "llm"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks GitHub for prices
    }
    *rest, script = command
    running = await asyncio.create_subprocess_exec(
        *rest, script.replace(ADDRESS, gateway.url), env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await running.communicate()
    assert running.returncode == 0, (out + err).decode()
    return out.decode()


async def test_a_client_developer_types_the_page_from_top_to_bottom(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path
) -> None:
    blocks = [code for found in sections("clients.md").values() for language, code in found if language == "sh"]

    printed = await typed(gateway, tmp_path, "bash", "-c", SHELL + "".join(blocks))

    assert len(blocks) >= 7
    assert all(f'"object":"{kind}"' in printed for kind in ("vote", "preference", "comparison_vote")), printed
    assert "data: [DONE]" in printed
    assert printed.rstrip().endswith('"object":"chat.completion.deleted","deleted":true}')
    standing, _ = await votes.page(ledger)
    assert len(standing) == 1  # the deleted answer took the vote and the preference along


@pytest.mark.parametrize("title", SCRIPTS)
async def test_the_scripts_for_other_peoples_clients_get_an_answer_that_is_recorded(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, title: str
) -> None:
    printed = await typed(gateway, tmp_path, sys.executable, "-c", SCRIPTS[title])

    kept = [one.id for one in (await completions.page(ledger))[0]]
    assert "a scripted answer" in printed
    if "/votes" in SCRIPTS[title]:
        cast, _ = await votes.page(ledger, kept[0])
        assert len(cast) == len(kept) == 1
    else:
        assert any(answer in printed for answer in kept)


async def test_llm_is_set_up_as_the_page_says(gateway: RunningGateway, ledger: Ledger, tmp_path: Path) -> None:
    (_, models), (_, commands) = CONNECTING["llm"]
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "extra-openai-models.yaml").write_text(models.replace(ADDRESS, gateway.url))

    printed = await typed(gateway, tmp_path, "bash", "-c", SHELL + commands)

    (kept,), _ = await completions.page(ledger)
    assert "a scripted answer" in printed
    assert printed.split()[-1] == kept.id
