"""The measurement against dense float64 logits, the proposal on policies made for it, the YAML and the command."""

import json
import math
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import small
from aent.controllers import Band, State
from aent.entropy import DropLowest, Full, Nucleus, TopK, entropy, entropy_gradient, support_weights
from aent_llm.measure.calibrate import CalibrationConfig, calibrate, main, propose
from aent_llm.measure.clamp_effect import Rollout, measure, measure_rollouts
from aent_llm.training import config as entropy_config

RULES = (Full(), DropLowest(0.33), DropLowest(0.9), TopK(10), TopK(3), Nucleus(0.8))
SHORT = CalibrationConfig(
    prompts=4, samples=2, max_tokens=5, drop=(0.33, 0.9), top_k=(3,), nucleus=(0.8,), temperature=0.7
)


def dense(model, rollouts: list[Rollout], temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """((n, V) float64 logits of every completion token, (n,) the tokens), one unpadded sequence at a time."""
    rows, tokens = [], []
    for one in rollouts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*one.prompt_ids, *one.token_ids]])).logits[0]
        rows.append(logits[len(one.prompt_ids) - 1 : -1].double().numpy() / temperature)
        tokens += one.token_ids
    return np.concatenate(rows), np.array(tokens)


def drawn(seed: int = 0) -> list[Rollout]:
    """Completions of unequal length of prompts of unequal length; some right."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 5), (1, 1), (6, 9), (2, 4), (3, 7)] * 3
    return [
        Rollout(i % 5, rng.integers(3, 61, p).tolist(), rng.integers(3, 61, c).tolist(), bool(i % 2))
        for i, (p, c) in enumerate(shapes)
    ]


def expected(logits: np.ndarray, tokens: np.ndarray, correct: np.ndarray, rule) -> dict[str, Any]:
    """The definitions, written out on dense float64 logits."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    w, g = support_weights(logits, rule), entropy_gradient(logits)
    own = entropy_gradient(logits, support=rule)
    clamped, chosen = entropy(logits, support=rule), w[np.arange(len(tokens)), tokens]
    return {
        "entropy": clamped.mean(),
        "gap": abs(entropy(logits) - clamped).mean(),
        "dropped_mass": ((1 - w) * p).sum(-1).mean(),
        "kept": w.sum(-1).mean(),
        "norm": math.sqrt((own**2).sum() / len(tokens)),
        "turn": 1 - (g * own).sum() / math.sqrt((g**2).sum() * (own**2).sum()),
        "push": ((1 - w) * abs(g)).sum() / abs(g).sum(),
        "norm_share": np.linalg.norm((1 - w) * g) / np.linalg.norm(g),
        "sampled_kept": chosen.mean(),
        "correct_kept": chosen[correct].mean(),
    }


# --------------------------------------------------------------------------------------------------------- measurement


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_number_is_that_of_the_dense_definition(temperature: float) -> None:
    model, rollouts = small.model(), drawn()
    logits, tokens = dense(model, rollouts, temperature)
    correct = np.concatenate([np.full(len(one.token_ids), bool(one.correct)) for one in rollouts])
    found = measure_rollouts(model, rollouts, RULES, temperature=temperature)
    for one in found.rules:
        for name, value in expected(logits, tokens, correct, one.rule).items():
            estimate = getattr(one, name)
            assert estimate.mean == pytest.approx(value, rel=2e-4, abs=2e-6), (one.rule, name)
            assert estimate.low <= estimate.high
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    policy = np.eye(p.shape[1])[tokens] - p  # d log p_y / d logits
    assert found.policy_norm == pytest.approx(math.sqrt((policy**2).sum() / len(tokens)), rel=1e-4)
    assert (found.tokens, found.completions, found.prompts) == (len(tokens), 15, 5)
    assert found.correct_tokens == correct.sum()


def test_the_size_of_a_tile_changes_no_number() -> None:
    model, rollouts = small.model(), drawn()
    one_row = measure_rollouts(model, rollouts, RULES, tile_bytes=1)
    whole = measure_rollouts(model, rollouts, RULES, tile_bytes=2**30)
    for a, b in zip(one_row.rules, whole.rules, strict=True):
        assert astuple(a.entropy) == pytest.approx(astuple(b.entropy), rel=1e-6)
        assert astuple(a.turn) == pytest.approx(astuple(b.turn), rel=1e-3, abs=1e-9)


def test_no_tile_is_larger_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    from aent_llm.measure import clamp_effect

    seen = []
    honest = clamp_effect.measure

    def watched(logits, *rest):
        seen.append(logits.numel() * 4)
        return honest(logits, *rest)

    monkeypatch.setattr(clamp_effect, "measure", watched)
    measure_rollouts(small.model(), drawn(), RULES[:2], tile_bytes=4 * 61 * 3)
    assert max(seen) == 4 * 61 * 3
    assert len(seen) > 15


def test_a_sample_of_tokens_estimates_the_whole() -> None:
    model, rollouts = small.model(), drawn() * 8
    whole = measure_rollouts(model, rollouts, RULES[:2], tokens=10**6)
    part = measure_rollouts(model, rollouts, RULES[:2], tokens=200)
    assert part.tokens == 200 < whole.tokens
    assert part.rules[0].entropy.mean == pytest.approx(whole.rules[0].entropy.mean, rel=0.1)
    assert part.rules[0].entropy.mean != whole.rules[0].entropy.mean


@given(st.integers(0, 10**6), st.floats(0.2, 12.0), st.sampled_from(RULES))
@example(794, 11.0, Nucleus(0.8))  # one token is kept of each: no direction
def test_bounds_hold_for_any_logits(seed: int, spread: float, rule) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(4, 50, generator=rng)).round(decimals=1)  # ties, as bf16 has
    from aent_llm.measure.clamp_effect import _SUMS, _statistics

    values = measure(logits, torch.randint(50, (4,), generator=rng), torch.ones(4), [rule])[0]
    found = {name: float(value) for name, value in _statistics(values.sum(0)).items()}
    token = dict(zip(_SUMS, values.T, strict=True))
    assert (token["entropy"] <= np.log(np.maximum(token["kept"], 1)) + 1e-4).all()
    assert (token["policy2"] >= -1e-6).all()
    assert (token["policy2"] <= 2).all()
    assert -1e-6 <= found["push"] <= 1 + 1e-6
    assert -1e-6 <= found["dropped_mass"] <= 1
    assert math.isnan(found["turn"]) or -1e-6 <= found["turn"] <= 2


def test_the_interval_is_over_prompts_not_tokens() -> None:
    """Two prompts, one certain and one uniform: whatever the number of tokens, a resample may hold either alone."""
    from aent_llm.measure.clamp_effect import _estimates, _sums_by_prompt

    certain = torch.full((500, 20), -30.0)
    certain[:, 0] = 30.0
    logits = torch.cat([certain, torch.zeros(500, 20)])
    values = measure(logits, torch.zeros(1000, dtype=torch.long), torch.zeros(1000), [Full()])
    sums = _sums_by_prompt(np.repeat([3, 8], 500), values)
    found = _estimates(sums[0], seed=0)["entropy"]
    assert astuple(found) == pytest.approx((math.log(20) / 2, 0, math.log(20), 2), abs=1e-6)


def test_padding_positions_and_other_prompts_do_not_leak() -> None:
    model, rollouts = small.model(), drawn()
    alone = measure_rollouts(model, rollouts[1:2], RULES[:2])
    logits, _ = dense(model, rollouts[1:2], 1.0)
    assert alone.rules[0].entropy.mean == pytest.approx(float(entropy(logits)[0]), rel=1e-5)


def test_a_scaled_head_is_followed_and_an_unknown_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    scaled = CohereForCausalLM(
        CohereConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, logit_scale=3.0, initializer_range=0.5)
    ).eval()
    rollouts = [Rollout(0, [5, 6, 7], [8, 9, 10, 11])]
    logits, _ = dense(scaled, rollouts, 1.0)
    found = measure_rollouts(scaled, rollouts, RULES[:2])
    assert found.rules[0].entropy.mean == pytest.approx(float(entropy(logits).mean()), rel=1e-4)

    odd = small.model()
    forward: Any = odd.forward

    def fivefold(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits = 5 * out.logits
        return out

    monkeypatch.setattr(odd, "forward", fivefold)
    with pytest.raises(ValueError, match="in a way not known here"):
        measure_rollouts(odd, drawn(), RULES[:2])


def test_no_token_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="no completion token"):
        measure_rollouts(small.model(), [Rollout(0, [3], [])], RULES[:2])


# ------------------------------------------------------------------------------------------------------------ proposal


def policy(logits: np.ndarray, config: CalibrationConfig, *, graded: bool = False, tokens: int = 4000):
    """A proposal for a policy that has these logits (V,) at every position, on tokens drawn from it."""
    from aent_llm.measure.clamp_effect import _reduced

    rng = np.random.default_rng(0)
    p = np.exp(logits - logits.max())
    sampled = rng.choice(len(p), p=p / p.sum(), size=tokens)
    right = (sampled < 6) if graded else np.zeros(tokens, bool)  # the first six tokens are the task's
    rollouts = [Rollout(i // 100 % 20, [0], sampled[i : i + 100].tolist()) for i in range(0, tokens, 100)]
    prompt = np.repeat([one.prompt for one in rollouts], 100)
    distinct, where = np.unique(sampled, return_inverse=True)
    rows = torch.tensor(np.tile(logits, (len(distinct), 1)), dtype=torch.float32)
    graded_tokens = torch.tensor(distinct < 6, dtype=torch.float32) * graded
    by_token = measure(rows, torch.tensor(distinct), graded_tokens, config.rules)
    values = by_token[:, where]
    assert values[0, :, 1].sum() == right.sum()
    return propose(_reduced(rollouts, config.rules, prompt, np.zeros(tokens, int), values, seed=0), config)


V = 5000
HEAD = np.array([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])


def with_tail(mass: float) -> np.ndarray:
    """Six task tokens, and a flat tail of irrelevant ones that holds ``mass``."""
    return np.log(np.concatenate([HEAD * (1 - mass), np.full(V - 6, mass / (V - 6))]))


def test_a_peaked_policy_without_a_tail_gets_the_full_support_and_is_told_why() -> None:
    found = policy(with_tail(1e-9), CalibrationConfig(drop=(0.33, 0.9, 0.99), nucleus=()))
    assert found.support == Full()
    assert "no effect" in found.reasons["support"]


def test_a_uniform_policy_gets_the_full_support_because_every_clamp_cuts_what_it_samples() -> None:
    logits = 0.5 * np.random.default_rng(0).standard_normal(300)
    found = policy(logits, CalibrationConfig(top_k=(10, 100)), tokens=1000)
    assert found.support == Full()
    assert "cuts too much" in found.reasons["support"]


def test_a_tail_of_irrelevant_tokens_gets_the_mildest_clamp_with_an_effect() -> None:
    config = CalibrationConfig(drop=(0.001, 0.33, 0.9, 0.99), top_k=(6,), nucleus=())
    found = policy(with_tail(0.01), config, graded=True)
    kept = {rule: one for rule, one in zip(config.rules, found.measured.rules, strict=True)}
    assert found.support == DropLowest(0.9)
    assert kept[DropLowest(0.9)].push.mean >= config.min_push > kept[DropLowest(0.33)].push.mean
    assert kept[DropLowest(0.9)].correct_kept.mean == 1


def test_a_clamp_that_cuts_tokens_of_correct_answers_is_not_proposed() -> None:
    config = CalibrationConfig(drop=(), top_k=(3,), nucleus=())  # the task has six tokens
    found = policy(with_tail(0.0001), config, graded=True)
    assert found.measured.rules[1].correct_kept.mean == pytest.approx(0.9, abs=0.02)
    assert found.support == Full()
    lenient = policy(with_tail(0.0001), replace(config, min_kept=0.8, max_dropped=0.2), graded=True)
    assert lenient.support == TopK(3)


def test_without_grades_all_sampled_tokens_count() -> None:
    config = CalibrationConfig(drop=(0.9,), top_k=(), nucleus=())
    assert policy(with_tail(0.03), config, graded=True).support == DropLowest(0.9)
    assert policy(with_tail(0.03), config, graded=False).support == Full()  # 3% of what is sampled is the tail


def test_the_band_follows_the_stated_rule() -> None:
    config = CalibrationConfig(nucleus=())
    found = policy(with_tail(1e-9), config)
    p = HEAD
    h = -(p * np.log(p)).sum()
    norm = np.linalg.norm(p * (np.log(p) + h))
    assert found.band.low == pytest.approx(0.25 * h, rel=5e-3)
    assert found.band.high == pytest.approx(0.5 * h, rel=5e-3)
    # |e_y - p|^2 averages to 1 - sum p^2 over y ~ p; completions have 100 tokens
    assert found.band.initial == pytest.approx(0.1 * math.sqrt(1 - (p**2).sum()) / (10 * norm), rel=0.05)
    assert found.band.minimum == pytest.approx(found.band.initial / 10, rel=5e-3)
    assert found.band.maximum == pytest.approx(found.band.initial * 10, rel=5e-3)
    state, steps = replace(found.band, warmup_steps=0).init(), 0
    while state.coefficient < found.band.maximum:
        state, steps = found.band.update(State(state.coefficient, step=10**6), 0.0), steps + 1
    assert 19 <= steps <= 21


def test_a_policy_without_entropy_is_an_error() -> None:
    logits = np.full(50, -40.0)
    logits[0] = 40.0
    with pytest.raises(ValueError, match="no entropy to hold"):
        policy(logits, CalibrationConfig(drop=(0.5,), top_k=(), nucleus=()))


@pytest.mark.parametrize("mass", [1e-9, 0.01])
def test_the_yaml_builds_the_same_support_and_band(mass: float) -> None:
    found = policy(with_tail(mass), CalibrationConfig(), graded=True)
    text = found.to_yaml("a model on some data")
    block = yaml.safe_load(text)["entropy"]
    assert entropy_config.support(block["support"]) == found.support
    rule = entropy_config.controller(block["controller"])
    assert isinstance(rule, Band)
    assert replace(rule, warmup_steps=block["warmup_steps"]) == found.band
    assert "own design" in text.replace("\n# ", " ")
    fields = [line for line in text.splitlines() if line.startswith("    ") and ":" in line.split("#")[0]]
    reasoned = [line for line in fields if "#" in line]
    assert len(reasoned) >= len(block["controller"]) - 1  # all but the type


@given(st.floats(1e-7, 1e7))
def test_numbers_survive_yaml(value: float) -> None:
    from aent_llm.measure.calibrate import _number, _rounded

    value = _rounded(value)
    assert yaml.safe_load(f"x: {_number(value)}")["x"] == value
    assert isinstance(yaml.safe_load(f"x: {_number(value)}")["x"], float)


# ---------------------------------------------------------------------------------------------------- from the model on


def first_half(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Every other completion is right."""
    return [float(i % 2) for i, _ in enumerate(completions)]


def test_calibrate_samples_from_the_model_and_leaves_it_as_found() -> None:
    model = small.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    problems = [{"prompt": f"w{i} w{i + 1}", "answer": "w4"} for i in range(6)]
    found = calibrate(model, small.tokenizer(), problems, SHORT, reward=first_half)
    again = calibrate(model, small.tokenizer(), problems, SHORT, reward=first_half)
    assert repr(found) == repr(again)  # NaN (no correct token) equals NaN
    assert (found.measured.prompts, found.measured.completions) == (4, 8)
    assert 0 < found.measured.correct_tokens < found.measured.tokens
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "entropy (nats)" in [column.header for column in found.table().columns]


def test_a_sharper_model_has_a_lower_band() -> None:
    problems = [{"prompt": f"w{i}"} for i in range(4)]
    flat, sharp = (calibrate(small.model(scale=s), small.tokenizer(), problems, SHORT) for s in (0.1, 0.5))
    assert sharp.measured.rules[0].entropy.mean < flat.measured.rules[0].entropy.mean
    assert sharp.band.high < flat.band.high


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"drop": (), "top_k": (), "nucleus": ()}, "grid is empty"),
        ({"samples": 0}, "samples: expected a whole number of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected a number of at least 1e-06, got 0.0"),
        ({"drop": (1.5,)}, "dropped share must be in"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CalibrationConfig(**settings)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "entropy.yaml"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="nothing was overwritten"):
        main(["--out", str(out)])
    assert out.read_text() == "mine"


def test_the_command_from_a_folder_and_a_file_to_a_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data, out = small.saved_model(tmp_path / "model"), tmp_path / "problems.jsonl", tmp_path / "entropy.yaml"
    data.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 2}", "answer": "w4"}) + "\n" for i in range(5)))
    arguments = ["--model", str(folder), "--data", str(data), "--reward", "none", "--prompts", "3", "--samples", "2"]
    arguments += ["--max-tokens", "4", "--drop", "0.9", "--top-k", "3", "--nucleus", "--warmup-steps", "7"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "the first 3 are used" in capsys.readouterr().out
    assert main([*arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "top-k 3" in shown
    assert "nucleus" not in shown
    block = yaml.safe_load(out.read_text())["entropy"]
    assert block["warmup_steps"] == 7
    assert isinstance(entropy_config.controller(block["controller"]), Band)


def test_without_a_limit_completions_are_as_long_as_the_context_allows() -> None:
    model = small.model(max_position_embeddings=12, eos_token_id=None)
    model.generation_config.eos_token_id = None
    problems = [{"prompt": "w1 w2 w3"}, {"prompt": "w5"}]
    found = calibrate(model, small.tokenizer(), problems, replace(SHORT, max_tokens=None, samples=4))
    assert 1 < found.measured.length <= 9
