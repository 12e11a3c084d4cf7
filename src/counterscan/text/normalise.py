"""Text made comparable without moving a character: every offset is one of the report as given."""

from __future__ import annotations

# Typographic quotes, dashes and blanks as their plain counterparts, one character each.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u2032\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u202f\u3000\t\v\f", " "),
        **dict.fromkeys("\u2022\u25cf\u25aa\u00b7", "*"),
        **dict.fromkeys("\u2028\u2029\u0085\r", "\n"),
        "\u00d7": "x",
    }
)


def normalise(text: str) -> str:
    """Lower case, plain punctuation, one kind of line end.

    Args:
        text: any string.

    Returns:
        A string of the same length, character by character.
    """
    plain = text.translate(_PLAIN)
    low = plain.lower()
    if len(low) == len(text):
        return low
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in plain)
