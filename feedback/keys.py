"""Every key of the ledger: pattern, type, lifetime, who writes, who reads.

A served model's keys share a hash tag, so that one Lua script may touch several of them on a Redis cluster.

key                        type    lifetime               written by                  read by
completion:ID              hash    TTL until voted on     completions, archive        votes, pairs
completion:ID:votes        set     as its votes           votes                       votes
completions                zset    trimmed on sweep       completions                 completions.page
completions:live           zset    until archived         completions, archive        expiry, archive
completions:form           string  kept                   completions.upgrade         completions.upgrade
completions:users          hash    as its completions     completions                 expiry
user:HASH:completions      set     as its completions     completions                 erasure
archive:lease              string  TTL, by heartbeat      archive                     archive
archive:wanted             string  TTL, 2 s               archive                     archive
archive:partitions         set     as their rows          archive                     archive, check
archive:dirty              hash    until tidied           archive, completions (why)  archive
archive:unvoted            zset    until due or voted on  votes.withdraw (deadlines)  archive
prompt:HASH:opinions       set     as its votes           votes                       pairs.settle
vote:ID                    string  until withdrawn        votes                       votes, pairs
votes                      zset    until withdrawn        votes                       votes.page, stats
preference:ID              string  until withdrawn        votes                       votes, pairs
voter:HASH:opinions        set     until withdrawn        votes                       erasure
comparison_vote:ID         string  until withdrawn        votes                       votes, pairs
comparison:ID              string  TTL until voted on     comparisons.record          comparisons, votes, pairs
comparison:ID:votes        set     as its votes           votes                       votes
comparisons                zset    trimmed on sweep       comparisons.record          comparisons.page
queue:ID                   string  until removed          queue                       queue
queue, queue:honeypots     zset    until removed          queue                       queue
voter:HASH:drawn           set     until erasure          queue.draw                  queue.draw
unsettled                  hash    until settled          votes (count per prompt)    pairs.settle
settled:rules              string  kept                   pairs.settle                pairs.settle
prompt:HASH:settled        string  TTL, an hour           pairs.settle (how often)    pairs.settle
prompt:HASH:pairs          set     as its pairs           pairs.settle                pairs.settle
prompt:HASH:lessons        hash    as its opinions        pairs.settle (by opinion)   lineage, pairs.settle
prompt:HASH:tally          hash    as its opinions        pairs.settle                pairs.settle
tally                      hash    kept                   pairs.settle                preview, stats
pair:ID                    string  as its votes           pairs.settle                pairs, jobs
pairs                      zset    as its pairs           pairs.settle                pairs, jobs
pairs:waiting              zset    until trained on       pairs.settle, jobs          jobs
pairs:held_out             set     as its pairs           pairs.settle                preview
unpaired:ID                string  as its votes           pairs.settle                pairs.unpaired
unpaired                   zset    as its votes           pairs.settle                pairs.unpaired
pairs:claims               hash    while a job is open    jobs                        check
job:ID                     hash    kept                   jobs                        jobs
job:ID:lease               string  TTL, by heartbeat      jobs                        jobs, check
job:ID:events              list    kept, capped           jobs                        jobs.events
job:ID:pairs               list    kept                   jobs.freeze                 lineage, check
job:ID:opinions            zset    kept until erasure     jobs.note_opinions          lineage, erasure
jobs, jobs:open            zset    kept; while open       jobs                        jobs
adapter:ID                 hash    kept                   adapters                    adapters
adapter:ID:history         list    kept                   adapters                    adapters
adapters                   zset    kept                   adapters                    adapters
adapters:version           string  kept (a counter)       jobs.number                 jobs
rewards:version            string  kept (a counter)       jobs.reward_number          jobs
triggers                   string  TTL, two minutes       triggers.tell               stats
serving, serving:past      hash, list  kept               adapters                    hot swap
gateways                   zset    as long as they live   gateways.beat (until when)  gateways.beat
gateways:told              hash    as gateways            gateways.beat               gateways.beat
gateways:lease             string  TTL, by beat           gateways.beat               gateways
gateways:tokens            string  kept (a counter)       gateways.beat               gateways, adapters
gateways:board             string  kept                   gateways.publish            gateways.beat
gateways:board:version     string  kept (a counter)       gateways.publish            gateways.beat
canary                     hash    while it runs          canary                      canary, hot swap
canary:last                string  kept                   canary.end                  canary
canary:looking             string  TTL, one look          canary_counts               canary_counts
canary:TRIAL:counts        hash    TTL once it ended      canary_counts               canary_counts
canary:TRIAL:seen          set     while it runs          canary_counts               canary_counts
canary:TRIAL:voters        hash    while it runs          canary_counts               canary_counts
prompt:HASH:report         string  as its opinions        pairs.settle                pairs.settle
report                     hash    kept (sums)            pairs.settle                stats, scores
voters:scores              hash    kept (sums)            pairs.settle                voters
voters:states              hash    kept                   voters                      votes, pairs.settle
voter:HASH:prompts         set     kept                   votes                       voters
voter:HASH:history         list    kept                   voters                      voters
voter:HASH:pace            string  TTL, a minute at most  votes                       votes
key:HASH:pace              string  TTL, a minute at most  votes                       votes
idempotency:DIGEST         string  TTL, a day             idempotency                 idempotency
gpu:traffic                hash    TTL, 5 s               gpu.tell (by process)       gpu.hear
gpu:listening              string  TTL, 5 s               gpu.hear                    gpu.tell
gpu:wish                   string  TTL, 5 s               gpu.wish                    gpu.wished
gpu:grant                  string  TTL, as long as asleep gpu.grant                   gpu.granted

Uploaded files belong to no served model; their hash tag is `files`.

file:ID                    string  until deleted          files                       files, jobs, trainer
files                      zset    until deleted          files                       files.page

Nor do API keys; their hash tag is `credentials`.

credentials                hash    kept, revoked ones too credentials                 credentials
credentials:version        string  kept (a counter)       credentials                 credentials.agree
credentials:used           hash    kept (when last)       credentials.agree           credentials.page
credentials:taken:NAME     string  TTL, as long as it is  credentials.agree           credentials.agree
                                   to be waited for
credentials:secret         string  kept                   credentials.agree           credentials.agree

Nor does what a restore leaves while it is under way; its hash tag is `restore`.

restore                    string  until it is complete   restore                     restore, check
"""

import hashlib
import re
from dataclasses import dataclass

OURS = "heed:*"
"""Every key of the ledger is one of these."""

_OF_NO_MODEL = ("files", "credentials", "restore")
_KEY = re.compile(r"heed:\{(.*?)\}:(.*)", re.DOTALL)
_OF_A_PROCESS = re.compile(
    r"(job:[^:]+:|archive:|gateways:)lease|archive:wanted|gateways|gateways:told|canary:looking|gpu:(traffic|listening|wish|grant)"
)


@dataclass(frozen=True)
class Keys:
    model: str

    def _key(self, name: str) -> str:
        return f"heed:{{{self.model}}}:{name}"

    def completion(self, completion_id: str) -> str:
        return self._key(f"completion:{completion_id}")

    def completion_votes(self, completion_id: str) -> str:
        return self._key(f"completion:{completion_id}:votes")

    @property
    def completions(self) -> str:
        return self._key("completions")

    @property
    def completions_live(self) -> str:
        return self._key("completions:live")

    @property
    def completions_form(self) -> str:
        return self._key("completions:form")

    @property
    def archive_lease(self) -> str:
        return self._key("archive:lease")

    @property
    def archive_wanted(self) -> str:
        return self._key("archive:wanted")

    @property
    def archive_partitions(self) -> str:
        return self._key("archive:partitions")

    @property
    def archive_dirty(self) -> str:
        return self._key("archive:dirty")

    @property
    def archive_unvoted(self) -> str:
        return self._key("archive:unvoted")

    @property
    def completion_users(self) -> str:
        return self._key("completions:users")

    def user_completions(self, user: str) -> str:
        return self._key(f"user:{_name(user)}:completions")

    def voter_opinions(self, voter: str) -> str:
        return self._key(f"voter:{_name(voter)}:opinions")

    def prompt_opinions(self, prompt_hash: str) -> str:
        return self._key(f"prompt:{prompt_hash}:opinions")

    def prompt_pairs(self, prompt_hash: str) -> str:
        return self._key(f"prompt:{prompt_hash}:pairs")

    def prompt_settled(self, prompt_hash: str) -> str:
        return self._key(f"prompt:{prompt_hash}:settled")

    def prompt_lessons(self, prompt_hash: str) -> str:
        return self._key(f"prompt:{prompt_hash}:lessons")

    def prompt_tally(self, prompt_hash: str) -> str:
        return self._key(f"prompt:{prompt_hash}:tally")

    def vote(self, vote_id: str) -> str:
        return self._key(f"vote:{vote_id}")

    def preference(self, preference_id: str) -> str:
        return self._key(f"preference:{preference_id}")

    @property
    def votes(self) -> str:
        return self._key("votes")

    def comparison_vote(self, vote_id: str) -> str:
        return self._key(f"comparison_vote:{vote_id}")

    def comparison(self, comparison_id: str) -> str:
        return self._key(f"comparison:{comparison_id}")

    def comparison_votes(self, comparison_id: str) -> str:
        return self._key(f"comparison:{comparison_id}:votes")

    @property
    def comparisons(self) -> str:
        return self._key("comparisons")

    def queued(self, prompt_id: str) -> str:
        return self._key(f"queue:{prompt_id}")

    @property
    def queue(self) -> str:
        return self._key("queue")

    @property
    def queue_honeypots(self) -> str:
        return self._key("queue:honeypots")

    def voter_drawn(self, voter: str) -> str:
        return self._key(f"voter:{_name(voter)}:drawn")

    @property
    def unsettled(self) -> str:
        return self._key("unsettled")

    @property
    def settled_rules(self) -> str:
        return self._key("settled:rules")

    @property
    def tally(self) -> str:
        return self._key("tally")

    def pair(self, pair_id: str) -> str:
        return self._key(f"pair:{pair_id}")

    @property
    def pairs(self) -> str:
        return self._key("pairs")

    @property
    def pairs_waiting(self) -> str:
        return self._key("pairs:waiting")

    @property
    def pairs_held_out(self) -> str:
        return self._key("pairs:held_out")

    def unpaired_answer(self, unpaired_id: str) -> str:
        return self._key(f"unpaired:{unpaired_id}")

    @property
    def unpaired(self) -> str:
        return self._key("unpaired")

    @property
    def pair_claims(self) -> str:
        return self._key("pairs:claims")

    def job(self, job_id: str) -> str:
        return self._key(f"job:{job_id}")

    def job_lease(self, job_id: str) -> str:
        return self._key(f"job:{job_id}:lease")

    def job_events(self, job_id: str) -> str:
        return self._key(f"job:{job_id}:events")

    def job_pairs(self, job_id: str) -> str:
        return self._key(f"job:{job_id}:pairs")

    def job_opinions(self, job_id: str) -> str:
        return self._key(f"job:{job_id}:opinions")

    @property
    def jobs(self) -> str:
        return self._key("jobs")

    @property
    def jobs_open(self) -> str:
        return self._key("jobs:open")

    def adapter(self, adapter_id: str) -> str:
        return self._key(f"adapter:{adapter_id}")

    def adapter_history(self, adapter_id: str) -> str:
        return self._key(f"adapter:{adapter_id}:history")

    @property
    def adapters(self) -> str:
        return self._key("adapters")

    @property
    def adapter_version(self) -> str:
        return self._key("adapters:version")

    @property
    def reward_version(self) -> str:
        return self._key("rewards:version")

    @property
    def triggers(self) -> str:
        return self._key("triggers")

    def idempotency(self, key_digest: str) -> str:
        return self._key(f"idempotency:{key_digest}")

    @property
    def serving(self) -> str:
        return self._key("serving")

    @property
    def serving_past(self) -> str:
        return self._key("serving:past")

    @property
    def gateways(self) -> str:
        return self._key("gateways")

    @property
    def gateways_told(self) -> str:
        return self._key("gateways:told")

    @property
    def gateways_lease(self) -> str:
        return self._key("gateways:lease")

    @property
    def gateways_tokens(self) -> str:
        return self._key("gateways:tokens")

    @property
    def gateways_board(self) -> str:
        return self._key("gateways:board")

    @property
    def gateways_board_version(self) -> str:
        return self._key("gateways:board:version")

    @property
    def canary(self) -> str:
        return self._key("canary")

    @property
    def canary_last(self) -> str:
        return self._key("canary:last")

    @property
    def canary_looking(self) -> str:
        return self._key("canary:looking")

    def canary_counts(self, trial: str) -> str:
        return self._key(f"canary:{trial}:counts")

    def canary_seen(self, trial: str) -> str:
        return self._key(f"canary:{trial}:seen")

    def canary_voters(self, trial: str) -> str:
        return self._key(f"canary:{trial}:voters")

    def prompt_report(self, prompt_hash: str) -> str:
        return self._key(f"prompt:{prompt_hash}:report")

    @property
    def report(self) -> str:
        return self._key("report")

    @property
    def voter_scores(self) -> str:
        return self._key("voters:scores")

    @property
    def voter_states(self) -> str:
        return self._key("voters:states")

    def voter_prompts(self, voter: str) -> str:
        return self._key(f"voter:{_name(voter)}:prompts")

    def voter_history(self, voter: str) -> str:
        return self._key(f"voter:{_name(voter)}:history")

    def voter_pace(self, voter: str) -> str:
        return self._key(f"voter:{_name(voter)}:pace")

    def key_pace(self, key: str) -> str:
        return self._key(f"key:{_name(key)}:pace")

    @property
    def gpu_traffic(self) -> str:
        return self._key("gpu:traffic")

    @property
    def gpu_listening(self) -> str:
        return self._key("gpu:listening")

    @property
    def gpu_wish(self) -> str:
        return self._key("gpu:wish")

    @property
    def gpu_grant(self) -> str:
        return self._key("gpu:grant")

    @property
    def credentials(self) -> str:
        return "heed:{credentials}:credentials"

    @property
    def credentials_version(self) -> str:
        return "heed:{credentials}:credentials:version"

    @property
    def credentials_used(self) -> str:
        return "heed:{credentials}:credentials:used"

    def credentials_taken(self, name: str) -> str:
        return f"heed:{{credentials}}:credentials:taken:{name}"

    @property
    def credentials_secret(self) -> str:
        return "heed:{credentials}:credentials:secret"

    @property
    def restore(self) -> str:
        return "heed:{restore}:restore"

    def file(self, file_id: str) -> str:
        return f"heed:{{files}}:file:{file_id}"

    @property
    def files(self) -> str:
        return "heed:{files}:files"


def model_of(key: str) -> str | None:
    """The served model that a key belongs to; None for those that belong to none."""
    found = _KEY.fullmatch(key)
    return found[1] if found and found[1] not in _OF_NO_MODEL else None


def is_of_a_process(key: str) -> bool:
    """Whether it says only that some process is alive and at work, which is not to be kept longer than that is so."""
    found = _KEY.fullmatch(key)
    return found is None or found[1] == "restore" or _OF_A_PROCESS.fullmatch(found[2]) is not None


def _name(given: str) -> str:
    """People's names as parts of keys: of one length, and of no meaning once they are erased."""
    return hashlib.sha256(given.encode()).hexdigest()[:32]
