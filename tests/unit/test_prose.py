"""What people and models wrote, shown as Markdown without becoming a page."""

import pytest

from serve.console.prose import prose


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("**bold** </div><!-- -->", "**bold** &lt;/div>&lt;!-- -->"),
        ("![a picture](/secret)", "!\\[a picture](/secret)"),
        ("a < b and x <y", "a < b and x &lt;y"),
    ],
)
def test_a_tag_is_text_and_a_picture_is_not_fetched(said: str, shown: str) -> None:
    assert prose(said) == shown


@pytest.mark.parametrize(
    "said", ["`<b>`", "```html\n<b>\n```", "```\n<unfinished>", "$$a<b$$", "\\(x<y\\)", "~~~\n![a](b)\n~~~"]
)
def test_code_and_formulas_are_left_as_they_are(said: str) -> None:
    assert prose(said) == said
