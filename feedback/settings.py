"""Where the ledger is and how patient its readers are."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feedback.address import watched

PersonalKind = Literal["email", "phone", "card", "iban", "ip"]

SECRETS = os.environ.get("HEED_SECRETS") or None
"""Folder of files that are settings of every room as well, such as heed_operator_key: containers get secrets so, and a
file shows in no list of processes or of containers. The environment goes before them."""


class LedgerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HEED_", extra="ignore", secrets_dir=SECRETS)

    var: Path = Field(Path("var"), description="Where state lives; `heed check` looks for the live adapter there.")
    ledger_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis that keeps completions, votes, pairs, jobs and adapters: redis://HOST:PORT/DB, rediss:// "
        "with TLS, or redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB (docs/serving.md).",
    )
    redis_ca: Path | None = Field(
        None,
        description="File of authorities whose certificates a ledger or broker with TLS may show; none: those of the "
        "machine alone.",
    )
    ledger_replicas: int = Field(
        0,
        ge=0,
        description="Replicas of the ledger that have a vote before it is acknowledged. 0, as one server has none; 1 "
        "with Sentinel, so that a failover loses no vote.",
    )
    ledger_timeout_s: float = Field(
        5.0, gt=0, description="Longest wait for a connection or a reply; a chat must not hang on its record."
    )
    ledger_connections: int = Field(
        64, gt=0, description="Size of the blocking pool; under the 100 at which Redis clients commonly start to fail."
    )
    completion_ttl_days: float = Field(
        30, gt=0, description="How long a completion without a vote is kept; bounds memory by retention."
    )
    archive: str = Field(
        "",
        description="Where old completions with a vote go: a folder, or any fsspec address (s3://bucket/heed, with its "
        "fsspec driver installed). Empty for HEED_VAR/archive, which needs nothing else.",
    )
    archive_after_days: float = Field(
        30,
        ge=0,
        description="Age at which a completion with a vote moves to the archive; that of completion_ttl_days, so that "
        "nothing older is in Redis.",
    )
    archive_batch: int = Field(
        1000,
        ge=1,
        le=10_000,
        description="Most completions in a partition; deleting one of them writes the others anew, so small ones are "
        "cheap to delete from and large ones to read as a whole.",
    )
    backup_pause_ms: int = Field(
        2000,
        ge=1,
        description="Longest that writers wait for a back-up's last changes, once; less than half of "
        "ledger_timeout_s, so that none of them gives up.",
    )
    idempotency_hours: float = Field(
        24,
        gt=0,
        description="How long an Idempotency-Key is remembered; as long as Stripe's, so clients know it.",
    )
    job_lease_s: float = Field(
        15, gt=0, description="A worker silent for this long is taken for dead; heartbeats come three times as often."
    )
    held_out_share: float = Field(
        0.1, gt=0, lt=1, description="Share of conversations never trained on, by hash, so that the gate can measure."
    )
    min_pairs: int = Field(
        20, ge=1, description="Fewer pairs to train on teach noise; a job asked for then is refused."
    )
    min_thumbs: int = Field(
        50,
        ge=1,
        description="Liked answers, and as many disliked, with which a job can learn where pairs are too few; a thumb "
        "says less than a pair, and fewer are less than a dozen steps of both kinds.",
    )
    min_held_out_pairs: int = Field(
        3, ge=1, description="Fewer held-out pairs cannot tell a better adapter from a worse one."
    )

    voter_votes_per_minute: int = Field(
        120,
        ge=0,
        description="Votes one voter may give in a minute, at once or spread, 0 for any number; two a second is more "
        "than a person reads.",
    )
    key_votes_per_minute: int = Field(
        6000,
        ge=0,
        description="Votes one API key may bring in a minute, 0 for any number; a product's server votes for all its "
        "users with one key, so this only stops a loop gone wild.",
    )
    voter_share: float = Field(
        0.02,
        gt=0,
        le=1,
        description="Share of a dataset's pairs that may rest on one voter; half a percent of poisoned pairs is enough "
        "to turn a DPO adapter (arXiv 2406.12091). Among few voters it is three times an equal share.",
    )
    voter_pairs: int = Field(
        50,
        ge=0,
        description="Pairs that may rest on one voter whatever their share; a first dataset begins so.",
    )
    voter_pairs_per_conversation: int = Field(
        10,
        ge=1,
        description="Pairs of one conversation (by its first user turn) that may rest on one voter: asking the same "
        "again and again must not teach more than a chat has turns.",
    )
    key_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a dataset's pairs that may rest on one API key; 1, as one key often brings all votes.",
    )
    outlier_level: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="How often a voter as good as feedback/scores.py asks for is ever quarantined by chance, 0 to "
        "quarantine nobody; under the 1 % that honest voters should bear at most.",
    )
    honeypot_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the prompts drawn from the queue that are honeypots. 0: somebody must write them, and "
        "they take voters' time; at 0.05 who judges 200 comparisons has met ten, from which on a score counts.",
    )
    queue_traffic: bool = Field(
        False,
        description="Whether the newest prompts of users are drawn when the operator's are used up. Off: whoever asked "
        "did not ask voters to read it.",
    )

    canary_level: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Chance that anything a canary's intervals ever say is wrong, however often one looks: half of it "
        "for the up-votes, the rest for the three guards. The convention of 5 %.",
    )
    canary_margin: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of up-votes by which a canary may be worse and still go live: with 0 it has to be better, "
        "and one that is as good never ends. One vote in twenty is what nobody notices.",
    )
    canary_error_margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Share of failed answers a canary may have beyond what is live; the engine they share fails both.",
    )
    canary_refusal_margin: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of refusals (feedback/refusals.py) a canary may have beyond what is live; votes may ask for "
        "some, and one answer in twenty is more than a vote asks for by accident.",
    )
    canary_length_ratio: float = Field(
        2.0,
        gt=1,
        description="How many times longer, or shorter, a canary's answers may be. Votes for steps or for brevity move "
        "lengths by half (docs/gate.md); twice is a model that does not end.",
    )
    canary_length_tokens: int = Field(
        1024,
        ge=16,
        description="Tokens at which a canary's answers are cut for that. The interval is as wide as this makes it: "
        "about twice the longest usual answer.",
    )
    canary_min_units: int = Field(
        100,
        ge=1,
        description="Users or conversations that a canary has answered before it goes live by itself: the guards have "
        "seen nothing yet with fewer.",
    )
    canary_min_hours: float = Field(
        1,
        ge=0,
        description="Before that time it does not go live by itself: who is there in one minute is not everybody.",
    )
    canary_max_hours: float = Field(
        168, gt=0, description="When it is called undecided; a week has every hour and every day of the week in it."
    )
    canary_undecided: Literal["stop", "stay"] = Field(
        "stop",
        description="What becomes of an undecided canary with `auto`. stop: it is a candidate again, and the next one "
        "can be tried; stay: it goes on until somebody decides.",
    )
    canary_votes_per_voter: int = Field(
        5,
        ge=1,
        description="Votes of one named voter that count on each side, from as many conversations: a voter who votes "
        "100 times is not 100 opinions.",
    )
    canary_look_s: float = Field(
        2,
        gt=0,
        description="How often answers and votes are counted and judged, by one gateway; nobody waits for less.",
    )

    redact: Annotated[tuple[PersonalKind, ...], NoDecode] = Field(
        (),
        description="Personal data to take out before recording: any of email, phone, card, iban, ip, separated by "
        "commas. Off: it needs the extra [redact] (300 MB), costs CPU time for each answer, and takes numbers out of "
        "texts that may be needed to learn from them.",
    )
    redact_regions: Annotated[tuple[str, ...], NoDecode] = Field(
        ("US", "GB", "DE", "FR"),
        description="Countries whose phone numbers are known as they are dialled there; with +49 and the like all are. "
        "Each costs another look, so name those of your users.",
    )
    redact_characters: int = Field(
        100_000,
        gt=0,
        description="Most characters of one record that are looked through for personal data, 25,000 tokens or so; "
        "what is longer is not recorded. It is a quarter of a second of CPU time with a value in each sentence.",
    )

    @field_validator("redact", "redact_regions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip() not in ("", "off"))
        return value

    @field_validator("ledger_url")
    @classmethod
    def _is_a_place(cls, url: str) -> str:
        watched(url)
        return url

    @field_validator("redis_ca", mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        return value or None

    @property
    def archive_address(self) -> str:
        return self.archive or str(self.var.absolute() / "archive")
