"""What the commands say to whoever mistypes: one line, whatever was mistaken."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

__all__ = ["Parser", "one_line"]


class Parser(argparse.ArgumentParser):
    """``argparse`` whose complaints are a ``ValueError`` of one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Raise ``ValueError``; an unknown option is answered with the nearest one."""
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        close = difflib.get_close_matches(unknown, list(self._option_string_actions), n=1)
        hint = f"did you mean {close[0]}?" if close and "unrecognized" in message else "--help lists the options"
        raise ValueError(f"{message}; {hint}")


def one_line(error: BaseException) -> str:
    """The message of an error, however many lines a library gave it; of a missing package, how to install it."""
    if isinstance(error, ModuleNotFoundError) and error.name and str(error).startswith("No module named"):
        package = error.name.partition(".")[0]
        return f"{package} is missing: pip install 'aent[llm]' (in a checkout: pip install -e '.[llm]')"
    return " ".join(str(error).split()) or type(error).__name__
