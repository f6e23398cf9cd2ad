"""What the gateway can be told, and why each default is what it is."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serve.protocol import EXTRA_ROUTES, MAX_CHOICES

Names = Annotated[tuple[str, ...], NoDecode]


class GatewaySettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HEED_", extra="ignore", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="Address to bind; without client keys only a loopback address is taken.")
    port: int = Field(8000, ge=0, le=65535, description="Port to bind; 8000 is where people look for such a service.")
    var: Path = Field(Path("var"), description="Where state lives: adapters/ and operator.key.")
    models: Names = Field(("heed",), description="Served models, separated by commas; the first is the default.")
    engine_url: str = Field("http://127.0.0.1:8100", description="Where vLLM answers; never an address of clients.")
    engine_key: str = Field("", description="vLLM's --api-key, if it has one; on loopback it needs none.")
    base_adapter: str = Field(
        "",
        description="Zero adapter that stands for the base model. Empty: vLLM serves the base by the name NAME-base. "
        "On CPU it is needed, for vLLM there answers base requests with an adapter (vLLM #48421).",
    )
    base_model: str = Field(
        "", description="What vLLM serves; of a folder the chat template's hash is recorded with each answer."
    )
    record_tokens: bool = Field(
        False,
        description="Record token ids and log-probabilities of chat answers. Off: they make the engine's answer about "
        "seven times as large, and the ledger with it.",
    )
    operator_key: str = Field(
        "", description="Key of the operator; empty: read from var/operator.key, made if missing."
    )
    client_keys: Names = Field(
        (), description="Keys of clients, plain or as sha256:HEX; none: no key is needed, on loopback only."
    )
    allowed_hosts: Names = Field(
        (), description="More Host names to answer to without client keys; others are refused (DNS rebinding)."
    )
    extra_parameters: Names = Field(
        (), description="Engine parameters clients may send beyond the safe list; some reach behind the gateway."
    )
    extra_routes: Names = Field(
        (),
        description="Calls of vLLM beyond OpenAI's that clients may make, such as /tokenize,/detokenize. None: an "
        "engine's time that nothing is learned from is for an operator to give.",
    )
    body_limit_mb: float = Field(10, gt=0, description="Largest body; a long conversation with an image fits.")
    upload_limit_mb: float = Field(
        512,
        gt=0,
        description="Largest file of /v1/files and /v1/import, as OpenAI has it; it waits on disk.",
    )
    engine_wait_s: float = Field(
        60, ge=0, description="Longest wait for an engine that can answer; a restarted vLLM is back in 35-60 s on CPU."
    )
    engine_silence_s: float = Field(
        600, gt=0, description="Longest silence of the engine within an answer; as long as OpenAI's client waits."
    )
    reward_url: str = Field(
        "",
        description="Where a reward model answers (vLLM's pooling runner), for x-heed-best-of; never an address of "
        "clients. Empty: there is none, and it is refused; it takes a process and memory of its own.",
    )
    reward_key: str = Field(
        "", description="Key for a proxy before it; vLLM itself asks for none at /classify, whatever its --api-key."
    )
    reward_model: str = Field(
        "reward", description="Its name there, as in --lora-modules reward=FOLDER or --served-model-name reward."
    )
    reward_timeout_s: float = Field(
        10,
        gt=0,
        description="Longest wait for the rewards of one request, after which its first sample is given. A reward is "
        "one forward pass, cheaper than the answer it is about; what takes longer is down or swamped.",
    )
    best_of_max: int = Field(
        8,
        ge=2,
        le=MAX_CHOICES,
        description="Most samples for one answer. Each costs a whole answer, and how far the best of n moves from the "
        "adapter grows with log n only (ln n - (n-1)/n nats: 1.2 at 8).",
    )
    reconcile_every_s: float = Field(
        0.3, gt=0, description="How often wanted and real adapters are compared; costs one small request each time."
    )
    probe_tolerance: float = Field(
        0.05,
        gt=0,
        description="Nats a token by which an adapter may be served otherwise than the workshop computed it. bf16 "
        "differs from fp32 by 0.001 to 0.006 on pocket adapters, the base from them by 0.18 to 0.53.",
    )
    promote_wait_s: float = Field(
        60, ge=0, description="How long a promotion waits to be live before it answers; a swap takes about a second."
    )
    dry_run_wait_s: float = Field(
        30, ge=0, description="How long a dry run waits for its plan before it answers; a worker takes a second or two."
    )
    spare_adapters: int = Field(
        1, ge=0, description="Adapters kept loaded because a client named them; each takes a slot from the others."
    )

    @field_validator("models", "client_keys", "allowed_hosts", "extra_parameters", "extra_routes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("models")
    @classmethod
    def _has_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one served model, for example HEED_MODELS=heed")
        return value

    @field_validator("extra_routes")
    @classmethod
    def _are_harmless(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if refused := [path for path in value if path not in EXTRA_ROUTES]:
            raise ValueError(
                f"{refused[0]!r} is not a call that may be opened; there is {', '.join(sorted(EXTRA_ROUTES))}"
            )
        return value

    @property
    def adapters_dir(self) -> Path:
        return (self.var / "adapters").resolve()
