"""``python -m aent_llm configs``: the configs that come with the package, by name.

    python -m aent_llm configs                             # their names, a line each
    python -m aent_llm configs gsm8k_aent > mine.yaml      # a copy to start from
    python -m aent_llm configs fsdp2 > fsdp2.yaml          # for accelerate launch --config_file fsdp2.yaml

``find_config`` is how every command finds the file that ``--config`` names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from aent import cli

__all__ = ["CONFIGS", "find_config", "main"]

CONFIGS = Path(__file__).parent / "configs"


def find_config(name: str | Path) -> Path:
    """Find an experiment file: a file of this name, with or without ``.yaml``, else the config of the package.

    Your own file comes first, so that an edited copy is never passed over for the one of the package.

    Raises:
        FileNotFoundError: neither; near names are listed.

    Examples:
        >>> find_config("qwen_math_aent") == find_config("qwen_math_aent.yaml") == CONFIGS / "qwen_math_aent.yaml"
        True
    """
    yours = next((path for path in (Path(name), Path(f"{name}.yaml")) if path.is_file()), None)
    return yours or _named(name, CONFIGS.glob("*.yaml"))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    files = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: path.stem)
    if options.name:
        print(_named(options.name, files).read_text(encoding="utf-8"), end="", flush=True)
        return 0
    width = max(len(path.stem) for path in files)
    for path in files:
        print(f"{path.stem:<{width}}  {_about(path)}")
    return 0


def _named(name: str | Path, files: Iterable[Path]) -> Path:
    """The file of this name, with or without ``.yaml``."""
    known = {path.stem: path for path in files}
    wanted = str(name).removesuffix(".yaml")
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(Path(wanted).name, sorted(known), n=3, cutoff=0.3)
    raise FileNotFoundError(
        f"{name}: no such file, and no config of the package has this name. Near: {', '.join(near) or 'none'}. "
        "`python -m aent_llm configs` lists them all"
    )


def _about(path: Path) -> str:
    """The first sentence of the comment at the top of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    return " ".join(comment).partition(". ")[0]


def _parser() -> cli.Parser:
    about = "List the configs that come with the package, or print one of them."
    parser = cli.Parser(prog="python -m aent_llm configs", description=about)
    parser.add_argument("name", nargs="?", help="print this one, to start from: ... configs NAME > mine.yaml")
    return parser


if __name__ == "__main__":
    cli.run_as("aent_llm", "configs")
