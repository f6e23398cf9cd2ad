"""The Hugging Face Hub, and adapters on it: the two files that are served, and a card that says how they came to be.

The card is written from the adapter's record and its job's manifest. The base is named as the Hub knows it, never as a
folder of this machine.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.client import CallFailed, Client

Json = dict[str, Any]
METHODS = {
    "dpo": ("dpo", "by DPO (arXiv 2305.18290)", "preference pairs"),
    "unpaired": ("kto", "by APO-zero on single ratings (arXiv 2408.06266)", "pairs and rated answers"),
    "supervised": ("sft", "by supervised fine-tuning", "corrections"),
}
"""The card's tag and words for what was done, and with what."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def push(client: Client, var: Path, adapter_id: str, name: str, base: str, *, is_public: bool) -> str:
    """To the repository `name`, private unless asked otherwise; returns its address. Raises CallFailed."""
    record = client.get(f"/adapters/{adapter_id}")
    source = var / "adapters" / adapter_id
    if not (source / WEIGHTS).is_file():
        raise CallFailed(
            f"the files of {adapter_id} are not in {var / 'adapters'}; run this where the stack keeps its state, "
            "or name the place with HEED_VAR"
        )
    base = base or record["base_model"]
    if Path(base).is_absolute():
        base = Path(base).name
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        shutil.copyfile(source / WEIGHTS, staged / WEIGHTS)
        config = json.loads((source / CONFIG).read_text()) | {"base_model_name_or_path": base}
        (staged / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (staged / "README.md").write_text(card(record, _manifest(var, record["job"]), base))
        with reached(name) as hub:
            hub.create_repo(name, private=not is_public, exist_ok=True)
            return str(hub.upload_folder(repo_id=name, folder_path=staged))


def card(record: Json, manifest: Json, base: str) -> str:
    """A model card in the Hub's form: metadata first, then what a person asks before using an adapter."""
    metrics = "\n".join(f"| {name} | {value:g} |" for name, value in record["metrics"].items() if _is_number(value))
    asked = "\n".join(f"| {name} | {value} |" for name, value in record["hyperparameters"].items())
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    tag, done, lessons = METHODS[manifest.get("dataset", {}).get("method", "dpo")]
    reasons = "; ".join(record["gate"].get("reasons", [])) or "not judged"
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [heed, lora, {tag}, trl]
---

# {record["id"]}

A LoRA adapter for `{base}` (revision `{record["base_revision"]}`), made by Heed from what people said about its
answers, {done}: {record["pairs"]} {lessons}, from {record["votes"]} votes of
{record["voters"]} voters. Its parent is `{record["parent"] or "the base"}`.

**The gate** {"let it pass" if record["gate"].get("passed") else "did not let it pass"}: {reasons}.

| measured | |
|---|---|
{metrics}

| hyperparameter | |
|---|---|
{asked}

**Dataset** `{record["dataset_digest"]}` (sha256; the pairs themselves are not published here).
**Adapter** `{record["digest"]}` (sha256 over the files as served; `base_model_name_or_path` is rewritten here).
**Chat template** `{manifest.get("base", {}).get("template") or "unknown"}` (sha256).
**Made with** {versions or "versions unknown: the job's manifest is gone"}.

Serve it with vLLM: `vllm serve {base} --enable-lora --lora-modules {record["id"]}=PATH`.
"""


def _manifest(var: Path, job: str) -> Json:
    try:
        found: Json = json.loads((var / "jobs" / job / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def reached(name: str) -> Iterator[Any]:
    """The Hub's own client; what it says against the repository `name` meanwhile is raised as CallFailed."""
    try:
        from httpx2 import HTTPError  # what the Hub's client speaks through
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise CallFailed(f"{error.name} is not installed here; heed[cpu] and heed[gpu] have it") from error
    try:
        yield HfApi()
    except (HTTPError, OSError, ValueError) as error:
        raise CallFailed(f"the Hub did not take {name}: {error}") from error
