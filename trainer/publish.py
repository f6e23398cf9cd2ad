"""Publishing: an adapter's directory appears whole, under a name never used before, and is never changed.

Written beside and renamed into place, so vLLM and a crash see all of it or nothing. Publishing the same files under
the same number again finds them there, and removes what a killed worker left half-copied.
"""

import shutil
import tempfile
from pathlib import Path

from feedback.adapters import digest_of
from feedback.records import Adapter
from trainer.files import flush

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""All that is served. Checkpoints hold pickles, which nobody should load."""


class PublishedOtherwise(Exception):
    """The name is taken by other files, although it carries their digest: somebody touched them."""


def publish(source: Path, adapters: Path, served_model: str, version: int) -> tuple[str, str]:
    """Id and digest of the adapter, whose directory is `adapters / id`. Raises PublishedOtherwise, OSError."""
    adapters.mkdir(parents=True, exist_ok=True)
    for leftover in adapters.glob(f".{served_model}-v{version}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{served_model}-v{version}.", dir=adapters))
    try:
        for name in FILES:
            shutil.copyfile(source / name, beside / name)
            (beside / name).chmod(0o444)
            flush(beside / name)
        digest = digest_of(beside)
        adapter_id = Adapter.id_of(served_model, version, digest)
        beside.chmod(0o555)
        flush(beside)
        if not (adapters / adapter_id).exists():
            beside.rename(adapters / adapter_id)
            flush(adapters)
        elif (found := digest_of(adapters / adapter_id)) != digest:
            raise PublishedOtherwise(
                f"the directory {adapter_id} has digest {found[:12]} and not {digest[:12]}: "
                "somebody changed it; move it away"
            )
        return adapter_id, digest
    finally:
        if beside.exists():
            beside.chmod(0o755)
            shutil.rmtree(beside)
