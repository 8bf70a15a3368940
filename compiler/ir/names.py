"""Names that become part of C names: of a library and of its tasks."""

from __future__ import annotations

import re

RULE = "lower-case letters, digits and single underscores only, a letter first"

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def is_c_name(text: str) -> bool:
    """Whether a library or a task may be called so, by RULE."""
    return bool(_NAME.fullmatch(text)) and "__" not in text


def c_name(text: str, otherwise: str) -> str:
    """A name like `text`, such as one of a file; it begins with `otherwise` where `text` begins with no letter."""
    words = [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]
    return "_".join(words if words and words[0][0].isalpha() else [otherwise, *words])
