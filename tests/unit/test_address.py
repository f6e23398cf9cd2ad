"""Where Redis is: what a URL may say, what Celery is told of it, and that passwords stay where they are."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from feedback.address import Watched, watched, without_secrets
from feedback.settings import LedgerSettings
from tests.processes import ROOT
from trainer.broker import broker
from trainer.settings import WorkshopSettings

SENTINELS = "redis+sentinel://ann:p%40ss@one,two:26380,[::1]:26381/heed/2?sentinel_password=w%26s"


def test_sentinels_a_name_and_a_database_are_read_from_a_url() -> None:
    assert watched(SENTINELS) == Watched(
        (("one", 26379), ("two", 26380), ("::1", 26381)), "heed", 2, False, "ann", "p@ss", "w&s"
    )
    assert watched("rediss+sentinel://one/heed") == Watched((("one", 26379),), "heed", 0, True)


@pytest.mark.parametrize("url", ["redis://:secret@cache:6379/0", "rediss://cache", "unix:///run/redis.sock?db=1"])
def test_a_server_s_own_url_is_left_to_redis_py(url: str) -> None:
    assert watched(url) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+cluster://:secret@one:6379", "a Redis cluster cannot be"),
        ("redis://:secret@one:6379,two:6379/0", "names several hosts"),
        ("amqp://:secret@one", "no such kind of URL"),
        ("secret@one:6379/0", "no such kind of URL"),
        ("redis+sentinel://:secret@one:26379", "not Sentinels, the name"),
        ("redis+sentinel://:secret@one:26379/heed/first", "not Sentinels, the name"),
        ("redis+sentinel://:secret@one:26379/heed?db=1", "not Sentinels, the name"),
        ("redis+sentinel://:secret@one:port/heed", "is not a Sentinel's HOST:PORT"),
    ],
)
def test_what_cannot_be_the_ledger_or_the_broker_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        watched(url)
    for settings in (lambda: LedgerSettings(ledger_url=url), lambda: WorkshopSettings(broker_url=url)):
        with pytest.raises(ValidationError, match=why):
            settings()

    assert "secret" not in str(refused.value)


def test_a_gateway_that_is_refused_its_ledger_says_no_password() -> None:
    env = {**os.environ, "HEED_LEDGER_URL": "redis+cluster://:secret@one:6379"}

    said = subprocess.run(
        [sys.executable, "-m", "serve"], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert said.returncode == 1
    assert said.stderr.startswith("HEED_LEDGER_URL: ")
    assert "a Redis cluster cannot be the ledger" in said.stderr
    assert "secret" not in said.stderr


def test_authorities_without_a_name_are_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_REDIS_CA", "")

    assert LedgerSettings().redis_ca is None


def test_celery_is_told_the_same_in_its_own_words() -> None:
    told = broker(SENTINELS.replace("redis+", "rediss+"), None)

    assert told["broker_url"] == (
        "sentinel://ann:p%40ss@one:26379/2;sentinel://ann:p%40ss@two:26380/2;sentinel://ann:p%40ss@[::1]:26381/2"
    )
    assert told["broker_transport_options"]["master_name"] == "heed"
    asked = told["broker_transport_options"]["sentinel_kwargs"]
    assert (asked["password"], asked["ssl"], asked["ssl_cert_reqs"]) == ("w&s", True, "required")
    assert told["broker_use_ssl"] == {"ssl_cert_reqs": "required"}
    assert broker("redis://cache/1", None) == {"broker_url": "redis://cache/1"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SENTINELS, "redis+sentinel://ann:…@one,two:26380,[::1]:26381/heed/2"),
        ("redis://:secret@cache:6379/0", "redis://:…@cache:6379/0"),
        ("redis://cache:6379/0?password=secret", "redis://cache:6379/0"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
