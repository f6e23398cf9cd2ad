"""Recognizers: Presidio's patterns and checksums, and none of its models of language.

Importing this takes a second or two and 70 MB, so redaction.py does it only where redaction is on.
"""

import re
from collections.abc import Sequence
from typing import Any

from phonenumbers import SUPPORTED_REGIONS
from presidio_analyzer import EntityRecognizer, RecognizerResult
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
)

from feedback.settings import PersonalKind

ADDRESS = re.compile(r"[^\s@]{0,64}@(?=([^\s@]{1,255}))")
LENIENCY = 1
"""Of phone numbers: valid ones. At 2 every second one is missed that is not grouped as its country does it, and hardly
anything else is replaced by mistake (docs/benchmarks.md); what is missed is kept for ever, so this is preferred."""

DECIMAL = re.compile(r"\d+\.\d+")


class AnyEmailRecognizer(EmailRecognizer):
    """Presidio's own takes only public domains, whose list it asks the network for. A company's are not on it.

    Its pattern takes time by the square of a text without spaces: 57 s of CPU for `a.a.a.…@` of 20,000 characters. So
    it gets to see only what can belong to one address (RFC 5321, 4.5.3.1: 64 characters, @, 255).
    """

    def analyze(self, text: str, *args: Any, **more: Any) -> list[RecognizerResult]:
        found: list[RecognizerResult] = []
        for near in ADDRESS.finditer(text):
            for one in super().analyze(near[0] + near[1], *args, **more):
                one.start += near.start()
                one.end += near.start()
                found.append(one)
        return found

    def validate_result(self, pattern_text: str) -> bool:
        return pattern_text.rpartition(".")[2][0].isalpha()  # react@18.2.0 is a package


class WrittenPhoneRecognizer(PhoneRecognizer):
    """Presidio's own takes 0.893908 for a number in Munich."""

    def analyze(self, text: str, *args: Any, **more: Any) -> list[RecognizerResult]:
        found = super().analyze(text, *args, **more)
        return [one for one in found if not DECIMAL.fullmatch(text[one.start : one.end])]


def of(kind: PersonalKind, regions: Sequence[str]) -> EntityRecognizer:
    match kind:
        case "email":
            return AnyEmailRecognizer()
        case "phone":
            return WrittenPhoneRecognizer(supported_regions=tuple(regions), leniency=LENIENCY)
        case "card":
            return CreditCardRecognizer()
        case "iban":
            return IbanRecognizer()
        case "ip":
            return IpRecognizer()


def unknown_regions(regions: Sequence[str]) -> list[str]:
    return [region for region in regions if region not in SUPPORTED_REGIONS]
