"""The page over all figures: what it holds, what it links to, that it loads nothing, and that it can be read."""

import base64
import html
import io
import json
import re
import shutil
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from paper_figures import __main__ as command
from paper_figures import output, registry, report, style, verdicts

FIGURES = ["f6_bias", "f12_llm_clamp_gap", "f16_llm_leaderboard"]  # quick ones: theory, recorded, with a table
VOID = {"meta", "img", "br", "link", "source", "input", "base"}
LOADING = {"script", "link", "iframe", "object", "embed", "video", "audio", "source", "form", "base", "svg"}


class Page(HTMLParser):
    """The page as lists: images, links, ids, headings, landmarks and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.ids, self.headings, self.loads, self.tags = [], [], [], [], [], []
        self.css, self.open, self.broken = "", [], []
        self.feed(text)
        self.broken += self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.loads += [attributes[name] for name in ("src", "srcset", "data", "poster", "style") if name in attributes]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.broken.append(f"/{tag}")

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.css += data


def faults(text, folder):
    """What keeps the page from being read anywhere, alone and by everyone: empty for a good page."""
    page = Page(text)
    found = [f"not closed: {tag}" for tag in page.broken]
    found += [f"{tag} can load" for tag, _ in page.tags if tag in LOADING]
    found += [f"loads {load[:40]}" for load in page.loads if not load.startswith("data:image/png;base64,")]
    found += [f"css loads {match}" for match in re.findall(r"url\(|@import|image-set\(", page.css)]
    found += [f"script in {tag}" for tag, own in page.tags for name in own if name.startswith("on")]
    found += [f"id {name} twice" for name in set(page.ids) if page.ids.count(name) > 1]
    found += [f"image without words: {image.get('alt')}" for image in page.images if len(image.get("alt") or "") < 100]
    found += ["image without a size" for image in page.images if not {"width", "height"} <= set(image)]
    for link in page.links:
        address = link["href"]
        inside = address.startswith("#") and address[1:] in page.ids
        carried = address.startswith("data:application/zip;base64,") and link.get("download")
        if not (inside or carried or (":" not in address and (folder / unquote(address)).is_file())):
            found.append(f"dead link {address[:60]}")
    jumps = [(a, b) for a, b in zip([0, *page.headings], page.headings, strict=False) if b > a + 1]
    found += [f"heading jumps from {a} to {b}" for a, b in jumps]
    if page.headings.count(1) != 1:
        found.append("not one first heading")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three quick figures at smoke scale and their page, made through the command."""
    made = tmp_path_factory.mktemp("report") / "out"
    assert command.main(["--scale", "smoke", "--only", *FIGURES, "--out", str(made), "--jobs", "1"]) == 0
    return made


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def plain(text):
    """The words of the page as a reader meets them."""
    words = re.sub(r"<[^>]*>", "", text.replace("\u00a0", " "))
    return " ".join(words.replace("&#x27;", "'").replace("&gt;", ">").replace("&lt;", "<").split())


# -------------------------------------------------------------------------------------------------------- structure


def test_the_page_has_no_fault(text, folder):
    assert faults(text, folder) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<h1>", "<script src='x.js'></script><h1>", "script can load"),
        ("<h1>", "<img src='https://example.org/x.png' alt='x'><h1>", "loads https://example.org"),
        ("<style>", "<style>@import 'x.css';", "css loads @import"),
        ("<style>", "<style>body{background:url(x.png)}", "css loads url("),
        ("<main>", "<main onclick='x()'>", "script in main"),
        ("href='#f6_bias'", "href='#f66_bias'", "dead link #f66_bias"),
        ("href='f6_bias.pdf'", "href='https://example.org/f6_bias.pdf'", "dead link https"),
        ("href='f6_bias.pdf'", "href='f66_bias.pdf'", "dead link f66_bias.pdf"),
        ("id='f6_bias'", "id='verdicts'", "id verdicts twice"),
        (" alt='", " title='", "image without words"),
        (" height=", " data-height=", "image without a size"),
        ("<h1>", "<h3>", "heading jumps from 0 to 3"),
        ("</ol>", "", "not closed"),
    ],
)
def test_every_fault_is_found(old, new, fault, text, folder):
    assert old in text
    assert any(found.startswith(fault) for found in faults(text.replace(old, new, 1), folder))


def test_every_figure_is_there_with_verdict_words_and_command(text, folder):
    page, words = Page(text), plain(text)
    found = output.records(folder)[0]
    assert [record.stem for record in found] == FIGURES
    for record in found:
        for part in (record.claim, record.sentence, record.caption):
            assert plain(part) in words
        assert f"badge {report.BADGES[record.status][0]}" in text
        alts = [image["alt"] for image in page.images if image["alt"].startswith(record.alt)]
        assert alts == [f"{record.alt} Verdict: {record.status}."]
        again = f"--only {record.stem.split('_')[0]} --scale smoke --seed 0"
        assert f"python -m paper_figures {again}" in words
        assert registry.resolve([again.split()[1]]) == [record.stem]


def test_every_figure_shows_once_and_the_page_is_light_on_every_screen(text):
    page = Page(text)
    assert len(page.images) == len(FIGURES)
    assert "prefers-color-scheme" not in page.css
    assert '<meta name="color-scheme" content="light">' in text  # the browser darkens nothing by itself


def test_motion_focus_language_and_skip_link(text):
    page = Page(text)
    assert dict(page.tags)["html"]["lang"] == "en"
    assert page.links[0]["class"] == "skip"
    assert page.css.count("scroll-behavior") == 1
    assert re.search(r"prefers-reduced-motion: no-preference\) \{ html \{ scroll-behavior: smooth", page.css)
    assert ":focus-visible { outline: 3px" in page.css
    assert "outline: none" not in page.css
    scrolling = [own for tag, own in page.tags if own.get("class") in {"frame", "scroll"} or tag == "pre"]
    assert scrolling
    assert all(own["tabindex"] == "0" and own["role"] == "group" and own["aria-label"] for own in scrolling)


def test_the_counts_and_the_meaning_of_verdicts_come_first(text, folder):
    words, found = plain(text), output.records(folder)[0]
    assert f"{len(found)} verdicts at a glance" in words
    for status, (_, sign, meaning) in report.BADGES.items():
        count = sum(record.status == status for record in found)
        assert f"{sign} {status}{count} {meaning}" in words
    assert set(report.BADGES) == set(verdicts.STATUSES)


# --------------------------------------------------------------------------------------------- what the page carries


def test_the_page_carries_the_data(text, folder):
    carried = [link for link in Page(text).links if "download" in link]
    assert [link["download"] for link in carried] == [f"{stem}.csv.zip" for stem in FIGURES]
    for link, stem in zip(carried, FIGURES, strict=True):
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(link["href"].split(",")[1]))) as archive:
            assert archive.namelist() == [f"{stem}.csv"]
            assert archive.infolist()[0].external_attr >> 16 == 0o644
            assert archive.read(f"{stem}.csv") == (folder / f"{stem}.csv").read_bytes()


def test_large_data_stay_outside(folder, monkeypatch):
    sizes = {stem: len(report._zipped(folder / f"{stem}.csv")) for stem in FIGURES}
    largest = max(FIGURES, key=sizes.__getitem__)
    monkeypatch.setattr(report, "LARGEST", sizes[largest] - 1)
    text, _ = report.render(folder)
    carried = [link["download"] for link in Page(text).links if "download" in link]
    assert carried == [f"{stem}.csv.zip" for stem in FIGURES if stem != largest]
    assert f"href='{largest}.csv'" in text
    assert faults(text, folder) == []


def test_the_page_carries_the_code(text):
    for stem in FIGURES:
        source = Path(registry.__file__).with_name(f"{stem}.py").read_text(encoding="utf-8")
        assert html.escape(source) in text
        assert f"Code: paper_figures/{stem}.py, {len(source.splitlines())} lines" in text


def test_images_look_as_the_files_do(text, folder):
    """256 colours: the background is the page's to the last bit, and no pixel in a hundred is off by 16 of 255."""
    images = Page(text).images
    for image, stem in zip(images, FIGURES, strict=True):
        inside = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        file = Image.open(folder / f"{stem}.png")
        assert inside.size == file.size == (int(image["width"]), int(image["height"]))
        shown, drawn = (np.asarray(each.convert("RGB")).astype(int) for each in (inside, file))
        assert (shown[:3, :3] == drawn[:3, :3]).all()
        assert (abs(shown - drawn).max(-1) > 16).mean() < 0.01
        assert "#{:02X}{:02X}{:02X}".format(*shown[1, 1]) == style.PAPER


def test_the_same_folder_gives_the_same_page(text, folder):
    assert report.render(folder) == (text, [])


# ------------------------------------------------------------------------------------------------ provenance, refusals


def test_where_it_comes_from(text, folder):
    record, words = output.records(folder)[0][0], plain(text)
    for fact in (
        "smoke scale",
        "its verdicts are not results",
        output.commit(record.provenance),
        f"numpy {np.__version__}",
        record.provenance["date"][:10],
        f"{record.provenance['cores']} cores",
        "python -m paper_figures --only f6 f12 f16 --scale smoke --seed 0",
    ):
        assert fact in words
    assert "different runs" not in words


def rewritten(folder, tmp_path, **changes):
    """A copy of the folder whose first figure says something else."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / f"{FIGURES[0]}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def test_several_runs_and_a_changed_tree_are_named(folder, tmp_path):
    origin = output.records(folder)[0][0].provenance | {"commit": "ab" * 20, "dirty": True}
    words = plain(report.render(rewritten(folder, tmp_path, provenance=origin, seed=3))[0])
    assert "These figures come from different runs." in words
    assert "+changes: the code differed from the commit." in words
    assert "python -m paper_figures --only f6 --scale smoke --seed 3" in words


def test_all_figures_of_a_run_need_no_list(folder):
    record = output.records(folder)[0][0]
    everything = [replace(record, stem=stem) for stem in registry.MODULES]
    assert plain(report._command(everything)) == "python -m paper_figures --scale smoke --seed 0"


def test_a_figure_of_another_version_has_no_code(folder, tmp_path):
    copy = rewritten(folder, tmp_path, stem="f6_gone")
    for path in copy.glob("f6_bias*"):
        path.rename(path.with_name(path.name.replace("f6_bias", "f6_gone")))
    text, _ = report.render(copy)
    assert "Code: paper_figures/f6_gone" not in text
    assert faults(text, copy) == []


EVIL = "<script>alert('1')<b> \" ' & {{style}} {{body}}"
TEXTS = ("title", "claim", "sentence", "caption", "alt", "scale")


@pytest.mark.parametrize("field", [*TEXTS, "table", "stem", "commit", "date", "cpu", "platform", "versions"])
def test_words_cannot_break_out(folder, tmp_path, field):
    """What a file says is words on the page, in every field and in the file's name."""
    origin = output.records(folder)[0][0].provenance
    changes = {
        **{name: {name: EVIL * 3} for name in TEXTS},
        "table": {"table": [[EVIL, EVIL], [EVIL, EVIL]]},
        "stem": {"stem": f"f6_{EVIL}"},
        "versions": {"provenance": origin | {"versions": {EVIL: EVIL}}},
        **{name: {"provenance": origin | {name: EVIL}} for name in ("commit", "date", "cpu", "platform")},
    }[field]
    copy = rewritten(folder, tmp_path, **changes)
    if field == "stem":
        for path in copy.glob("f6_bias*"):
            path.rename(path.with_name(path.name.replace("f6_bias", f"f6_{EVIL}")))
    text, damaged = report.render(copy)
    assert damaged == []
    assert faults(text, copy) == []
    assert "<script" not in text


def test_the_name_of_a_damaged_file_is_words_too(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / f"f6_{EVIL}.json").write_text("{")
    text, damaged = report.render(copy)
    assert len(damaged) == 1
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text


def test_an_unknown_status_is_damage(folder, tmp_path):
    _, damaged = report.render(rewritten(folder, tmp_path, status="maybe"))
    assert "verdict status 'maybe'" in damaged[0]


def test_an_empty_folder_has_no_report(tmp_path):
    with pytest.raises(ValueError, match="python -m paper_figures"):
        report.render(tmp_path)


# --------------------------------------------------------------------------------------------------------- legibility


def colours(css):
    """Name -> colour of the style sheet."""
    (block,) = re.findall(r":root \{[^}]*\}", css)
    return dict(re.findall(r"--([\w-]+): (#\w{6})", block))


def contrast(first, second):
    """Contrast ratio of WCAG 2.2: (L1 + .05) / (L2 + .05), L the relative luminance of an sRGB colour."""

    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_pairs():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the known near miss
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


PAIRS = [(front, back) for front in ("ink", "soft", "link") for back in ("paper", "ground")]
PAIRS += [(front, back) for front in ("yes", "some", "no") for back in (f"{front}-bg", "paper", "ground")]
PAIRS += [("ink", f"{back}-bg") for back in ("yes", "some", "no")]


@pytest.mark.parametrize(("front", "back"), PAIRS)
def test_words_stand_out(front, back):
    palette = colours(report.STYLE)
    assert contrast(palette[front], palette[back]) >= 4.5


def test_the_pairs_are_all_colours_of_words():
    used = set(re.findall(r"[ {]color: var\(--([\w-]+)\)", report.STYLE))
    assert used == {front for front, _ in PAIRS}
    assert set(re.findall(r"background: var\(--([\w-]+)\)", report.STYLE)) == {back for _, back in PAIRS}


def test_figures_sit_on_the_page_without_a_seam():
    assert colours(report.STYLE)["paper"] == style.PAPER.lower()
