"""Sentences with personal data in them, and with what only looks like it, made from a seed.

Everything is made up here from the public rules of its form, so that what is measured by it was not made by what is
measured: checksums are computed, and of the phone numbers only the prefixes are real.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from feedback.settings import PersonalKind

PHONES = {
    "phone, US": ["(212) ###-####", "312-###-####", "415.###.####", "+1 646 ### ####", "+1 (305) ###-####"],
    "phone, GB": ["020 7### ####", "07400 ######", "+44 20 7### ####", "+44 7400 ######", "0161 496 ####"],
    "phone, DE": ["030 9018####", "0171 #######", "+49 30 9018####", "+49 171 #######", "089/2180-####"],
    "phone, FR": ["01 42 ## ## ##", "06 12 ## ## ##", "+33 1 42 ## ## ##", "+33 6 12 ## ## ##"],
    "phone, grouped in another way": ["0171 ## ## ###", "+4930 90 18 ## ##", "212 ## ## ###", "07400 ## ## ##"],
    "phone, elsewhere, with +": ["+81 90-####-####", "+55 11 9####-####", "+91 98### #####", "+34 6## ### ###"],
    "phone, elsewhere, without": ["090-####-####", "(11) 9####-####", "098### #####", "6## ### ###"],
}
EMAILS = {
    "email": ["{w}@{w}.com", "{w}.{w}@mail.{w}.co.uk", "{w}+{w}@{w}.org", "{w}_{n}@{w}-{w}.de", "{w}@xn--{w}.io"],
    "email, inside a company": ["{w}@{w}.internal", "{w}.{w}@{w}.lan", "{w}@mail.{w}.corp"],
    "email, spelt out": ["{w} (at) {w} (dot) com", "{w} at {w} dot org"],
}
IBANS = {"DE": "#" * 18, "GB": "WEST" + "#" * 14, "FR": "#" * 23, "NL": "INGB" + "#" * 10, "ES": "#" * 20}
CARDS = {"4": 16, "51": 16, "37": 15, "6011": 16}
WORDS = ["river", "stone", "maple", "otter", "amber", "cedar", "linen", "pearl", "raven", "tulip", "ochre", "fjord"]

SENTENCES = [
    "You can reach me at {} after six.",
    "please write that down: {}",
    "Is {} still right?",
    '{{"contact": "{}"}}',
    "My old one was {}, do not use it any more.",
    "{}",
    "Dear team,\n\nit is {}.\n\nThanks",
]

LOOK_ALIKES = {
    "date": ["20{a}-0{b}-1{b}", "1{b}.0{b}.20{a}", "0{b}/1{b}/20{a}", "20{a}-0{b}-1{b}T1{b}:0{b}:00Z"],
    "version": ["{b}.{a}.{b}", "v{b}.{b}.0-rc{b}", "numpy=={b}.{a}.{b}"],
    "version of four parts": ["{b}.{a}.{b}.{b}"],
    "number": ["{b},{c}.00 EUR", "{b}.{d}", "-0.{d}", "{b}{d}", "1e-{b}", "{a}%", "20{a}-20{a}"],
    "unix time": ["17{d}0{b}", "17{d}0{b}{c}"],
    "order number": ["order {d}{c}", "#{d}{d}", "invoice 20{a}-{d}"],
    "order number of 16 digits": ["{bad_card}"],
    "IBAN with a wrong checksum": ["{bad_iban}"],
    "ISBN": ["978-{b}-16-14841{b}-0", "ISBN 0-{b}06-{c}15-2"],
    "UUID, hash": ["{hex8}-{hex4}-4{hex3}-a{hex3}-{hex8}{hex4}", "{hex8}{hex8}", "sha256:{hex8}{hex8}{hex8}"],
    "code": ["std::vector<int>", "a::b::c", "x[{b}:{b}:2]", "1{b}:0{b}:3{b}", "@property", "{b} @ {b}.50", "@otter"],
    "package, host": ["react@18.{b}.{a}", "numpy@v{b}.{b}", "root@localhost", "ssh pi@{b}"],
    "coordinates": ["52.{d}, 13.{d}", "{b}° {a}' N"],
}


@dataclass(frozen=True)
class Sample:
    """`value` is there to be found if `kind` says what it is, and to be left alone if that is None."""

    form: str
    kind: PersonalKind | None
    text: str
    value: str


def samples(seed: int, each: int) -> list[Sample]:
    """`each` of every form."""
    rng = random.Random(seed)
    made = [Sample(form, kind, *_within(rng, value)) for _ in range(each) for form, kind, value in _values(rng)]
    return made + [
        Sample(form, None, *_within(rng, _look_alike(rng, forms)))
        for _ in range(each)
        for form, forms in LOOK_ALIKES.items()
    ]


def digits(rng: random.Random, form: str) -> str:
    """`#` is any digit, though not a 0 or a 1, which have meanings at places of phone numbers."""
    return "".join(rng.choice("23456789") if letter == "#" else letter for letter in form)


def email(rng: random.Random, form: str = "{w}.{w}@{w}.com") -> str:
    parts = form.replace("{n}", str(rng.randrange(10, 99))).split("{w}")
    return parts[0] + "".join(rng.choice(WORDS) + part for part in parts[1:])


def card(rng: random.Random) -> str:
    prefix, length = rng.choice(list(CARDS.items()))
    body = prefix + "".join(rng.choice("0123456789") for _ in range(length - len(prefix) - 1))
    return _in_groups(rng, body + str(-_luhn(body + "0") % 10), [" ", "-", ""])


def iban(rng: random.Random) -> str:
    country, form = rng.choice(list(IBANS.items()))
    body = digits(rng, form)
    return _in_groups(rng, f"{country}{98 - _mod_97(country + '00' + body):02}{body}", [" ", ""])


def ip(rng: random.Random) -> str:
    parts = [f"{rng.randrange(1, 2**16):x}" for _ in range(8)]
    four = ".".join(str(rng.randrange(1, 255)) for _ in range(4))
    return rng.choice([four, four, ":".join(parts), f"2001:db8::{parts[0]}"])


def _values(rng: random.Random) -> Iterator[tuple[str, PersonalKind, str]]:
    for form, forms in EMAILS.items():
        yield form, "email", email(rng, rng.choice(forms))
    for form, forms in PHONES.items():
        yield form, "phone", digits(rng, rng.choice(forms))
    yield "card", "card", card(rng)
    yield "IBAN", "iban", iban(rng)
    yield "IP address", "ip", ip(rng)


def _within(rng: random.Random, value: str) -> tuple[str, str]:
    return rng.choice(SENTENCES).format(value), value


def _look_alike(rng: random.Random, forms: list[str]) -> str:
    def some_hex(length: int) -> str:
        return "".join(rng.choice("0123456789abcdef") for _ in range(length))

    right = iban(rng)
    digit = -1 if right[-1] != "7" else -2
    return rng.choice(forms).format(
        a=rng.randrange(10, 26),
        b=rng.randrange(1, 9),
        c=rng.randrange(100, 999),
        d=rng.randrange(100_000, 999_999),
        hex8=some_hex(8),
        hex4=some_hex(4),
        hex3=some_hex(3),
        bad_card=_spoilt(card(rng)),
        bad_iban=right[:digit] + "7" + right[len(right) + digit + 1 :],
    )


def _spoilt(number: str) -> str:
    """One digit more than it should be, at the end: Luhn's sum sees every single change."""
    return number[:-1] + str((int(number[-1]) + 1) % 10)


def _in_groups(rng: random.Random, number: str, separators: list[str]) -> str:
    return rng.choice(separators).join(number[start : start + 4] for start in range(0, len(number), 4))


def _luhn(number: str) -> int:
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(number))]
    return sum(n - 9 if n > 9 else n for n in doubled) % 10


def _mod_97(iban: str) -> int:
    return int("".join(str(int(letter, 36)) for letter in iban[4:] + iban[:4])) % 97
