"""Where the workshop works, when it trains and what it lets out."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from feedback.address import watched
from feedback.gpu import POLICY, STALL, STALL_S, Policy
from feedback.settings import SECRETS

SHIPPED_GUARDS = Path(__file__).parent.parent / "guards"
"""Few and plain probes of sycophancy and safety. An operator's own come on top, and one of the same name takes the
place of a shipped one."""


class WorkshopSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HEED_", extra="ignore", env_ignore_empty=True, secrets_dir=SECRETS)

    broker_url: str = Field(
        "redis://127.0.0.1:6379/1",
        description="Celery's Redis, in the spellings of HEED_LEDGER_URL; beside the ledger's database, so one server "
        "will do.",
    )
    var: Path = Field(Path("var"), description="Where jobs work and adapters are published; the gateway reads it too.")
    models: str = Field("heed", description="Served models, separated by commas; each has votes and jobs of its own.")
    base_model: str = Field(
        "", description="Folder or Hub id of the model that adapters are for; without it, the pocket model in HEED_VAR."
    )
    promote: Literal["auto", "eager", "manual"] = Field(
        "auto",
        description="Which adapters go live by themselves. auto: those that passed the gate, for the circle is to "
        "turn, and others by HEED_CANARY_PERCENT; eager: also those of which it says that an operator should look; "
        "manual: none.",
    )

    canary_percent: float = Field(
        0,
        ge=0,
        le=100,
        description="With promote=auto, share of users and conversations on whom an adapter is tried of which the gate "
        "says that it cannot tell; it goes live, or back, by itself (docs/canary.md). 0: it waits for an operator, for "
        "somebody has to vote.",
    )

    tick_s: float = Field(
        2.0, gt=0, description="How often a due job is looked for; a person waits for it after a click."
    )
    sweep_s: float = Field(600, gt=0, description="How often expired completions leave the index; nobody waits for it.")
    archive_every_s: float = Field(
        3600, gt=0, description="How often old completions move to the archive; an hour more in Redis is no burden."
    )
    train_every_pairs: int = Field(
        500,
        ge=0,
        description="New pairs that start a job by themselves, 0 for never; more than one `heed demo` gives.",
    )
    train_every_hours: float = Field(
        24,
        ge=0,
        description="Longest wait of a new pair for its job, 0 for no limit: votes are at work by the next day.",
    )
    train_when_idle_minutes: float = Field(
        0,
        ge=0,
        description="Minutes without an answer that start a job on what is new, 0 for never: where training takes the "
        "GPU that answers come from, 30 says the office is empty. Requests with store:false are not seen.",
    )
    max_attempts: int = Field(
        3, ge=1, description="Tries before a job fails; a kill or a full disk may be bad luck once."
    )

    start: Literal["base", "warm"] = Field(
        "base",
        description="What a job's adapter starts from. base: nothing, and all standing pairs take part, so that a vote "
        "withdrawn or a voter erased is out of the next adapter altogether. warm: the live adapter's weights and what "
        "is new, for bases so large that all pairs take too long. DPO's reference is the base in both cases.",
    )
    half_life_pairs: float | None = Field(
        None,
        gt=0,
        description="From the base: pairs that come after a round until its own count half; without it, by the size of "
        "the base.",
    )
    dataset_pairs: int = Field(
        20_000,
        ge=1,
        description="From the base: about how many pairs a job takes of each half; more take longer than a day's votes "
        "wait on one GPU.",
    )
    replay: float = Field(
        0.1,
        ge=0,
        description="Warm: old pairs trained on again, as a share of the new ones, so that old lessons are kept.",
    )
    other_template: Literal["drop", "take"] = Field(
        "drop",
        description="What becomes of answers given under another chat template than the base has now: trained on, they "
        "would teach words that the model never sees. `take` is for a template that changed in a comment.",
    )
    references_most: int = Field(
        100_000,
        ge=0,
        description="Rows whose log-probability under the base is remembered between jobs, 0 for none; 100 bytes each.",
    )
    near_identical: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Pairs whose answers are more alike than this (1 less the share of letters to edit) are dropped: "
        "of twenty words one differs, and most of what one answer is taught the other is taught too.",
    )
    gate_tolerance: float = Field(
        0.03, ge=0, lt=1, description="Held-out accuracy that a candidate may lose however sure the loss is."
    )
    gate_divergence: float | None = Field(
        None, gt=0, description="Nats a token that an adapter may be from the base; without it, by the base's size."
    )
    gate_drift: float = Field(
        0.05, ge=0, description="Nats a token by which preferred answers may become less likely (displacement)."
    )
    gate_voter_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a job's pairs that may rest on one voter for its adapter to go live by itself, where "
        "others vote too; 1 for any share.",
    )
    gate_win_rate: float = Field(
        0.45, ge=0, lt=0.5, description="Least win rate by the judge, as its lower bound: no worse than what is live."
    )
    guards: Path | None = Field(
        None, description="Folder of your own guards (docs/gate.md); those in guards/ are always held."
    )
    judge_url: str = Field(
        "", description="OpenAI-compatible address, with /v1, of a judge of the gate; none: nobody is asked."
    )
    judge_model: str = Field("", description="The judge's model; another family than the base's flatters it less.")
    judge_reward: Path | None = Field(
        None, description="Folder of a reward model (`python -m trainer reward`) that judges where no address is given."
    )
    judge_key: str = Field("", description="The judge's API key, if it has one.")
    max_lora_rank: int = Field(16, ge=1, description="As vLLM is started with; it refuses adapters of a higher rank.")
    beta: float | None = Field(None, gt=0, description="DPO's beta; without it, the one for a base of this size.")
    epochs: float | None = Field(None, gt=0, description="Passes over the pairs; without it, by the size of the base.")
    batch_size: int | None = Field(None, gt=0, description="Pairs in a step; without it, by the size of the base.")
    learning_rate: float | None = Field(None, gt=0, description="Peak rate; without it, by the size of the base.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="What training computes in. auto: bf16 on a GPU, and on a CPU with AMX for a base larger than the "
        "pocket model, as it takes half the time there; else fp32.",
    )
    qlora: bool = Field(False, description="Hold the base in 4 bits while training: slower, for a GPU that is small.")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that train a job together, one for each GPU of this machine; a batch must be a multiple "
        "of it. One: a LoRA of a small base leaves a second GPU idle, and on a CPU threads are cheaper.",
    )
    report_to: str = Field(
        "", description="tensorboard, trackio, mlflow, wandb, or several with commas; none: metrics are job events."
    )
    checkpoint_steps: int = Field(20, ge=1, description="Steps between checkpoints: what a crash costs at most.")
    nice: int = Field(
        10, ge=0, le=19, description="Priority of the training process: on shared cores answers go before lessons."
    )

    gpu_policy: Policy = Field("shared", description=POLICY)
    gpu_share: float = Field(
        0.45,
        gt=0,
        lt=1,
        description="As vLLM is started with (--gpu-memory-utilization); what is left is the trainer's, less 5 %.",
    )
    gpu_stall_s: float = Field(STALL_S, gt=12, description=STALL)
    gpu_awake_s: float = Field(
        30,
        ge=0,
        description="Under sleep, how long answers have the engine for themselves between two slices of training.",
    )
    first_token_p95_s: float = Field(
        10,
        ge=0,
        description="Training pauses while the p95 of the time to first token is over this, unless the GPU is its own; "
        "0 for no bound. After ten seconds without a word people leave (Nielsen's limit of attention); a product that "
        "promises less sets less.",
    )
    idle_requests_per_minute: float = Field(
        6, ge=0, description="Under idle, traffic at which training waits: more than one person trying something out."
    )
    pause_most_s: float = Field(
        14_400,
        ge=0,
        description="Longest that a job pauses in all; then it trains in spite of the traffic, for votes have to "
        "become an adapter some day. Half a working day.",
    )

    @field_validator("broker_url")
    @classmethod
    def _is_a_place(cls, url: str) -> str:
        watched(url)
        return url

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.models.split(",") if name.strip()]

    @property
    def base(self) -> str:
        """The base as recipes take it: an absolute folder where there is one, else a Hub id."""
        if not self.base_model:
            return str(self.var.resolve() / "pocket")
        return str(Path(self.base_model).resolve()) if Path(self.base_model).is_dir() else self.base_model

    @property
    def guard_folders(self) -> list[Path]:
        return [SHIPPED_GUARDS, *([self.guards.resolve()] if self.guards else [])]

    @property
    def adapters(self) -> Path:
        return self.var.resolve() / "adapters"

    @property
    def rewards(self) -> Path:
        return self.var.resolve() / "rewards"

    @property
    def references(self) -> Path:
        return self.var.resolve() / "references"

    def job_folder(self, job_id: str) -> Path:
        return self.var.resolve() / "jobs" / job_id
