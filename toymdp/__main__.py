"""``python -m toymdp list | verify | compare``: the settings, the propositions, the methods.

Exit status: 0 done, 1 a check failed (or what ``compare`` returns), 2 a command line that cannot be carried out.
Each command imports what it needs when it runs, so that ``list`` and ``--help`` answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aent import cli
from toymdp import suite

SCALES = ("smoke", "default", "full")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return cli.run("toymdp", lambda: _run(argv), extra="figures")


def _run(argv: list[str]) -> int:
    args = _parser(with_compare=argv[:1] == ["compare"]).parse_args(argv)
    return args.run(args)


def _parser(with_compare: bool) -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m toymdp",
        description="Exactly solvable large-action MDPs: what there is, what is proved on it, which method solves it.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="{list,verify,compare}")

    listing = commands.add_parser("list", help="settings with their exact optimum", description=_listing.__doc__)
    listing.add_argument(
        "--tag", action="append", default=[], metavar="T", help="only settings with this tag; repeat to narrow down"
    )
    listing.set_defaults(run=_listing, parser=listing)

    verify = commands.add_parser(
        "verify", help="check every proposition and its negative control", description=_verify.__doc__
    )
    verify.add_argument(
        "--scale", choices=SCALES, default="default", help="how many instances to try (default: default)"
    )
    verify.add_argument(
        "--seed", type=cli.whole_number(0), default=0, metavar="N", help="seed of the random instances (default: 0)"
    )
    verify.set_defaults(run=_verify, parser=verify)

    compare = commands.add_parser(
        "compare", help="tune and compare methods over settings", description=_compare.__doc__
    )
    if with_compare:
        from toymdp import compare as comparison  # noqa: PLC0415  (numba and joblib: only for those who compare)

        comparison.add_arguments(compare)
    compare.set_defaults(run=_compare, parser=compare)
    return parser


def _listing(args: argparse.Namespace) -> int:
    """List the settings: |A|, H, optimal tokens per state, exact optimum V*, log-number of optimal responses, tags."""
    from rich.table import Table  # noqa: PLC0415

    try:
        chosen = suite.select(*args.tag)
    except ValueError as error:
        args.parser.error(str(error))
    if not chosen:
        args.parser.error(f"no setting has all of the tags {', '.join(args.tag)}; give fewer")
    table = Table(
        title="Settings. gymnasium id: toymdp/<name>-v<version>, except for lumped ones (exact learners only)"
    )
    for heading in ("name", "v", "|A|", "H", "n", "V*", "log|A*_H| (nats)"):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    table.add_column("tags")
    for entry in chosen:
        facts = suite.describe(entry.name)
        table.add_row(
            entry.name,
            str(entry.version),
            f"{facts['actions']:,}",
            str(facts["horizon"]),
            str(facts["optimal"]),
            f"{facts['optimal_value']:.4g}",
            f"{facts['log_optimal_responses']:.3f}",
            " ".join(entry.tags),
        )
    _print(table)
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Check every proposition on random and on trained instances, and that every negative control fails. Exit status 1
    when a claim does not hold or a negative control does.
    """
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from toymdp.theory.propositions import verify  # noqa: PLC0415  (seconds to import, minutes to run)

    checks = verify(scale=args.scale, seed=args.seed, progress=True)
    failed = [check for check in checks if not check.passed]
    table = Table(title=f"Propositions, scale {args.scale}, seed {args.seed}; worst case found, claim is lhs <= rhs")
    for heading in ("check", "statement"):
        table.add_column(heading, overflow="fold")
    for heading in ("lhs", "rhs", "margin"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for check in checks:
        fine = check not in failed
        word = ("fails, as it must" if fine else "HOLDS, but must fail") if check.negative_control else "holds"
        verdict = word if fine or check.negative_control else "FAILS"
        numbers = (f"{number:.6g}" for number in (check.lhs, check.rhs, check.margin))
        table.add_row(
            escape(check.name), escape(check.statement), *numbers, f"[{'green' if fine else 'bold red'}]{verdict}[/]"
        )
    _print(table)
    print(
        f"{len(checks) - len(failed)} of {len(checks)} as claimed"
        + "".join(f"\n  not: {check.name}" for check in failed)
    )
    return 1 if failed else 0


def _compare(args: argparse.Namespace) -> int:
    """Tune every method with one budget on the chosen settings, then compare on fresh seeds."""
    from toymdp import compare  # noqa: PLC0415

    return compare.main(args)


def _print(table: object) -> None:
    """At the terminal's width; wide enough for whole names where there is no terminal."""
    from rich.console import Console  # noqa: PLC0415

    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
