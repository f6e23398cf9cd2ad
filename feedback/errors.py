"""Refusals of the ledger, named for the fact. They know nothing of HTTP; serve/errors.py gives them a status.

FeedbackError
├── LedgerUnavailable   ArchiveUnavailable
├── CompletionUnknown   CompletionNotChat   ChoiceUnknown
├── VoteUnknown         VoteEmpty          PromptsDiffer     SameAnswer
├── VoterUnknown        VoterBanned        VotesTooFast
├── ComparisonUnknown   PromptUnknown
├── JobUnknown          JobAlreadyClaimed  JobLeaseLost      JobFinished     TooFewPairs
├── AdapterUnknown      AdapterNotServable AdapterIsLive     NothingToRollBackTo   LeadLost
├── CanaryUnknown       CanaryRunning
├── FileUnknown         UploadInvalid
├── IdempotencyConflict IdempotencyInProgress
├── CredentialUnknown
├── TextTooLong
└── RecordConflict
"""


class FeedbackError(Exception):
    """Something the ledger refuses, in words a client can act on."""

    retry_after_s: float | None = None
    """When the same request may succeed, where that is known."""


class LedgerUnavailable(FeedbackError):
    """Redis did not answer, or would not write (a full disk, a replica, no memory)."""

    retry_after_s = 1.0


class ArchiveUnavailable(FeedbackError):
    """An archived completion cannot be read, written or removed now; nothing of it is lost."""

    retry_after_s = 5.0


class CompletionUnknown(FeedbackError):
    """No such completion: never recorded, withdrawn, or expired without a vote."""


class CompletionNotChat(FeedbackError):
    """The completion is not a chat completion, so it cannot be voted on."""


class ChoiceUnknown(FeedbackError):
    """The completion has fewer choices than the index says."""


class VoteUnknown(FeedbackError):
    """No such vote, or it was withdrawn."""


class VoteEmpty(FeedbackError):
    """A correction without text, or one that repeats the answer."""


class PromptsDiffer(FeedbackError):
    """A preference between answers to two different prompts teaches nothing."""


class SameAnswer(FeedbackError):
    """A preference names the same answer twice."""


class VoterUnknown(FeedbackError):
    """Nobody of this name has voted."""


class VoterBanned(FeedbackError):
    """An operator takes no more votes from this voter."""


class VotesTooFast(FeedbackError):
    """More votes in a minute than one voter, or one key, may give."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ComparisonUnknown(FeedbackError):
    """No such comparison: it failed, was deleted with one of its answers, or expired without a vote."""


class PromptUnknown(FeedbackError):
    """No such prompt is queued."""


class JobUnknown(FeedbackError):
    """No such job."""


class JobAlreadyClaimed(FeedbackError):
    """Another worker holds the lease, or an older job of this served model goes first."""


class JobLeaseLost(FeedbackError):
    """This worker was silent too long, and somebody else may be at work on the job."""


class JobFinished(FeedbackError):
    """The job has ended, so it can neither be cancelled nor claimed."""


class TooFewPairs(FeedbackError):
    """Training on so little would teach noise, or could not be measured."""


class AdapterUnknown(FeedbackError):
    """No such adapter."""


class AdapterNotServable(FeedbackError):
    """The adapter was rejected by the gate, or was retired for good."""


class AdapterIsLive(FeedbackError):
    """What answers everybody, or is about to, cannot be tried on some."""


class LeadLost(FeedbackError):
    """Another gateway process has led the swaps of this served model since."""


class CanaryUnknown(FeedbackError):
    """This adapter is not being tried."""


class CanaryRunning(FeedbackError):
    """Another adapter is being tried; two at once would be compared with fewer votes each."""


class NothingToRollBackTo(FeedbackError):
    """Nothing was live before what is live now."""


class FileUnknown(FeedbackError):
    """No such file, or its bytes are not what was uploaded."""


class UploadInvalid(FeedbackError):
    """An uploaded file is not what it should be; the message names the line."""


class IdempotencyConflict(FeedbackError):
    """An idempotency key came before with another body."""


class IdempotencyInProgress(FeedbackError):
    """A request with the same idempotency key is being answered at this moment."""

    retry_after_s = 1.0


class CredentialUnknown(FeedbackError):
    """No API key of this id was made here."""


class TextTooLong(FeedbackError):
    """More text than is looked through for personal data, so it could not be recorded without it."""


class RecordConflict(FeedbackError):
    """Somebody changed the record between our read and our write."""
