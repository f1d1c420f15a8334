"""What a figure says about the published claim it tests."""

from __future__ import annotations

from dataclasses import dataclass

STATUSES = ("holds", "holds only if", "fails", "not resolved")


@dataclass(frozen=True)
class Verdict:
    """A status and some sentences whose numbers are computed from the figure's own data.

    ``holds only if``: under a condition that the sentences name. ``fails``: the data do not bear the claim out.
    ``not resolved``: the runs scatter too much to say either.
    """

    status: str
    sentence: str

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"verdict status {self.status!r}: expected one of {', '.join(STATUSES)}")
