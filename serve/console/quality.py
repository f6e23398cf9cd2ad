"""What the votes say, as the page "Operate" shows it: adapters, biases and the running canary with their intervals."""

import html
from typing import Any

from serve.console.intervals import COIN, SHARES, Axis, Interval, drawn, of_share
from serve.tables import when

Json = dict[str, Any]

QUESTIONS = {
    "up_votes": "Up-votes, canary less live",
    "errors": "Failures, canary less live",
    "refusals": "Refusals, canary less live",
    "length": "Length, canary by live",
}
LONGEST_RATIO = 4.0
"""End of the axis of lengths; whatever is beyond is at its end."""


def quality(stats: Json) -> str:
    """The adapters' shares, then the biases of those who vote."""
    versions = stats["versions"]
    ups = [of_share(one["id"], one["up_rate"]) for one in versions if one["up_rate"]["of"]]
    wins = [of_share(_against(one), one["win_rate"]) for one in versions if one["win_rate"]["of"]]
    sides, lengths, voted = stats["position_bias"], stats["length_bias"], stats["voted_share"]
    biases = [of_share("The left side wins", sides), of_share("The longer answer wins", lengths)]
    agreement = stats["agreement"]
    agreed = "-" if agreement["share"] is None else f"{agreement['share']:.0%} of {agreement['of']} meetings"
    words = (
        f"Two voters who met the same question agreed: {agreed}. Comparisons with a tie: {sides['ties']}, with both "
        f"bad: {sides['both_bad']}. Votes not heard: {stats['unheard_votes']}. "
        f"Prompts whose newest votes are not counted yet: {stats['unsettled']}."
    )
    drawings = [
        drawn("Voted up, by adapter", ups, SHARES),
        drawn("Wins of comparisons, by adapter", wins, COIN),
        drawn("Biases of the voters", [one for one in biases if one.low is not None], COIN),
        drawn(f"Answers voted on, last {voted['days']} days", [of_share("All answers", voted)], SHARES),
    ]
    return _side_by_side(drawings) + f"<p>{html.escape(words)} Intervals are of 95 %.</p>"


def trial(status: Json) -> str:
    """The canary that runs, or how the last one ended: in words, and each of its four questions on an axis."""
    running, last = status["running"], status["last"]
    if running is None and last is None:
        return "<p>No adapter is being tried on a share of the people.</p>"
    found = running or last
    verdict, counts = found["verdict"], found["counts"]
    if running:
        opening = f"{found['adapter']} answers {found['percent']:g} % of the people since {when(found['since'])}"
        opening += ", and goes live or back by itself." if found["auto"] else "; you decide how it ends."
        if found["is_asked_to_go_live"]:
            opening += " It is going live now."
    else:
        opening = f"Nothing is tried now. {found['adapter']} was, until {when(found['ended'])}: {found['outcome']}."
    met = (
        f"Of the people, {counts['canary']['answered']} were answered by it and {counts['control']['answered']} by "
        f"{found['against']}."
    )
    said = f"<p><strong>{html.escape(opening)}</strong> {html.escape(met)}</p>"
    said += f"<p>Verdict: {html.escape(_decided(verdict))}</p>"
    return said + _side_by_side([_question(one) for one in verdict["questions"]])


def _side_by_side(drawings: list[str]) -> str:
    """Where there is room."""
    return f'<div class="heed-drawings">{"".join(drawings)}</div>'


def _decided(verdict: Json) -> str:
    words = {"promote": "let it go live", "roll_back": "take it back", "undecided": "undecided", "wait": "wait"}
    return f"{words.get(verdict['decision'], verdict['decision'])}: {verdict['reason']}."


def _question(one: Json) -> str:
    name, limit = one["name"], one["limit"]
    if name == "length":
        axis = Axis(0, LONGEST_RATIO, ("0", f"{LONGEST_RATIO:g} times; dashed: the limits"), (1 / limit, limit))
        at = None
        if one["canary"]["mean"] is not None and one["control"]["mean"]:
            at = one["canary"]["mean"] / one["control"]["mean"]
    else:
        # Up-votes may be fewer by as much as the limit, failures and refusals more.
        mark = -limit if name == "up_votes" else limit
        axis = Axis(-1, 1, ("100 points fewer", "100 points more; dashed: the limit"), (mark,))
        means = one["canary"]["mean"], one["control"]["mean"]
        at = None if None in means else means[0] - means[1]
    title = f"{QUESTIONS.get(name, name)}: {one['outcome'].replace('_', ' ')}"
    return drawn(title, [Interval(one["words"], f"sure at {one['sure']:.1%}", one["low"], one["high"], at)], axis)


def _against(one: Json) -> str:
    against = one["win_rate"]["against"]
    return f"{one['id']} against {against}" if against else str(one["id"])
