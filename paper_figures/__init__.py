"""The figures of the project, each drawn from nothing by `python -m paper_figures`.

One file per figure (``f1_one_step.py`` ...) with ``compute(scale, rng, progress) -> DataFrame``, ``draw(df) -> Figure``
and ``verdict(df) -> Verdict``: the numbers, the picture, and what the numbers say about the published claim. Figures
know nothing of files; ``output.py`` saves them, ``report.py`` puts them on one page, ``__main__.py`` is the command.

To add a figure: write its file, add one line to ``registry.MODULES``.
"""
