"""Where the ledger is and how patient its readers are."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LedgerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HEED_", extra="ignore")

    var: Path = Field(Path("var"), description="Where state lives; `heed check` looks for the live adapter there.")
    ledger_url: str = Field(
        "redis://127.0.0.1:6379/0", description="Redis that keeps completions, votes, pairs, jobs and adapters."
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
    min_held_out_pairs: int = Field(
        3, ge=1, description="Fewer held-out pairs cannot tell a better adapter from a worse one."
    )
