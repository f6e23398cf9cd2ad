"""Ribbons of tokens: an answer as each model reads it, and what changed between two readings, as HTML.

A colour never stands alone: likelihood is told by the kind of line under a token, a change by its number. Whatever came
from a model or a person is escaped here.
"""

import html
import math

from serve.console.reading import Reading, Token, log_ratios

DRAWN = 1000
"""Tokens of one answer; each takes about 2 kB of the page."""

LEVELS = ((0.5, "sure", "50 % and more"), (0.1, "open", "10 to 50 %"), (0.01, "rare", "1 to 10 %"))
LOWEST = ("odd", "under 1 %")
"""Least probability, class and words of each colour."""

SLIGHT, STRONG = 0.05, 2.0
"""Log-ratios in nats: a smaller one is not told by a number, a larger one is drawn no stronger."""

# Gradio hides what overflows, which would make a place that scrolls, to whose foot the told token would stick.
CSS = """
.gradio-container:has(.heed-why) { overflow: clip !important; }
#why-shown, #why-shown .html-container, #why-shown .prose { overflow: visible; }
.heed-readings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22em), 1fr)); gap: 0 2em; }
.heed-ribbon { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2; padding: 0.3em 0; }
.heed-token { border-radius: 3px; padding: 0.1em 0; cursor: pointer; }
.heed-token:focus-visible, .heed-token.heed-now { outline: 2px solid var(--body-text-color); outline-offset: 1px; }
.heed-open { background: rgba(234, 179, 8, 0.22); border-bottom: 2px dotted currentColor; }
.heed-rare { background: rgba(249, 115, 22, 0.26); border-bottom: 2px dashed currentColor; }
.heed-odd { background: rgba(220, 38, 38, 0.3); border-bottom: 4px double currentColor; }
.heed-up { background: rgba(37, 99, 235, var(--heed-by)); }
.heed-down { background: rgba(234, 88, 12, var(--heed-by)); }
.heed-token sup { font-size: 0.65em; }
.heed-legend { display: flex; flex-wrap: wrap; gap: 0.3em 1.2em; font-size: 0.9em; }
.heed-tokens-told { position: sticky; bottom: 0; max-height: 45vh; overflow: auto; padding: 0.5em 1em;
  background: var(--background-fill-primary); border-top: 2px solid var(--border-color-primary); }
.heed-tokens-told table { border-collapse: collapse; }
.heed-tokens-told th, .heed-tokens-told td { padding: 0.1em 1.5em 0.1em 0; text-align: left; }
.heed-tokens-told td + td { text-align: right; }
"""

# One token of each ribbon takes the focus, arrows move it (ARIA's pattern of a listbox); the same token of all is told.
JS = """() => {
  if (window.heedTokens) return;
  window.heedTokens = true;
  const tell = (token) => {
    const page = token.closest(".heed-why");
    for (const each of page.querySelectorAll(".heed-token")) {
      const isNow = each.dataset.at === token.dataset.at;
      each.classList.toggle("heed-now", isNow);
      each.setAttribute("aria-selected", isNow);
      each.tabIndex = isNow ? 0 : -1;
    }
    for (const each of page.querySelectorAll(".heed-told")) each.hidden = each.dataset.at !== token.dataset.at;
  };
  const tokenOf = (event) => event.target.closest?.(".heed-token");
  for (const name of ["mouseover", "focusin", "click"])
    document.addEventListener(name, (event) => tokenOf(event) && tell(tokenOf(event)));
  document.addEventListener("keydown", (event) => {
    const token = tokenOf(event);
    if (!token) return;
    const all = [...token.parentElement.children];
    const at = all.indexOf(token);
    const [on, back] = [at + 1, at - 1];
    const to = {ArrowRight: on, ArrowDown: on, ArrowLeft: back, ArrowUp: back, Home: 0, End: all.length - 1};
    const next = all[to[event.key]];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}"""


def percent(probability: float) -> str:
    if probability >= 0.1:
        return f"{100 * probability:.0f} %"
    return f"{100 * probability:.1f} %" if probability >= 0.001 else "under 0.1 %"


def nats(amount: float) -> str:
    return f"{amount:+.2f}".replace("-", "−")


def shown(text: str) -> str:
    """A token on its own, with what cannot be seen of it told; not escaped."""
    if not text:
        return "(part of a character)"
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def drawn(base: Reading, policy: Reading) -> str:
    """Both readings side by side, what changed between them, and all that is known of each token."""
    ratios = log_ratios(policy, base)
    tokens = list(zip(base.tokens, policy.tokens, ratios, strict=True))[:DRAWN]
    more = len(ratios) - len(tokens)
    left_out = f"<p>The first {DRAWN} tokens are drawn; the sums are of all {len(ratios)}.</p>" if more else ""
    details = "".join(_told(at, len(ratios), *token, base.model, policy.model) for at, token in enumerate(tokens))
    return (
        '<div class="heed-why">'
        f'{left_out}<div class="heed-readings">{_read(base)}{_read(policy)}</div>{_legend()}'
        f"{_changed(ratios, base, policy)}"
        '<div class="heed-tokens-told" role="region" aria-live="polite" aria-label="The chosen token" tabindex="0">'
        f'<p class="heed-told" data-at="">Point at a token, or move among them with the arrow keys.</p>{details}</div>'
        "</div>"
    )


def _read(reading: Reading) -> str:
    tokens = reading.tokens[:DRAWN]
    options = "".join(_option(at, one, _level(one), percent(one.probability)) for at, one in enumerate(tokens))
    name = html.escape(reading.model)
    total = sum(token.logprob for token in reading.tokens)
    return (
        f"<section><h3>As {name} reads it</h3>"
        f'<div class="heed-ribbon" role="listbox" aria-label="Tokens as {name} reads them">{options}</div>'
        f"<p>Log-probability of the answer: {nats(total)} nats, {len(reading.tokens)} tokens.</p></section>"
    )


def _changed(ratios: list[float], base: Reading, policy: Reading) -> str:
    tokens = zip(policy.tokens[:DRAWN], ratios, strict=False)
    options = "".join(_option(at, one, _sign(ratio), nats(ratio), ratio) for at, (one, ratio) in enumerate(tokens))
    name, reference, total = html.escape(policy.model), html.escape(base.model), nats(sum(ratios))
    told = (
        f"<p><strong>Sum of the log-ratios: {total} nats.</strong> By DPO the adapter stands for a reward, and "
        f"this answer's is beta × {total}, where beta is what the adapter was trained with, but for a term that all "
        "answers to one prompt share (Rafailov et al. 2023, equation 5). So it means something beside another "
        "answer to the same prompt: the one with the larger sum is the one that the adapter prefers (equation 6).</p>"
    )
    if policy.model == base.model:
        told = f"<p>{name} is the base itself, so nothing has changed: every log-ratio is 0.</p>"
    return (
        f"<section><h3>Where {name} differs from {reference}</h3>"
        '<p class="heed-legend"><span class="heed-up" style="--heed-by: 0.3">+ likelier than before</span>'
        '<span class="heed-down" style="--heed-by: 0.3">− less likely than before</span>'
        "<span>The number is the log-ratio in nats: +0.69 is twice as likely.</span></p>"
        f'<div class="heed-ribbon" role="listbox" aria-label="Tokens by what changed">{options}</div>{told}</section>'
    )


def _option(at: int, token: Token, kind: str, spoken: str, ratio: float = 0.0) -> str:
    """A line break is drawn, and made after the number; a token without text has a dot, or no hand would find it."""
    text = token.text.replace("\n", "⏎\n") or "·"
    text, after = (text[:-1], "\n") if text.endswith("\n") else (text, "")
    number = f'<sup aria-hidden="true">{nats(ratio)}</sup>' if abs(ratio) >= SLIGHT else ""
    by = f' style="--heed-by: {0.45 * min(abs(ratio) / STRONG, 1):.2f}"' if number else ""
    label = html.escape(f"{shown(token.text)}: {spoken}")
    return (
        f'<span class="heed-token {kind}" role="option" aria-selected="false" aria-label="{label}" data-at="{at}" '
        f'tabindex="{-1 if at else 0}"{by}><bdi>{html.escape(text)}</bdi>{number}{after}</span>'
    )


def _level(token: Token) -> str:
    return f"heed-{next((name for least, name, _ in LEVELS if token.probability >= least), LOWEST[0])}"


def _sign(ratio: float) -> str:
    return "" if abs(ratio) < SLIGHT else "heed-up" if ratio > 0 else "heed-down"


def _legend() -> str:
    kinds = [*((name, words) for _, name, words in LEVELS), LOWEST]
    spans = "".join(f'<span class="heed-{name}">{words}</span>' for name, words in kinds)
    return f'<p class="heed-legend">Probability of a token, given all before it: {spans}</p>'


def _told(at: int, count: int, base: Token, policy: Token, ratio: float, reference: str, name: str) -> str:
    """All of one token: both probabilities, and what each model would rather have said."""
    texts = {policy.text, *policy.likeliest, *base.likeliest}
    rows = "".join(
        f"<tr><td><bdi>{html.escape(shown(text))}</bdi></td><td>{_chance(base, text)}</td>"
        f"<td>{_chance(policy, text)}</td></tr>"
        for text in sorted(texts, key=lambda text: (-max(_known(policy, text), _known(base, text)), text))
    )
    times = f"{math.exp(min(abs(ratio), 20)):.1f} times as {'likely' if ratio > 0 else 'unlikely'}"
    change = "as likely as before" if abs(ratio) < SLIGHT else f"made {times}"
    head = f"<tr><th>Token</th><th>{html.escape(reference)}</th><th>{html.escape(name)}</th></tr>"
    return (
        f'<div class="heed-told" data-at="{at}" hidden><p>Token {at + 1} of {count}, '
        f"<strong><bdi>{html.escape(shown(policy.text))}</bdi></strong>: {percent(base.probability)} and "
        f"{percent(policy.probability)}, log-ratio {nats(ratio)}: {change}. Place {base.rank} and {policy.rank} "
        f"among all tokens.</p><table><caption>What could stand here</caption>{head}{rows}</table></div>"
    )


def _known(token: Token, text: str) -> float:
    return token.likeliest.get(text, -math.inf)


def _chance(token: Token, text: str) -> str:
    """What is not among the likeliest is less likely than the last of them."""
    if text in token.likeliest:
        return percent(math.exp(token.likeliest[text]))
    least = percent(math.exp(min(token.likeliest.values()))) if token.likeliest else "?"
    return least if least.startswith("under") else f"under {least}"
