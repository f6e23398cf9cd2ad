"""What is known exactly when every answer can be counted: reward, divergence, leak, and the best that is possible.

Policies are probabilities (prompts, answers). Reward and divergence are those of the policy given that it answers
inside the space; what it puts outside is the leak, and is told beside them.
"""

from dataclasses import dataclass

import torch

# Up to here the optimum leans on the reward; at 64 it is the best answer alone.
STEEPEST = 64.0


@dataclass(frozen=True)
class Measured:
    reward: float
    divergence: float
    """KL(policy || reference), nats an answer."""
    leak: float
    efficiency: float
    """Reward gained over the reference, as a share of the most that can be gained at this divergence."""
    accuracy: float
    """Expected share of choices between two answers of the reference that the implicit reward agrees with."""


class Yardstick:
    """Measures policies against a reference and a reward (prompts, answers)."""

    def __init__(self, reference: torch.Tensor, rewards: torch.Tensor) -> None:
        self.reference = normalised(reference)
        self.rewards = rewards
        self.start = float((self.reference * rewards).sum(-1).mean())

    def measure(self, policy: torch.Tensor) -> Measured:
        inside = normalised(policy)
        divergence = self.divergence(inside)
        gained = self.reward(inside) - self.start
        possible = self.reward(self.best_at(divergence)) - self.start
        return Measured(
            reward=self.reward(inside),
            divergence=divergence,
            leak=1 - float(policy.sum(-1).mean()),
            efficiency=gained / possible if possible > 1e-9 else 0.0,
            accuracy=self.accuracy(inside.log() - self.reference.log()),
        )

    def reward(self, policy: torch.Tensor) -> float:
        return float((policy * self.rewards).sum(-1).mean())

    def divergence(self, policy: torch.Tensor) -> float:
        return max(0.0, float(torch.special.xlogy(policy, policy / self.reference).sum(-1).mean()))

    def optimum(self, beta: float) -> torch.Tensor:
        """reference * exp(reward / beta), normalised (DPO, equation 4)."""
        return torch.softmax(self.reference.log() + self.rewards / beta, -1)

    def best_at(self, divergence: float) -> torch.Tensor:
        """The optimum whose divergence is this: both grow as beta falls, so it is found by halving."""
        low, high = 0.0, STEEPEST
        for _ in range(50):
            middle = (low + high) / 2
            if self.divergence(self.optimum(1 / middle)) < divergence:
                low = middle
            else:
                high = middle
        return self.optimum(2 / (low + high))

    def accuracy(self, implicit: torch.Tensor) -> float:
        """Of the ceiling that `rewards` themselves reach, no policy gets more than chance allows."""
        total = 0.0
        for reference, rewards, guess in zip(self.reference, self.rewards, implicit, strict=True):
            # The likeliest answers: a thousand hold nearly everything, and their square fits in memory.
            likely = reference.topk(1000).indices
            weight = reference[likely][:, None] * reference[likely][None]
            weight.fill_diagonal_(0)
            agrees = torch.sigmoid(rewards[likely][:, None] - rewards[likely][None])
            prefers = (guess[likely][:, None] > guess[likely][None]).double()
            total += float((weight * (prefers * agrees + (1 - prefers) * (1 - agrees))).sum() / weight.sum())
        return total / len(self.reference)


def normalised(policy: torch.Tensor) -> torch.Tensor:
    return policy / policy.sum(-1, keepdim=True)
