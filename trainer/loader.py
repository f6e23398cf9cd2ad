"""The loader: would vLLM take this adapter? Asked of vLLM's own code, in a process that ends afterwards.

Importing it costs some seconds of CPU and it changes the process it is imported into, so this is a command of its own
(`python -m trainer loadable`) that runs beside the evaluation. Where vLLM is not installed nothing is said.
"""

import os
from pathlib import Path

from trainer import weights


def fault_of(adapter: Path, max_rank: int) -> str | None:
    """vLLM's words for why it would not; None when it would. Raises ImportError where vLLM is not installed."""
    # What it logs at import is for whoever serves.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    try:
        helper = PEFTHelper.from_local_dir(str(adapter), max_position_embeddings=None)
        helper.validate_legal(LoRAConfig(max_lora_rank=max_rank))
        LoRAModel.from_local_checkpoint(str(adapter), set(weights.LINEARS), helper, device="cpu", lora_model_id=1)
    except (ValueError, OSError, KeyError, RuntimeError, NotImplementedError) as error:
        return str(error).replace(str(adapter), adapter.name)
    return None
