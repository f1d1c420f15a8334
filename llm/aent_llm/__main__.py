"""``python -m aent_llm train | eval | calibrate | compare | configs``; each has ``--help``."""

from __future__ import annotations

import importlib
import os
import sys

from aent_llm.command_line import one_line

COMMANDS = {
    "train": ("train", "GRPO with an entropy bonus and a controller, from a YAML file"),
    "eval": ("evaluate", "avg@k, pass@k, maj@k of a model on benchmarks or a local file"),
    "calibrate": ("calibrate", "measure a model's entropies and write an entropy block for it"),
    "compare": ("compare", "curves and a table of finished or running runs"),
    "configs": ("config_files", "the configs that come with the package; a copy of one to start from"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in COMMANDS:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
        lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
        lines += ["", "Exit status: 0 done, 2 input that cannot be used. AENT_DEBUG=1 shows where an error was raised."]
        print("\n".join([__doc__ or "", *lines]), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    try:
        return importlib.import_module(f"aent_llm.{COMMANDS[arguments[0]][0]}").main(arguments[1:])
    except (OSError, ImportError, ValueError) as error:  # written for the user
        if "AENT_DEBUG" in os.environ:
            raise
        print(f"aent_llm {arguments[0]}: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
