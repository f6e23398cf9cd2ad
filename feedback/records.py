"""What the ledger keeps: one pydantic model a record, each with the version of its shape.

A reader accepts the version before its own; a newer one than it knows is refused rather than guessed at.
Times are unix seconds. Ids carry their kind.
"""

import hashlib
import json
import secrets
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Message = dict[str, Any]
Rating = Literal["up", "down"]
Source = Literal["preference", "comparison", "correction", "thumbs"]
Preferred = Literal["a", "b", "tie", "both_bad"]
Split = Literal["train", "held_out"]
Method = Literal["dpo", "unpaired", "supervised", "reward"]
JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
AdapterState = Literal["candidate", "canary", "live", "retired", "rejected"]
VoterState = Literal["active", "quarantined", "released", "banned"]
Role = Literal["client", "annotator", "operator"]


IMPORTED = "import:"
"""Names of voters of imported opinions begin so, and no client may vote by such a name (serve/protocol.py): one may
stand for a whole platform's people, so scores and caps do not hold it to one person's measure."""


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def prompt_digest(messages: list[Message], tools: list[Any] | None = None) -> str:
    """Two requests ask the same when their messages and tools are the same."""
    return digest(canonical(messages), canonical(tools or []))


def conversation_digest(messages: list[Message]) -> str:
    """Groups every turn of a conversation: the digest of its first user message."""
    first = next((m.get("content") for m in messages if m.get("role") == "user"), "")
    return digest(canonical(first))


class Record(BaseModel):
    model_config = ConfigDict(extra="ignore")
    v: Literal[1] = 1


class Choice(Record):
    index: int
    message: Message
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = Field(None, description="As the engine sampled them, with HEED_RECORD_TOKENS.")


class BestOf(Record):
    """How an answer was chosen among samples of its adapter that nobody else saw."""

    samples: int = Field(description="How many were taken; the completion's usage counts them all.")
    chosen: int = Field(description="Which of them is the answer.")
    rewards: list[float] = Field(description="Of each; none where the reward model did not tell: then it is the first.")
    reward_model: str

    @property
    def compared(self) -> int:
        return len(self.rewards) or 1


class ResponseOf(Record):
    """What the messages of an answer by /v1/responses do not tell of its request."""

    previous: str | None = Field(None, description="Id of the response it went on from.")
    has_instructions: bool = Field(False, description="Whether its first message was given as instructions.")


class Completion(Record):
    """An answer as the client got it, with all that is needed to learn from it."""

    id: str
    object: Literal["chat.completion", "text_completion"] = "chat.completion"
    served_model: str
    adapter: str = Field(description="Concrete name that answered: NAME-base or NAME-vN-SHA8.")
    created: float
    prompt_hash: str
    indexes: list[int] = Field(default_factory=list, description="Of the choices; there if a choice is.")
    messages: list[Message]
    tools: list[Any] | None = None
    choices: list[Choice]
    usage: dict[str, Any] | None = None
    params: dict[str, Any] = Field(default_factory=dict, description="Sampling parameters as the client sent them.")
    user: str | None = None
    client: str = Field("anonymous", description="Name of the key that asked, see serve/auth.py.")
    metadata: dict[str, str] | None = None
    request_id: str | None = None
    comparison: str | None = Field(None, description="Id of the comparison it is one side of.")
    adapter_digest: str | None = Field(None, description="Of the adapter's files; none for the base.")
    template: str | None = Field(None, description="sha256 of the chat template; none where it is not known.")
    prompt_token_ids: list[int] | None = Field(None, description="With HEED_RECORD_TOKENS.")
    is_honeypot: bool = Field(False, description="An operator's known answer; it teaches nothing, whatever is said.")
    redacted: dict[str, int] | None = Field(None, description="How many values of each kind HEED_REDACT took out.")
    trial: str | None = Field(None, description="Trial, side and unit where a canary ran, see feedback/canary.py.")
    best_of: BestOf | None = Field(
        None, description="There where a reward model was to choose: the best of n is another policy than the adapter."
    )
    response: ResponseOf | None = Field(None, description="There if it was asked for by /v1/responses.")

    @model_validator(mode="after")
    def _list_indexes(self) -> Self:
        self.indexes = [choice.index for choice in self.choices]
        return self

    def answer(self, index: int) -> Message | None:
        return next((c.message for c in self.choices if c.index == index), None)


class AnswerRef(Record):
    completion_id: str
    choice: int = 0

    def __str__(self) -> str:
        return f"{self.completion_id}#{self.choice}"


class Vote(Record):
    """One voter's latest opinion of one answer."""

    id: str
    completion_id: str
    choice: int = 0
    prompt_hash: str
    rating: Rating
    voter: str
    model: str = Field(description="Concrete name of the adapter that answered.")
    reasons: list[str] = Field(default_factory=list)
    comment: str | None = None
    correction: str | None = None
    key: str | None = Field(None, description="Name of the API key it came with; none where no keys are used.")
    created: float
    updated: float

    @property
    def answer(self) -> AnswerRef:
        return AnswerRef(completion_id=self.completion_id, choice=self.choice)

    @staticmethod
    def id_of(completion_id: str, choice: int, voter: str) -> str:
        return "vote-" + digest(completion_id, str(choice), voter)[:24]


class Preference(Record):
    """One voter's latest choice between two answers to one prompt."""

    id: str
    chosen: AnswerRef
    rejected: AnswerRef
    prompt_hash: str
    voter: str
    key: str | None = None
    created: float
    updated: float

    @staticmethod
    def id_of(one: AnswerRef, other: AnswerRef, voter: str) -> str:
        """The same for both orders, so that a change of mind replaces."""
        return "pref-" + digest(*sorted((str(one), str(other))), voter)[:24]


class Comparison(Record):
    """One prompt answered twice; who asked does not know which adapter is `a` and which is `b`."""

    id: str
    served_model: str
    created: float
    messages: list[Message]
    tools: list[Any] | None = None
    prompt_hash: str
    a: AnswerRef
    b: AnswerRef
    adapter_a: str
    adapter_b: str
    user: str | None = None
    is_queued: bool = Field(False, description="Its prompt came from the queue, so it may be a honeypot.")
    expected: Literal["a", "b"] | None = Field(None, description="The known answer of a honeypot.")


class QueuedPrompt(Record):
    """A prompt that voters are to judge two answers to; with a good and a bad one it is a honeypot."""

    id: str = ""
    prompt_hash: str = ""
    messages: list[Message]
    tools: list[Any] | None = None
    good: Message | None = None
    bad: Message | None = None
    user: str | None = Field(None, description="Whose prompt it was, so that their erasure finds the answers to it.")
    created: float

    @property
    def is_honeypot(self) -> bool:
        return self.good is not None


class ComparisonVote(Record):
    """One voter's latest opinion of a blind comparison."""

    id: str
    comparison_id: str
    preferred: Preferred
    a: AnswerRef
    b: AnswerRef
    voter: str
    key: str | None = None
    prompt_hash: str
    model_a: str
    model_b: str
    created: float
    updated: float

    @staticmethod
    def id_of(comparison_id: str, voter: str) -> str:
        return "cvote-" + digest(comparison_id, voter)[:24]


class Pair(Record):
    """A preference pair: one prompt, a chosen and a rejected answer, and the opinions it came from."""

    id: str
    prompt_hash: str
    prompt: list[Message]
    tools: list[Any] | None = None
    chosen: Message
    rejected: Message
    source: Source
    split: Split
    opinions: list[str] = Field(description="Ids of the opinions it rests on.")
    completions: list[str] = Field(description="Ids of the completions it quotes.")
    adapters: list[str] = Field(description="Concrete names that wrote the answers.")
    voters: list[str] = Field(default_factory=list, description="Whose opinions it rests on.")
    needed: list[str] = Field(default_factory=list, description="Those without whose opinion it would not stand.")
    keys: list[str] = Field(default_factory=list, description="Names of the API keys these came with.")
    weight: float = Field(1.0, gt=0, le=1, description="Share of the voters heard on it who agree with it.")
    created: float = Field(description="When the last opinion it rests on was given.")

    @staticmethod
    def id_of(prompt_hash: str, chosen: str, rejected: str) -> str:
        """By what it teaches: more voters, or the same texts sampled again, do not make it a new lesson."""
        return "pair-" + digest(prompt_hash, chosen, rejected)[:24]


class Unpaired(Record):
    """An answer that was rated and is in no pair, for methods that learn from single ratings (KTO)."""

    id: str
    prompt_hash: str
    answer: AnswerRef
    label: bool = Field(description="True: more voters liked it than did not.")
    split: Split
    opinions: list[str] = Field(description="Ids of the votes it rests on.")
    weight: float = Field(gt=0, le=1, description="Share of the voters who rated it that agree.")
    created: float = Field(description="When the last of these votes was given.")

    @staticmethod
    def id_of(prompt_hash: str, answer: str) -> str:
        return "unpaired-" + digest(prompt_hash, answer)[:24]


class JobError(Record):
    code: str
    message: str


class Job(Record):
    """A training run, in the words of OpenAI's fine-tuning API."""

    id: str
    served_model: str
    training_file: str = "ledger"
    trigger: Literal["operator", "pairs", "schedule", "idle"] = "operator"
    method: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    created: float
    started: float | None = None
    finished: float | None = None
    status: JobStatus = "queued"
    attempts: int = Field(0, description="How many times a worker has claimed it.")
    version: int | None = Field(None, description="Number of what it will publish; given once.")
    dataset_digest: str | None = None
    pairs: int = 0
    held_out: int = 0
    rows: int = Field(0, description="Trained on in one pass; a lesson drawn twice counts twice.")
    trained_tokens: int | None = None
    adapter: str | None = None
    reward_model: str | None = Field(None, description="What a job of method `reward` made instead: a folder's name.")
    error: JobError | None = None
    dry_run: bool = Field(False, description="It plans, and neither freezes nor trains.")
    plan: dict[str, Any] | None = Field(None, description="What a dry run found: data, settings, cost, triggers.")
    seconds: dict[str, float] = Field(default_factory=dict, description="What each finished stage took.")

    @property
    def is_open(self) -> bool:
        return self.status in ("queued", "running")


class JobEvent(Record):
    id: str
    created: float
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics", "checkpoint"] = "message"
    message: str
    data: dict[str, Any] | None = None


class TrainingFile(Record):
    """An uploaded file of preference rows; its bytes are beside the ledger (feedback/files.py)."""

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    train: int = Field(description="Rows on the training side, as split when it was uploaded.")
    held_out: int
    created: float


class StateChange(Record):
    state: AdapterState
    at: float
    reason: str


class Golden(Record):
    """What an adapter says first to a prompt of ours at temperature 0, as the workshop computed it."""

    prompt: str
    tokens: list[int] = Field(description="Ids.")
    logprobs: list[float]


class Adapter(Record):
    """What an operator must know before letting an adapter speak."""

    id: str
    served_model: str
    version: int
    digest: str = Field(description="sha256 over the adapter's files.")
    parent: str | None = None
    base_model: str
    base_revision: str
    job: str
    dataset_digest: str
    pairs: int
    votes: int = 0
    voters: int = 0
    voted: float | None = Field(None, description="When the median pair that was new to it was voted.")
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    gate: dict[str, Any] = Field(
        default_factory=dict,
        description="decision (pass, canary-only, fail), passed, reasons in words, and criteria with their numbers.",
    )
    golden: list[Golden] = Field(default_factory=list, description="Whoever serves it compares its answers.")
    state: AdapterState
    history: list[StateChange] = Field(default_factory=list)
    created: float

    @staticmethod
    def id_of(served_model: str, version: int, sha256: str) -> str:
        return f"{served_model}-v{version}-{sha256[:8]}"


class VoterChange(Record):
    """One entry of a voter's history."""

    state: VoterState
    at: float
    by: Literal["score", "operator"]
    reason: str


class Serving(Record):
    """Concrete names: `wanted` is intent, `live` answers now, `previous` answered before and stays loaded."""

    wanted: str
    live: str
    previous: str | None = None
    generation: int = 0
    reason: str = ""


class Credential(Record):
    """An API key as the ledger knows it: enough to recognise it, too little to use it."""

    id: str
    role: Role
    name: str = Field(description="Whose it is, in the operator's words.")
    digest: str = Field(description="sha256 of the key; it has 256 random bits, so no salt and no slow hash is needed.")
    requests_per_minute: int | None = Field(None, description="None: the gateway's default; 0: any number.")
    tokens_per_minute: int | None = Field(None, description="As requests_per_minute.")
    created: float
    revoked: float | None = None

    @property
    def prefix(self) -> str:
        return prefix_of(self.id)


def prefix_of(credential_id: str) -> str:
    """How a key begins, by which people tell it from others: key-3f9a1c2b is the key heed-3f9a1c2b-…"""
    return "heed-" + credential_id.removeprefix("key-")
