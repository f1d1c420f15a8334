"""``python -m aent_llm train | eval | calibrate | compare | configs``; each has ``--help``."""

from __future__ import annotations

import importlib
import re
import sys
import traceback

from aent import cli
from aent.names import suggest
from aent_llm.training import signals

COMMANDS = {
    "train": ("training.train", "GRPO with an entropy bonus and a controller, from a YAML file"),
    "eval": ("measure.evaluate", "avg@k, pass@k, maj@k of a model on benchmarks or a local file"),
    "calibrate": ("measure.calibrate", "measure a model's entropies and write an entropy block for it"),
    "compare": ("measure.compare", "curves and a table of finished or running runs"),
    "configs": ("config_files", "the configs that come with the package; a copy of one to start from"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    asked = arguments[0] if arguments else ""
    if asked in COMMANDS:
        return cli.run(f"aent_llm {asked}", lambda: _run(asked, arguments[1:]), extra="llm")
    if asked in ("", "-h", "--help"):
        lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
        lines += [
            "",
            "Exit status: 0 done, 2 input that cannot be used, 1 NaN or a failing reward while training, 128 + number "
            "after a signal.",
            "AENT_DEBUG=1 shows where an error was raised.",
        ]
        print("\n".join([__doc__ or "", *lines]), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    hint = suggest(asked, COMMANDS) or "."
    print(f"aent_llm: unknown command {cli.one_line(asked)!r}{hint} Known: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


def _run(name: str, arguments: list[str]) -> int:
    try:
        return importlib.import_module(f"aent_llm.{COMMANDS[name][0]}").main(arguments)
    except cli.UsersCodeError as error:
        traceback.print_exception(error.__cause__)  # their frames alone; the line about it comes below
        raise
    except RuntimeError as error:
        if re.search("out of memory|can't allocate memory|not enough memory", str(error)):  # torch has no one kind
            raise MemoryError(str(error).partition("\n")[0]) from error
        raise


if __name__ == "__main__":
    raise SystemExit(signals.whole_process(main))
