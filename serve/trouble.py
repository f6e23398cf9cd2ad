"""What is not as it should be, by name, for /readyz and the log."""

import logging

log = logging.getLogger("heed.hotswap")


class Trouble(dict[str, str]):
    """Each change is logged once, however often a round finds the same."""

    def ill(self, name: str, reason: str) -> None:
        if self.get(name) != reason:
            log.warning("%s: %s", name, reason)
        self[name] = reason

    def well(self, name: str) -> None:
        if self.pop(name, None):
            log.info("%s: well again", name)
