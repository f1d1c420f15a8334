"""Records of language-model runs: read as written, judged by the rules that the figures state."""

import copy
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paper_figures import (
    f10_llm_collapse,
    f11_llm_methods,
    f12_llm_clamp_gap,
    f13_llm_window,
    records,
    registry,
    style,
)
from paper_figures.scale import Scale

LLM = [stem for stem in registry.MODULES if "_llm_" in stem]
RECORDS = [None, *([records.RECORD] if records.RECORD.is_file() else [])]  # None: the cut


def raw(cut):
    """Runs of the cut, parsed here."""
    return [json.loads(line) for line in cut.read_text().splitlines()[1:]]


def build(tmp_path, monkeypatch, runs):
    """A record of these runs, read by the figures from now on."""
    path = tmp_path / "record.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in [{"provenance": {}, "config": {}}, *runs]))
    monkeypatch.setenv(records.VARIABLE, str(path))
    return path


def computed(module, scale="smoke"):
    return module.compute(Scale(scale), np.random.default_rng(0))


# ----------------------------------------------------------------------------------------------------------- reading


def test_every_run_and_number_is_read(cut):
    runs, curves, results = raw(cut), records.curves(), records.results()
    assert len(results) == len(runs)
    assert len(curves) == sum(len(run["step"]) for run in runs)
    for run, row in zip(runs, results.to_dict("records"), strict=True):
        own = curves[(curves.arm == run["arm"]) & (curves.seed == run["seed"]) & (curves.stage == run["stage"])]
        assert own.step.tolist() == run["step"]
        assert own.full.tolist() == run["curves"]["entropy/full"]
        assert own.zero_variance.tolist() == run["curves"]["frac_reward_zero_std"]
        assert row["accuracy"] == run["after"]["avg@8"]["mean"]
        assert row["accuracy_before"] == run["before"]["avg@8"]["mean"]
        assert row["solved"] == run["after"]["pass@8"]["mean"]
        last = run["curves"]["entropy/full"][-round(len(run["step"]) / 10) :]
        assert row["full"] == pytest.approx(sum(last) / len(last))


def test_methods_are_read_off_the_settings_not_the_names(cut):
    found = set()
    for run in raw(cut):
        support, controller = run["entropy"]["support"], run["entropy"]["controller"]
        columns = records.label_columns({**run, "arm": "any name"})
        found.add(columns["method"])
        if controller.get("coefficient") == 0:
            assert columns["method"] == "none"
        else:
            expected = {"full": "full", "drop_lowest": "clamp33", "top_k": "keep64"}[support["type"]]
            assert columns["method"] == expected
            assert columns["setting"] == controller.get("coefficient", controller.get("initial"))
    assert found == {"none", "full", "clamp33", "keep64"}
    other = {
        **raw(cut)[0],
        "entropy": {"support": {"type": "top_k", "k": 7}, "controller": {"type": "band", "initial": 1}},
    }
    with pytest.raises(ValueError, match="add 'keep7' to"):
        records.label_columns(other)


def test_nulls_become_gaps_and_stay_out_of_the_means(cut, tmp_path, monkeypatch):
    run = raw(cut)[0]
    run["curves"]["entropy/grad_cosine"] = [None] * len(run["step"])
    run["curves"]["entropy/full"][-1] = None
    build(tmp_path, monkeypatch, [run])
    assert records.curves().cosine.isna().all()
    row = records.results().iloc[0]
    assert math.isnan(row.cosine)
    last = run["curves"]["entropy/full"][-round(len(run["step"]) / 10) : -1]
    assert row.full == pytest.approx(sum(last) / len(last))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (None, FileNotFoundError, "experiments.three_way sweep"),
        ('{"provenance": {}}\n', ValueError, "no finished run"),
        ('{"provenance": {}}\n{"arm": \n', ValueError, "line 2: expected one JSON object"),
    ],
)
def test_a_missing_or_broken_record_says_what_to_do(text, error, said, tmp_path, monkeypatch):
    path = tmp_path / "record.jsonl"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(records.VARIABLE, str(path))
    with pytest.raises(error, match=said):
        records.lines()


@pytest.mark.parametrize(
    ("module", "stage", "said"),
    [(f11_llm_methods, "sweep", "three_way compare"), (f13_llm_window, "compare", "three_way sweep")],
)
def test_a_record_of_the_other_stage_says_what_is_missing(module, stage, said, cut, tmp_path, monkeypatch):
    build(tmp_path, monkeypatch, [run for run in raw(cut) if run["stage"] == stage])
    with pytest.raises(ValueError, match=said):
        computed(module)


# -------------------------------------------------------------------------------------------------------- statistics


def test_runs_of_one_seed_but_different_arms_stay_apart(cut):
    curves = records.curves()
    own = curves[(curves.method == "full") & (curves.stage == "sweep")]
    table = records.per_seed(own, "reward")
    arms = [run for run in raw(cut) if run["stage"] == "sweep" and run["arm"].startswith("constant-full")]
    assert table.shape == (len(arms[0]["step"]), len(arms))
    assert not table.isna().any().any()
    assert sorted(table.iloc[0]) == sorted(run["curves"]["reward"][0] for run in arms)


# --------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("path", RECORDS)
@pytest.mark.parametrize("stem", LLM)
def test_the_same_at_every_scale_and_seed(stem, path, monkeypatch):
    if path:
        monkeypatch.setenv(records.VARIABLE, str(path))
    spec = registry.load(stem)
    df = spec.compute(Scale("smoke"), np.random.default_rng(0))
    pd.testing.assert_frame_equal(df, spec.compute(Scale("full"), np.random.default_rng(9)))
    sentence = spec.verdict(df).sentence
    assert "nan" not in sentence
    assert not re.search(r"\binf\b", sentence)


@pytest.mark.parametrize("stem", LLM)
def test_the_stamp_says_recorded_and_not_a_scale(stem):
    spec = registry.load(stem)
    with style.look():
        figure = spec.draw(spec.compute(Scale("smoke"), np.random.default_rng(0)))
        style.stamp(figure, "smoke scale, seed 0")  # what saving adds to the other figures
    said = [text.get_text() for text in figure.texts]
    assert records.STAMP in said
    assert "smoke scale, seed 0" not in said
    assert "the same at every scale" in spec.caption


# --------------------------------------------------------------------------------------------------------------- F10


def collapse(entropy, reward):
    """Three seeds of plain GRPO along 40 steps, from functions of the share of training done."""
    x, rng = np.linspace(0, 1, 40), np.random.default_rng(0)
    frames = [
        pd.DataFrame({
            "arm": "GRPO", "stage": "compare", "method": "none", "seed": seed, "step": np.arange(40),
            "full": entropy(x) * (1 + 0.01 * rng.standard_normal()), "reward": reward(x) + 0.002 * seed,
            "zero_variance": 0.2, "length": 4.0,
        })
        for seed in range(3)
    ]  # fmt: skip
    return pd.concat(frames)


@pytest.mark.parametrize(
    ("entropy", "reward", "status", "said"),
    [
        (lambda x: np.exp(-4 * x), lambda x: 0.3 + 0.4 * np.minimum(1, 3 * x), "holds", "learning has stopped"),
        (lambda x: np.exp(-4 * x), lambda x: 0.3 + 0.4 * x, "holds only if", "learning goes on"),
        (lambda x: 1 - 0.5 * x, lambda x: 0.3 + 0.4 * x, "fails", "falls but does not collapse"),
        (lambda x: 1 + 0 * x, lambda x: 0.3 + 0.4 * x, "fails", "whether it falls at all is not resolved"),
    ],
)
def test_f10_verdict_follows_its_rule(entropy, reward, status, said):
    verdict = f10_llm_collapse.verdict(collapse(entropy, reward))
    assert verdict.status == status
    assert said in verdict.sentence


def test_f10_seeds_that_disagree_are_not_resolved():
    df = collapse(lambda x: 1 - 0.75 * x, lambda x: 0.3 + 0.4 * x)
    verdict = f10_llm_collapse.verdict(df.assign(full=df.full * np.where(df.seed == 0, 1, np.exp(-df.step / 60))))
    assert verdict.status == "fails"
    assert "not resolved" in verdict.sentence


def test_f10_takes_plain_runs_of_both_stages(cut):
    plain = [run for run in raw(cut) if run["entropy"]["controller"].get("coefficient") == 0]
    assert {run["stage"] for run in plain} == {"sweep", "compare"}
    df = computed(f10_llm_collapse)
    assert len(df) == sum(len(run["step"]) for run in plain)
    few = round(len(plain[0]["step"]) / 10)
    ratios = [np.mean(r["curves"]["entropy/full"][-few:]) / np.mean(r["curves"]["entropy/full"][:few]) for r in plain]
    assert f"ratio {np.mean(ratios):.3g} [" in f10_llm_collapse.verdict(df).sentence


# --------------------------------------------------------------------------------------------------------------- F11


def comparison(cut, tmp_path, monkeypatch, gains):
    """Real runs of the comparison as five seeds, their accuracies set to .5 + gain + a little noise of each seed."""
    kinds = {records.label_columns(run)["method"]: run for run in raw(cut) if run["stage"] == "compare"}
    noise, runs = np.random.default_rng(0).normal(0, 0.01, size=(5, len(gains))), []
    for column, (name, gain) in enumerate(gains.items()):
        for seed in range(5):
            run = copy.deepcopy(kinds[name]) | {"seed": seed}
            for key in ("avg@8", "pass@1"):
                run["after"][key]["mean"] = 0.5 + gain + noise[seed, column]
            runs.append(run)
    build(tmp_path, monkeypatch, runs)
    return computed(f11_llm_methods), noise


@pytest.mark.parametrize(
    ("gains", "status", "said"),
    [
        ({"none": 0, "full": 0.1, "clamp33": 0.2, "keep64": 0.2}, "holds", "as published"),
        ({"none": 0, "full": 0.1, "clamp33": 0.1, "keep64": 0.2}, "holds only if", "Only with a strong clamp"),
        ({"none": 0, "full": 0.1, "clamp33": 0.1, "keep64": 0.1}, "not resolved", "Not shown"),
        ({"none": 0.1, "full": 0.1, "clamp33": 0.1, "keep64": 0}, "fails", "Worse than one of them: AEnt top 64"),
    ],
)
def test_f11_verdict_follows_its_rule(gains, status, said, cut, tmp_path, monkeypatch):
    df, noise = comparison(cut, tmp_path, monkeypatch, gains)
    verdict = f11_llm_methods.verdict(df)
    assert (verdict.status, said in verdict.sentence) == (status, True), verdict.sentence
    gap = gains["clamp33"] - gains["none"] + (noise[:, 2] - noise[:, 0]).mean()
    assert f11_llm_methods.difference(df, "clamp33", "none").mean == pytest.approx(gap)


def test_f11_compares_common_seeds_only(cut, tmp_path, monkeypatch):
    df, noise = comparison(cut, tmp_path, monkeypatch, {"none": 0, "full": 0, "clamp33": 0.3, "keep64": 0})
    fewer = df[(df.method != "clamp33") | (df.seed > 1)]
    found = f11_llm_methods.difference(fewer, "clamp33", "none")
    assert found.count == 3
    assert found.mean == pytest.approx(0.3 + (noise[2:, 2] - noise[2:, 0]).mean())
    assert records.outcome(f11_llm_methods.difference(df[df.seed == 0], "clamp33", "none")) == "not resolved"


def test_f11_two_seeds_resolve_nothing(cut, tmp_path, monkeypatch):
    df, _ = comparison(cut, tmp_path, monkeypatch, {"none": 0, "full": 0.1, "clamp33": 0.3, "keep64": 0.3})
    few = df[df.seed < 2].assign(accuracy=lambda x: x.accuracy.round(1))  # without any noise
    assert f11_llm_methods.difference(few, "clamp33", "none").low > 0
    assert f11_llm_methods.verdict(few).status == "not resolved"
    assert "2 common seeds" in f11_llm_methods.verdict(few).sentence
    assert f11_llm_methods.verdict(df).status == "holds"


def test_f11_share_of_steps_at_an_end_of_the_box():
    steps = np.arange(1, 21)
    df = pd.DataFrame({
        "kind": "curve", "method": "keep64", "seed": 0, "step": steps, "minimum": 0.02, "maximum": 0.5,
        "coefficient": np.where(steps > 18, 0.5, np.where(steps > 15, 0.02, np.where(steps > 5, 0.1, 0.02))),
    })  # fmt: skip
    assert f11_llm_methods.at_box(df, "keep64").mean == pytest.approx(0.5)  # 3 at the floor, 2 at the cap, of 11 to 20


def test_f11_share_of_steps_in_the_band(cut):
    df = computed(f11_llm_methods)
    for name in ("clamp33", "keep64"):
        shares = []
        for run in raw(cut):
            if run["stage"] == "compare" and records.label_columns(run)["method"] == name:
                low, high = (run["entropy"]["controller"][end] for end in ("low", "high"))
                late = [
                    h for h, k in zip(run["curves"]["entropy/clamped"], run["step"], strict=True)
                    if k > run["step"][-1] / 2
                ]  # fmt: skip
                shares.append(np.mean([low <= h <= high for h in late]))
        assert f11_llm_methods.in_band(df, name).mean == pytest.approx(np.mean(shares))


# --------------------------------------------------------------------------------------------------------------- F12


def test_f12_numbers_and_verdict(cut):
    df = computed(f12_llm_clamp_gap)
    for name, kind in (("clamp33", "drop_lowest"), ("keep64", "top_k")):
        runs = [r["curves"] for r in raw(cut) if r["stage"] == "compare" and r["entropy"]["support"]["type"] == kind]
        expected = np.mean([np.mean(curve["entropy/grad_cosine"]) for curve in runs])
        share = np.mean([np.mean(np.abs(np.array(c["entropy/clamp_gap"]) / np.array(c["entropy/full"]))) for c in runs])
        own = f12_llm_clamp_gap.trained(df)
        assert f12_llm_clamp_gap.cosine(own, name).mean == pytest.approx(expected)
        assert f12_llm_clamp_gap.bite(own, name).mean == pytest.approx(share)
        assert f"cosine {expected:.3g} [" in f12_llm_clamp_gap.verdict(df).sentence


@pytest.mark.parametrize(
    ("published", "strong", "status"), [(0.5, 0.5, "holds"), (0.99, 0.5, "holds only if"), (0.99, 0.99, "fails")]
)
def test_f12_verdict_follows_its_rule(published, strong, status):
    df = computed(f12_llm_clamp_gap)
    assert set(df.method) == {"clamp33", "keep64"}
    changed = df.assign(cosine=np.where(df.method == "clamp33", published, strong) + 0.001 * df.seed / df.seed.max())
    assert f12_llm_clamp_gap.verdict(changed).status == status


# --------------------------------------------------------------------------------------------------------------- F13


@given(tail=st.floats(1e-6, 0.99), kept=st.integers(1, 50), rest=st.integers(2, 400))
def test_f13_least_tail_is_reached_by_uniform_blocks(tail, kept, rest):
    """The likeliest ``kept`` tokens alike, the others alike: no other policy with this tail has more entropy."""
    tail *= rest / (kept + rest)  # beyond, the kept tokens are not the likeliest
    p = np.r_[np.full(kept, (1 - tail) / kept), np.full(rest, tail / rest)]
    entropy = float(-(p * np.log(p)).sum())
    found = f13_llm_window.least_tail(entropy, kept=kept, vocabulary=kept + rest)
    if entropy > math.log(kept):
        assert found == pytest.approx(tail, rel=1e-4, abs=1e-9)
    else:
        assert found == 0


@given(seed=st.integers(0, 10_000), sharpness=st.floats(0.1, 5), kept=st.integers(1, 60))
def test_f13_least_tail_is_never_above_the_tail(seed, sharpness, kept):
    logits = sharpness * np.random.default_rng(seed).standard_normal((3, 64))
    p = np.sort(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), axis=1)
    entropy = float(-(p * np.log(p)).sum(1).mean())  # a mean over three positions, as the records hold it
    tail = float(p[:, : 64 - kept].sum(1).mean())
    assert f13_llm_window.least_tail(entropy, kept=kept, vocabulary=64) <= tail + 1e-9


def window(accuracies):
    """Two seeds per coefficient; method -> coefficient -> accuracies of the seeds. Plain GRPO goes from .3 to .6."""
    rows = [("none", 0.0, 100, 0.6, 0.5), ("none", 0.0, 101, 0.6, 0.5)]
    for name, settings in accuracies.items():
        for c, seeds in settings.items():
            rows += [(name, c, 100 + i, a, 0.5 if a > 0.3 else 9.0) for i, a in enumerate(seeds)]
    df = pd.DataFrame(rows, columns=["method", "setting", "seed", "accuracy", "full"])
    return df.assign(accuracy_before=0.3, dropped=0.01, stage="sweep", arm=df.method)


GOOD, BAD, MIXED = (0.6, 0.62), (0.0, 0.01), (0.6, 0.0)
NARROW, WIDE = {0.01: GOOD, 0.1: BAD, 0.3: BAD}, {0.01: GOOD, 0.1: GOOD, 0.3: BAD}


@pytest.mark.parametrize(
    ("full", "published", "strong", "status"),
    [
        (NARROW, WIDE, WIDE, "holds"),
        (NARROW, NARROW, WIDE, "holds only if"),
        (NARROW, NARROW, NARROW, "fails"),
        (WIDE, NARROW, NARROW, "fails"),
        ({0.01: GOOD, 0.1: GOOD, 0.3: GOOD}, WIDE, WIDE, "fails"),  # nothing floods
    ],
)
def test_f13_verdict_follows_its_rule(full, published, strong, status):
    df = window({"full": full, "clamp33": published, "keep64": strong})
    assert f13_llm_window.verdict(df).status == status


def test_f13_edge_stops_at_the_first_doubt():
    df = window({"full": {0.01: GOOD, 0.03: MIXED, 0.1: GOOD, 0.3: BAD}, "keep64": WIDE})
    assert f13_llm_window.judged(df, "full") == {0.01: "learns", 0.03: "not resolved", 0.1: "learns", 0.3: "fails"}
    assert f13_llm_window.edge(df, "full") == 0.01
    assert f13_llm_window.edge(df, "keep64") == 0.1
    assert "Not resolved (seeds disagree): full entropy at 0.03." in f13_llm_window.verdict(df).sentence
    needed = 0.3 + f13_llm_window.LEARNS * 0.3
    assert f13_llm_window.edge(window({"full": {0.01: (needed + 1e-9, 1)}}), "full") == 0.01
    assert f13_llm_window.edge(window({"full": {0.01: (needed - 1e-3, 1)}}), "full") == 0


def test_f13_leaves_the_adaptive_runs_out(cut):
    df = computed(f13_llm_window)
    assert set(df.rule) == {"constant"}
    assert set(df[df.method != "none"].stage) == {"sweep"}
    plain = [r for r in raw(cut) if r["entropy"]["controller"].get("coefficient") == 0]
    assert len(df[df.method == "none"]) == len(plain)
