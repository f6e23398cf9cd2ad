"""The network: each process of the house in a namespace of its own, with a cable to one switch that can be pulled.

A pulled cable drops packets and tells nobody: connections stay open and are silent, as behind a dead switch.
All of it is inside a network that the run has for itself (`go_apart`), so the machine's own stays as it is and nothing
of it outlives the run. It takes iproute2 and util-linux, and root or a kernel that lets everybody have user namespaces.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

HERE = "10.66.0.1"
"""Address of whatever runs at the switch itself: the clients, and a scripted engine."""

APART = "HEED_FAULTS_APART"


def is_apart() -> bool:
    return APART in os.environ


def apart(command: Sequence[str]) -> list[str]:
    """The command in a network of its own, and with file systems mounted for it alone."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *rights, "--net", "--mount", "--", *command]


def can_be_had() -> bool:
    """Whether this machine lets us have such a network."""
    try:
        return not subprocess.run(apart(["ip", "link"]), capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def go_apart() -> None:
    """Become the same command in a network of its own. Raises OSError where there is no `unshare`."""
    if not is_apart():
        os.environ[APART] = "1"
        command = apart(sys.orig_argv)
        os.execvp(command[0], command)


class Network:
    def __init__(self, names: Sequence[str]) -> None:
        self.addresses = {name: f"10.66.0.{number}" for number, name in enumerate(names, 2)}

    def lay(self) -> None:
        """Once in a life."""
        assert is_apart(), "the machine's own network is not to be touched"
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)  # where `ip netns` keeps its names
        _ip("link set lo up")
        _ip("link add switch type bridge")
        _ip(f"addr add {HERE}/24 dev switch")
        _ip("link set switch up")
        for name, address in self.addresses.items():
            _ip(f"netns add {name}")
            _ip(f"link add {name} type veth peer name eth0 netns {name}")
            _ip(f"link set {name} master switch up")
            _ip(f"-n {name} addr add {address}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            _ip(f"-n {name} link set lo up")

    def within(self, name: str, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", name, *command]

    def pull(self, name: str) -> None:
        _ip(f"link set {name} down")

    def plug(self, name: str) -> None:
        _ip(f"link set {name} up")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
