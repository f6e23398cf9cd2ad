"""What all workers of a gateway count, told by whichever of them is asked.

A request for /metrics reaches any one of them. Each also answers on a socket in their parent's folder, by which the one
that is asked asks the others; every series gets the worker's number as a label, so that a restart is one counter
beginning anew. prometheus-client's own way, files that all processes map, knows no collectors and no dead workers.
"""

import asyncio
import re
import socket
from pathlib import Path

import httpx

TIMEOUT_S = 2
"""One that does not answer is left out."""

SAMPLE = re.compile(rb"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+(?: \S+)?)$")


class Siblings:
    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number

    def listen(self) -> socket.socket:
        """Replaces the socket of the worker that had this number before."""
        path = self._folder / f"{self._number}.new"
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind(str(path))
        path.rename(self._folder / f"{self._number}.sock")
        return made

    async def gather(self, own: bytes) -> bytes:
        """`own` is this worker's text; HELP and TYPE are told once."""
        others = [path for path in sorted(self._folder.glob("*.sock")) if path.stem != str(self._number)]
        told = await asyncio.gather(*(_ask(path) for path in others))
        texts = {str(self._number): own, **{path.stem: text for path, text in zip(others, told, strict=True) if text}}
        return merged(texts)


async def _ask(path: Path) -> bytes | None:
    try:
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://127.0.0.1", timeout=TIMEOUT_S
        ) as http:
            return (await http.get("/metrics", params={"own": "true"})).raise_for_status().content
    except httpx.HTTPError:
        return None


def merged(texts: dict[str, bytes]) -> bytes:
    """Texts of several workers as one: a family's samples together, as the format asks for."""
    families: dict[bytes, list[bytes]] = {}
    for worker, text in sorted(texts.items()):
        family: list[bytes] = []
        for line in text.splitlines():
            if line.startswith(b"# HELP "):
                family = families.setdefault(line.split(b" ")[2], [])
                if not family:
                    family.append(line)
            elif line.startswith(b"# TYPE "):
                if len(family) == 1:
                    family.append(line)
            elif sample := SAMPLE.match(line):
                name, labels, value = sample.groups()
                labels = (labels + b"," if labels else b"") + b'worker="%s"' % worker.encode()
                family.append(b"%s{%s} %s" % (name, labels, value))
    return b"\n".join(line for family in families.values() for line in family) + b"\n"
