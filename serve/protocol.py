"""The shapes clients send: what is typed here is checked, what is listed here passes on to vLLM, the rest is refused.

vLLM ignores fields it does not know, and obeys some that reach behind the gateway (`cache_salt`, `request_id`,
`priority`, `chat_template`, `kv_transfer_params`, `vllm_xargs`): so only listed ones pass, and HEED_EXTRA_PARAMETERS.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from feedback.records import IMPORTED, Preferred, Rating, Role


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SAMPLING = _names(
    "model stream stream_options n seed stop temperature top_p top_k min_p max_tokens min_tokens frequency_penalty "
    "presence_penalty repetition_penalty length_penalty repetition_detection logit_bias logprobs logprob_token_ids "
    "prompt_logprobs allowed_token_ids bad_words stop_token_ids include_stop_str_in_output ignore_eos "
    "skip_special_tokens spaces_between_special_tokens add_special_tokens truncate_prompt_tokens truncation_side "
    "response_format structured_outputs return_token_ids return_tokens_as_token_ids thinking_token_budget echo"
)
CHAT = SAMPLING | _names(
    "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls reasoning_effort "
    "include_reasoning add_generation_prompt continue_final_message documents chat_template_kwargs"
)
TEXT = SAMPLING | {"prompt", "suffix"}

RESPONSES_EXTRAS = _names(
    "seed stop top_k min_p min_tokens frequency_penalty presence_penalty repetition_penalty logit_bias "
    "structured_outputs chat_template_kwargs"
)
"""Parameters of the engine that pass through /v1/responses as they are."""
RESPONSES = RESPONSES_EXTRAS | _names(
    "model input instructions previous_response_id stream stream_options temperature top_p max_output_tokens tools "
    "tool_choice parallel_tool_calls max_tool_calls text reasoning include top_logprobs truncation background "
    "conversation prompt context_management"
)

OURS = frozenset({"store", "metadata", "user", "prompt_cache_key"})
"""Meant for the ledger and for the choice of an engine, of no use to the engine."""

WITHOUT_EFFECT = _names(
    "modalities prediction prompt_cache_options prompt_cache_retention safety_identifier service_tier verbosity"
)
"""OpenAI's fields about billing, caching and style that have no meaning here; clients send them by habit."""

Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
MAX_CHOICES = 128
"""OpenAI's limit for `n`; each choice holds a place in the engine's batch."""


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    include_usage: bool | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None = None


class Sampling(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    user: str | None = None
    prompt_cache_key: str | None = Field(
        None, max_length=512, description="Requests with one key go to one engine, which has their beginning cached."
    )


class ChatRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class ComparisonRequest(ChatRequest):
    model: str = Field("", description="Answers twice; default: the first served model, by what is live.")
    models: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Two names of one served model, each of which answers once."
    )
    n: Annotated[int, Field(ge=1, le=1)] | None = None


class TextRequest(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    suffix: str | None = None


class ResponseRequest(BaseModel):
    """serve/responses.py says what of it is refused, and why."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    user: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: str | None = None
    background: bool | None = None


def _not_imported(voter: str) -> str:
    """Those who were imported are not scored and not capped."""
    if voter.startswith(IMPORTED):
        raise ValueError(f"a name that does not begin with {IMPORTED!r}, as those of imported opinions do")
    return voter


Index = Annotated[int, Field(ge=0, lt=2**31)]
Voter = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_not_imported)]


def _of_chat(name: str) -> str:
    return "chatcmpl-" + name.removeprefix("resp-") if name.startswith("resp-") else name


AnswerId = Annotated[
    str,
    AfterValidator(_of_chat),
    Field(description="An answer's id; the response resp-N is the completion chatcmpl-N."),
]
Text = Annotated[str, StringConstraints(max_length=20_000)]


class VoteRequest(Body):
    completion_id: AnswerId
    choice: Index = 0
    rating: Rating
    voter: Voter | None = None
    reasons: list[Annotated[str, StringConstraints(max_length=200)]] = Field(default_factory=list, max_length=20)
    comment: Text | None = None
    correction: Text | None = None


class AnswerNamed(Body):
    completion_id: AnswerId
    choice: Index = 0


class PreferenceRequest(Body):
    chosen: AnswerNamed
    rejected: AnswerNamed
    voter: Voter | None = None


class JudgementRequest(Body):
    preferred: Preferred
    voter: Voter | None = None


class DrawRequest(Body):
    """No sampling parameters: they would shape a model's answers and not a known one, and so tell them apart."""

    model: str | None = Field(None, description="Answers twice; default: the first served model, by what is live.")
    models: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    stream: bool = False
    voter: Voter | None = Field(None, description="Who will judge; default: the key. Gets each prompt once.")


class PromptRequest(Body):
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    good: str | None = Field(None, min_length=1, max_length=20_000, description="With `bad`: a honeypot.")
    bad: str | None = Field(None, min_length=1, max_length=20_000)
    model: str | None = Field(None, description="Served model; default: the first one.")

    @model_validator(mode="after")
    def _has_both(self) -> Self:
        if (self.good is None) != (self.bad is None) or (self.good is not None and self.good == self.bad):
            raise ValueError("both good and bad, and not the same, or neither")
        return self


class MetadataRequest(Body):
    metadata: Metadata


Auto = Literal["auto"]


class SupervisedHyperparameters(Body):
    """OpenAI's. What is left out, or "auto", is the recipe's to choose (trainer/hyperparameters.py)."""

    n_epochs: Annotated[int, Field(ge=1, le=100)] | Auto | None = None
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto | None = None
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | Auto | None = None


class Hyperparameters(SupervisedHyperparameters):
    """OpenAI's four for DPO."""

    beta: Annotated[float, Field(gt=0)] | Auto | None = None


class Supervised(Body):
    hyperparameters: SupervisedHyperparameters = Field(default_factory=SupervisedHyperparameters)


class Preferential(Body):
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class Method(Body):
    """OpenAI's `dpo` and `supervised`, and in their shape `unpaired`, which learns from lone thumbs, and `reward`,
    which trains a reward model on the pairs."""

    type: str
    dpo: Preferential | None = None
    supervised: Supervised | None = None
    unpaired: Preferential | None = None
    reward: Supervised | None = None
    reinforcement: dict[str, Any] | None = None


class JobRequest(Body):
    model: str
    training_file: str
    method: Method | None = Field(
        None, description="Without one, dpo where there are pairs enough, else unpaired where there are thumbs enough."
    )
    suffix: Annotated[str, StringConstraints(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Metadata | None = None
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="OpenAI's older place for them.")
    integrations: None = None
    dry_run: bool = Field(
        False,
        description="Beyond OpenAI's: answer with such a job's `plan`, its data and its cost; train nothing.",
    )


class KeyLimits(Body):
    requests_per_minute: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        None, description="Answers a minute; 0 for any number, left out for HEED_KEY_REQUESTS_PER_MINUTE."
    )
    tokens_per_minute: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        None, description="Tokens of prompts and answers a minute, in the same way."
    )


class KeyRequest(KeyLimits):
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(description="Whose it is.")
    role: Role = "client"


class ReasonRequest(Body):
    reason: Annotated[str, StringConstraints(max_length=500)] = ""


class CanaryRequest(Body):
    percent: float = Field(ge=0, le=100, description="Share of users and conversations it answers; 0 ends it.")
    auto: bool = Field(False, description="Let it go live, or back, by itself when the votes and the guards say so.")
    reason: Annotated[str, StringConstraints(max_length=500)] = ""

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.auto and self.percent == 100:
            raise ValueError("a percent under 100 with auto, or nobody is left to compare it with")
        return self


class VoterRequest(Body):
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    model: str | None = None


class RollbackRequest(Body):
    model: str | None = None
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)]
