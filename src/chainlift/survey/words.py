"""File names as words: for a shell that they are pasted into, and for people who read them."""

from __future__ import annotations

import shlex


def readable(path: str) -> str:
    r"""Return a file name as text: a byte that is no UTF-8 as ``\xff``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shell_word(text: str) -> str:
    r"""Return a word for a POSIX shell, on one line whatever is in it.

    Control characters and bytes that are no UTF-8 take ``$'\n'``, which POSIX has since 2024 and bash, zsh and ksh have
    had for decades.
    """
    if text.isprintable():
        return shlex.quote(text)
    pieces = []
    for character in text:
        if character.isprintable():
            pieces.append({"\\": "\\\\", "'": "\\'"}.get(character, character))
        else:
            # Three octal digits: a hexadecimal escape has no end, and takes what follows with it.
            pieces += [f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape")]
    return f"$'{''.join(pieces)}'"
