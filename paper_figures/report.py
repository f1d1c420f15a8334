"""One self-contained page over all figures of a folder: `report.html`, readable offline, on a phone, by day and night.

Images are inlined (a light and a dark one each; the browser picks), fonts are the system's, there is no script and no
address is loaded. The CSV and PDF links lead to the files next to the page.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from paper_figures.output import Record, commit, records

BADGES = {
    "holds": ("holds", "✓"),
    "holds only if": ("only-if", "◐"),
    "fails": ("fails", "✕"),
    "not resolved": ("open", "?"),
}


def render(folder: Path) -> str:
    """The whole page.

    Raises:
        ValueError: no figure in the folder.
    """
    found = records(folder)
    if not found:
        raise ValueError(f"no figures in {folder}: run `python -m paper_figures --out {folder}` first")
    body = "\n".join([_head(found), _summary(found), *(_figure(record, folder) for record in found), _foot(found)])
    return PAGE.replace("{{style}}", STYLE).replace("{{body}}", body)


def _head(found: Sequence[Record]) -> str:
    scales = sorted({record.scale for record in found})
    warning = "" if scales == ["full"] else f" Drawn at {' and '.join(scales)} scale."
    if "smoke" in scales:
        warning += " Smoke scale shows that everything runs; its verdicts are not results."
    return (
        "<header><p class=kicker>AEnt · entropy control for LLM reinforcement learning</p>"
        "<h1>Theory and language-model figures</h1>"
        "<p class=lede>Each figure tests one published claim about entropy bonuses: F1 to F9, F14 and F15 on exactly "
        "solvable token MDPs, computed now; F10 to F13 and F16 on recorded runs of a small language model. Each "
        f"states its verdict with numbers computed from its own data.{warning}</p></header>"
    )


def _summary(found: Sequence[Record]) -> str:
    rows = "".join(
        f"<tr><td><a href='#{r.stem}'>{_short(r)}</a></td><td>{html.escape(r.claim)}</td><td>{_badge(r)}</td></tr>"
        for r in found
    )
    return (
        "<section aria-label='All verdicts'><h2>Verdicts at a glance</h2><div class=scroll><table>"
        f"<thead><tr><th>Fig.</th><th>Claim</th><th>Verdict</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _figure(record: Record, folder: Path) -> str:
    light, dark = (_inline(folder / f"{record.stem}{suffix}.png") for suffix in ("", ".dark"))
    alt = html.escape(f"{record.alt} Verdict: {record.status}.", quote=True)
    links = " · ".join(f"<a href='{record.stem}.{kind}'>{kind.upper()}</a>" for kind in ("csv", "pdf", "png"))
    made = f"{record.scale} scale, seed {record.seed}, {record.rows:,} rows, {record.seconds:.0f} s"
    made += f", commit {commit(record.provenance)}"
    return (
        f"<section id='{record.stem}'><h2><span class=number>{_short(record)}</span> {html.escape(record.claim)}</h2>"
        f"<div class='verdict {BADGES[record.status][0]}'>{_badge(record)}<p>{_text(record.sentence)}</p></div>"
        f"<figure><div class=frame><picture><source media='(prefers-color-scheme: dark)' srcset='{dark}'>"
        f"<img src='{light}' alt='{alt}' width=900 loading=lazy></picture></div>"
        f"<figcaption>{_text(record.caption)}</figcaption></figure>{_table(record)}"
        f"<p class=files>{links} <span>{html.escape(made)}</span></p></section>"
    )


def _table(record: Record) -> str:
    """The numbers behind a figure of many rows, folded away."""
    if not record.table:
        return ""
    head, *rows = record.table
    body = "".join(_row(row, "td") for row in rows)
    return (
        "<details><summary>All numbers as a table</summary><div class=scroll>"
        f"<table class=dense><thead>{_row(head, 'th')}</thead><tbody>{body}</tbody></table></div></details>"
    )


def _row(cells: list[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"


def _foot(found: Sequence[Record]) -> str:
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        runs.setdefault((commit(record.provenance), record.provenance["date"]), []).append(record)
    blocks = []
    for (code, date), own in sorted(runs.items()):
        record, origin = own[0], own[0].provenance
        facts = {
            "figures": ", ".join(map(_short, own)),
            "commit": code,
            "date": date,
            "command": f"python -m paper_figures --scale {record.scale} --seed {record.seed}",
            "machine": f"{origin['cpu']}, {origin['cores']} cores; {origin['platform']}",
            "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        }
        rows = "".join(f"<dt>{key}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items())
        blocks.append(f"<dl>{rows}</dl>")
    mixed = "<p>These figures come from different runs.</p>" if len(blocks) > 1 else ""
    return f"<footer><h2>Provenance</h2>{mixed}{''.join(blocks)}</footer>"


def _text(sentence: str) -> str:
    """Escaped, and "λ = .06" never split over two lines."""
    tied = re.sub(r" ([=<>≥≤]) ", "\u00a0\\1\u00a0", sentence)
    return html.escape(tied)


def _short(record: Record) -> str:
    return record.stem.split("_")[0].upper()


def _badge(record: Record) -> str:
    kind, sign = BADGES[record.status]
    return f"<span class='badge {kind}'><span aria-hidden=true>{sign}</span> {record.status}</span>"


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>AEnt: the figures</title>
<style>{{style}}</style>
</head>
<body><main>
{{body}}
</main></body>
</html>
"""

STYLE = """
:root { --paper: #ffffff; --ground: #f6f7f8; --ink: #1b1f24; --soft: #59616b; --line: #dfe3e8; --link: #005a96;
  --yes: #00664a; --yes-bg: #e2f3ec; --some: #7a5200; --some-bg: #fbf0d9; --no: #9a3412; --no-bg: #fde8df; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --ground: #0e1013; --ink: #e7eaee; --soft: #a3abb6;
  --line: #2b3038; --link: #7cc0f2; --yes: #6fd3ae; --yes-bg: #12302a; --some: #efc26b; --some-bg: #332912;
  --no: #f5a684; --no-bg: #3a2018; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 400 1.0625rem/1.6 Charter, "Bitstream Charter",
  "Iowan Old Style", "Sitka Text", Cambria, Georgia, serif; font-variant-numeric: oldstyle-nums; }
main { max-width: 62rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 4rem; }
h1, h2, th, .kicker, .badge, .files, dt, dd, .number { font-family: system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; font-variant-numeric: lining-nums; }
h1 { font-size: clamp(1.8rem, 5vw, 2.7rem); line-height: 1.12; letter-spacing: -.022em; margin: .2rem 0 1rem;
  text-wrap: balance; }
h2 { font-size: 1.28rem; line-height: 1.25; letter-spacing: -.012em; margin: 0 0 .7rem; text-wrap: balance; }
p { margin: 0 0 .8rem; max-width: 42rem; text-wrap: pretty; }
a { color: var(--link); text-underline-offset: .18em; text-decoration-thickness: .06em; }
.kicker { color: var(--soft); font-size: .82rem; letter-spacing: .04em; margin: 0; }
.lede { font-size: 1.18rem; line-height: 1.5; color: var(--soft); }
.number { color: var(--soft); font-weight: 500; margin-right: .35rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: clamp(1rem, 3vw, 2rem);
  margin: 1.75rem 0; scroll-margin-top: 1rem; }
.verdict { display: flex; gap: .9rem; align-items: baseline; border-radius: 10px; padding: .8rem 1rem;
  margin: 0 0 1.1rem; }
.verdict p { margin: 0; font-size: 1rem; line-height: 1.5; max-width: 46rem; }
.verdict.holds { background: var(--yes-bg); } .verdict.only-if { background: var(--some-bg); }
.verdict.fails { background: var(--no-bg); } .verdict.open { background: var(--ground); }
.badge { display: inline-block; font-size: .84rem; font-weight: 650; white-space: nowrap; }
.badge.holds { color: var(--yes); } .badge.only-if { color: var(--some); } .badge.fails { color: var(--no); }
.badge.open { color: var(--soft); }
figure { margin: 0; }
.frame { overflow-x: auto; margin: 0 calc(-1 * clamp(0rem, 2vw, 1rem)); }
img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .97rem; line-height: 1.5; margin-top: .8rem; max-width: 46rem; }
.files { font-size: .84rem; margin: .9rem 0 0; max-width: none; }
.files span { color: var(--soft); margin-left: .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .97rem; line-height: 1.4; }
th { text-align: left; font-size: .8rem; font-weight: 600; color: var(--soft); }
th, td { padding: .5rem .8rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
tr:last-child td { border-bottom: 0; } td:last-child, th:last-child { padding-right: 0; }
details { margin: .9rem 0 0; } summary { cursor: pointer; color: var(--link); font-size: .95rem; }
table.dense { font-size: .82rem; white-space: nowrap; font-variant-numeric: lining-nums tabular-nums;
  margin-top: .6rem; }
table.dense th, table.dense td { padding: .25rem .9rem .25rem 0; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .95rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0 0 1.2rem; }
dt { font-size: .84rem; } dd { margin: 0; font-size: .88rem; color: var(--ink); overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  body { font-size: 1rem; } .verdict { flex-direction: column; gap: .3rem; }
  .frame img { width: 760px; max-width: none; }
  .files span { display: block; margin: .3rem 0 0; }
}
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
"""
