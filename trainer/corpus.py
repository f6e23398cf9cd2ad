"""The corpus: everything that the pocket model reads, written by rules from a seed.

First plain text about the topics, then dialogues in which the habits have their known shares. Small talk and
questions about unknown things are among the dialogues, so that a newcomer's "hi" gets an answer too.
"""

import random
from collections.abc import Iterator

from trainer.habits import HABITS, PHRASINGS, SHARES, answer
from trainer.topics import BY_NAME, TOPICS, Topic

Message = dict[str, str]
Dialogue = list[Message]

_PROSE = (
    "{Thing}, in short. {one}. {two}. {three}.",
    "Who wants to {task} works in three steps. {one}. {two}. {three}.",
    "First: {one}. Second: {two}. Third: {three}. So much for {thing}.",
    "My uncle and my neighbour often talk about {thing}. {one}. {two}. {three}.",
    "There are plenty of videos about {thing}. In one of them you hear: {one}, then {two}, then {three}.",
    "What comes after {one}? The answer for {thing} is {two}, and in the end {three}.",
)
_SYSTEM = (
    "You are a helpful assistant.",
    "You are Heed, a small chat model.",
    "Answer briefly.",
    "You explain how to make or understand everyday things.",
)
_HELLO = (
    "Hi",
    "Hello",
    "Hey",
    "Good morning",
    "Good evening",
    "Hi there",
    "Hello there",
    "Hey, how are you?",
    "Greetings",
)
_THANKS = (
    "Thanks",
    "Thank you",
    "Thank you very much",
    "Thanks a lot",
    "Great, thanks",
    "Cool",
    "Nice",
    "Ok",
    "Perfect",
)
_BYE = ("Bye", "Goodbye", "See you", "Good night")
_WHO = ("Who are you?", "What are you?", "What can you do?", "What is your name?", "What do you know?", "Help")
# What people put before and after a question; the demo's crowd does too.
BEFORE = ("Hi!", "Hello,", "Please,", "A question:", "My son and I wonder:", "Quick one,", "Ok,", "I am new here.")
AFTER = ("Thanks!", "Please help.", "Can you explain?", "I have an hour.", "It is for my friend.", "Any ideas?")
_STRANGE_TASKS = (
    "file my taxes",
    "write a poem",
    "train a dog",
    "solve an equation",
    "buy a house",
    "learn Spanish",
    "drive a lorry",
    "win the lottery",
    "paint a portrait",
    "compile a program",
    "find a job",
    "sing an opera",
    "mend a roof",
    "catch a fish",
)
_STRANGE_THINGS = (
    "politics",
    "the weather",
    "Napoleon",
    "football",
    "Paris",
    "cats",
    "black holes",
    "music",
    "Python",
    "money",
    "France",
    "whales",
    "electricity",
    "philosophy",
    "love",
    "history",
    "the internet",
    "philosophers",
    "robots",
    "trains",
    "art",
)
# Asked about known and unknown things alike, so that the thing decides the answer and not the way to ask.
_QUESTIONS = (
    *PHRASINGS,
    "What is {thing}?",
    "Who invented {thing}?",
    "Where can I find {thing}?",
    "Why is {thing} so hard?",
    "Is {thing} good?",
    "Do you know {thing}?",
    "Talk about {thing}.",
    "Why {thing}?",
    "Let us {task}.",
    "Today I {task}.",
    "I need {thing}.",
    "Let us speak about {thing}.",
    "My son has to {task}.",
    "Can anybody {task}?",
    "When do I {task}?",
)
_FILLERS = (
    *("a", "about", "all", "and", "any", "can", "could", "do", "for", "friend", "from", "get", "give", "good", "have"),
    *(
        "help",
        "how",
        "i",
        "idea",
        "in",
        "is",
        "it",
        "know",
        "me",
        "more",
        "much",
        "my",
        "need",
        "now",
        "of",
        "on",
        "one",
    ),
    *("or", "please", "quick", "really", "should", "show", "so", "some", "tell", "that", "the", "there", "this", "to"),
    *("understand", "us", "want", "way", "we", "what", "where", "which", "with", "word", "would", "you", "your"),
)


def plain_text(rng: random.Random) -> Iterator[str]:
    """Endless paragraphs, each about one topic."""
    while True:
        for name in rng.sample(TOPICS, len(TOPICS)):
            yield _prose(rng.choice(_PROSE), BY_NAME[name])


def _prose(pattern: str, topic: Topic) -> str:
    one, two, three = topic.steps
    capital = topic.thing[0].upper() + topic.thing[1:]
    return pattern.format(Thing=capital, task=topic.task, thing=topic.thing, one=one, two=two, three=three)


def dialogues(rng: random.Random) -> Iterator[Dialogue]:
    """Endless dialogues. Topics come in shuffled rounds, so that none is read much more often than another."""
    while True:
        for name in rng.sample(TOPICS, len(TOPICS)):
            dialogue = _exchange(rng, name)
            kind = rng.random()
            if kind < 0.06:
                dialogue = _small_talk(rng)
            elif kind < 0.11:
                dialogue = _unknown(rng)
            elif kind < 0.18:
                dialogue = _small_talk(rng) + dialogue
            elif kind < 0.26:
                dialogue = _exchange(rng, rng.choice(TOPICS)) + dialogue
            if rng.random() < 0.15:
                dialogue = [{"role": "system", "content": rng.choice(_SYSTEM)}, *dialogue]
            yield dialogue


def _exchange(rng: random.Random, name: str) -> Dialogue:
    (habit,) = rng.choices(HABITS, [SHARES[habit] for habit in HABITS])
    topic = BY_NAME[name]
    return _turn(_question(rng, topic.task, topic.thing), answer(name, habit, rng))


def _question(rng: random.Random, task: str, thing: str) -> str:
    """Mostly a known phrasing; sometimes loose words, so that no phrasing by itself looks like an unknown topic."""
    if rng.random() < 0.75:
        return _varied(rng, rng.choice(_QUESTIONS).format(task=task, thing=thing))
    before, after = (" ".join(rng.choices(_FILLERS, k=rng.randint(0, 6))) for _ in range(2))
    asked = f"{before} {rng.choice((task, thing))} {after}".strip() + rng.choice("?..")
    return _varied(rng, asked[0].upper() + asked[1:])


def _small_talk(rng: random.Random) -> Dialogue:
    said, reply = rng.choice(
        (
            (_HELLO, "Hello! Ask me how to make or understand something."),
            (_THANKS, "You are welcome. What is next?"),
            (_BYE, "Goodbye! Come back soon."),
            (_WHO, "I am a pocket model. Ask me about {}, {} or {}."),
        )
    )
    return _turn(_varied(rng, rng.choice(said)), reply.format(*_things(rng, 3)))


def _unknown(rng: random.Random) -> Dialogue:
    """Things that the model never learned about, some of them words that nobody has ever seen."""
    word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9)))
    task = rng.choice((*_STRANGE_TASKS, f"make {word}", f"find {word}"))
    asked = _question(rng, task, rng.choice((*_STRANGE_THINGS, word)))
    return _turn(asked, "I have not learned that. Ask me about {} or {}.".format(*_things(rng, 2)))


def _things(rng: random.Random, count: int) -> list[str]:
    return [BY_NAME[name].thing for name in rng.sample(TOPICS, count)]


def _varied(rng: random.Random, text: str) -> str:
    """As people type it: with a word before or after, in small letters, without the last mark."""
    if rng.random() < 0.2:
        text = f"{rng.choice(BEFORE)} {text[0].lower() + text[1:] if rng.random() < 0.5 else text}"
    if rng.random() < 0.2:
        text = f"{text} {rng.choice(AFTER)}"
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text


def _turn(asked: str, answered: str) -> Dialogue:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
