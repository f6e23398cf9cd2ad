"""The Celery app: `python -m celery -A trainer.worker worker --pool solo -Q train,schedule`, and `… beat`.

A message is a nudge that carries ids; the ledger holds the truth. So messages are acknowledged when they are received
and results are kept nowhere: a nudge that is lost is given again at the next tick, one that comes twice finds the
job's lease and leaves. (Late acknowledgement would make Redis deliver a job of hours again at every visibility
timeout: celery #5935, #5306.) The solo pool is enough, as a task only watches over a child process.
This module never imports torch: the recipes do, each in a process of its own.
"""

from celery import Celery, signals

from feedback.settings import LedgerSettings
from trainer.broker import broker
from trainer.settings import WorkshopSettings
from trainer.shutdown import Shutdown

settings = WorkshopSettings()
ledger_settings = LedgerSettings()
shutdown = Shutdown()
signals.worker_shutting_down.connect(shutdown.begin, weak=False)

NUDGE_EXPIRES_S = 60
"""A nudge that waited for longer was repeated by many ticks since."""

app = Celery("trainer", include=["trainer.tasks"])
app.conf.update(
    **broker(settings.broker_url, ledger_settings.redis_ca),
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    task_acks_late=False,
    task_default_queue="schedule",
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=True,
    broker_connection_retry_on_startup=True,
    # Ticks that pile up while the worker trains are dropped unread.
    beat_schedule={
        "tick": {
            "task": "trainer.tick",
            "schedule": settings.tick_s,
            "options": {"queue": "schedule", "expires": settings.tick_s},
        },
        "sweep": {
            "task": "trainer.sweep",
            "schedule": settings.sweep_s,
            "options": {"queue": "schedule", "expires": settings.sweep_s},
        },
        "archive": {
            "task": "trainer.archive",
            "schedule": settings.archive_every_s,
            "options": {"queue": "schedule", "expires": settings.archive_every_s},
        },
    },
    # In memory: intervals have nothing worth keeping, and a schedule file torn by a kill would keep beat from starting.
    beat_scheduler="celery.beat:Scheduler",
)
