"""The trainer against independent derivations: what the bonus adds to the gradient, and what the controller saw."""

import inspect
import json
import math

import pytest
import torch
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer

import small
from aent.controllers import Band, BangBang, Constant
from aent.entropy import DropLowest, Full, TopK, entropy
from aent_llm.training.config import AEntGRPOConfig
from aent_llm.training.trainer import AEntGRPOTrainer, NonFiniteError

TOP = TopK(9)
FIXED = {"entropy_support": TOP, "entropy_controller": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trainer")


class Batches(TrainerCallback):
    """Keeps what every micro-batch was computed on."""

    def __init__(self):
        self.seen = []

    def attach(self, trainer):
        compute = trainer._compute_loss

        def spy(model, inputs):
            self.seen.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
            return compute(model, inputs)

        trainer._compute_loss = spy
        return trainer


def trained(folder, **settings):
    one = small.trainer(folder, **settings)
    one.train()
    return one


def dense_mean_entropy(policy, batches, support, temperature=1.0):
    """Mean over all completion tokens, from full logits: the definition, with autograd."""
    total, tokens = 0.0, 0
    for batch in batches:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        logits = policy(input_ids=ids, attention_mask=attention).logits
        T = batch["completion_ids"].shape[1]
        per_token = entropy(logits[:, -T - 1 : -1], support=support, temperature=temperature)
        total = total + (per_token * batch["completion_mask"]).sum()
        tokens += int(batch["completion_mask"].sum())
    return total / tokens


# ------------------------------------------------------------------------------------------------------------- bonus


@pytest.mark.parametrize("support", [Full(), TOP, DropLowest(0.4)], ids=["full", "top", "drop"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_bonus_moves_the_weights_by_the_gradient_of_the_dense_entropy(folder, support, temperature) -> None:
    """One SGD step: theta' - theta = lr * (-policy gradient + c * entropy gradient); the policy part cancels."""
    common = {"entropy_support": support, "temperature": temperature}
    spy = Batches()
    with_bonus = spy.attach(small.trainer(folder, entropy_controller=0.5, **common))
    with_bonus.train()
    without = trained(folder, entropy_controller=0.0, **common)
    policy = small.model()
    dense_mean_entropy(policy, spy.seen, support, temperature).backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
    moved = small.weights(with_bonus) - small.weights(without)
    torch.testing.assert_close(moved, 0.05 * 0.5 * gradient, atol=1e-6, rtol=1e-4)
    assert moved.abs().max() > 1e-4


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"])
def test_the_bonus_is_the_same_beside_every_loss(folder, loss) -> None:
    reference = small.weights(trained(folder, **FIXED)) - small.weights(
        trained(folder, **{**FIXED, "entropy_controller": 0.0})
    )
    options = {"loss_type": loss, "importance_sampling_level": "sequence" if loss == "luspo" else "token"}
    moved = small.weights(trained(folder, **FIXED, **options)) - small.weights(
        trained(folder, **{**FIXED, "entropy_controller": 0.0}, **options)
    )
    torch.testing.assert_close(moved, reference, atol=2e-7, rtol=1e-4)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_gradient_accumulation_changes_neither_loss_nor_bonus_nor_metrics(folder, accumulate) -> None:
    whole = trained(folder, **FIXED)
    parts = trained(
        folder, **FIXED, per_device_train_batch_size=8 // accumulate, gradient_accumulation_steps=accumulate
    )
    torch.testing.assert_close(small.weights(parts), small.weights(whole), atol=1e-6, rtol=1e-5)
    for key in ("entropy/full", "entropy/clamped", "entropy/grad_cosine", "entropy/bonus_grad_share", "entropy/kept"):
        assert small.logged(parts, key) == pytest.approx(small.logged(whole, key), rel=1e-5)


def test_a_mean_of_micro_batch_means_would_be_noticed(folder) -> None:
    """Negative control: completions of unequal length make the two means differ by more than the tolerance above."""
    spy = Batches()
    spy.attach(small.trainer(folder, **FIXED, per_device_train_batch_size=2, gradient_accumulation_steps=4)).train()
    policy = small.model()
    with torch.no_grad():
        mean = dense_mean_entropy(policy, spy.seen, TOP)
        of_means = sum(dense_mean_entropy(policy, [one], TOP) for one in spy.seen) / len(spy.seen)
    assert abs(float(mean - of_means)) > 1e-3


def test_several_optimiser_steps_per_rollout_each_average_over_their_own_tokens(folder) -> None:
    """Four micro-batches, two optimiser steps, one rollout; the second step's bonus is its own mean."""
    spy = Batches()
    settings = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 2, "learning_rate": 1e-3}
    one = spy.attach(small.trainer(folder, **FIXED, **settings))
    one.train()
    assert len(spy.seen) == 2
    assert [int(batch["completion_mask"].sum()) for batch in spy.seen] != [0, 0]
    with torch.no_grad():
        first = float(dense_mean_entropy(small.model(), spy.seen[:1], TOP))
    assert small.logged(one, "entropy/clamped")[0] == pytest.approx(first, rel=1e-5)
    assert one.control_state.step == 1


def test_metrics_equal_brute_force(folder) -> None:
    spy = Batches()
    one = spy.attach(small.trainer(folder, **FIXED))
    one.train()
    policy = small.model()
    with torch.no_grad():
        assert small.logged(one, "entropy/full")[0] == pytest.approx(
            float(dense_mean_entropy(policy, spy.seen, Full())), rel=1e-5
        )
        assert small.logged(one, "entropy/clamped")[0] == pytest.approx(
            float(dense_mean_entropy(policy, spy.seen, TOP)), rel=1e-5
        )
    (batch,) = spy.seen
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    T, mask = batch["completion_ids"].shape[1], batch["completion_mask"].bool()
    logits = policy(input_ids=ids, attention_mask=attention).logits[:, -T - 1 : -1].detach().double()
    logits = logits[mask].requires_grad_()  # (N, V): the logits of every counted token
    chosen = batch["completion_ids"][mask]

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    full, clamped = (gradient(entropy(logits, support=rule).mean()) for rule in (Full(), TOP))
    cosine = float((full * clamped).sum() / full.norm() / clamped.norm())
    assert small.logged(one, "entropy/grad_cosine")[0] == pytest.approx(cosine, rel=1e-4)
    log_prob = torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
    advantage = batch["advantages"][:, None].expand(-1, T)[mask].double()
    policy_gradient = gradient((log_prob * advantage).mean())  # on-policy GRPO with a global token mean
    share = 0.5 * float(clamped.norm() / policy_gradient.norm())
    assert small.logged(one, "entropy/bonus_grad_share")[0] == pytest.approx(share, rel=1e-4)
    assert small.logged(one, "entropy/sampled")[0] == pytest.approx(-float(log_prob.detach().mean()), rel=1e-5)
    right = batch["correct"][:, None].expand(-1, T)[mask]
    values = entropy(logits, support=Full()).detach()
    assert small.logged(one, "entropy/correct")[0] == pytest.approx(float(values[right].mean()), rel=1e-5)
    assert small.logged(one, "entropy/incorrect")[0] == pytest.approx(float(values[~right].mean()), rel=1e-5)
    assert small.logged(one, "entropy/kept")[0] == pytest.approx(9)


def test_with_a_coefficient_of_zero_it_is_trl_to_rounding(folder) -> None:
    from trl import GRPOConfig

    ours = trained(folder, max_steps=3)
    theirs = GRPOTrainer(
        small.model(),
        [small.even_words],
        GRPOConfig(**{**small.SETTINGS, "output_dir": str(folder), "max_steps": 3}),
        train_dataset=small.prompts(),
        processing_class=small.tokenizer(),
    )
    theirs.train()
    torch.testing.assert_close(small.weights(ours), small.weights(theirs), atol=1e-5, rtol=1e-4)
    assert small.logged(ours, "reward") == pytest.approx(small.logged(theirs, "reward"))
    assert small.logged(ours, "entropy") == pytest.approx(small.logged(theirs, "entropy"), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2, "max_steps": 4},
        {"beta": 0.1},
        {"top_entropy_quantile": 0.5},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"mask_truncated_completions": True},
        {"scale_rewards": "batch"},
        {"optim": "adamw_torch", "max_grad_norm": 1.0},
        {"eval_strategy": "steps", "eval_steps": 1},
    ],
    ids=str,
)
def test_features_of_trl_keep_working(folder, settings) -> None:
    settings = {"max_steps": 2, **settings}
    evaluates = {"eval_dataset": small.prompts(4)} if "eval_strategy" in settings else {}
    one = AEntGRPOTrainer(
        small.model() if "beta" not in settings else str(small.saved_model(folder / "reference")),
        [small.even_words],
        AEntGRPOConfig(**{**small.SETTINGS, "output_dir": str(folder), **FIXED, **settings}),
        train_dataset=small.prompts(),
        processing_class=small.tokenizer(),
        **evaluates,
    )
    start = small.weights(one).clone()
    one.train()
    assert len(small.logged(one, "entropy/clamped")) == settings["max_steps"]
    assert all(math.isfinite(value) for value in small.logged(one, "loss"))
    assert not torch.equal(small.weights(one), start)
    if evaluates:
        assert len(small.logged(one, "eval_entropy/clamped")) == 2


def test_lora_trains_only_the_adapter_and_feels_the_bonus(folder) -> None:
    from peft import LoraConfig

    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    one = small.trainer(folder, peft_config=lora, **FIXED)
    torch.manual_seed(0)
    other = small.trainer(folder, peft_config=lora, **{**FIXED, "entropy_controller": 0.0})
    one.train()
    other.train()
    assert 0 < small.weights(one).numel() < small.model().num_parameters()
    assert not torch.equal(small.weights(one), small.weights(other))


# ----------------------------------------------------------------------------------------------------------- control


def test_the_controller_moves_once_a_phase_on_what_was_logged(folder) -> None:
    rule = Band(initial=0.1, low=2.9, high=3.0, step_size=0.3, minimum=0.01, maximum=5.0)
    one = trained(folder, entropy_support=TopK(40), entropy_controller=rule, max_steps=4)
    state, expected = rule.init(), []
    for measured in small.logged(one, "entropy/clamped"):
        expected.append(state.coefficient)  # used in the step it was set for, measured in that step, moved after it
        state = rule.update(state, measured)
    assert small.logged(one, "entropy/coef") == pytest.approx(expected, rel=1e-9)
    assert one.control_state.coefficient == pytest.approx(state.coefficient, rel=1e-9)
    assert len(set(expected)) > 1


@pytest.mark.parametrize(("iterations", "per_phase", "updates"), [(1, 1, 4), (2, 1, 2), (1, 2, 2), (2, 2, 1)])
def test_a_phase_is_one_rollout_whatever_is_done_with_it(folder, iterations, per_phase, updates) -> None:
    one = trained(
        folder, **FIXED, max_steps=4, num_iterations=iterations, steps_per_generation=per_phase,
        per_device_train_batch_size=8 // per_phase,
    )  # fmt: skip
    assert one.control_state.step == updates


def test_a_controller_that_starts_at_zero_gets_going(folder) -> None:
    rule = BangBang(target=100.0, step_size=0.1, maximum=1.0)
    one = trained(folder, entropy_controller=rule, max_steps=3)
    assert small.logged(one, "entropy/coef") == pytest.approx([0.0, 0.1, 0.2])


def test_the_warm_up_holds_the_coefficient_and_counts_phases(folder) -> None:
    rule = {"type": "bang_bang", "target": 100.0, "step_size": 0.1, "maximum": 1.0, "initial": 0.3}
    one = trained(folder, entropy_controller=rule, entropy_warmup_steps=2, max_steps=4)
    start = small.logged(one, "entropy/coef")[0]
    assert small.logged(one, "entropy/coef")[:3] == [start] * 3
    assert small.logged(one, "entropy/coef")[3] != start


# -------------------------------------------------------------------------------------------------------- keep, stop

RESUMABLE = {
    "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01,
    "entropy_support": TOP,
    "entropy_controller": {"type": "band", "initial": 0.1, "low": 1.9, "high": 2.0, "step_size": 0.5,
                           "minimum": 0.01, "maximum": 5.0},
}  # fmt: skip
UNSTABLE = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time", "epoch", "total_flos")


def history(one, after: int):
    keep = [entry for entry in one.state.log_history if entry["step"] > after and "loss" in entry]
    return [{k: v for k, v in entry.items() if k not in UNSTABLE and not k.startswith("profiling/")} for entry in keep]


@pytest.mark.parametrize("at", [2, 4])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, at) -> None:
    """To the last digit, across an epoch (8 prompts, 2 a step: an epoch is 4 steps)."""
    whole = trained(tmp_path / "whole", **RESUMABLE)
    again = small.trainer(tmp_path / "again", small.model(seed=1), **RESUMABLE)  # its own weights must not matter
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    assert history(again, at) == history(whole, at)
    assert torch.equal(small.weights(again), small.weights(whole))
    assert again.control_state == whole.control_state


def test_the_prompts_of_the_second_epoch_come_in_another_order(tmp_path) -> None:
    one = small.trainer(tmp_path, max_steps=8)
    order = one._get_train_sampler()
    orders = []
    for epoch in (0, 1, 1):
        order.generator.manual_seed(one.args.seed + epoch)
        orders.append(list(order))
    assert orders[0] != orders[1] == orders[2]


def test_resuming_with_another_controller_is_refused(tmp_path) -> None:
    trained(tmp_path, **RESUMABLE)
    other = small.trainer(tmp_path, **{**RESUMABLE, "entropy_controller": 0.1})
    with pytest.raises(ValueError, match="its state does not carry over"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("where", ["weights", "reward"])
def test_nan_stops_the_run_before_the_weights_move(tmp_path, where) -> None:
    def poison(completions, **_):
        return [math.nan if where == "reward" else 1.0] * (len(completions) - 1) + [0.0]

    settings = {**RESUMABLE, "max_steps": 4}
    one = small.trainer(tmp_path, **settings)

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3 and where == "weights":
                with torch.no_grad():
                    one.model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
            if state.global_step == 3 and where == "reward":
                compute = one._compute_loss
                one._compute_loss = lambda model, inputs: compute(
                    model, {**inputs, "advantages": inputs["advantages"] * math.nan}
                )

    one.add_callback(Poison())
    if where == "weights":  # sampling from NaN probabilities would fail before: rollouts come from the sane weights
        one._generate_and_score_completions = _frozen_rollouts(one)
    kept = {}

    class Keep(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            kept["weights"] = small.weights(one).clone()

    one.add_callback(Keep())
    with pytest.raises(NonFiniteError, match=r"step 4 \(rank 0 micro-batch 0 of 1\).*checkpoint-2"):
        one.train()
    assert torch.equal(small.weights(one).nan_to_num(7), kept["weights"].nan_to_num(7))


def _frozen_rollouts(one):
    real, first = one._generate_and_score_completions, []

    def frozen(inputs):
        if not first:
            first.append(real(inputs))
        return dict(first[0])

    return frozen


def test_a_clamp_that_keeps_one_token_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="keeps 1 of 61 tokens"):
        small.trainer(tmp_path, entropy_support=DropLowest(0.99))


def test_another_config_class_is_refused(tmp_path) -> None:
    from trl import GRPOConfig

    with pytest.raises(TypeError, match="AEntGRPOConfig"):
        AEntGRPOTrainer(small.model(), [small.even_words], GRPOConfig(output_dir=str(tmp_path), use_cpu=True))


# ---------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    ("owner", "method", "parameters"),
    [
        (GRPOTrainer, "_compute_loss", ["self", "model", "inputs"]),
        (GRPOTrainer, "training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        (GRPOTrainer, "_generate_and_score_completions", ["self", "inputs"]),
        (GRPOTrainer, "_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        (GRPOTrainer, "_save_checkpoint", ["self", "model", "trial"]),
        (GRPOTrainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        (GRPOTrainer, "_get_train_sampler", ["self", "dataset"]),
        (Trainer, "_get_output_dir", ["self", "trial"]),
    ],
)
def test_what_is_overridden_is_still_there(owner, method, parameters) -> None:
    """An upgrade of TRL that changes one of these must fail here, loudly, and not in a training run."""
    assert list(inspect.signature(getattr(owner, method)).parameters) == parameters


def test_trl_still_passes_the_model_straight_to_the_fused_head() -> None:
    source = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "model(**model_inputs, labels=labels, fused_lm_head=True)" in source
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert loss.count("_get_per_token_logps_and_entropies(") == 1
    assert "_entropy_bonus_enabled" in loss


def test_the_state_in_a_checkpoint_is_readable_json(tmp_path) -> None:
    trained(tmp_path, **{**RESUMABLE, "max_steps": 2})
    kept = json.loads((tmp_path / "checkpoint-2" / "aent.json").read_text())
    assert kept["state"]["control_state"]["step"] == 2
    assert kept["state"]["settings"]["entropy_controller"]["type"] == "Band"
    assert "model.safetensors" in kept["files"]


def test_a_constant_controller_is_the_default() -> None:
    one = AEntGRPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none")
    assert one.entropy_controller == Constant(0.0).to_dict()
