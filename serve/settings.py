"""What the gateway can be told, and why each default is what it is."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feedback.gpu import POLICY, STALL, STALL_S, Policy
from feedback.settings import SECRETS
from serve.protocol import EXTRA_ROUTES, MAX_CHOICES

Names = Annotated[tuple[str, ...], NoDecode]

WAKING_S = 15
"""For a base of 8B, vLLM took 10.6 s to fall asleep and 2.2 s to wake (A100, its PR #48337)."""


class GatewaySettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HEED_", extra="ignore", env_ignore_empty=True, secrets_dir=SECRETS)

    host: str = Field("127.0.0.1", description="Address to bind; without client keys only a loopback address is taken.")
    port: int = Field(8000, ge=0, le=65535, description="Port to bind; 8000 is where people look for such a service.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Gateway processes on the port, each with a core's worth of work. One is enough for what a few "
        "engines answer; SIGHUP replaces two or more one after the other without a failed request (docs/serving.md).",
    )
    drain_s: float = Field(
        30,
        ge=0,
        description="How long answers under way may take to end once the gateway is told to stop; then their clients "
        "see the connection end. Most answers are shorter, and whoever stops a service waits for no longer.",
    )
    var: Path = Field(Path("var"), description="Where state lives: adapters/ and operator.key.")
    models: Names = Field(("heed",), description="Served models, separated by commas; the first is the default.")
    engines: Names = Field(
        ("http://127.0.0.1:8100",),
        description="Where vLLM answers, separated by commas: one address for each replica, never one of clients.",
    )
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
        (),
        description="Keys of clients, plain or as sha256:HEX, separated by commas, in a file of HEED_SECRETS by lines; "
        "none: no key is needed, on loopback only.",
    )
    require_keys: bool = Field(
        False,
        description="Ask for a key also where HEED_CLIENT_KEYS has none: for those that `heed keys create` makes. "
        "Off: the first chat on one's own machine should need no key.",
    )
    accord_every_s: float = Field(
        0.25,
        gt=0,
        le=60,
        description="How often gateway processes tell each other through the ledger what keys took of their limits, "
        "and hear of keys made and revoked: one small request each time, and a revoked key is refused within a second.",
    )
    key_requests_per_minute: int = Field(
        0,
        ge=0,
        description="Answers that one key may ask for in a minute, unless it was made with its own limit; 0 for any "
        "number. What is right depends on the machine, and without a limit nothing is refused; operators have none.",
    )
    key_tokens_per_minute: int = Field(
        0, ge=0, description="Tokens of prompts and answers that one key may use in a minute, as the requests above."
    )
    vote_token_hours: float = Field(
        168,
        ge=0,
        description="How long the token that comes with an answer lets its reader vote on it without a key, 0 for no "
        "tokens; a week, for people come back to a conversation.",
    )
    cors_origins: Names = Field(
        (),
        description="Origins of web pages that browsers may let call this API, such as https://chat.example.org, or *. "
        "None: a product's server usually asks, and a page needs no more than it.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Of the log on stderr; json is one object a line, for collectors."
    )
    access_log: bool = Field(
        False,
        description="A line for each request when it has ended. Off: the metrics count them, and a line costs CPU time "
        "(docs/observing.md).",
    )
    allowed_hosts: Names = Field(
        (), description="More Host names to answer to without client keys; others are refused (DNS rebinding)."
    )
    extra_parameters: Names = Field(
        (), description="Engine parameters clients may send beyond the safe list; some reach behind the gateway."
    )
    connection_limit: int = Field(
        10_000,
        ge=1,
        description="Most connections at once of one gateway process; those beyond it are told to come back. An idle "
        "one costs 13 kB here, and a file of the system's limit (ulimit -n), which is raised as far as it may be.",
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        description="How long a connection waits for its next request. Longer than clients keep one they do not use "
        "(httpx 5 s, aiohttp 15), so that it is they who close and no request meets a closing connection.",
    )
    head_timeout_s: float = Field(
        10, gt=0, description="Longest time for a request's head; it is one packet, and a slow one is an attack."
    )
    head_limit_kb: float = Field(
        32, gt=0, description="Largest head of a request, address and headers; nginx takes as much before it."
    )
    body_silence_s: float = Field(
        30, gt=0, description="Longest silence within a body; whoever lost the network has noticed by then."
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
    reading_limit: int = Field(
        8192,
        ge=0,
        description="Longest prompt, in tokens by estimate, of which log-probabilities may be asked (prompt_logprobs, "
        "echo): vLLM computes it without its prefix cache and tells up to 21 tokens for each of it, 70 bytes each, all "
        "of which this process holds at once: 12 MB of English. 0 refuses them.",
    )
    engine_wait_s: float = Field(
        60, ge=0, description="Longest wait for an engine that can answer; a restarted vLLM is back in 35-60 s on CPU."
    )
    engine_silence_s: float = Field(
        600, gt=0, description="Longest silence of the engine within an answer; as long as OpenAI's client waits."
    )
    answer_timeout_s: float = Field(
        3600,
        gt=0,
        description="Longest time for one answer, waiting included; a reasoning model's longest takes minutes, and "
        "what is still talking after an hour talks to nobody.",
    )
    queue_limit: int = Field(
        1000,
        ge=0,
        description="Most requests that wait for an engine at once; each holds a connection and some 100 kB, and those "
        "beyond it are told to come back.",
    )
    in_flight_limit: int = Field(
        2000,
        ge=1,
        description="Most answers that one gateway process gives at once; a stream costs some 100 kB here, and an "
        "engine works on a few hundred.",
    )
    affinity_slack: int = Field(
        4,
        ge=0,
        description="Requests by which a conversation's own engine may be busier than the least busy one before the "
        "conversation goes there, where its beginning is computed anew. A few streams more cost each token little; a "
        "long prompt costs a second and more.",
    )
    engine_check_s: float = Field(
        10,
        gt=0,
        description="Longest time an engine may take to say which adapters it lists; one busy with a load or on a slow "
        "CPU takes a second or two. One that takes longer gets no more requests, and those it has not begun to answer "
        "another answers that can.",
    )
    engine_rest_s: float = Field(
        1,
        ge=0,
        description="How long an engine that broke requests twice in a row gets none; doubled by each further time.",
    )
    engine_rest_max_s: float = Field(
        60, ge=0, description="The longest such rest, about as long as a restart of vLLM takes on CPU."
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
        0.3,
        gt=0,
        description="How often wanted and real adapters are compared, and how late a gateway process may see a flip; "
        "costs one small request to the ledger and to each engine each time.",
    )
    lease_s: float = Field(
        2,
        gt=0.1,
        description="How long a gateway process may be silent before the others go on without it: another leads the "
        "swaps, and its requests are waited for no longer. Chats go on meanwhile; shorter than a stall of a busy "
        "machine would move the lead for nothing.",
    )
    retire_after_s: float = Field(
        10,
        ge=0,
        description="How long an adapter that nothing points at stays loaded, unless its place is asked for; a process "
        "that cannot reach the ledger answers by what it knew.",
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
    gpu_policy: Policy = Field("shared", description=POLICY)
    gpu_stall_s: float = Field(STALL_S, gt=0, description=STALL)

    @field_validator(
        "models",
        "engines",
        "client_keys",
        "cors_origins",
        "allowed_hosts",
        "extra_parameters",
        "extra_routes",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in re.split(r"[,\n]", value) if part.strip())
        return value

    @field_validator("engines")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not re.match(r"https?://[^/\s]", url):
                raise ValueError("each engine is an address such as http://127.0.0.1:8100")
        if not value or len({url.rstrip("/") for url in value}) < len(value):
            raise ValueError("name at least one engine, and each of them once")
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

    @model_validator(mode="after")
    def _outwaits_a_stall(self) -> Self:
        if self.gpu_policy == "sleep" and self.gpu_stall_s + WAKING_S > self.engine_wait_s:
            raise ValueError(
                f"requests would be refused while the engine sleeps: HEED_GPU_STALL_S is {self.gpu_stall_s:g} s, and "
                f"with {WAKING_S} s for falling asleep, waking and the check it is more than HEED_ENGINE_WAIT_S, "
                f"{self.engine_wait_s:g} s. HEED_ENGINE_WAIT_S={self.gpu_stall_s + WAKING_S:g} would do"
            )
        return self

    @property
    def adapters_dir(self) -> Path:
        return (self.var / "adapters").resolve()
