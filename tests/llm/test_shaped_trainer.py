"""Every method of ``aent.methods`` in the trainer: against dense logits with autograd, numpy, and numbers by hand."""

import inspect
import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

import small
from aent.controllers import BangBang, Spring
from aent.entropy import Full, Nucleus, TopK, Tsallis
from aent.methods import METHODS
from aent.shaping import Shaping, Tokens
from aent_llm.training import config as configs
from aent_llm.training.config import AEntGRPOConfig

TWICE = {"num_iterations": 2, "max_steps": 2}  # the second update is off policy
SHAPED = [name for name, method in METHODS.items() if not method.shaping.is_plain]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def reference(folder):
    return str(small.saved_model(folder / "reference"))


class Spy(TrainerCallback):
    """Keeps the weights before every step, what every loss was computed on and said, and the rollouts."""

    def __init__(self, trainer):
        self.trainer, self.states, self.losses, self.rollouts = trainer, [], [], []
        loss, rollout = trainer._policy_loss, trainer._generate_and_score_completions

        def spied_loss(model, inputs, **options):
            found = loss(model, inputs, **options)
            self.losses.append((dict(inputs), found, trainer.control_state.coefficient))
            return found

        def spied_rollout(inputs):
            output = rollout(inputs)
            self.rollouts.append((output, trainer._rewards[:, 0].double().numpy()))
            return output

        trainer._policy_loss, trainer._generate_and_score_completions = spied_loss, spied_rollout
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **_):
        self.states.append({k: v.detach().clone() for k, v in self.trainer.model.state_dict().items()})


def config(**settings):
    return AEntGRPOConfig(**{**small.SETTINGS, "output_dir": "unused", **settings})


def trainer(folder, name, policy=None, **settings):
    if name == "adrpo" and policy is None:
        policy = str(folder / "reference")
    return small.trainer(folder, policy, entropy_method=name, **settings)


def trained(folder, name, policy=None, **settings):
    one = trainer(folder, name, policy, **settings)
    one.train()
    return one


def in_numpy(tokens: Tokens) -> Tokens:
    given = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    return Tokens(**{k: v.double().numpy() if isinstance(v, torch.Tensor) else v for k, v in given.items()})


# -------------------------------------------------------------------------------------------------------- every method


@pytest.mark.parametrize("name", METHODS)
def test_a_config_takes_the_method_and_comes_back_from_json(name) -> None:
    one = config(entropy_method=name.upper().replace("-", "_"))
    assert one.entropy_method == name
    saved = json.loads(one.to_json_string())
    ours = {k: v for k, v in saved.items() if k.startswith(("entropy_", "epsilon", "use_adaptive")) or k == "beta"}
    again = config(**ours)
    assert json.loads(again.to_json_string()) == saved
    method = METHODS[name]
    assert configs.support(one.entropy_support) == method.support
    if method.trl:
        assert {key: getattr(one, key) for key in method.trl} == method.trl
        assert (one.entropy_controller["coefficient"], one.entropy_shaping) == (0.0, Shaping().to_dict())
    else:
        assert configs.controller(one.entropy_controller) == method.controller
        assert configs.shaping(one.entropy_shaping) == method.shaping


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.support != TopK(100)])
def test_every_method_trains(folder, reference, name) -> None:
    one = trainer(folder, name, max_steps=1)
    start = small.weights(one).clone()
    one.train()
    assert torch.isfinite(small.weights(one)).all()
    assert not torch.equal(small.weights(one), start)
    assert math.isfinite(small.logged(one, "loss")[0])
    assert bool(small.logged(one, "entropy/bonus_grad_share")) == one.shaping.pays_bonus  # no bonus, no share of it


def test_our_own_arms_are_methods_of_the_trainer_where_the_vocabulary_has_as_many_tokens(folder) -> None:
    with pytest.raises(ValueError, match="k=100 of the top_k support is more than the vocabulary of 61 tokens"):
        trainer(folder, "keep100")
    kept = trainer(folder, "keep100", entropy_support=TopK(9))
    assert (kept.support, kept.controller) == (TopK(9), METHODS["keep100"].controller)


# ----------------------------------------------------------------------------------- the trainer and the rule in numpy

# Coefficients from which every rule does something to this small model.
CASES = {
    "aer": {"entropy_controller": 0.5},
    "entropic": {"entropy_controller": -0.4, "entropy_shaping": {"type": "confident_tokens", "confident": 0.2}},
    "adrpo": {"entropy_controller": 0.3},
    "clip-cov": {"entropy_controller": 0.2, "entropy_shaping": {"type": "clip_covariance", "smallest": 0.02}},
    "kl-cov": {"entropy_controller": 0.3, "entropy_shaping": {"type": "kl_covariance", "share": 0.2}},
    "clip-higher": {"entropy_controller": 0.28},
    "siren": {"entropy_controller": 0.5},
    "entropy-advantage": {},
    "aepo": {},
    "ce-gppo": {},
    "era": {"entropy_controller": 3.0, "entropy_shaping": {"type": "logit_scaling", "upper": 3.2}},
    "qae": {},
    "repo-r": {},
    "entrocraft": {"entropy_controller": 1.0},
    "erc": {},
    "range": {"entropy_controller": 0.5},
    "espo": {},
}
PHASE = {  # two optimiser steps of two micro-batches each from one rollout of 16
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 2,
    "learning_rate": 0.02,
}  # fmt: skip


def dense(state, batch, scale=None, mass=None):
    """Per-token log pi at the logit scale, entropy, entropy of the nucleus; float64, from full logits."""
    policy = small.model().double()
    policy.load_state_dict(state)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    T = batch["completion_ids"].shape[1]
    logits = policy(input_ids=ids, attention_mask=attention).logits[:, -T - 1 : -1]
    scaled = logits if scale is None else logits * torch.as_tensor(scale)[..., None]
    log_pi = scaled.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    if mass is None:
        return policy, log_pi, entropy, entropy
    order = log_p.argsort(-1, descending=True)
    ordered = log_p.exp().gather(-1, order).detach()
    kept = torch.zeros_like(log_p).scatter(-1, order, (ordered.cumsum(-1) - ordered < mass).double())
    p = kept * log_p.exp() / (kept * log_p.exp()).sum(-1, keepdim=True)
    return policy, log_pi, entropy, -(p * p.clamp(min=1e-300).log()).sum(-1)


def gradient(policy, value):
    policy.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_every_shaping_rule_has_a_case() -> None:
    assert set(CASES) == set(SHAPED)


@pytest.mark.parametrize("name", CASES)
def test_a_step_follows_the_rule_in_numpy_on_dense_logits(folder, reference, name) -> None:
    """lr (sum_t policy_t d log pi_t / (N of the rollout / 2) + sum_t bonus_t d H~_t / (N of the step)), loss dapo."""
    one = trainer(folder, name, **PHASE, **CASES[name])
    spy = Spy(one)
    one.train()
    assert len(spy.losses) == 4
    (first, second), after = spy.states, small.weights(one)
    before = torch.cat([second[key].flatten() for key, _ in one.model.named_parameters()])
    steps = spy.losses[2:]  # the second optimiser step: off policy
    window = sum(int(batch["completion_mask"].sum()) for batch, _, _ in steps)
    mass = 0.8 if name == "siren" else None
    moved, plainly, rule = torch.zeros_like(after).double(), torch.zeros_like(after).double(), one.shaping
    for batch, found, coefficient in steps:
        tokens, mask = in_numpy(found.tokens), batch["completion_mask"].double()
        scale = rule.logit_scale(tokens, coefficient) if rule.scales_logits else None
        policy, log_pi, entropy, over_support = dense(second, batch, scale, mass)
        _, old_log_pi, old_entropy, _ = dense(first, batch, scale)
        expected = {
            "log_probs": log_pi, "old_log_probs": old_log_pi, "entropy": entropy, "old_entropy": old_entropy,
            "support_entropy": over_support,
        }  # fmt: skip
        if name == "adrpo":
            expected["reference_log_probs"] = old_log_pi  # the run started from the reference
        for field, want in expected.items():
            got = torch.as_tensor(getattr(tokens, field)) * mask
            torch.testing.assert_close(got, want.detach() * mask, atol=2e-5, rtol=1e-4, msg=lambda m, f=field: f + m)
        assert np.abs(tokens.log_probs - tokens.old_log_probs).max() > 1e-2
        weights = rule(tokens, coefficient)
        N = float(batch["num_items_in_batch"]) / 2
        moved += gradient(
            policy,
            (torch.as_tensor(weights.policy) * log_pi).sum() / N
            + (torch.as_tensor(weights.bonus) * over_support).sum() / window,
        )
        policy, log_pi, *_ = dense(second, batch)
        plainly += gradient(policy, (torch.as_tensor(Shaping()(tokens, 0.0).policy) * log_pi).sum() / N)
    torch.testing.assert_close((after - before).double(), 0.02 * moved, atol=2e-6, rtol=2e-3)
    if name not in ("aepo", "qae"):  # which differ in the advantages, tested below
        assert (
            0.02 * plainly - (after - before)
        ).abs().max() > 2e-4  # negative control: GRPO would have gone elsewhere


@pytest.mark.parametrize(
    "extra",
    [
        *({"loss_type": loss} for loss in configs.TOKEN_LOSSES),
        {"top_entropy_quantile": 0.5},
        {"beta": 0.1, "use_bias_correction_kl": False},
    ],
    ids=str,
)
def test_a_rule_that_does_nothing_is_grpo(folder, reference, extra) -> None:
    """EntroPIC with alpha = 0, through the shaped path, in every token loss: TRL's own clipped surrogate."""
    policy = reference if extra.get("beta") else None
    settings = {**TWICE, **extra}
    plain = trained(folder, "none", policy, **settings)
    shaped = trained(folder, "entropic", policy, entropy_controller=0.0, **settings)
    assert shaped.is_shaped
    torch.testing.assert_close(small.weights(shaped), small.weights(plain), atol=2e-6, rtol=1e-4)
    shaping = {"type": "confident_tokens", "confident": 0.2}
    other = trained(folder, "entropic", policy, entropy_controller=0.5, entropy_shaping=shaping, **settings)
    assert (small.weights(other) - small.weights(plain)).abs().max() > 1e-4


# ------------------------------------------------------------------------------------------------- what TRL does itself


def test_trl_with_another_upper_clip_is_the_rule(folder) -> None:
    settings = {**TWICE, "learning_rate": 0.01}
    by_trl = trained(folder, "clip-higher", **settings)
    by_rule = trained(folder, "clip-higher", entropy_controller=0.28, **settings)
    assert (by_trl.is_shaped, by_trl.epsilon_high) == (False, 0.28)
    assert (by_rule.is_shaped, by_rule.epsilon_high) == (True, 0.2)
    torch.testing.assert_close(small.weights(by_rule), small.weights(by_trl), atol=2e-6, rtol=1e-4)
    assert (small.weights(trained(folder, "none", **settings)) - small.weights(by_trl)).abs().max() > 1e-4


def test_trl_moves_its_coefficient_as_bang_bang(folder) -> None:
    settings = {"entropy_target": 2.66, "entropy_coef_delta": 0.3, "entropy_coef_max": 0.5, "max_steps": 6}
    one = trained(folder, "skywork", **settings)
    rule = BangBang(target=2.66, step_size=0.3, maximum=0.5)
    state, expected = rule.init(), []
    measured = small.logged(one, "entropy/full")
    for entropy in measured:
        state = rule.update(state, entropy)
        expected.append(state.memory)
    assert small.logged(one, "entropy_coef") == pytest.approx(expected)
    assert min(measured) < 2.66 < max(measured)  # it went up and down
    assert min(abs(entropy - 2.66) for entropy in measured) > 1e-3  # TRL counts equality as below
    assert set(small.logged(one, "entropy/coef")) == {0.0}  # one bonus, and it is TRL's


def test_the_bonus_of_trl_has_its_gradient_through_our_head(folder) -> None:
    """TRL pays nothing in its first step, where it has not measured yet; the weights before the second are the same."""
    one = trainer(folder, "skywork", entropy_coef=0.5, entropy_coef_max=2.0, entropy_target=100.0, max_steps=2)
    spy = Spy(one)
    one.train()
    without = trained(folder, "none", max_steps=2)
    batch = spy.losses[1][0]
    policy, _, entropy, _ = dense(spy.states[1], batch)
    mean = (entropy * batch["completion_mask"]).sum() / batch["completion_mask"].sum()
    wanted = 0.05 * (0.5 + 1e-4) * gradient(policy, mean).float()
    torch.testing.assert_close(small.weights(one) - small.weights(without), wanted, atol=1e-6, rtol=1e-3)
    assert wanted.abs().max() > 1e-4


# ------------------------------------------------------------------------------------------------------ one by one


def test_clip_cov_takes_the_share_of_candidates_away(folder) -> None:
    one = trainer(folder, "clip-cov", entropy_controller=0.1, max_steps=1)
    spy = Spy(one)
    one.train()
    tokens, weights = in_numpy(spy.losses[0][1].tokens), spy.losses[0][1].weights
    counted = [(b, t) for b, t in np.argwhere(tokens.mask > 0)]
    A = {bt: tokens.advantages[bt[0], 0] for bt in map(tuple, counted)}
    lp = {bt: tokens.log_probs[bt] for bt in A}
    mean_A, mean_lp = np.mean(list(A.values())), np.mean(list(lp.values()))
    candidates = [bt for bt in A if 1 < (A[bt] - mean_A) * (lp[bt] - mean_lp) < 5]  # ratio 1: PPO clips none
    zeroed = [bt for bt in A if A[bt] != 0 and weights.policy[bt] == 0]
    assert len(zeroed) == int(0.1 * len(A)) < len(candidates)
    assert set(zeroed) <= set(candidates)


def test_aepo_samples_the_last_quarter_of_each_group_at_its_own_temperature(folder) -> None:
    """At a temperature near 0 those rows are the greedy completion, and only they; their baseline is the others'."""
    one = trainer(folder, "aepo", entropy_controller=1e-4, max_steps=1, temperature=1.3)
    spy = Spy(one)
    one.train()
    (output, rewards), greedy = spy.rollouts[0], small.model()
    same = []
    for row in range(8):
        ids, completion = output["prompt_ids"][row : row + 1], []
        ids = ids[:, output["prompt_mask"][row].bool()]
        while len(completion) < 6 and 1 not in completion:
            with torch.no_grad():
                completion.append(int(greedy(input_ids=ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[completion[-1]]])], dim=1)
        same.append(output["completion_ids"][row][output["completion_mask"][row].bool()].tolist() == completion)
    assert same == [False, False, False, True] * 2
    assert one.generation_config.temperature == one.generation_kwargs["temperature"] == 1.3
    for group in range(2):
        base, extra = rewards[4 * group : 4 * group + 3], rewards[4 * group + 3]
        deviation = np.std(base, ddof=1) + 1e-4
        wanted = [*((base - base.mean()) / deviation), float((extra - base.mean()) / deviation > 0.05)]
        assert output["advantages"][4 * group : 4 * group + 4].tolist() == pytest.approx(wanted, abs=1e-5)


def test_evaluation_samples_all_at_one_temperature_and_takes_no_shaped_path(folder) -> None:
    one = trainer(folder, "aepo", entropy_controller=1e-4)
    used = []
    change = one._sampling_temperature
    one._sampling_temperature = lambda temperature: used.append(temperature) or change(temperature)
    one.model.eval()
    output = one._generate_and_score_completions([{"prompt": "w1 w2"}] * 4)
    assert used == []
    assert "old_entropy" not in output
    assert one._policy_loss(one.model, output, diagnostics=False).weights is None


def test_qae_measures_from_the_quantile(folder) -> None:
    one = trainer(folder, "qae", max_steps=1)
    spy = Spy(one)
    one.train()
    (output, rewards) = spy.rollouts[0]
    for group in range(2):
        R = np.sort(rewards[4 * group : 4 * group + 4])
        baseline = R[1] + 0.2 * (R[2] - R[1])  # place .4 * 3 = 1.2
        wanted = (rewards[4 * group : 4 * group + 4] - baseline) / (np.std(R, ddof=1) + 1e-4)
        got = output["advantages"][4 * group : 4 * group + 4].tolist()
        assert got == pytest.approx(wanted, abs=1e-5)
        assert list(one._logs["advantages"])[4 * group : 4 * group + 4] == pytest.approx(got)
    assert abs(baseline - R.mean()) > 1e-2


def test_a_completion_without_a_reward_has_no_advantage_and_moves_no_baseline(folder) -> None:
    one = trainer(folder, "qae")
    one._rewards = torch.tensor([[1.0], [math.nan], [1.0], [0.0], *4 * [[math.nan]]])
    a = one._group_advantages().tolist()
    assert a[1] == 0.0
    assert a[4:] == [0.0] * 4
    R = [0.0, 2 / 3, 1.0, 1.0]  # in its place the mean of the others
    wanted = (np.array([1.0, 1.0, 0.0]) - (R[1] + 0.2 * (R[2] - R[1]))) / (np.std(R, ddof=1) + 1e-4)
    assert [a[0], a[2], a[3]] == pytest.approx(wanted, abs=1e-5)


def test_the_share_solved_is_that_of_the_group(folder) -> None:
    one = trainer(folder, "aer", max_steps=1, correct_reward=0.6)
    spy = Spy(one)
    one.train()
    output, rewards = spy.rollouts[0]
    wanted = [np.mean([reward >= 0.6 for reward in rewards[4 * (i // 4) : 4 * (i // 4) + 4]]) for i in range(8)]
    assert output["solved"].tolist() == pytest.approx(wanted)
    assert len(set(wanted)) > 1


def test_adrpo_counts_the_kl_once(folder, reference) -> None:
    """beta only makes TRL load the reference: its value changes nothing but whether there is one."""
    small_beta = trained(folder, "adrpo", **{**TWICE, "learning_rate": 0.01})
    large_beta = trained(folder, "adrpo", beta=3.0, **{**TWICE, "learning_rate": 0.01})
    assert (small_beta.beta, large_beta.beta) == (0.04, 3.0)
    assert torch.equal(small.weights(small_beta), small.weights(large_beta))
    other = trained(folder, "adrpo", entropy_controller=3.0, **{**TWICE, "learning_rate": 0.01})
    assert (small.weights(other) - small.weights(small_beta)).abs().max() > 1e-4


def test_adrpo_logs_the_kl_to_the_reference(folder, reference) -> None:
    one = trainer(folder, "adrpo", **{**TWICE, "learning_rate": 0.01})
    spy = Spy(one)
    one.train()
    batch = spy.losses[1][0]
    _, log_pi, *_ = dense(spy.states[1], batch)
    _, log_ref, *_ = dense(spy.states[0], batch)
    k3 = ((log_ref - log_pi).exp() - (log_ref - log_pi) - 1) * batch["completion_mask"]
    mean = float(k3.detach().sum() / batch["completion_mask"].sum())
    assert small.logged(one, "kl") == pytest.approx([0.0, mean], rel=1e-3, abs=1e-6)
    assert mean > 1e-4


def test_siren_anchors_the_entropy_of_the_peaks(folder) -> None:
    """Mean over responses of the mean over their peaks, by micro-batch, weighted by its tokens."""
    one = trainer(folder, "siren", per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1)
    spy = Spy(one)
    one.train()
    total = tokens = 0.0
    for batch, found, _ in spy.losses:
        values = in_numpy(found.tokens).support_entropy
        rows = [row[m] for row, m in zip(values, batch["completion_mask"].bool().numpy(), strict=True)]
        means = [row[row >= np.quantile(row, 0.8) - 1e-6].mean() for row in rows]
        total, tokens = total + np.mean(means) * sum(map(len, rows)), tokens + sum(map(len, rows))
    assert one.control_state.memory == pytest.approx(total / tokens, rel=1e-5)
    assert abs(total / tokens - small.logged(one, "entropy/clamped")[0]) > 1e-2


def test_the_rule_of_era_is_decided_once_per_rollout(folder) -> None:
    """The second update finds the scale and the old log-probabilities of the first; one backbone pass per update."""
    one = trainer(folder, "era", **TWICE, **CASES["era"])
    spy, passes = Spy(one), []
    one.model.model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    one.train()
    (first, found_1, _), (second, found_2, _) = spy.losses
    assert torch.equal(first["logit_scale"], second["logit_scale"])
    assert torch.equal(found_1.tokens.old_log_probs, found_2.tokens.old_log_probs)
    torch.testing.assert_close(found_1.tokens.log_probs, found_1.tokens.old_log_probs, atol=1e-5, rtol=1e-5)
    assert set(first["logit_scale"].flatten().tolist()) > {1.0}
    assert sum(passes) == 2
    assert found_1.output.plain_log_probs is not None
    logged = small.logged(one, "entropy/sampled")[0]
    mask = first["completion_mask"]
    _, log_pi, *_ = dense(spy.states[0], first)
    assert logged == pytest.approx(-float((log_pi.detach() * mask).sum() / mask.sum()), rel=1e-4)  # of the plain logits


def test_era_in_one_update_takes_the_present_entropies(folder) -> None:
    one = trainer(folder, "era", max_steps=1, **CASES["era"])
    spy = Spy(one)
    one.train()
    batch, found, coefficient = spy.losses[0]
    assert "logit_scale" not in batch
    scale = one.shaping.logit_scale(in_numpy(found.tokens), coefficient)
    assert len(set(scale.flatten())) > 1
    _, log_pi, *_ = dense(spy.states[0], batch, scale)
    mask = batch["completion_mask"]
    torch.testing.assert_close(found.tokens.log_probs.double() * mask, log_pi.detach() * mask, atol=2e-5, rtol=1e-4)


def test_era_refuses_a_head_with_a_bias(folder) -> None:
    policy = small.model()
    policy.lm_head.bias = torch.nn.Parameter(torch.zeros(small.VOCABULARY))
    with pytest.raises(ValueError, match="scales logits, and the head of Qwen2ForCausalLM has a bias"):
        trainer(folder, "era", policy)


def test_no_clamp_no_alarm_about_it(folder) -> None:
    one = trainer(folder, "tsallis")
    assert (one.support, one.alarms.support) == (Tsallis(), Full())
    assert trainer(folder, "siren").alarms.support == Nucleus(0.8)


def test_the_band_that_moves_is_the_one_that_is_logged(folder) -> None:
    switch = {"type": "switch", "low": 0.0, "high": 1.0, "low_end": 2.0, "high_end": 9.0, "steps": 1}
    one = trained(folder, "entrocraft", entropy_controller=switch, max_steps=2)
    assert small.logged(one, "entropy/in_band") == [0.0, 1.0]  # 2.6 nats or so


# --------------------------------------------------------------------------------------------------------- parts, keep


def test_a_part_given_replaces_that_of_the_method() -> None:
    one = config(entropy_method="siren", entropy_support="full", entropy_shaping={"type": "PeakBonus", "quantile": 0.5})
    assert configs.support(one.entropy_support) == Full()
    assert configs.controller(one.entropy_controller) == Spring(0.005)
    assert configs.shaping(one.entropy_shaping) == replace(METHODS["siren"].shaping, high=0.2, quantile=0.5)


@pytest.mark.parametrize("name", ["entropic", "clip-cov"])
def test_a_resumed_run_goes_on_to_the_same_numbers(tmp_path, name) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}
    whole = trained(tmp_path / "whole", name, **settings)
    again = trainer(tmp_path / "again", name, small.model(seed=1), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(small.weights(again), small.weights(whole))
    assert again.control_state == whole.control_state
    assert whole.control_state.step == 4
    other = trainer(tmp_path / "again", name, entropy_shaping=Shaping(), **settings)
    with pytest.raises(ValueError, match=r"written with other settings \(entropy_shaping.* does not carry over"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


# ------------------------------------------------------------------------------------------------------------ contract


def test_trl_reads_the_advantages_after_the_model_has_answered() -> None:
    source = inspect.getsource(GRPOTrainer._compute_loss)
    forward = source.index("_get_per_token_logps_and_entropies(")
    assert source.count('inputs["advantages"]') == 1
    assert source.count('inputs.get("old_per_token_logps")') == 1
    assert forward < source.index('inputs["advantages"]')
    assert forward < source.index('inputs.get("old_per_token_logps")')
    assert "if advantages.dim() == 1:" in source
    assert "old_per_token_logps = per_token_logps.detach() if old_per_token_logps is None" in source


def test_trl_scores_the_sampling_policy_before_a_reference() -> None:
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    calls = source.split("self._get_per_token_logps_and_entropies(")
    assert [call.strip().partition(",")[0] for call in calls[1:]] == ["self.model", "self.ref_model", "self.model"]
    assert calls[0].rstrip().endswith("old_per_token_logps, _, _ =")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_generate_single_turn", ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"]),
        (
            "_get_per_token_logps_and_entropies",
            ["model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"],
        ),
    ],
)
def test_what_is_overridden_is_still_there(method, parameters) -> None:
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters)[1 : 1 + len(parameters)] == parameters
