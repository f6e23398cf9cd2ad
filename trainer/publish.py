"""Publishing: an adapter's directory, or a reward model's, appears whole, under a name never used before, and is never
changed.

Written beside and renamed into place, so vLLM and a crash see all of it or nothing. Publishing the same files under
the same number again finds them there, and removes what a killed worker left half-copied.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from feedback.adapters import digest_of
from trainer.files import flush

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""All that is served. Checkpoints hold pickles, which nobody should load."""


class PublishedOtherwise(Exception):
    """The name is taken by other files, although it carries their digest: somebody touched them."""


def publish(source: Path, shelf: Path, stem: str, files: Sequence[str] = FILES) -> tuple[str, str]:
    """Id and digest; the directory is `shelf / id`, and the id the stem and the digest's beginning.

    Raises PublishedOtherwise, OSError.
    """
    shelf.mkdir(parents=True, exist_ok=True)
    for leftover in shelf.glob(f".{stem}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{stem}.", dir=shelf))
    try:
        for name in files:
            shutil.copyfile(source / name, beside / name)
            (beside / name).chmod(0o444)
            flush(beside / name)
        digest = digest_of(beside)
        made = f"{stem}-{digest[:8]}"
        beside.chmod(0o555)
        flush(beside)
        if not (shelf / made).exists():
            beside.rename(shelf / made)
            flush(shelf)
        elif (found := digest_of(shelf / made)) != digest:
            raise PublishedOtherwise(
                f"the directory {made} has digest {found[:12]} and not {digest[:12]}: somebody changed it; move it away"
            )
        return made, digest
    finally:
        if beside.exists():
            beside.chmod(0o755)
            shutil.rmtree(beside)
