"""Input that cannot be used: one line, exit status 2, before a model is loaded or a directory made; so says --dry-run.

The model's folder holds a configuration and a tokenizer but no weights: whatever is refused here cannot have waited for
them.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import small
from aent import cli
from aent.controllers import Controller
from aent.shaping import Shaping
from aent_llm.__main__ import COMMANDS, main
from aent_llm.training import signals
from experiments import all_methods, three_way

HERE = Path(__file__).parent
PROBLEMS = 12
FILE = """\
model:
  source: MODEL
data:
  source: DATA
rewards: [small:even_words]
entropy:
  support: {type: top_k, k: 9}
  controller: 0.1
train:
  per_device_train_batch_size: 8
  num_generations: 4
  max_completion_length: 6
  max_steps: 1
  use_cpu: true
  bf16: false
"""

# What is put in place of what ("" appends, and the whole file is replaced where there is no "->") -> what is said of it
FILES = {
    # not YAML, or not a mapping
    "": "expected a mapping with model, data, rewards, entropy and train, got None",
    "- 1": "expected a mapping with model",
    "just words": "expected a mapping with model",
    "data: [tiny": "line 1: not YAML",
    "data: {source: tiny}\n---\ndata: {source: tiny}\n": "expected a single document",
    "data: 'tiny": "not YAML: while scanning a quoted scalar",
    "data: @tiny": "needs quotes",
    "data: *nothing": "undefined alias 'nothing'",
    "data: {source: x}\npaper: \a": "special characters are not allowed",
    "train: -> train:\n\t": "line 10: not YAML: while scanning for the next token found character '\\t'",
    # keys
    "-> 1: x\n": "line 16: a key must be text, got 1",
    "-> ~: x\n": "line 16: a key must be text, got null",
    "-> true: x\n": "a key must be text, got true",
    "-> ? [a, b]\n: x\n": "a key must be text",
    "->   bf16: true\n": "line 16: the key 'bf16' stands twice in its block",
    "k: 9 -> k: 9, k: 8": "line 7: the key 'k' stands twice",
    "-> modle: {}\n": "line 16: unknown key 'modle'; did you mean 'model'?",
    "->   learnin_rate: 1\n": "line 16: train: unknown key 'learnin_rate'; did you mean 'learning_rate'?",
    "  source: MODEL ->   lora: {alpha: 8}": "line 2: model.lora: unknown key 'alpha'; did you mean 'lora_alpha'?",
    "  source: MODEL ->   tiny: {layer: 1}": "line 2: model.tiny: unknown key 'layer'; did you mean 'layers'?",
    "  source: DATA ->   soruce: DATA": "unknown key 'soruce'; did you mean 'source'? (also wrong: source)",
    "k: 9 -> kk: 9": "line 7: entropy.support: unknown key 'kk'; did you mean 'k'?",
    "type: top_k, k: 9 -> k: 9": "line 7: entropy.support.type is needed: Full, DropLowest, TopK",
    "-> evaluation: {samples: 2}\n": "evaluation: the key 'data' is needed",
    "->   output_dir: x\n": "train: output_dir is not set here; it is set by --output",
    "->   entropy_support: full\n": "entropy_support is not set here; it is set in the block entropy",
    # values of another type
    "->   trust_remote_code: \"no\"\n": "line 16: train.trust_remote_code: expected true or false, got 'no'",
    "  source: MODEL ->   source: MODEL\n  trust_remote_code: no": "line 3: model.trust_remote_code: expected true",
    "bf16: false -> bf16: maybe": "line 15: train.bf16: expected true or false, or null, got 'maybe'; write true or",
    "  controller: 0.1 ->   diagnostics: \"no\"": "line 8: entropy.diagnostics: expected true or false, got 'no'",
    "max_steps: 1 -> max_steps: 1.5": "line 13: train.max_steps: expected a whole number of at least -1, got 1.5",
    "max_steps: 1 -> max_steps: true": "train.max_steps: expected a whole number",
    "max_steps: 1 -> max_steps:": "expected a whole number of at least -1, got null; leave the key out for -1",
    "->   seed: 0.5\n": "line 16: train.seed: expected a whole number of at least 0 and below 4294967296, got 0.5",
    "->   learning_rate: 3e-4x\n": "line 16: train.learning_rate: expected a number of at least 0, got '3e-4x'",
    "->   learning_rate: .inf\n": "train.learning_rate: expected a number of at least 0, got inf",
    "->   beta: .nan\n": "train.beta: expected a number of at least 0, got nan",
    "  controller: 0.1 ->   tile_bytes: 64MB": "entropy.tile_bytes: expected a whole number of at least 1, or null",
    "k: 9 -> k: nine": "line 7: entropy.support.k: expected a whole number, got 'nine'",
    "{type: top_k, k: 9} -> [full]": "entropy.support: expected a block of keys, or text, or null",
    "controller: 0.1 -> controller: true": "entropy.controller: expected a block of keys, or text, or a number",
    "controller: 0.1 -> controller: .nan": "line 8: entropy.controller: ",
    "controller: 0.1 -> controller: {type: constant, coefficient: x}": "entropy.controller.coefficient: expected a num",
    "entropy: -> entropy: full\npaper:": "line 6: entropy: expected a block of keys, or null, got 'full'; a block is",
    "data: -> data: tiny\npaper:": "line 3: data: expected a block of keys, got 'tiny'",
    "source: DATA -> source: 2020-01-01": "line 4: data.source: a date is no setting; write text in quotes",
    "source: DATA -> source: !!python/name:os.system x": "line 4: data.source: the tag",
    "source: DATA -> source: 3": "data.source: expected text, got 3; put text in quotes",
    "source: DATA -> source: DATA\n  limit: 0": "line 5: data.limit: expected a whole number of at least 1, or",
    "source: DATA -> source: DATA\n  faulty: ignore": "data.faulty: expected error or drop, got 'ignore'",
    "[small:even_words] -> {small:even_words: high}": "line 5: rewards: expected text",
    "[small:even_words] -> []": "rewards: expected one or more different names, got []",
    "[small:even_words] -> [3]": "rewards: expected text",
    "->   reward_weights: [1, 2]\n": "train.reward_weights: expected one number for each of small:even_words",
    "[small:even_words] -> {small:even_words: 0}": "line 5: reward_weights=[0.0]: no reward has a weight",
    "->   reward_weights: [0]\n": "line 16: reward_weights=[0.0]: no reward has a weight",
    # numbers that overflow
    "max_steps: 1 -> max_steps: 1e23": "line 13: train.max_steps: expected a whole number of at least -1, got 1e+23;",
    "max_steps: 1 -> max_steps: 9999999999999999999": "train.max_steps: expected a whole number of at least -1, got 99",
    "controller: 0.1 -> controller: 1e300": "line 8: entropy.controller: expected a block of keys, or text, or a num",
    "controller: 0.1 -> controller: \"1e300\"": "line 8: entropy.controller: entropy_controller: coefficient=1e+300",
    "controller: 0.1 -> controller: {type: spring, strength: 1e31}": "entropy.controller.strength: expected a number",
    "[small:even_words] -> {small:even_words: 1e40}": "line 5: rewards: expected text",
    "->   beta: 1e31\n": "train.beta: expected a number of at least 0, got 1e+31; that overflows",
    "-> evaluation:\n  data: {source: DATA}\n  samples: \"4x\"\n": "line 18: evaluation.samples: expected a whole",
    "-> evaluation: [1]\n": "evaluation: expected a block of keys, or null, got [1]",
    # what no run heeds
    "->   eval_steps: 5\n": "line 16: train.eval_steps has no effect: nothing is evaluated while training; the block",
    "->   do_train: false\n": "line 16: train.do_train: expected true, got false",
    "->   accelerator_config: nofile.json\n": "line 16: train.accelerator_config: expected a block of settings, or a J",
    "->   optim_args: foo\n": "line 16: train.optim_args: expected name=value, or several with commas between them, g",
}  # fmt: skip

SETS = {
    "train=3": "--set train: expected a block of keys, or null, got 3",
    "train.learning_rate=[1": "--set train.learning_rate=[1: not YAML",
    "train.max_steps": "--set train.max_steps: expected key=value",
    "=3": "expected a key such as train.max_steps",
    "train..seed=3": "expected a key such as train.max_steps",
    "train.seed=": "--set train.seed: expected a whole number",
    "train.seed=-1": "--set train.seed: expected a whole number of at least 0",
    "train.max_steps=nan": "--set train.max_steps: expected a whole number of at least -1, got 'nan'",
    "train.max_steps=0": "--set train.max_steps: expected 1 or more, or -1 (epochs), got 0",
    "entropy.suport=full": "entropy: unknown key 'suport'; did you mean 'support'?",
    "rewards.x=1": "--set rewards.x: rewards is ['small:even_words'], not a block with keys",
    # names and ranges that TRL finds out late
    "train.loss_type=dappo": "--set train.loss_type: expected grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo or vespo",
    "train.scale_rewards=grup": "did you mean 'group'?",
    "train.optim=adamw_torc": "did you mean 'adamw_torch'?",
    "train.lr_scheduler_type=cosin": "did you mean 'cosine'?",
    "train.temperature=0": "train.temperature: expected a number of at least 1e-06, got 0",
    "train.temperature=1e-300": "train.temperature: expected a number of at least 1e-06, got 1e-300",
    "evaluation={data: {source: DATA}, temperature: 1e-300}": "temperature=1e-300: logits over it overflow; use 0",
    "train.num_train_epochs=1e29": "train.num_train_epochs: expected a number above 0 and at most 1000000000.0",
    "train.dataloader_num_workers=1000000000": "train.dataloader_num_workers: expected a whole number of at least 0",
    "train.use_liger_kernel=true": "train.use_liger_kernel needs it: pip install liger-kernel",
    "train.model_init_kwargs={x: 1}": "train: model_init_kwargs is not set here; it is set in the block model",
    "model.lora={r: 1000000000}": "model.lora.r: expected a whole number of at least 1 and at most 65536",
    "model={source: tiny, tiny: {layers: 1000000000}}": "model.tiny.layers: expected a whole number of at least 1",
    "train.num_iterations=0": "train.num_iterations: expected a whole number of at least 1",
    "train.num_generations=0": "train.num_generations: expected a whole number of at least 2, got 0",
    "train.num_generations=3": "a rollout of 8 completions",
    "train.logging_steps=1.5": "train.logging_steps: expected a whole number",
    "train.eval_strategy=steps": "train.eval_strategy: expected no, got 'steps'",
    "train.remove_unused_columns=true": "train.remove_unused_columns: expected false, got true",
    "train.accelerator_config={x: 1}": "unexpected keyword argument 'x'",
    "train.sync_ref_model=true": "train.sync_ref_model: true has no effect with train.beta=0",
    "train.report_to=nobody": "train.report_to: nobody is not installed, or not known",
    "train.fp16=true": "train.fp16 needs a GPU",
    "train.lr_scheduler_type=cosine_with_min_lr": "min_lr",
    "train.lr_scheduler_kwargs={x: 1}": "unexpected keyword argument 'x'",
    "train.gradient_checkpointing_kwargs={x: 1}": "checkpointing_kwargs: clone() got an unexpected",
    "train.optim=adamw_bnb_8bit": "train.optim=adamw_bnb_8bit",
    "train.chat_template_kwargs={x: 1}": "train.chat_template_kwargs has no effect on plain text",
    "entropy.support={type: topk5, k: 9}": "entropy.support.type: unknown support 'topk5'; did you mean 'TopK'?",
    "entropy.support={type: no.module.Rule}": "entropy.support.type: support 'no.module:Rule'",
    "train.router_aux_loss_coef=0.1": "train.router_aux_loss_coef: the model is no mixture of experts",
    "train.num_generations=1000000000": "a rollout of 8 completions",
    "train.per_device_train_batch_size=1000000000": "more than 2,147,483,648 tokens, which no process holds",
    "train.gradient_accumulation_steps=100000000": "more than 2,147,483,648 tokens, which no process holds",
    "train.generation_batch_size=12": "train.generation_batch_size=12 is not a multiple of the 8 completions",
    # what was refused once the model was loaded, or named another key
    "train.eval_on_start=true": "--set train.eval_on_start has no effect: nothing is evaluated while training",
    "train.do_predict=true": "--set train.do_predict has no effect",
    "train.load_best_model_at_end=true": "--set train.load_best_model_at_end has no effect",
    "train.label_smoothing_factor=0.1": "train.label_smoothing_factor has no effect: there are no labels here",
    "train.data_seed=3": "train.data_seed has no effect: train.seed gives the order",
    "train.fsdp=full_shard": "train.fsdp shards over several processes, and this is one",
    "train.fsdp_config=nofile.json": "got 'nofile.json': it cannot be read (No such file or directory)",
    "train.deepspeed=nofile.json": "--set train.deepspeed: expected a block of settings, or a JSON file with one",
    "train.deepspeed=DATA": "data.jsonl': no JSON",
    "train.gradient_checkpointing_kwargs=x": "train.gradient_checkpointing_kwargs: expected a block of settings, got ",
    "train.push_to_hub=true": "train.push_to_hub needs the hub, and HF_HUB_OFFLINE is set: unset it",
    "train={log_completions: true, log_completions_hub_repo: a/b, use_cpu: true}": "train.log_completions_hub_repo nee",
    "train.cache_implementation=offloaded": "train.cache_implementation=offloaded needs a GPU to take it from",
    "train.cache_implementation=quantized": "train.cache_implementation=quantized needs it: pip install optimum-qua",
    "train.use_transformers_paged=true": "train.use_transformers_paged needs a GPU: on a CPU it does not come to",
    "train.transformers_continuous_batching_config={x: 1}": "train.transformers_continuous_batching_config: Continuous",
    "train.enable_jit_checkpoint=true": "enable_jit_checkpoint=True saves in the middle of a step",
    "train.torch_compile_backend=nope": "train.torch_compile_backend: expected one of no, eager",
    "train.torch_compile_mode=nope": "train.torch_compile_mode: expected default, reduce-overhead",
    "train.neftune_noise_alpha=-1": "train.neftune_noise_alpha: expected a number above 0, or null, got -1",
    "train.dataloader_persistent_workers=true": "train.dataloader_persistent_workers=True: persistent_workers option n",
    "train.accelerator_config={split_batches: true}": "train.accelerator_config: split_batches=true would make each ba",
    "entropy.controller=mine:NotANumber": "entropy.controller: NotANumber failed on an entropy of 4.11 nats (NotANumb",
    "entropy.controller=mine:Raises": "entropy.controller: Raises failed on an entropy of 4.11 nats (KeyError: 'mine')",
    "entropy.support=mine:Nothing": "entropy.support: Nothing() keeps 0 of 61 tokens: its entropy is 0",
    "entropy.support=mine:Majority": "entropy.support: Majority() keeps 1 of 61 tokens: its entropy is 0",
    "entropy.controller=mine:Bare": "entropy: Bare.init() must return a State with a number in it, got 0.1",
    "entropy.shaping=mine:Broadcast": "Broadcast.advantages: expected one value per token (2, 3) or per respon",
    "entropy.support=mine:Exits": "entropy.support: Exits(): weights(logits) failed on a torch tensor (SystemExit: 0)",
    "rewards=exits:reward": "reward 'exits:reward': importing 'exits' failed (SystemExit: 7)",
    "train.generation_kwargs={do_sample: false}": "do_sample=false writes the same completion for a whole group",
    "model.attn_implementation=flash_attention_2": "model.attn_implementation=flash_attention_2 needs it: pip install",
    "model.source=Tiny": "model.source 'Tiny': did you mean 'tiny'?",
    "data={source: tiny, count: 100000000}": "data.count: expected a whole number of at least 1 and at most 1000000",
    "entropy.support={type: top_k, k: 9, share: 0.5}": "unknown key 'share'; known here: k (options of top_k; another "
    "rule has others: set entropy.support.type too)",
    "entropy.shaping=mine:Infinite": "entropy.shaping: Infinite: expected a finite weight for each of 2 x 3 tokens (po",
    # what only model, tokenizer and data together can tell
    "entropy.engine=triton": "entropy.engine: triton needs a GPU",
    "entropy.support={type: top_k, k: 62}": "entropy.support: k=62 of the top_k support is more than the vocabulary",
    "entropy.support={type: drop_lowest, share: 0.01}": "entropy.support: share=0.01 of the drop_lowest support is",
    "entropy.support={type: top_k, k: 1}": "entropy.support: TopK(k=1) keeps 1 of 61 tokens",
    "entropy.tile_bytes=0": "entropy.tile_bytes: expected a whole number of at least 1",
    "model.lora={target_modules: [nope]}": "model.lora: Target modules {'nope'} not found in the base model",
    "model.lora={target_modules: [lm_head]}": "model.lora.target_modules: an adapter on the head",
    "model.lora={r: 0}": "model.lora.r: expected a whole number of at least 1 and at most 65536, got 0",
    "model.attn_implementation=nope": "no causal language model can be made of it",
    "model.source=/no/model": "model.source='/no/model' is neither a folder with a tokenizer",
    "rewards=small:nothing": "rewards: reward 'small:nothing': small has no 'nothing'",
    "data.source=/no/data.jsonl": "no file '/no/data.jsonl'",
    "train.max_completion_length=500": "train.max_completion_length=500 leaves no room for a prompt",
    "train.max_completion_length=62": "data: row 2, column 'prompt': 3 tokens, more than the limit of 2",
    "evaluation={data: {source: DATA}, max_tokens: 62}": "evaluation.data: row 2, column 'prompt': 3 tokens",
    "evaluation={data: {source: DATA}, max_tokens: 64}": "evaluation.max_tokens=64 leaves no room",
    "train.per_device_train_batch_size=64": "data: 12 problems, but one rollout takes 16 different ones",
}

OPTIONS = {
    "--processes 0": "--processes 0: expected a number of GPUs",
    "--seed x": "argument --seed: invalid int value: 'x'",
    "--seed -1": "train.seed: expected a whole number of at least 0",
    "--confg x": "did you mean --config?",
    "--config qwen_math_aen": "qwen_math_aent",
    "--config /": "/: no such file",
    "--config ": "argument --config: expected a value, got ''",
    "--set ": "argument --set: expected a value, got ''",
    "--seed ": "argument --seed: expected a value, got ''",
    "--output ": "argument --output: expected a value, got ''",
    "--set modle=1": "--set modle: unknown key 'modle'; did you mean 'model'?",
    "--resume": "holds no run (no config.json)",
}


RULES = """
from dataclasses import dataclass
from math import inf, nan

from aent.controllers import Controller, State
from aent.shaping import Shaping


class Starts(Controller):
    def init(self):
        return State(0.1)


@dataclass(frozen=True)
class NotANumber(Starts):
    def _rule(self, state, measured):
        return nan, None


@dataclass(frozen=True)
class Raises(Starts):
    def _rule(self, state, measured):
        return {}["mine"], None


@dataclass(frozen=True)
class Nothing:
    def weights(self, logits):
        return 0 * logits


@dataclass(frozen=True)
class Majority:
    def weights(self, logits):
        return 1.0 * (logits.softmax(-1) > 0.5) if hasattr(logits, "softmax") else 1.0 * (logits > 0)


@dataclass(frozen=True)
class Likely:
    def weights(self, logits):
        return 1.0 * (logits.softmax(-1) > 0.1) if hasattr(logits, "softmax") else 1.0 * (logits > 0)


@dataclass(frozen=True)
class Exits:
    def weights(self, logits):
        raise SystemExit(0)


@dataclass(frozen=True)
class Bare(Controller):
    def init(self):
        return 0.1


@dataclass(frozen=True)
class Broadcast(Shaping):
    def advantages(self, tokens, coefficient):
        return tokens.advantages[0]


@dataclass(frozen=True)
class Infinite(Shaping):
    def policy(self, tokens, coefficient):
        return tokens.advantages * inf
"""

# What another setting of the run switches off: said in one line, here as after "aent_llm train: "
RESTS = {
    "train.ref_model_sync_steps=3 train.ref_model_mixup_alpha=0.5": "train.ref_model_sync_steps, "
    "train.ref_model_mixup_alpha have no effect: it needs train.sync_ref_model=true",
    "train.lr_scheduler_type=constant train.lr_scheduler_kwargs={a:1}": "train.lr_scheduler_kwargs has no effect: the "
    "schedule (train.lr_scheduler_type) takes no options",
    "train.lr_scheduler_type=constant train.warmup_steps=1": "train.warmup_steps has no effect: the schedule "
    "'constant' has no warm-up; 'constant_with_warmup' has one",
    "train.deepspeed={}": "train.deepspeed has no effect: it is an empty block",
    "train.fsdp_config={a:1}": "train.fsdp_config has no effect: it needs train.fsdp=true",
    "train.num_train_epochs=2": "train.num_train_epochs has no effect: train.max_steps ends the run",
    "train.optim_args=a=1": "train.optim_args has no effect: the optimiser (train.optim) does not take it",
    "train.optim=sgd train.adam_beta1=0.5 train.optim_args=momentum=0.5": "train.adam_beta1 has no effect: the "
    "optimiser (train.optim) does not take it",
    "train.vllm_mode=server": "train.vllm_mode has no effect: it needs train.use_vllm=true",
    "train.hub_token=secret": "train.hub_token has no effect: it needs train.push_to_hub=true",
    "train.epsilon=0.3": "train.epsilon has no effect: the only update of each rollout has the ratio 1, which nothing "
    "clips; see train.steps_per_generation",
    "train.warmup_steps=1": "train.warmup_steps has no end within the run: train.learning_rate is never reached",
    "train.max_steps=-1 train.num_train_epochs=1 train.warmup_steps=6": "train.warmup_steps has no end within the run: "
    "train.learning_rate is never reached",  # 12 problems, 2 for each of 6 steps
    "entropy.warmup_steps=1 entropy.controller={type:spring,strength:0.1}": "entropy.warmup_steps has no effect: the "
    "run has no more rollouts than that, so that entropy.controller never moves the coefficient; take fewer",
    "entropy.warmup_steps=1 train.max_steps=2": "entropy.warmup_steps has no effect: entropy.controller never moves "
    "the coefficient",
}  # fmt: skip
HEEDED = [  # here something is the other way round, or a setting has its default
    "train.do_train=true", "train.do_eval=false", "train.eval_strategy=no", "train.per_device_eval_batch_size=8",
    "train.sync_ref_model=true train.beta=0.1 train.ref_model_sync_steps=3",
    "train.lr_scheduler_type=polynomial train.lr_scheduler_kwargs={power:2} train.max_steps=2 train.warmup_steps=1",
    "train.optim=sgd train.optim_args=momentum=0.5", "train.adam_beta1=0.5", "train.epsilon=0.3 train.num_iterations=2",
    "entropy.warmup_steps=1 entropy.controller={type:spring,strength:0.1} train.max_steps=2",
    "train.max_steps=-1 train.num_train_epochs=1 train.warmup_steps=5", "entropy.support=mine:Likely",
]  # fmt: skip

LAUGHS = b"paper:\n  a0: &a0 [1]\n" + b"".join(
    b"  a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 9)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without its weights, problems, and a file that has no mistake."""
    folder = tmp_path_factory.mktemp("bad")
    small.saved_model(folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    rows = [{"prompt": prompt, "answer": "w2"} for prompt in small.prompts(PROBLEMS)["prompt"]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(RULES)
    (folder / "exits.py").write_text("raise SystemExit(7)")
    return folder


@pytest.fixture(autouse=True)
def as_for_a_user(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind in (Controller, Shaping):
        monkeypatch.setattr(kind, "registry", kind.registry.copy())  # which the classes of RULES enter
    monkeypatch.delenv("AENT_DEBUG", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # which lets the kernels of other tests run on a CPU


def placed(text: str, folder: Path) -> str:
    return text.replace("MODEL", str(folder / "model")).replace("DATA", str(folder / "data.jsonl"))


def refused(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> str:
    """What both ``train`` and ``train --dry-run`` say, in one line each."""
    output, said = path.parent / "run", []
    for more in ([], ["--dry-run"]):
        capsys.readouterr()
        assert main(["train", "--config", str(path), "--output", str(output), *more, *options]) == 2
        said.append(capsys.readouterr().err.strip())
        assert not output.exists()
    assert said[0] == said[1]
    (line,) = said[0].splitlines()
    assert line.removeprefix("python -m ").startswith("aent_llm train: ")
    return line


def test_the_file_without_a_mistake_is_fine_and_only_lacks_its_weights(folder: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(placed(FILE, folder))
    assert main(["train", "--config", str(path), "--dry-run"]) == 0
    assert "not checked here" not in capsys.readouterr().out
    assert main(["train", "--config", str(path), "--output", str(tmp_path / "run")]) == 2
    assert "model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("change", FILES)
def test_a_mistake_in_the_file(change: str, folder: Path, tmp_path: Path, capsys) -> None:
    old, arrow, new = change.partition("->")
    text = FILE + new.removeprefix(" ") if arrow and not old else FILE.replace(old[:-1], new[1:]) if arrow else change
    assert text != FILE
    (tmp_path / "my.yaml").write_text(placed(text, folder))
    line = refused(capsys, tmp_path / "my.yaml")
    assert FILES[change] in line
    assert f"{tmp_path}/my.yaml" in line


@pytest.mark.parametrize("setting", SETS)
def test_a_mistake_on_the_command_line(setting: str, folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "my.yaml").write_text(placed(FILE, folder))
    assert SETS[setting] in refused(capsys, tmp_path / "my.yaml", "--set", placed(setting, folder))


def told(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, settings: str) -> list[str]:
    """What a dry run with these settings says on stderr."""
    (tmp_path / "my.yaml").write_text(placed(FILE, folder))
    options = [f"--set={one.replace(':', ': ') if one.endswith('}') else one}" for one in settings.split()]
    assert main(["train", "--config", str(tmp_path / "my.yaml"), "--dry-run", *options]) == 0
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("settings", RESTS)
def test_what_another_setting_switches_off_is_said(settings: str, folder: Path, tmp_path: Path, capsys) -> None:
    assert told(capsys, folder, tmp_path, settings) == [f"aent_llm train: {RESTS[settings]}"]


@pytest.mark.parametrize("settings", HEEDED)
def test_what_is_heeded_or_left_at_its_default_is_not(settings: str, folder: Path, tmp_path: Path, capsys) -> None:
    assert told(capsys, folder, tmp_path, settings) == []


@pytest.mark.parametrize("module", [module for module, _ in COMMANDS.values()])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_module_that_is_a_command_is_one(module: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(signals, "whole_process", lambda command: command())  # which keeps the handlers of signals
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"aent_llm.{module}", run_name="__main__")
    assert stop.value.code == 0
    assert "usage: python -m aent_llm " in capsys.readouterr().out


def test_a_reference_that_is_the_model_without_its_adapter_is_not_moved(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "my.yaml").write_text(placed(FILE, folder) + "  sync_ref_model: true\n  beta: 0.1\n")
    line = refused(capsys, tmp_path / "my.yaml", "--set", "model.lora={r: 2, target_modules: [q_proj]}")
    assert "train.sync_ref_model: with model.lora the reference is the model without its adapter" in line


@pytest.mark.parametrize("options", OPTIONS)
def test_a_mistake_in_the_options(options: str, folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "my.yaml").write_text(placed(FILE, folder))
    assert OPTIONS[options] in refused(capsys, tmp_path / "my.yaml", *options.split(" "))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {}\n# caf\xe9\n", "line 2: byte 0xe9 is not UTF-8 text; save the file as UTF-8"),
        ("data: {source: tiny}".encode("utf-16"), "line 1: byte 0xff is not UTF-8 text"),
        (b"paper: " + b"[" * 3000 + b"]" * 3000, "my.yaml: nested more than 100 deep"),  # 23 s until it was refused
        (b"".join(b" " * i + b"a:\n" for i in range(102)), "line 101: nested more than 100 deep"),
        (b"paper: {}\n" + b"# \n" * 400_000, "more than 1,000,000 bytes are no settings"),
        (b"paper: [" + b"1, " * 20_000 + b"]", "20,000 keys and values and more are no settings"),
        (LAUGHS, "20,000 values and more are no settings"),
        (b"paper: {}\nmodel: &m {lora: *m}\n", "line 2: the alias *m stands inside what it names"),
    ],
    ids=["latin-1", "utf-16", "depth", "indents", "size", "values", "laughs", "loop"],
)  # fmt: skip
def test_a_file_that_cannot_be_read(content: bytes, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    assert message in refused(capsys, tmp_path / "my.yaml")


def started(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    free = {key: value for key, value in os.environ.items() if key != "AENT_DEBUG"} | environment
    return subprocess.run([sys.executable, *words], env=free, capture_output=True, text=True, timeout=120, check=False)


def test_a_process_prints_one_line_and_ends_with_2(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(placed(FILE, folder) + "  bf16: true\n")
    done = started("-m", "aent_llm", "train", "--config", str(tmp_path / "my.yaml"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "line 16: the key 'bf16' stands twice in its block" in line


SIGNALLED = """
import os, runpy, signal, sys, importlib.abc
class Signals(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Signals())
sys.argv = ["aent_llm", "train", "--dry-run"]
runpy.run_module("aent_llm", run_name="__main__")
"""


def test_a_signal_while_packages_are_imported_is_told() -> None:
    done = started("-c", SIGNALLED.format(module="trl"))
    assert (done.returncode, done.stderr) == (143, "aent_llm train: stopped by SIGTERM\n")


def test_a_signal_while_the_interpreter_shuts_down_changes_no_status() -> None:
    program = """
import atexit, os, signal, sys
from aent_llm.training.signals import whole_process
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.exit(whole_process(lambda: int(sys.argv[1])))
"""
    for status in (0, 1):
        done = started("-c", program, str(status))
        assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("study sweeep", "invalid choice: 'sweeep'; did you mean 'sweep'?"),
        ("study sweep --jobs 0", "argument --jobs: expected a whole number from 1"),
        ("study sweep --seeds -1", "argument --seeds: expected a whole number from 0"),
        ("study sweep --seeds 3 3", "grpo/seed-3"),
        ("study sweep --folder= ", "argument --folder: expected a value, got ''"),
        ("study sweep --set train.seeds=1", "unknown key 'seeds'; did you mean 'seed'?"),
        ("study sweep --folder /proc/x --dry-run --set x", "--set x: expected key=value"),
        ("study sweep --folder /proc/x", "cannot write /proc/x"),
        ("study sweep --config cpu_aen", "Near: cpu_aent"),
        ("study compare --folder nothing", "no finished run with support full: run the sweep first"),
        ("study record --folder nothing", "no finished run in nothing"),
        ("study record --folder nothing --out /proc/x/y", "cannot write /proc/x"),
        ("study record --folder damaged", "summary.json is damaged"),
        ("leaderboard run --methods aemt", "invalid choice: 'aemt'; did you mean"),
        ("leaderboard run --methods aent aent", "asked for twice"),
        ("leaderboard run --values 3", "argument --values: expected a whole number from 1 to 2, got '3'"),
    ],
)
def test_a_study_that_cannot_be(command: str, said: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "damaged" / "sweep" / "grpo" / "seed-0"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "provenance.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    (run / "summary.json").write_text('{"before": 1}')
    name, *words = command.split(" ")
    made = {"study": three_way.main, "leaderboard": all_methods.main}[name]
    assert cli.run(f"aent_llm.{name}", lambda: made([word for word in words if word]), extra="llm") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_experiment_of_many_runs_answers_in_one_line_as_a_process() -> None:
    done = started("-m", "experiments.three_way", "compare", "--folder", "/nothing")
    assert done.returncode == 2
    assert (
        done.stderr
        == "experiments.three_way: /nothing/sweep has no finished run with support full: run the sweep first\n"
    )


def test_a_plain_install_names_what_to_install() -> None:
    """The packages of the llm extra are hidden from a fresh interpreter."""
    hide = (
        "import sys, runpy, importlib.abc\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('ruamel', 'pydantic', 'torch', 'trl', 'rich'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "sys.argv = ['aent_llm', sys.argv[1]]\n"
        "runpy.run_module('aent_llm', run_name='__main__')"
    )
    for command in ("train", "eval", "calibrate"):
        done = started("-c", hide, command)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "is not installed; run: pip install -e" in line
