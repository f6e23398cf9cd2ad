"""Memory: what DPO with LoRA needs on a GPU, and how a run is made to fit before it starts.

An estimate from the shape of the base, in bytes; it needs neither a GPU nor torch. Not measured on one yet: the anchor
is a user's Llama-3-8B with batches of 4 pairs at 1024 tokens on one A10 of 24 GB (LLaMA-Factory #3716), and what is
planned leaves a tenth of the free memory alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.progress import RecipeRefused
from trainer.weights import expected_shapes

BFLOAT, FLOAT = 2, 4
# NF4 with its scales, embeddings and norms left in bfloat16: 0.6 to 0.7 in practice.
NF4 = 0.65
# Of each LoRA weight in fp32: itself, its gradient, and Adam's two moments.
TRAINED = 16
# CUDA's context, its libraries' workspaces and what the allocator cannot join.
CONTEXT = 2**30
USABLE = 0.9


@dataclass(frozen=True)
class Fit:
    """How a batch is made to fit: pairs at once, how often that makes a batch, and what is computed twice."""

    pairs_at_once: int
    accumulation: int
    is_checkpointed: bool
    bytes_needed: int


def parameters(config: Mapping[str, Any]) -> int:
    """Of a dense Llama, Qwen or Mistral with this config, within a percent."""
    linears = sum(wide_out * wide_in for wide_out, wide_in in _linears(config))
    words = config["vocab_size"] * config["hidden_size"]
    return int(linears + words * (1 if config.get("tie_word_embeddings") else 2))


def adapter_parameters(config: Mapping[str, Any], rank: int) -> int:
    return sum(rank * (wide_out + wide_in) for wide_out, wide_in in _linears(config))


def needed(
    config: Mapping[str, Any],
    *,
    rank: int,
    pairs: int,
    length: int,
    is_checkpointed: bool,
    width: int = BFLOAT,
    is_quantised: bool = False,
) -> int:
    """Bytes for steps of this many pairs, each two rows of this many tokens, in numbers of `width` bytes.

    No term for logits: TRL's LM head never holds them (with 152k words they would take 1.2 GB for each pair).
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    trained = adapter_parameters(config, rank)
    kept = CONTEXT + parameters(config) * (NF4 if is_quantised else width) + TRAINED * trained
    of_layer = width * (3 * inner + 8 * hidden)
    # With checkpointing: each layer's input, and one layer's inside while it is computed again.
    of_token = width * hidden * layers + of_layer if is_checkpointed else of_layer * layers
    return int(kept + 2 * pairs * length * of_token)


def fit(
    config: Mapping[str, Any],
    free: int,
    *,
    rank: int,
    batch: int,
    length: int,
    width: int = BFLOAT,
    is_quantised: bool = False,
) -> Fit:
    """The fastest way that fits: the whole batch without checkpointing, then with it, then in smaller parts.

    Raises RecipeRefused when not even one pair fits.
    """
    for pairs, is_checkpointed in _ways(batch):
        least = needed(
            config,
            rank=rank,
            pairs=pairs,
            length=length,
            is_checkpointed=is_checkpointed,
            width=width,
            is_quantised=is_quantised,
        )
        if least <= USABLE * free:
            return Fit(pairs, batch // pairs, is_checkpointed, least)
    would = "" if is_quantised else ", --qlora, which keeps the base in 4 bits,"
    raise RecipeRefused(
        f"The base must fit into the GPU with one pair of {length} tokens. It needs about {least / 2**30:.1f} GiB and "
        f"{free / 2**30:.1f} GiB are free, of which a tenth is left alone. A smaller base{would} a shorter "
        "--max-length or a GPU with more memory would do."
    )


def _ways(batch: int) -> Iterator[tuple[int, bool]]:
    yield batch, False
    yield from ((pairs, True) for pairs in range(batch, 0, -1) if batch % pairs == 0)


def _linears(config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(out, in) of every linear that has an adapter."""
    shapes = expected_shapes(dict(config), 1)
    for name, (_, wide_in) in shapes.items():
        if ".lora_A." in name:
            yield shapes[name.replace(".lora_A.", ".lora_B.")][0], wide_in
