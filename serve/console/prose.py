"""What people and models wrote, as Markdown in which a tag is text and nothing is fetched.

Gradio sanitizes what a chat shows, and still draws a `<b>` as bold and asks for the picture of an `<img>`. Code and
formulas are left alone: there Markdown shows a tag as it is written.
"""

import re

# Where Markdown and this pattern differ, what they differ about is sanitized all the same.
LEFT_ALONE = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\))", re.DOTALL)
TAG = re.compile(r"<(?=[A-Za-z/!?])")
PICTURE = re.compile(r"!\[")


def prose(text: str) -> str:
    parts = LEFT_ALONE.split(text)
    return "".join(part if nth % 2 else PICTURE.sub(r"!\\[", TAG.sub("&lt;", part)) for nth, part in enumerate(parts))
