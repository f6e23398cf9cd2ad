"""A fleet without its machines: gateways and engines as a discrete simulation (simpy), fed by measured costs.

An engine decodes as vLLM does, in steps in which each of its running answers gets one token (continuous batching; Yu
and others, Orca, OSDI 2022): a step takes so long for the first answer and a little longer for each further one. A
gateway process is a queue with one server: its CPU. Answers stream, so each token costs the gateway as well.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from statistics import fmean, quantiles
from typing import Any

import simpy

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Costs:
    """Seconds each."""

    step_s: float
    """A decoding step of an engine with one answer."""
    answer_s: float
    """What each further answer adds to it."""
    prompt_s: float
    """What a new prompt adds to it."""
    request_s: float
    """CPU of a gateway for a request with its record, but for its tokens."""
    token_s: float
    """CPU of a gateway for a token that it passes on."""
    around_s: float = 0.0
    """What a request's first token takes besides: network, tokenizing, the client."""
    most: int = 256
    """Answers that an engine gives at once (`--max-num-seqs`); others wait there."""


@dataclass(eq=False)
class Answer:
    tokens: int
    asked: float
    gateway: "Gateway"
    first_s: float = 0.0
    whole_s: float = 0.0
    left: int = 0


@dataclass
class Gateway:
    cpu: simpy.Resource
    busy_s: float = 0.0


@dataclass
class Engine:
    waiting: list[Answer] = field(default_factory=list)
    running: list[Answer] = field(default_factory=list)
    arrival: simpy.Event | None = None
    answering_s: float = 0.0
    """Of all its answers together."""

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)


@dataclass(frozen=True)
class Outcome:
    """Of the answers that ended, without the first tenth, in which the fleet fills."""

    first_s: list[float]
    whole_s: list[float]
    gateways_busy: float
    at_once: float
    """Answers that an engine gives at once, the mean over the time and the engines."""
    unfinished: int
    """Answers under way at the end; where they are as many as were asked for within seconds, the fleet is too small."""

    def first(self, percent: int) -> float:
        return quantiles(self.first_s, n=100)[percent - 1]

    def whole(self, percent: int) -> float:
        return quantiles(self.whole_s, n=100)[percent - 1]


class Fleet:
    def __init__(self, costs: Costs, gateways: int, engines: int, seed: int = 0) -> None:
        self._env = simpy.Environment()
        self._costs = costs
        self._dice = random.Random(seed)
        self._gateways = [Gateway(simpy.Resource(self._env)) for _ in range(gateways)]
        self._engines = [Engine() for _ in range(engines)]
        self._ended: list[Answer] = []
        self._asked = 0
        for engine in self._engines:
            self._env.process(self._decode(engine))

    def run(self, per_s: float, tokens: tuple[int, int], seconds: float) -> Outcome:
        """Poisson arrivals; answers of `tokens` from the least to the most, each length as likely."""
        self._env.process(self._arrivals(per_s, tokens))
        self._env.run(until=seconds)
        kept = [answer for answer in self._ended if answer.asked >= seconds / 10]
        return Outcome(
            [answer.first_s for answer in kept],
            [answer.whole_s for answer in kept],
            fmean(gateway.busy_s for gateway in self._gateways) / seconds,
            fmean(engine.answering_s for engine in self._engines) / seconds,
            self._asked - len(self._ended),
        )

    def _arrivals(self, per_s: float, tokens: tuple[int, int]) -> Process:
        while True:
            yield self._env.timeout(self._dice.expovariate(per_s))
            gateway = self._dice.choice(self._gateways)  # workers of one socket take connections by chance
            self._asked += 1
            self._env.process(self._ask(Answer(self._dice.randint(*tokens), self._env.now, gateway)))

    def _ask(self, answer: Answer) -> Process:
        yield from self._work(answer.gateway, self._costs.request_s)
        answer.left = answer.tokens
        engine = min(self._engines, key=lambda engine: engine.load)
        engine.waiting.append(answer)
        if engine.arrival is not None and not engine.arrival.triggered:
            engine.arrival.succeed()

    def _work(self, gateway: Gateway, seconds: float) -> Process:
        if not seconds:
            return
        with gateway.cpu.request() as turn:
            yield turn
            yield self._env.timeout(seconds)
            gateway.busy_s += seconds

    def _decode(self, engine: Engine) -> Process:
        costs = self._costs
        while True:
            if not engine.load:
                engine.arrival = self._env.event()
                yield engine.arrival
            new = engine.waiting[: costs.most - len(engine.running)]
            del engine.waiting[: len(new)]
            engine.running += new
            step_s = costs.step_s + costs.answer_s * (len(engine.running) - 1) + costs.prompt_s * len(new)
            yield self._env.timeout(step_s)
            engine.answering_s += step_s * len(engine.running)
            by_gateway: dict[int, list[Answer]] = {}
            for answer in engine.running:
                answer.left -= 1
                by_gateway.setdefault(id(answer.gateway), []).append(answer)
            for answers in by_gateway.values():
                self._env.process(self._pass_on(answers))
            engine.running = [answer for answer in engine.running if answer.left]

    def _pass_on(self, answers: list[Answer]) -> Process:
        """A step's tokens of one gateway's answers: they come together, and are one piece of work."""
        is_last = [not answer.left for answer in answers]
        yield from self._work(answers[0].gateway, self._costs.token_s * len(answers))
        waited = self._env.now + self._costs.around_s
        for answer, is_ended in zip(answers, is_last, strict=True):
            if not answer.first_s:
                answer.first_s = waited - answer.asked
            if is_ended:
                answer.whole_s = waited - answer.asked
                self._ended.append(answer)
