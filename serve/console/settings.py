"""What the console can be told, and why each default is what it is."""

from urllib.parse import urlsplit

from pydantic import Field

from serve.auth import is_loopback
from serve.client import ClientSettings


class ConsoleSettings(ClientSettings):
    """Beside what every client of the gateway can be told."""

    console_host: str = Field(
        "127.0.0.1",
        description="Address to bind. Beyond loopback (a container) nobody acts with this machine's operator key: "
        "each visitor is asked for one.",
    )
    console_port: int = Field(7860, ge=1, le=65535, description="Port to bind; Gradio's usual one.")

    @property
    def own_key(self) -> str:
        """The operator's, for a gateway of this machine only: another one must not learn it from a wrong address.

        Read at every call: a gateway that starts beside the console writes its key after the console has begun.
        """
        is_here = is_loopback(urlsplit(self.gateway_url).hostname or "")
        return self.key if is_loopback(self.console_host) and (is_here or self.operator_key) else ""
