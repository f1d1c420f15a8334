"""No work is lost and nothing is wrong in silence: NaN, bad rewards, damage, other settings, signals, full disks."""

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import threading
import time

import pytest
import torch
from transformers import TrainerCallback

import small
from aent_llm.data.reward_checks import check_rewards
from aent_llm.training import checkpoint, signals
from aent_llm.training.checkpoint import SEAL, last_complete
from aent_llm.training.config import AEntGRPOConfig
from aent_llm.training.finite import are_finite
from aent_llm.training.signals import Interrupted
from aent_llm.training.trainer import AEntGRPOTrainer, NonFiniteError
from test_checkpoint import DAMAGES, flip
from test_trainer import RESUMABLE, history

BASE = {**RESUMABLE, "max_grad_norm": 1.0}


class At(TrainerCallback):
    """Calls a function at the beginning of a step, numbered from 1."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            self.do()


def rewarded(folder, reward, **settings):
    """The small trainer with a reward of one's own."""
    return AEntGRPOTrainer(
        small.model(),
        [reward],
        AEntGRPOConfig(**{**small.SETTINGS, "output_dir": str(folder), **settings}),
        train_dataset=small.prompts(),
        processing_class=small.tokenizer(),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with checkpoints 2, 4 and 6; copy it before breaking it."""
    folder = tmp_path_factory.mktemp("safe") / "run"
    one = small.trainer(folder, **BASE)
    one.train()
    return folder, one


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run"


# --------------------------------------------------------------------------------------------------------------- NaN


@pytest.mark.parametrize(("value", "clip"), [(math.nan, 1.0), (math.inf, 0.0)])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(tmp_path, value, clip) -> None:
    """The loss is finite; one entry of one gradient is not. It used to move every weight to NaN and be sealed."""
    one = small.trainer(tmp_path, **{**BASE, "max_grad_norm": clip})
    kept = {}

    def poison():
        kept["weights"] = small.weights(one).clone()
        weight = one.model.model.layers[0].mlp.up_proj.weight
        first = torch.zeros(2, 1, dtype=torch.long).unbind()
        weight.register_hook(lambda gradient: gradient.index_put(first, torch.tensor(value)))

    one.add_callback(At(3, poison))
    with pytest.raises(NonFiniteError, match=r"the gradient .* at step 3 .*were not updated.*checkpoint-2\.") as caught:
        one.train()
    assert "rank 0 of 1" in str(caught.value)
    assert torch.equal(small.weights(one), kept["weights"])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"entropy_controller": 1e29}, "the gradient .* at step 1 .*were not updated"),
        ({"learning_rate": 1e30, "optim": "sgd"}, "(the probabilities that step 2 samples from|step 2)"),
    ],
    ids=str,
)
def test_settings_that_end_in_nan_say_so_at_once_and_seal_nothing(tmp_path, settings, where) -> None:
    one = small.trainer(tmp_path, **{**BASE, **settings})
    with pytest.raises(NonFiniteError, match=where + ".*complete checkpoint: none"):
        one.train()
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path) -> None:
    one = small.trainer(tmp_path / "run")
    with torch.no_grad():
        one.model.lm_head.weight[3, 4] = -math.inf
    with pytest.raises(NonFiniteError, match="were not saved"):
        one.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_single_weight_counts(dtype) -> None:
    good = [torch.nn.Parameter(torch.full((3, 4), 1e4, dtype=dtype)), torch.nn.Parameter(torch.zeros(0, dtype=dtype))]
    assert are_finite(good)
    assert are_finite([])
    for value in (math.nan, math.inf, -math.inf):
        for place in range(12):
            bad = torch.zeros(12, dtype=dtype)
            bad[place] = value
            assert not are_finite([*good, torch.nn.Parameter(bad)])


# ----------------------------------------------------------------------------------------------------------- rewards


WRONG = {
    "inf": (lambda good: [*good[:5], math.inf, *good[6:]], "returned inf for prompt 'w"),
    "nan": (lambda good: [*good[:5], math.nan, *good[6:]], "returned nan for prompt 'w"),
    "float32": (lambda good: [*good[:7], 1e39], "returned 1e+39 for prompt 'w"),  # TRL keeps rewards in float32
    "text": (lambda good: ["1.0", *good[1:]], "returned '1.0' for prompt 'w"),
    "lists": (lambda good: [[one] for one in good], "returned [0."),
    "short": (lambda good: good[1:], "returned 7 values for 8 completions"),
    "one": (lambda good: 0.5, "returned a float"),
    "none": (lambda good: None, "returned a NoneType"),
    "a word": (lambda good: "1" * len(good), "returned a str"),
}


@pytest.mark.parametrize(("wrong", "said"), WRONG.values(), ids=WRONG)
def test_a_reward_that_is_no_finite_number_is_named_with_its_row(wrong, said) -> None:
    texts, faults = [f"w{i}" for i in range(8)], []

    def my_reward(completions, **_):
        return wrong([0.5] * len(completions))

    found = check_rewards(my_reward, "my_reward", faults.append)(prompts=texts, completions=texts, answer=texts)
    assert found == [math.inf] * 8  # which all ranks see
    assert len(faults) == 1
    assert faults[0].startswith(f"the reward 'my_reward' {said}")


def test_a_long_prompt_or_completion_is_cut_after_200_characters() -> None:
    faults = []
    wrong = check_rewards(lambda **_: [math.nan], "mine", faults.append)
    wrong(prompts=["p" * 198], completions=["c" * 199])  # and two quotation marks
    assert faults == [f"the reward 'mine' returned nan for prompt '{'p' * 198}', completion '{'c' * 199}..."]


@pytest.mark.parametrize("later", [False, True], ids=["", "async"])
def test_a_reward_of_infinity_stops_the_run_before_the_advantages(tmp_path, later) -> None:
    def my_reward(completions, trainer_state, **_):
        good = small.even_words(completions)
        return [*good[:5], math.inf, *good[6:]] if trainer_state.global_step == 1 else good

    async def my_async_reward(completions, trainer_state, **_):
        return my_reward(completions, trainer_state)

    one = rewarded(tmp_path, my_async_reward if later else my_reward, max_steps=3)
    with pytest.raises(ValueError, match=r"step 2: the reward 'my_(async_)?reward' returned inf for prompt 'w.*None"):
        one.train()
    assert one.state.global_step == 1


def test_none_and_every_kind_of_number_are_rewards(tmp_path) -> None:
    import numpy as np

    def mixed(completions, **_):
        values = [None, 1, True, 0.5, np.float32(0.25), np.int64(1), torch.tensor(0.125), 0.0]
        return values[: len(completions)]

    one = rewarded(tmp_path, mixed)
    one.train()
    assert small.logged(one, "rewards/mixed/mean") == pytest.approx([(1 + 1 + 0.5 + 0.25 + 1 + 0.125) / 7])


# ------------------------------------------------------------------------------------------------------------ damage


def test_true_goes_on_from_the_newest_whole_checkpoint_and_says_why(run, copy, caplog) -> None:
    flip(copy / "checkpoint-6" / "optimizer.pt")
    flip(copy / "checkpoint-4" / "model.safetensors")
    one = small.trainer(copy, small.model(seed=1), **BASE)
    one.train(resume_from_checkpoint=True)
    assert history(one, 2) == history(run[1], 2)
    assert torch.equal(small.weights(one), small.weights(run[1]))
    assert [f"not used: {copy}/checkpoint-{step}/" in caplog.text for step in (6, 4, 2)] == [True, True, False]
    assert last_complete(copy)[0] == copy / "checkpoint-6"  # written again
    assert not (copy / "README.md").exists()  # TRL's card, which knows neither model nor task


def test_a_checkpoint_that_was_just_found_is_not_read_again(run, copy, monkeypatch) -> None:
    one = small.trainer(copy, small.model(seed=1), **BASE)
    found = one.last_checkpoint()
    monkeypatch.setattr(checkpoint, "unseal", None)
    assert found == str(copy / "checkpoint-6")
    assert one.train(resume_from_checkpoint=found).global_step == 6
    assert torch.equal(small.weights(one), small.weights(run[1]))


def test_a_finished_run_of_sharded_weights_says_where_they_are(copy, monkeypatch) -> None:
    one = small.trainer(copy, **BASE)
    monkeypatch.setattr(AEntGRPOTrainer, "is_sharded", True)
    with pytest.raises(ValueError, match=f"all steps are done; the weights are in {copy}/checkpoint-6"):
        one.train(resume_from_checkpoint=True)


def test_a_damaged_one_asked_for_by_name_is_refused(copy) -> None:
    flip(copy / "checkpoint-4" / "rng_state.pth")
    one = small.trainer(copy, **BASE)
    with pytest.raises(ValueError, match=r"rng_state\.pth is damaged.*Resume from an earlier checkpoint"):
        one.train(resume_from_checkpoint=str(copy / "checkpoint-4"))
    for step in (2, 6):
        (copy / f"checkpoint-{step}" / SEAL).write_text("{}")
    with pytest.raises(ValueError, match=r"no checkpoint of .* can be used"):
        one.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no complete checkpoint in"):
        small.trainer(copy / "empty", **BASE).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_whatever_is_done_to_any_file_the_run_goes_on_from_the_one_before(run, copy) -> None:
    """Every file of a real checkpoint; then one of each resumes to the numbers of the whole run."""
    files = sorted(path.name for path in (copy / "checkpoint-6").iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= {*files}
    for name in files:
        for damage in DAMAGES:
            path = copy / "checkpoint-6" / name
            content = path.read_bytes()
            damage(path)
            found, (reason,) = last_complete(copy)
            assert found == copy / "checkpoint-4"
            assert name in reason
            path.write_bytes(content)
        assert last_complete(copy)[0] == copy / "checkpoint-6"
    for name in files:
        content = (copy / "checkpoint-6" / name).read_bytes()
        (copy / "checkpoint-6" / name).write_bytes(bytes(len(content)))
        one = small.trainer(copy, small.model(seed=1), **BASE)
        one.train(resume_from_checkpoint=True)
        assert history(one, 4) == history(run[1], 4)


def test_an_old_checkpoint_is_deleted_only_after_the_new_one_is_sealed(tmp_path, monkeypatch) -> None:
    """Killed in between, a run that keeps two had lost both: one unsealed, one never whole, the whole one deleted."""
    one = small.trainer(tmp_path, **{**BASE, "save_total_limit": 2})
    (tmp_path / "checkpoint-9").mkdir(parents=True)  # left by a kill, an hour ago
    os.utime(tmp_path / "checkpoint-9", (time.time() - 3600,) * 2)
    seen = []
    real = AEntGRPOTrainer._state
    monkeypatch.setattr(AEntGRPOTrainer, "_state", lambda self: seen.append(last_complete(tmp_path)[0]) or real(self))
    one.train()
    assert [path and path.name for path in seen] == [None, "checkpoint-2", "checkpoint-4"]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_a_full_disk_names_the_place_and_loses_nothing(run, tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    one = small.trainer(tmp_path, **BASE)
    one.add_callback(At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))))
    try:
        with pytest.raises(OSError, match=f"cannot write {tmp_path}/checkpoint-4: File too large; ") as caught:
            one.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"last complete checkpoint is {tmp_path}/checkpoint-2" in str(caught.value)
    assert not (tmp_path / "checkpoint-4").exists()  # half a checkpoint would take room
    again = small.trainer(tmp_path, **BASE)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(small.weights(again), small.weights(run[1]))


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"entropy_support": {"type": "top_k", "k": 8}}, "entropy_support.k: saved 9, given 8"),
        ({"entropy_support": "full"}, "entropy_support.type: saved 'TopK', given 'Full'"),
        ({"entropy_controller": {**BASE["entropy_controller"], "high": 3.0}}, "entropy_controller.high: saved 2.0"),
        ({"entropy_shaping": "clip_higher"}, "entropy_shaping.type: saved 'Shaping', given 'ClipHigher'"),
        ({"seed": 4}, "seed: saved 3, given 4"),
        ({"learning_rate": 0.02}, "learning_rate: saved 0.01, given 0.02"),
        ({"temperature": 0.9}, "temperature: saved 1.0, given 0.9"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size: saved 8, given 4"),
        ({"max_steps": 3}, "max_steps: saved 6, given 3, but .* is at step 4"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_setting_that_would_make_it_another_run_is_refused_by_name(run, change, named) -> None:
    one = small.trainer(run[0].parent / "other", **{**BASE, **change})
    with pytest.raises(ValueError, match=named):
        one.train(resume_from_checkpoint=str(run[0] / "checkpoint-4"))
    assert one.state.global_step == 0


def test_other_problems_another_reward_and_another_number_of_ranks_are_refused(run, tmp_path) -> None:
    one = small.trainer(tmp_path, **BASE)
    one.train_dataset = small.prompts(7)
    with pytest.raises(ValueError, match=r"dataset: saved '8 rows, .*', given '7 rows, "):
        one.train(resume_from_checkpoint=str(run[0] / "checkpoint-4"))

    def another(completions, **_):
        return small.even_words(completions)

    with pytest.raises(ValueError, match=r"rewards: saved \['even_words'\], given \['another'\]"):
        rewarded(tmp_path, another, **BASE).train(resume_from_checkpoint=str(run[0] / "checkpoint-4"))
    two = small.trainer(tmp_path, **BASE)
    two._settings["ranks"] = 2
    with pytest.raises(ValueError, match="ranks: saved 1, given 2"):
        two.train(resume_from_checkpoint=str(run[0] / "checkpoint-4"))


def test_what_may_change_on_resume_takes_effect(run, copy) -> None:
    """transformers takes the intervals of logging and saving from the checkpoint; ours takes the present ones."""
    changed = {"max_steps": 9, "save_steps": 3, "logging_steps": 3, "entropy_tile_bytes": 9999}
    one = small.trainer(copy, **{**BASE, **changed})
    one.train(resume_from_checkpoint=str(copy / "checkpoint-6"))
    assert one.state.global_step == 9
    assert (copy / "checkpoint-9" / SEAL).is_file()
    assert [entry["step"] for entry in one.state.log_history if "loss" in entry][6:] == [9]
    sealed_with = json.loads((copy / "checkpoint-9" / SEAL).read_text())["state"]["settings"]
    assert sealed_with["max_steps"] == 9
    done = small.trainer(copy, small.model(seed=1), **{**BASE, "max_steps": 9})
    assert done.train(resume_from_checkpoint=True).global_step == 9  # and not a step more
    assert torch.equal(small.weights(done), small.weights(one))


def test_a_checkpoint_of_weights_alone_is_not_resumed(tmp_path) -> None:
    settings = {**BASE, "save_only_model": True, "max_steps": 2}
    small.trainer(tmp_path, **settings).train()
    for again in (settings, {**settings, "save_only_model": False}):
        with pytest.raises(ValueError, match=r"weights only .*save_only_model.* cannot be resumed"):
            small.trainer(tmp_path, **{**again, "max_steps": 4}).train(resume_from_checkpoint=True)


def test_jit_checkpoints_of_transformers_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="enable_jit_checkpoint"):
        small.trainer(tmp_path, enable_jit_checkpoint=True)


# ----------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_checkpoint(tmp_path, number) -> None:
    """Also where none would be saved, or weights alone."""
    settings = {**BASE, "save_strategy": "no", "save_only_model": True, "max_steps": 2}
    one = small.trainer(tmp_path, **settings)
    one.add_callback(At(1, lambda: os.kill(os.getpid(), number)))
    before = signal.getsignal(number)
    with signals.handled() as one.stop, pytest.raises(Interrupted) as caught:
        one.train()
    assert signal.getsignal(number) is before
    assert caught.value.status == 128 + number
    assert str(caught.value) == number.name
    assert caught.value.checkpoint == tmp_path / "checkpoint-1"
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-1", [])
    assert small.trainer(tmp_path, **settings).train(resume_from_checkpoint=True).global_step == 2


def test_a_run_stopped_by_a_signal_goes_on_to_the_same_numbers(run, tmp_path) -> None:
    """At a step that is no multiple of ``save_steps``."""
    one = small.trainer(tmp_path, **BASE)
    one.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with signals.handled() as one.stop, pytest.raises(Interrupted):
        one.train()
    again = small.trainer(tmp_path, small.model(seed=1), **BASE)
    again.train(resume_from_checkpoint=True)
    assert history(again, 0) == history(run[1], 0)
    assert torch.equal(small.weights(again), small.weights(run[1]))


def test_a_signal_in_the_middle_of_a_rollout_phase_keeps_the_phases_in_step(tmp_path) -> None:
    """Rollouts of two steps; stopped after step 3, the resumed run draws the rest of phase 2 and starts phase 3."""
    settings = {
        **BASE, "per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 6, "save_strategy": "no",
    }  # fmt: skip
    one = small.trainer(tmp_path, **settings)
    one.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with signals.handled() as one.stop, pytest.raises(Interrupted):
        one.train()
    assert one.control_state.step == 1
    again = small.trainer(tmp_path, small.model(seed=1), **settings)
    drawn = []
    real = again._generate_and_score_completions
    again._generate_and_score_completions = lambda inputs: drawn.append(again.state.global_step) or real(inputs)
    again.train(resume_from_checkpoint=True)
    assert drawn == [3, 4]
    assert again.control_state.step == 3


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(0.001)  # the handler runs between two lines of Python


def test_elsewhere_than_in_a_step_a_signal_is_raised_at_once() -> None:
    with signals.handled(), pytest.raises(Interrupted, match="SIGTERM"):
        send(signal.SIGTERM)


def test_a_second_ctrl_c_stops_at_once_but_a_launchers_echo_does_not(monkeypatch, capfd) -> None:
    with signals.handled() as stop:
        with contextlib.suppress(Interrupted), stop.between_steps():
            send(signal.SIGINT, signal.SIGINT, signal.SIGTERM)  # a terminal's, then its launcher's
            assert stop.number == signal.SIGINT
            monkeypatch.setattr(signals, "TWICE_SECONDS", -1.0)
            with pytest.raises(Interrupted) as caught:
                send(signal.SIGINT)
        assert caught.value.status == 130
    assert capfd.readouterr().err.count("saving a checkpoint at the end of this step") == 1


def test_a_signal_that_no_step_follows_is_not_lost() -> None:
    with signals.handled() as stop, pytest.raises(Interrupted), stop.between_steps():
        os.kill(os.getpid(), signal.SIGTERM)
    with stop.between_steps():  # trained again, by a script that caught the first one
        assert not stop.number


def test_in_another_thread_nothing_is_handled() -> None:
    found = []

    def work():
        with signals.handled() as stop:
            found.append(stop.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


# ----------------------------------------------------------------------------------------------------------- logging


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"logging_steps": 4, "logging_first_step": True, "max_steps": 6}, [1, 4, 6]),
        ({"logging_steps": 10, "max_steps": 3}, [3]),
        ({"logging_strategy": "epoch", "max_steps": 6}, [4, 6]),  # an epoch is 4 steps
        ({"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}, [4, 8]),
        ({"logging_strategy": "no", "max_steps": 2}, []),
    ],
    ids=str,
)
def test_every_logged_line_holds_the_gradient_diagnostics(tmp_path, settings, steps) -> None:
    one = small.trainer(tmp_path, entropy_support={"type": "top_k", "k": 9}, entropy_controller=0.5, **settings)
    one.train()
    lines = [entry for entry in one.state.log_history if "loss" in entry]
    assert [line["step"] for line in lines] == steps
    for line in lines:
        assert {"entropy/grad_cosine", "entropy/bonus_grad_share"} <= line.keys()


def test_without_diagnostics_no_line_holds_them(tmp_path) -> None:
    one = small.trainer(tmp_path, entropy_diagnostics=False, entropy_controller=0.5, logging_first_step=True)
    one.train()
    assert all("entropy/grad_cosine" not in entry for entry in one.state.log_history)
