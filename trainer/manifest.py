"""Manifests: all that a job was made from, so that it can be taken up again, repeated, and accounted for.

Written when the dataset is frozen and again after each stage; a worker that takes the job up reads it and decides
nothing a second time. It holds ids and digests of pairs and no text, so that an erasure need not look in here.
"""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from feedback.records import Method
from trainer.files import write_whole

PACKAGES = (
    "accelerate",
    "datasets",
    "heed",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
REWARD = "reward.json"
"""In a reward model's folder: what it was made from."""
WHOLE_BYTES = 64 * 2**20
"""Larger files of a base are known by size and ends: hashing 16 GB would cost a job half a minute."""


class Base(BaseModel):
    name: str
    revision: str = Field(description="Commit of a Hub model, else a digest over the folder.")
    tokenizer: str | None = Field(None, description="sha256 of tokenizer.json.")
    template: str | None = Field(None, description="sha256 of the chat template.")


class Frozen(BaseModel):
    """The dataset. `pairs` are as frozen in the ledger or read from the file; `train` and `held_out` became rows.

    All three name a pair as often as it was drawn.
    """

    digest: str
    method: Method = "dpo"
    file: str | None = Field(None, description="The uploaded file that it was read from; none for the ledger.")
    file_sha256: str | None = None
    pairs: list[str]
    train: list[str]
    held_out: list[str]
    replayed: int = 0
    dropped: dict[str, int] = Field(
        description="Lessons that are no rows, by why; the recipe adds those that it cannot fit."
    )
    shortened: int = Field(0, description="Rows whose conversation lost its oldest turns.")
    votes: int = 0
    voters: int = 0
    voted: float | None = Field(None, description="When the median new pair was voted; none if all were replayed.")


class Computing(BaseModel):
    """How the recipe was told to compute. `precision` is what auto came to, once the recipe has said so: a checkpoint
    in the one is none in the other, and the job may be taken up on another machine."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    qlora: bool = False
    processes: int = 1
    report_to: str = ""


class Checkpoint(BaseModel):
    step: int
    digest: str | None = None


class Manifest(BaseModel):
    v: Literal[1] = 1
    job: str
    served_model: str
    created: float
    dataset: Frozen
    base: Base
    parent: str | None = Field(description="Adapter that was live when the dataset was frozen; the gate's yardstick.")
    start: str | None = Field(description="Adapter whose weights training starts from; none for a fresh one.")
    half_life_pairs: float | None = Field(None, description="By which its pairs were drawn; none for a warm start.")
    hyperparameters: dict[str, int | float]
    seed: int
    computing: Computing = Field(default_factory=Computing)
    versions: dict[str, str]
    machine: str = Field(default_factory=platform.platform)
    checkpoints: list[Checkpoint] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict, description="What each finished stage took.")
    trained: str | None = Field(None, description="Digest of the trained adapter's files.")
    evaluation: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    golden: list[dict[str, Any]] = Field(default_factory=list, description="For the probe of whoever serves it.")
    adapter: str | None = None

    def write(self, folder: Path) -> None:
        write_whole(folder / "manifest.json", self.model_dump_json(indent=2).encode() + b"\n")


def read(folder: Path) -> Manifest | None:
    """None when there is none, or it cannot be read: then the frozen dataset is written again from the ledger."""
    try:
        return Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError):
        return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_base(name: str) -> Base:
    """Raises FileNotFoundError when the base is neither a folder nor in the Hub's cache."""
    folder = Path(name)
    if folder.is_dir():
        revision = _digest_of_folder(folder)
    else:
        folder = _hub_folder(name)
        revision = folder.name
    return Base(
        name=name,
        revision=revision,
        tokenizer=_digest_of_file(folder / "tokenizer.json"),
        template=_digest_of_file(folder / "chat_template.jinja"),
    )


def _hub_folder(name: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        raise FileNotFoundError(
            f"the base model {name!r} is neither a folder nor a model in the Hub's cache; set HEED_BASE_MODEL to one"
        )
    return Path(found).parent


def _digest_of_folder(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".safetensors", ".model")):
        whole.update(path.name.encode() + b"\0" + str(_digest_of_file(path)).encode())
    return whole.hexdigest()


def _digest_of_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as content:
        if size <= WHOLE_BYTES:
            return hashlib.sha256(content.read()).hexdigest()
        # A safetensors file begins with names, shapes and offsets.
        ends = content.read(WHOLE_BYTES // 2)
        content.seek(-WHOLE_BYTES // 2, 2)
        return hashlib.sha256(str(size).encode() + ends + content.read()).hexdigest()
