"""One self-contained page over all figures of a folder: `report.html`, readable offline and on a phone.

The page can be sent alone: images, data (zipped) and code are inside, fonts are the system's, there is no script and no
address is loaded. Plain CSV, PDF and PNG lie beside it. Left out: a dark theme; the figures are light.
"""

from __future__ import annotations

import base64
import html
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image  # comes with matplotlib

from paper_figures.output import Record, commit, records
from paper_figures.registry import MODULES

BADGES = {  # status -> class, sign, meaning
    "holds": ("holds", "✓", "The data bear the claim out."),
    "holds only if": ("only-if", "◐", "The data bear it out under a condition, which its sentences name."),
    "fails": ("fails", "✕", "The data do not bear it out; its sentences say what happens instead."),
    "not resolved": ("open", "?", "The runs scatter too much to say either."),
}
LARGEST = 1_000_000  # bytes of zipped data that the page carries per figure; more lies beside it only


def render(folder: Path) -> tuple[str, list[str]]:
    """Render the whole page over all figures of a folder.

    Returns:
        The page, and a sentence on every figure that is left out because a file of it is damaged, as the page has them.

    Raises:
        ValueError: no figure in the folder, or only damaged ones.
    """
    found, damaged = records(folder)
    sections: dict[str, str] = {}
    for record in found:
        try:
            sections[record.stem] = _figure(record, folder)
        except Exception as error:  # for a damaged image Pillow raises nearly anything
            damaged.append(f"{record.stem} is damaged: {type(error).__name__}: {error}")
    found = [record for record in found if record.stem in sections]
    if not found:
        lost = f" ({'; '.join(damaged)})" if damaged else ""
        raise ValueError(f"no figures in {folder}{lost}: run `python -m paper_figures --out {folder}` first")
    parts = [_head(found, damaged), _summary(found), _bar(found), *sections.values(), _foot(found)]
    return PAGE.replace("{{style}}", STYLE).replace("{{body}}", "\n".join(parts)), damaged


def _head(found: Sequence[Record], damaged: Sequence[str]) -> str:
    scales = sorted({record.scale for record in found})
    warning = "" if scales == ["full"] else f" Drawn at {' and '.join(scales)} scale."
    if "smoke" in scales:
        warning += " Smoke scale shows that everything runs; its verdicts are not results."
    lost = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in damaged)
    left_out = f"<p>Left out, because files of them are damaged:</p><ul>{lost}</ul>" if damaged else ""
    return (
        "<header><p class=kicker>AEnt · entropy control for LLM reinforcement learning</p>"
        "<h1>Theory and language-model figures</h1>"
        "<p class=lede>Each figure tests one published claim about entropy bonuses, on exactly solvable token MDPs or "
        "on recorded runs of a small language model, and states its verdict with numbers computed from its own "
        f"data.{html.escape(warning)}</p>{left_out}</header>"
    )


def _summary(found: Sequence[Record]) -> str:
    counts = {status: sum(record.status == status for record in found) for status in BADGES}
    meanings = "".join(
        f"<div><dt>{_badge(status)}</dt><dd><b>{counts[status]}</b> {meaning}</dd></div>"
        for status, (_, _, meaning) in BADGES.items()
    )
    claims = "".join(
        f"<li><a href='#{_id(r)}'>{_name(r)}</a><span class=claim>{_text(r.claim)}</span>{_badge(r.status)}</li>"
        for r in found
    )
    return (
        f"<section id=verdicts><h2>{len(found)} verdicts at a glance</h2><dl class=meanings>{meanings}</dl>"
        f"<ol class=claims>{claims}</ol></section><section id=reading><h2>How to read this page</h2>{READING}</section>"
    )


def _bar(found: Sequence[Record]) -> str:
    """The way between figures: stays at the top of the screen."""
    links = "".join(
        f"<a class={BADGES[r.status][0]} href='#{_id(r)}'><span aria-hidden=true>{BADGES[r.status][1]}</span>"
        f"{_name(r)}<span class=unseen> {r.status}</span></a>"
        for r in found
    )
    return f"<nav aria-label=Figures id=figures><div><a href='#verdicts'>Verdicts</a>{links}</div></nav>"


def _figure(record: Record, folder: Path) -> str:
    name, stem = _name(record), record.stem
    alt = html.escape(f"{record.alt} Verdict: {record.status}.")
    image = _image(folder / f"{stem}.png", alt)
    made = f"{record.scale} scale, seed {record.seed}, {record.rows:,} rows, {_time(record.seconds)}"
    made += f", commit {commit(record.provenance)}"
    return (
        f"<section id='{_id(record)}'><h2><span class=number>{name}</span> {_text(record.claim)}</h2>"
        f"<div class='verdict {BADGES[record.status][0]}'>{_badge(record.status)}<p>{_text(record.sentence)}</p></div>"
        f"<figure><p class=hint aria-hidden=true>← Swipe the figure sideways →</p>"
        f"<div class=frame tabindex=0 role=group aria-label='{name}, the figure'>{image}</div>"
        f"<figcaption>{_text(record.caption)}</figcaption></figure>{_table(record)}{_code(record)}"
        f"<p class=files>{_links(record, folder)}</p>"
        f"<p class=made>{html.escape(made)}<br>{_command([record])}</p></section>"
    )


def _table(record: Record) -> str:
    """The numbers behind a figure of many rows, folded away."""
    if not record.table:
        return ""
    head, *rows = record.table
    body = "".join(f"<tr><th scope=row>{html.escape(row[0])}</th>{_cells(row[1:], 'td')}</tr>" for row in rows)
    return (
        f"<details><summary>All numbers as a table<span class=unseen> of {_name(record)}</span></summary>"
        f"<div class=scroll tabindex=0 role=group aria-label='{_name(record)}, the table'><table>"
        f"<thead><tr>{_cells(head, 'th scope=col')}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _cells(cells: Sequence[str], kind: str) -> str:
    return "".join(f"<{kind}>{html.escape(cell)}</{kind[:2]}>" for cell in cells)


def _code(record: Record) -> str:
    """The figure's module, folded away; nothing when this version has no such figure."""
    path = Path(__file__).with_name(f"{record.stem}.py")
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    return (
        f"<details><summary>Code: paper_figures/{html.escape(path.name)}, {len(text.splitlines())} lines</summary>"
        f"<pre tabindex=0 role=group aria-label='{_name(record)}, the code'><code>{html.escape(text)}</code></pre>"
        "</details>"
    )


def _links(record: Record, folder: Path) -> str:
    stem, packed = html.escape(quote(record.stem)), _zipped(folder / f"{record.stem}.csv")
    size = f"{max(1, round(len(packed) / 1000)):,} kB"
    inside = f"<a download='{stem}.csv.zip' href='{_address('application/zip', packed)}'>CSV (zip, {size})</a>"
    beside = " · ".join(f"<a href='{stem}.{kind}'>{kind.upper()}</a>" for kind in ("csv", "pdf", "png"))
    within = f"In this page: {inside}. " if len(packed) <= LARGEST else ""
    return f"{within}Beside this page in its folder: {beside}"


def _foot(found: Sequence[Record]) -> str:
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        runs.setdefault((commit(record.provenance), record.provenance["date"]), []).append(record)
    blocks = []
    for (code, date), own in sorted(runs.items()):
        origin = own[0].provenance
        facts = {
            "figures": ", ".join(map(_short, own)),
            "commit": code,
            "date": f"{date[:16].replace('T', ' ')} UTC",
            "machine": f"{origin['cpu']}, {origin['cores']} cores; {origin['platform']}",
            "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        }
        rows = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
        blocks.append(f"<dl>{rows}<dt>command</dt><dd>{_command(own)}</dd></dl>")
    mixed = "<p>These figures come from different runs.</p>" if len(blocks) > 1 else ""
    if any(record.provenance["dirty"] for record in found):
        mixed += "<p>+changes: the code differed from the commit.</p>"
    return f"<footer id=provenance><h2>Provenance</h2>{mixed}{''.join(blocks)}</footer>"


def _command(own: Sequence[Record]) -> str:
    """What makes these figures again; no option is split at its hyphens."""
    only = "" if len(own) == len(MODULES) else f"--only {' '.join(_short(record).lower() for record in own)} "
    command = f"python -m paper_figures {only}--scale {own[0].scale} --seed {own[0].seed}"
    return f"<code>{' '.join(f'<span>{html.escape(word)}</span>' for word in command.split())}</code>"


def _text(sentence: str) -> str:
    """Escaped, and neither "λ = .06" nor "1e-04" split over two lines."""
    tied = re.sub(r" ([=<>≥≤]) ", "\u00a0\\1\u00a0", sentence)
    return re.sub(r"[\d.]+e-\d+", r"<span>\g<0></span>", html.escape(tied))


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def _short(record: Record) -> str:
    return record.stem.split("_")[0].upper()


def _name(record: Record) -> str:
    """Give the figure's number for the page; what comes from a file is escaped."""
    return html.escape(_short(record))


def _id(record: Record) -> str:
    """Give the figure's anchor, escaped; an id has no spaces."""
    return html.escape("".join(record.stem.split()))


def _badge(status: str) -> str:
    kind, sign, _ = BADGES[status]
    return f"<span class='badge {kind}'><span aria-hidden=true>{sign}</span> {status}</span>"


def _image(path: Path, alt: str) -> str:
    """A PNG inside the page, reduced to 256 colours: a third of the bytes, and no harm that shows."""
    image = Image.open(path).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG")
    address = _address("image/png", buffer.getvalue())
    return f"<img src='{address}' alt='{alt}' width={image.width} height={image.height} loading=lazy>"


def _zipped(path: Path) -> bytes:
    """A file in a zip (phones and desktops open it, pandas reads it): the same bytes for the same file."""
    member = zipfile.ZipInfo(path.name)
    member.external_attr = 0o644 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>AEnt: the figures</title>
<style>{{style}}</style>
</head>
<body><a class=skip href="#figures">Skip to the figures</a><main>
{{body}}
</main></body>
</html>
"""

READING = """<p>A verdict speaks of the problems and the model that its figure shows, not of models with billions of
parameters. Entropies are in nats; intervals are 95% unless a caption says otherwise.</p>
<p>The <b>scale</b> is how much was computed: <i>smoke</i> takes seconds and only shows that everything runs,
<i>default</i> takes minutes and gives the numbers that the README quotes, <i>full</i> has more seeds and longer runs.
Figures of recorded language-model runs are the same at every scale.</p>
<p>This file can be sent alone: figures, code and data (up to 1 MB a figure, zipped) are in it. The links to what lies
beside this page in its folder are dead then. The code shown is that of the day the page was written; the commit below
a figure says which code drew it, and the command below that draws it again.</p>"""

STYLE = """
:root { --paper: #ffffff; --ground: #f6f7f8; --ink: #1b1f24; --soft: #59616b; --line: #dfe3e8; --link: #005a96;
  --yes: #00664a; --yes-bg: #e2f3ec; --some: #7a5200; --some-bg: #fbf0d9; --no: #9a3412; --no-bg: #fde8df; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 400 1.0625rem/1.6 Charter, "Bitstream Charter",
  "Iowan Old Style", "Sitka Text", Cambria, Georgia, serif; font-variant-numeric: oldstyle-nums; }
main { max-width: 62rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 4rem; }
h1, h2, th, nav, summary, .skip, .kicker, .badge, .files, .made, .hint, .claims a, .meanings b, footer dt, footer dd,
.number { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: lining-nums; }
h1 { font-size: clamp(1.8rem, 5vw, 2.7rem); line-height: 1.12; letter-spacing: -.022em; margin: .2rem 0 1rem;
  text-wrap: balance; }
h2 { font-size: 1.28rem; line-height: 1.25; letter-spacing: -.012em; margin: 0 0 .7rem; text-wrap: balance; }
p { margin: 0 0 .8rem; max-width: 42rem; text-wrap: pretty; }
a { color: var(--link); text-underline-offset: .18em; text-decoration-thickness: .06em; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: 1rem; top: -6rem; z-index: 2; background: var(--paper); padding: .7rem 1rem; }
.skip:focus { top: 1rem; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.kicker { color: var(--soft); font-size: .82rem; letter-spacing: .04em; margin: 0; }
.lede { font-size: 1.18rem; line-height: 1.5; color: var(--soft); }
.number { color: var(--soft); font-weight: 500; margin-right: .35rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: clamp(1rem, 3vw, 2rem);
  margin: 1.75rem 0; scroll-margin-top: 4rem; }
section > :last-child { margin-bottom: 0; }
.badge { display: inline-block; font-size: .84rem; font-weight: 650; white-space: nowrap; }
.holds { color: var(--yes); } .only-if { color: var(--some); } .fails { color: var(--no); }
.open { color: var(--soft); }
.meanings { margin: 0 0 1.3rem; font-size: .97rem; line-height: 1.45; }
.meanings > div { display: grid; grid-template-columns: 7.2rem 1fr; gap: .8rem; align-items: baseline;
  padding: .22rem 0; }
.meanings dd { margin: 0; color: var(--soft); } .meanings b { display: inline-block;
  min-width: 1.6rem; color: var(--ink); }
.claims { list-style: none; margin: 0; padding: 0; font-size: .97rem; line-height: 1.4; }
.claims li { display: grid; grid-template-columns: 2.6rem 1fr 6.8rem; gap: .2rem .6rem; align-items: baseline;
  padding: .5rem 0; border-top: 1px solid var(--line); }
.claims a { padding: .3rem 0; font-size: .9rem; }
nav { position: sticky; top: 0; z-index: 1; background: var(--ground); margin: 0 -.5rem; scroll-target-group: auto; }
nav > div { display: flex; overflow-x: auto; padding: .3rem 0; scrollbar-width: none; }
nav a { flex: 1 0 auto; position: relative; text-align: center; font-size: .8rem; font-weight: 600;
  text-decoration: none; padding: .55rem .45rem; border-radius: 8px; white-space: nowrap; }
nav a > span:first-child { margin-right: .2rem; }
nav a:hover, nav a:target-current { background: var(--paper); box-shadow: inset 0 0 0 1px var(--line); }
nav a:focus-visible { outline-offset: -3px; }
.verdict { display: flex; gap: .9rem; align-items: baseline; border-radius: 10px; padding: .8rem 1rem;
  margin: 0 0 1.1rem; }
.verdict p { margin: 0; font-size: 1rem; line-height: 1.5; max-width: 46rem; color: var(--ink); }
.verdict.holds { background: var(--yes-bg); } .verdict.only-if { background: var(--some-bg); }
.verdict.fails { background: var(--no-bg); } .verdict.open { background: var(--ground); }
figure { margin: 0; }
.frame { overflow-x: auto; margin: 0 calc(-1 * clamp(0rem, 2vw, 1rem)); }
img { display: block; width: 100%; height: auto; }
.hint { display: none; color: var(--soft); font-size: .82rem; text-align: center; margin: 0 0 .3rem; }
figcaption { color: var(--soft); font-size: .97rem; line-height: 1.5; margin: .8rem 0 1rem; max-width: 46rem; }
details { margin: .3rem 0; }
summary { cursor: pointer; color: var(--link); font-size: .86rem; padding: .25rem 0; position: relative; }
.scroll, pre { overflow-x: auto; }
.scroll { mask-image: linear-gradient(90deg, #000 calc(100% - 2rem), transparent); }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.4; white-space: nowrap; margin: .4rem 0;
  font-variant-numeric: lining-nums tabular-nums; }
th, td { text-align: left; padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: .8rem; } thead th { color: var(--soft); }
@media (min-width: 44rem) { th:first-child { position: sticky; left: 0; background: var(--paper); } }
td:last-child, th:last-child { padding-right: 2rem; } tr:last-child > * { border-bottom: 0; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .93em; }
pre { font-size: .78rem; line-height: 1.5; background: var(--ground); border-radius: 8px; padding: 1rem;
  margin: .4rem 0 1rem; tab-size: 4; }
.files, .made { font-size: .84rem; margin: .5rem 0 0; max-width: none; }
.made { color: var(--soft); } p > span, code > span { white-space: nowrap; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .95rem; }
footer dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0 0 1.2rem; }
footer dt { font-size: .84rem; } footer dd { margin: 0; font-size: .88rem; color: var(--ink); overflow-wrap: anywhere; }
@media screen and (max-width: 44rem) {
  body { font-size: 1rem; } .verdict { flex-direction: column; gap: .3rem; }
  .meanings > div { grid-template-columns: 1fr; gap: 0; padding: .35rem 0; }
  .claims li { grid-template-columns: 1fr max-content; } .claims .claim { grid-row: 2; grid-column: 1 / -1; }
  nav { margin: 0 -1rem; } nav > div { padding: .3rem 2rem .3rem .5rem; } nav a { padding: .8rem .6rem; }
  nav > div, .frame { mask-image: linear-gradient(90deg, #000 calc(100% - 2rem), transparent); }
  .hint { display: block; } .frame { margin: 0 -1rem; } .frame img { width: 808px; max-width: none;
    padding: 0 2rem 0 1rem; }
}
@media print {
  @page { margin: 15mm; } body { background: #fff; font-size: 10pt; } .frame { overflow: visible; margin: 0; }
  main { max-width: none; padding: 0; } section { border: 0; padding: 0; }
  nav, details, .skip { display: none; } h2 { break-after: avoid; break-inside: avoid; }
  figure, .verdict, .claims li { break-inside: avoid; }
}
"""
