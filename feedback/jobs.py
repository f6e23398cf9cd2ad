"""Jobs: training runs, claimed with a lease.

The ledger holds the truth and a Celery message is a nudge: a message delivered twice finds the lease and leaves. Every
write of a worker carries its lease's token, so one that was taken for dead can change nothing afterwards.
A job's JSON is written by Python; what scripts change (status, attempts, version, finished) are hash fields beside it.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, Protocol

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import JobAlreadyClaimed, JobFinished, JobLeaseLost, JobUnknown
from feedback.records import Job, JobError, JobEvent, Split


class Taught(Protocol):
    """A pair, or a rated answer that is in none."""

    @property
    def id(self) -> str: ...
    @property
    def split(self) -> Split: ...
    @property
    def opinions(self) -> list[str]: ...


EVENTS_KEPT = 10_000
"""A job logs about one event a second at most; this is hours of them in a few MB."""

DRY_RUNS = 100
"""More in a row than anybody asks for, reward models included."""

OWN_FIELDS = ("status", "attempts", "version", "finished")

# One running job per served model: only the oldest open job may be claimed, and only when nobody holds its lease.
# KEYS: job, lease, open jobs. ARGV: id, token, lease in ms.
CLAIM = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 'finished' end
if redis.call('ZRANGE', KEYS[3], 0, 0)[1] ~= ARGV[1] then return 'behind' end
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then return 'claimed' end
redis.call('HSET', KEYS[1], 'status', 'running')
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
return 'ok'
"""

# KEYS: job, lease. ARGV: token, lease in ms.
HEARTBEAT = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 'finished' end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 'ok'
"""

# KEYS: job, lease. ARGV: token, record.
SAVE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 'finished' end
redis.call('HSET', KEYS[1], 'record', ARGV[2])
return 'ok'
"""

# Freezing twice (a job taken up again) keeps the first dataset. KEYS: job, lease, the job's pairs, claims.
# ARGV: token, job id, pair ids.
FREEZE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 'finished' end
if redis.call('EXISTS', KEYS[3]) == 1 then return 'ok' end
for i = 3, #ARGV do
  redis.call('RPUSH', KEYS[3], ARGV[i])
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[2])
end
return 'ok'
"""

# A job taken up again may find other opinions behind its pairs, so the first part clears what was noted before.
# KEYS: job, lease, the job's opinions. ARGV: token, '1' for the first part, then links.
NOTE_OPINIONS = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 'finished' end
if ARGV[2] == '1' then redis.call('DEL', KEYS[3]) end
for i = 3, #ARGV do redis.call('ZADD', KEYS[3], 0, ARGV[i]) end
return 'ok'
"""

LINKS = 1000
"""Links in one script: some milliseconds, in which nobody else is answered."""

# A number is given to a job once, so a job taken up again publishes under the same one.
# KEYS: job, lease, counter. ARGV: token.
NUMBER = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
local given = redis.call('HGET', KEYS[1], 'version')
if not given then
  given = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[1], 'version', given)
end
return tonumber(given)
"""

# Ending a job frees its pairs; an adapter that learnt them takes them off the waiting list. A cancel needs no lease:
# its token is `*`.
# KEYS: job, lease, open jobs, the job's pairs, claims, waiting pairs.
# ARGV: token, id, status, time, record or '', '1' if they were learnt.
FINISH = """
if ARGV[1] ~= '*' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'unknown' end
if status ~= 'queued' and status ~= 'running' then return 'finished' end
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'finished', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'record', ARGV[5]) end
redis.call('ZREM', KEYS[3], ARGV[2])
if ARGV[1] ~= '*' then redis.call('DEL', KEYS[2]) end
for _, pair in ipairs(redis.call('LRANGE', KEYS[4], 0, -1)) do
  if redis.call('HGET', KEYS[5], pair) == ARGV[2] then redis.call('HDEL', KEYS[5], pair) end
  if ARGV[6] == '1' then redis.call('ZREM', KEYS[6], pair) end
end
return 'ok'
"""

# KEYS: job, lease. ARGV: token, attempts to take back.
RELEASE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('HINCRBY', KEYS[1], 'attempts', -ARGV[2])
return redis.call('DEL', KEYS[2])
"""

# Two schedules that look at once must not both find nothing open. KEYS: job, all jobs, open jobs.
# ARGV: id, status, record, created.
CREATE_UNLESS_OPEN = """
if redis.call('ZCARD', KEYS[3]) > 0 then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'attempts', 0, 'record', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
return 1
"""


async def create(ledger: Ledger, job: Job) -> Job:
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.hset(ledger.keys.job(job.id), mapping={"status": job.status, "attempts": 0, "record": _text(job)})
    pipe.zadd(ledger.keys.jobs, {job.id: job.created})
    pipe.zadd(ledger.keys.jobs_open, {job.id: job.created})
    await ledger.reply(pipe.execute())
    await tell(ledger, job.id, f"Job created by {job.trigger}; waiting for a worker")
    return job


async def create_unless_open(ledger: Ledger, job: Job) -> bool:
    """Create the job, unless this served model has an open one; returns whether it did."""
    keys = [ledger.keys.job(job.id), ledger.keys.jobs, ledger.keys.jobs_open]
    if not await ledger.run(CREATE_UNLESS_OPEN, keys, [job.id, job.status, _text(job), job.created]):
        return False
    await tell(ledger, job.id, f"Job created by {job.trigger}; waiting for a worker")
    return True


async def get(ledger: Ledger, job_id: str) -> Job:
    """Raises JobUnknown."""
    fields = await ledger.reply(ledger.redis.hgetall(ledger.keys.job(job_id)))
    if not fields:
        raise JobUnknown(f"no job {job_id!r}; list them at /v1/fine_tuning/jobs")
    own = {name: fields[name] for name in OWN_FIELDS if name in fields}
    return Job.model_validate({**Job.model_validate_json(fields["record"]).model_dump(), **own})


async def page(ledger: Ledger, after: str | None = None, limit: int = 20) -> tuple[list[Job], bool]:
    """Newest first, and whether more follow."""
    ids, has_more = await completions.page_of(ledger, ledger.keys.jobs, after, limit, newest_first=True)
    return [await get(ledger, i) for i in ids], has_more


async def newest_at(ledger: Ledger) -> float:
    """When the newest job that was to train an adapter was created; 0 if there is none."""
    newest, _ = await page(ledger, limit=DRY_RUNS)
    return next((job.created for job in newest if not job.dry_run and job.method.get("type") != "reward"), 0.0)


async def open_ids(ledger: Ledger) -> list[str]:
    """Jobs queued or running, oldest first."""
    return list(await ledger.reply(ledger.redis.zrange(ledger.keys.jobs_open, 0, -1)))


async def unattended(ledger: Ledger) -> str | None:
    """The oldest open job, if no worker holds its lease."""
    ids = await ledger.reply(ledger.redis.zrange(ledger.keys.jobs_open, 0, 0))
    if not ids or await ledger.reply(ledger.redis.exists(ledger.keys.job_lease(ids[0]))):
        return None
    return str(ids[0])


async def claim(ledger: Ledger, job_id: str) -> tuple[Job, str]:
    """The job and the token of its lease. Raises JobUnknown, JobFinished, JobAlreadyClaimed."""
    await get(ledger, job_id)
    token = secrets.token_hex(8)
    keys = [ledger.keys.job(job_id), ledger.keys.job_lease(job_id), ledger.keys.jobs_open]
    outcome = await ledger.run(CLAIM, keys, [job_id, token, _lease_ms(ledger)])
    if outcome == "claimed":
        raise JobAlreadyClaimed(f"another worker is at work on {job_id}")
    if outcome == "behind":
        raise JobAlreadyClaimed(f"an older job of {ledger.model!r} goes before {job_id}")
    _expect_ok(outcome, job_id)
    return await get(ledger, job_id), token


async def heartbeat(ledger: Ledger, job_id: str, token: str) -> None:
    """Raises JobLeaseLost, or JobFinished when the job was cancelled."""
    keys = [ledger.keys.job(job_id), ledger.keys.job_lease(job_id)]
    _expect_ok(await ledger.run(HEARTBEAT, keys, [token, _lease_ms(ledger)]), job_id)


async def save(ledger: Ledger, job: Job, token: str) -> None:
    """Keep what the worker learnt (started, digests, counts). Raises JobLeaseLost, JobFinished."""
    keys = [ledger.keys.job(job.id), ledger.keys.job_lease(job.id)]
    _expect_ok(await ledger.run(SAVE, keys, [token, _text(job)]), job.id)


async def freeze(ledger: Ledger, job_id: str, token: str, pair_ids: Sequence[str]) -> list[str]:
    """Claim these pairs for the job; returns the pairs it has, which are the first ones it ever froze.

    Raises JobLeaseLost, JobFinished.
    """
    keys = [
        ledger.keys.job(job_id),
        ledger.keys.job_lease(job_id),
        ledger.keys.job_pairs(job_id),
        ledger.keys.pair_claims,
    ]
    _expect_ok(await ledger.run(FREEZE, keys, [token, job_id, *pair_ids]), job_id)
    return await frozen(ledger, job_id)


async def frozen(ledger: Ledger, job_id: str) -> list[str]:
    """Ids of the pairs the job trains or trained on; empty before its dataset is frozen."""
    return list(await ledger.reply(ledger.redis.lrange(ledger.keys.job_pairs(job_id), 0, -1)))


async def note_opinions(ledger: Ledger, job_id: str, token: str, dataset: Sequence[Taught]) -> None:
    """Keep which opinions the job's rows rest on as it reads them, for lineage: a link is `OPINION SPLIT PAIR`.

    Raises JobLeaseLost, JobFinished.
    """
    keys = [ledger.keys.job(job_id), ledger.keys.job_lease(job_id), ledger.keys.job_opinions(job_id)]
    links = [f"{opinion_id} {pair.split} {pair.id}" for pair in dataset for opinion_id in pair.opinions]
    for start in range(0, len(links), LINKS):
        outcome = await ledger.run(NOTE_OPINIONS, keys, [token, int(start == 0), *links[start : start + LINKS]])
        _expect_ok(outcome, job_id)


async def number(ledger: Ledger, job_id: str, token: str) -> int:
    """The version number of the adapter this job publishes. Raises JobLeaseLost."""
    return await _number(ledger, job_id, token, ledger.keys.adapter_version)


async def reward_number(ledger: Ledger, job_id: str, token: str) -> int:
    """Of the reward model this job publishes. Raises JobLeaseLost."""
    return await _number(ledger, job_id, token, ledger.keys.reward_version)


async def _number(ledger: Ledger, job_id: str, token: str, counter: str) -> int:
    keys = [ledger.keys.job(job_id), ledger.keys.job_lease(job_id), counter]
    given = await ledger.run(NUMBER, keys, [token])
    if given == "lost":
        _expect_ok("lost", job_id)
    return int(given)


async def finish(ledger: Ledger, job: Job, token: str, status: Literal["succeeded", "failed"]) -> Job:
    """End the job. Raises JobLeaseLost, JobFinished."""
    is_learnt = status == "succeeded" and job.method.get("type") != "reward"
    _expect_ok(await _finish(ledger, job.id, token, status, _text(job), is_learnt=is_learnt), job.id)
    return await get(ledger, job.id)


async def fail(ledger: Ledger, job: Job, token: str, code: str, message: str) -> Job:
    """End the job with a reason in words. Raises JobLeaseLost, JobFinished."""
    await tell(ledger, job.id, message, level="error")
    error = JobError(code=code, message=message)
    return await finish(ledger, job.model_copy(update={"error": error}), token, "failed")


async def cancel(ledger: Ledger, job_id: str) -> Job:
    """The worker notices at its next heartbeat. Raises JobUnknown, JobFinished."""
    _expect_ok(await _finish(ledger, job_id, "*", "cancelled", ""), job_id)
    await tell(ledger, job_id, "Job cancelled", level="warn")
    return await get(ledger, job_id)


async def release(ledger: Ledger, job_id: str, token: str, *, is_spent: bool = True) -> None:
    """Give the lease back without ending the job, so that the next delivery takes it up at once.

    A worker that was only asked to leave has not failed: with `is_spent` false its attempt does not count.
    """
    keys = [ledger.keys.job(job_id), ledger.keys.job_lease(job_id)]
    await ledger.run(RELEASE, keys, [token, 0 if is_spent else 1])


async def tell(
    ledger: Ledger,
    job_id: str,
    message: str,
    *,
    level: Literal["info", "warn", "error"] = "info",
    type: Literal["message", "metrics", "checkpoint"] = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Add to the job's events."""
    now = ledger.clock()
    event = JobEvent(
        id=f"ftevent-{secrets.token_hex(12)}", created=now, level=level, type=type, message=message, data=data
    )
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.rpush(ledger.keys.job_events(job_id), event.model_dump_json(exclude_none=True))
    pipe.ltrim(ledger.keys.job_events(job_id), -EVENTS_KEPT, -1)
    await ledger.reply(pipe.execute())


async def events(ledger: Ledger, job_id: str, after: str | None = None, limit: int = 20) -> tuple[list[JobEvent], bool]:
    """Newest first, as OpenAI lists them, and whether more follow. Raises JobUnknown."""
    await get(ledger, job_id)
    texts = await ledger.reply(ledger.redis.lrange(ledger.keys.job_events(job_id), 0, -1))
    told = [JobEvent.model_validate_json(text) for text in reversed(texts)]
    start = next((i + 1 for i, event in enumerate(told) if event.id == after), 0)
    return told[start : start + limit], len(told) > start + limit


async def _finish(ledger: Ledger, job_id: str, token: str, status: str, record: str, *, is_learnt: bool = False) -> Any:
    keys = [
        ledger.keys.job(job_id),
        ledger.keys.job_lease(job_id),
        ledger.keys.jobs_open,
        ledger.keys.job_pairs(job_id),
        ledger.keys.pair_claims,
        ledger.keys.pairs_waiting,
    ]
    return await ledger.run(FINISH, keys, [token, job_id, status, ledger.clock(), record, int(is_learnt)])


def _text(job: Job) -> str:
    return job.model_dump_json(exclude_none=True, exclude=set(OWN_FIELDS))


def _lease_ms(ledger: Ledger) -> int:
    return int(ledger.settings.job_lease_s * 1000)


def _expect_ok(outcome: str, job_id: str) -> None:
    if outcome != "ok":
        _refuse(outcome, job_id)


def _refuse(outcome: str, job_id: str) -> NoReturn:
    if outcome == "lost":
        raise JobLeaseLost(f"the lease on {job_id} ran out, and another worker may have it")
    if outcome == "unknown":
        raise JobUnknown(f"no job {job_id!r}; list them at /v1/fine_tuning/jobs")
    raise JobFinished(f"{job_id} has ended already; only a queued or running job can be changed")
