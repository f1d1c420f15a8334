"""Sampler and trainer: what makes the two disagree is honoured, refused or said, each shown on a model that does it."""

import inspect
import re

import peft
import pytest
import torch
import transformers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

import small
from aent.entropy import TopK, entropy
from aent_llm.head.model import add_entropy_head
from aent_llm.training import agreement
from aent_llm.training.agreement import incomparable

SIZES = {
    "vocab_size": small.VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
    "initializer_range": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("agreement")


def plain_trl(folder, policy, *, tokens=None, **options):
    settings = {name: options.pop(name) for name in list(options) if name in GRPOConfig.__dataclass_fields__}
    return GRPOTrainer(
        policy,
        [small.even_words],
        GRPOConfig(**{**small.SETTINGS, "output_dir": str(folder), **settings}),
        train_dataset=small.prompts(),
        processing_class=tokens or small.tokenizer(),
        **options,
    )


def ours(folder, policy, *, tokens=None, data=None, **options):
    from aent_llm.training.config import AEntGRPOConfig
    from aent_llm.training.trainer import AEntGRPOTrainer

    settings = {name: options.pop(name) for name in list(options) if name in AEntGRPOConfig.__dataclass_fields__}
    return AEntGRPOTrainer(
        policy,
        [small.even_words],
        AEntGRPOConfig(**{**small.SETTINGS, "output_dir": str(folder), **settings}),
        train_dataset=data or small.prompts(),
        processing_class=tokens or small.tokenizer(),
        **options,
    )


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "aent_llm.training.agreement"]


def seen(one):
    """The micro-batches that ``one`` will be trained on, once it has been."""
    batches, compute = [], one._compute_loss
    one._compute_loss = lambda model, inputs: (batches.append(inputs), compute(model, inputs))[1]
    return batches


def trained(one):
    one.train()
    return small.weights(one)


# --------------------------------------------------------------------------------------------------------- settings


def config(**settings):
    return GRPOConfig(**{**small.SETTINGS, "output_dir": "unused", **settings})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"suppress_tokens": [5]}, ["suppress_tokens=[5]"]),
        ({"bad_words_ids": [[5]], "no_repeat_ngram_size": 2}, ["bad_words_ids=[[5]]", "no_repeat_ngram_size=2"]),
        ({"do_sample": False}, ["do_sample=False"]),
        ({"num_beams": 3}, ["num_beams=3"]),
        ({"top_p": 0.8}, ["top_p=0.8"]),
        ({"typical_p": 0.9, "min_new_tokens": 4}, ["typical_p=0.9", "min_new_tokens=4"]),
        ({"suppress_tokens": [], "min_length": 0, "renormalize_logits": True}, []),
    ],
)
def test_what_changes_the_distribution_is_listed(given, found) -> None:
    assert incomparable(config(generation_kwargs=given)) == found


def test_every_processor_of_transformers_is_known() -> None:
    """An upgrade that adds a way to change the distribution must be put on the list."""
    source = inspect.getsource(transformers.GenerationMixin._get_logits_processor)
    read = set(re.findall(r"generation_config\.(\w+)", source))
    harmless = {"temperature", "renormalize_logits", "_eos_token_tensor", "max_length", "use_cache"}
    assert read - harmless <= set(agreement.NEUTRAL)
    assert {"suppress_tokens", "top_p", "no_repeat_ngram_size"} <= read


def test_neutral_values_change_no_score() -> None:
    """Of every value called neutral that transformers takes: its processors leave the logits as they are."""
    policy, logits = small.model(), torch.randn(2, small.VOCABULARY, generator=torch.Generator().manual_seed(0))
    ids, tried = torch.tensor([[5, 6, 5], [7, 8, 7]]), 0
    for name, values in agreement.NEUTRAL.items():
        for value in values if name in GenerationConfig().to_dict() else ():
            try:
                options = GenerationConfig(**{"do_sample": True, name: value})
                options._eos_token_tensor = torch.tensor([1])
                made = policy._get_logits_processor(options, input_ids_seq_length=3, device="cpu")
            except (ValueError, TypeError, LookupError, AttributeError):  # refused: loud enough
                continue
            changed = made(ids, logits.clone())
            assert torch.equal(changed, logits), (name, value)
            tried += value is not None
    assert tried > 20


def test_what_the_model_brings_along_reaches_the_sampler_and_is_said_once(folder, caplog) -> None:
    """TRL sets top_p and top_k itself; what it leaves open transformers takes from the model's generation_config."""
    policy = small.model()
    policy.generation_config.update(top_p=0.3, top_k=2, suppress_tokens=list(range(2, 40)))
    policy.generation_config.do_sample = True
    one = ours(folder, policy, num_generations=8, per_device_train_batch_size=64, max_completion_length=8)
    batches = seen(one)
    one.train()
    drawn = set(batches[0]["completion_ids"][batches[0]["completion_mask"].bool()].tolist())
    assert not drawn & set(range(2, 40))  # it leaks
    assert len(drawn) > 3  # top_k=2 and top_p do not
    (line,) = said(caplog)
    assert "suppress_tokens=[2, 3" in line
    assert "from the model's generation_config" in line
    assert "top_p" not in line
    assert "top_k" not in line


def test_a_plain_run_is_not_warned(folder, caplog) -> None:
    ours(folder, small.model())
    assert said(caplog) == []


def test_settings_and_dropout_are_said_in_one_line(folder, caplog) -> None:
    policy = GPT2LMHeadModel(GPT2Config(**SIZES | {"n_positions": 32}))
    ours(folder, policy, top_p=0.9, generation_kwargs={"no_repeat_ngram_size": 2})
    (line,) = said(caplog)
    for part in ("top_p=0.9", "no_repeat_ngram_size=2", "dropout of 0.1"):
        assert part in line
    caplog.clear()
    ours(folder, policy, disable_dropout=True)
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.5}, r"temperature=0.5 beside temperature=1.0"),
        ({"max_new_tokens": 3}, r"max_new_tokens=3 beside max_completion_length="),
        ('{"temperature": 0.5}', r"temperature=0.5 beside temperature=1.0"),
        ({"supress_tokens": [3]}, r"no setting 'supress_tokens'.*did you mean 'suppress_tokens'"),
        ({"num_return_sequences": 2}, r"num_return_sequences=2 does not go with GRPO"),
        ({"stop_strings": ["w3"]}, r"stop_strings=\['w3'\]"),
        ({"logits_processor": [print]}, r"no setting 'logits_processor' and would ignore it"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, given, message) -> None:
    with pytest.raises(ValueError, match=message):
        ours(folder, small.model(), generation_kwargs=given)


def test_one_temperature_may_be_given_twice(folder) -> None:
    ours(folder, small.model(), temperature=0.5, generation_kwargs={"temperature": 0.5})


def test_a_stop_token_that_the_trainer_does_not_know_is_refused(folder) -> None:
    with pytest.raises(ValueError, match=r"eos_token_id=7 ends completions at \[7\].*trainer ends them at \[1\]"):
        ours(folder, small.model(), generation_kwargs={"eos_token_id": 7})
    policy = small.model()
    policy.generation_config.eos_token_id = [1, 7]
    ours(folder, policy, generation_kwargs={"eos_token_id": [7, 1]})


# ------------------------------------------------------------------------------------------------------- vocabulary


def test_rows_without_a_token_are_counted_once_and_their_share_is_logged(folder, caplog) -> None:
    """75 rows, 61 tokens: TRL, transformers and vLLM sample all rows; the share is that of the completions' ids."""
    one = ours(folder, small.model(vocab_size=75), max_completion_length=16)
    batches = seen(one)
    one.train()
    (line,) = said(caplog)
    assert line.startswith("14 of the 75 rows of the head have no token (the tokenizer has 61)")
    ids = batches[0]["completion_ids"][batches[0]["completion_mask"].bool()]
    assert small.logged(one, "sampler/tokenless_share") == [pytest.approx(float((ids >= 61).double().mean()))]
    assert (ids >= 61).any()
    assert small.logged(ours(folder, small.model()), "sampler/tokenless_share") == []


def longer(*names):
    tokens = small.tokenizer()
    tokens.add_tokens(list(names))
    return tokens


def test_tokens_without_a_row_are_refused_by_name_if_the_run_writes_them(folder, caplog) -> None:
    tokens = longer("<think>", "<image>")
    agreement.compare_vocabularies(small.model(vocab_size=63), tokens)
    data = small.prompts().map(lambda row: {"prompt": "<think> " + row["prompt"]})
    with pytest.raises(ValueError, match=r"the 61 that the model embeds: '<think>' \(61\), which this run uses"):
        ours(folder, small.model(), tokens=tokens, data=data)
    tokens.chat_template = "<image>{{ messages }}"
    with pytest.raises(ValueError, match=r"'<image>' \(62\), which this run uses"):
        ours(folder, small.model(), tokens=tokens)
    named = longer()
    named.add_special_tokens({"pad_token": "<new pad>"})
    with pytest.raises(ValueError, match=r"'<new pad>' \(61\), which this run uses.*resize_token_embeddings"):
        ours(folder, small.model(), tokens=named)


def test_an_unused_token_without_a_row_is_said_and_refused_when_it_comes(folder, caplog) -> None:
    """As in Gemma 3 1B, whose tokenizer holds an image token that its text model does not embed."""
    tokens = longer("<image>")
    one = ours(folder, small.model(), tokens=tokens)
    (line,) = said(caplog)
    assert "'<image>' (61). No prompt or template uses them" in line
    one.train()
    late = ours(folder, small.model(), tokens=tokens)
    late.train_dataset = small.prompts().map(lambda row: {"prompt": "<image> " + row["prompt"]})
    with pytest.raises(ValueError, match=r"token 61 \('<image>'\) is in a prompt or completion"):
        late.train()


def test_a_template_of_another_model_is_said() -> None:
    tokens = small.tokenizer()
    tokens.chat_template = "<|im_start|>{{ messages[0]['content'] }}<|im_end|>"
    assert "<|im_end|>, <|im_start|>" in agreement.compare_vocabularies(small.model(), tokens).warnings[0]


def test_padding_with_the_end_token_changes_nothing(folder) -> None:
    same = small.tokenizer()
    same.pad_token = same.eos_token
    torch.testing.assert_close(
        trained(ours(folder, small.model(), tokens=same)), trained(ours(folder, small.model())), rtol=0, atol=0
    )


def test_masking_truncated_completions_measures_the_others(folder) -> None:
    """The token mean is over the completions that ended: it is that of the dense logits on exactly these."""
    one = ours(folder, small.model(), mask_truncated_completions=True, max_steps=1, learning_rate=0.0)
    batches = seen(one)
    one.train()
    (batch,) = batches
    ended = (batch["completion_ids"] == 1).any(1)
    assert 0 < ended.sum() < len(ended)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], (batch["completion_ids"] != 0).long()], 1)
    with torch.no_grad():
        logits = small.model()(input_ids=ids, attention_mask=attention).logits
    width = batch["completion_ids"].shape[1]
    values = entropy(logits[:, -width - 1 : -1])
    counted = (batch["completion_ids"] != 0) & ended[:, None]
    assert small.logged(one, "entropy/full") == [pytest.approx(float(values[counted].mean()), rel=1e-5)]


# ----------------------------------------------------------------------------------------------- rollouts of one's own


def rollout(prompts, trainer):
    """Completions that are a function of the prompt; made-up log-probabilities, as of a sampler without any."""
    prompt_ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    completions = [[3 + (7 * row + place) % 50 for place in range(1 + row % 4)] + [1] for row in range(len(prompts))]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completions,
        "logprobs": [[0.0] * len(one) for one in completions],
    }


def masked_rollout(prompts, trainer):
    found = rollout(prompts, trainer)
    return found | {"env_mask": [[place != 1 for place in range(len(one))] for one in found["completion_ids"]]}


@pytest.mark.parametrize("function", [rollout, masked_rollout])
def test_a_rollout_function_without_vllm_trains_as_in_trl(folder, function) -> None:
    mine = ours(folder, small.model(), rollout_func=function)
    peer = plain_trl(folder, small.model(), rollout_func=function)
    torch.testing.assert_close(trained(mine), trained(peer), rtol=1e-5, atol=1e-7)
    assert small.logged(mine, "loss") == pytest.approx(small.logged(peer, "loss"), abs=1e-6)
    assert not torch.equal(small.weights(mine), small.weights(ours(folder, small.model())))


def test_a_rollout_function_with_ids_that_the_model_lacks_is_refused(folder) -> None:
    def wrong(prompts, trainer):
        found = rollout(prompts, trainer)
        found["completion_ids"][2][0] = 99
        return found

    with pytest.raises(ValueError, match=r"token 99 .* the model embeds 61"):
        ours(folder, small.model(), rollout_func=wrong).train()


# ------------------------------------------------------------------------------------------------------------- PEFT


def lora(**options):
    return peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options)


FORMS = {
    "tokens, tied": (True, lambda: lora(trainable_token_indices=[4, 5])),
    "tokens of the head": (False, lambda: lora(trainable_token_indices={"lm_head": [4, 5]})),
    "whole head, tied": (True, lambda: lora(modules_to_save=["lm_head"], ensure_weight_tying=True)),
    "prefix": (False, lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prompt": (False, lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_peft_train_as_in_trl(folder, form, monkeypatch) -> None:
    """TRL reads a ``bias`` that PEFT's wrapper of trainable tokens lacks; given None for one it is the peer."""
    tied, config = FORMS[form]
    mine = ours(folder, small.model(tied=tied), peft_config=config(), beta=0.1)
    before = small.weights(mine).clone()
    found = trained(mine)
    monkeypatch.setattr(peft.utils.other.TrainableTokensWrapper, "bias", None, raising=False)
    peer = plain_trl(folder, small.model(tied=tied), peft_config=config(), beta=0.1)
    torch.testing.assert_close(found, trained(peer), rtol=1e-4, atol=1e-6)
    assert (found - before).abs().max() > 1e-3


@pytest.mark.parametrize("enabled", [True, False])
def test_trained_tokens_of_a_tied_head_get_the_gradient_of_the_dense_entropy(enabled) -> None:
    policy = peft.get_peft_model(small.model(tied=True), lora(trainable_token_indices=[4, 5]))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "trainable_tokens_delta" in name:
                weight += 0.5
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    base = policy.get_base_model()
    add_fused_lm_head(base)
    add_entropy_head(base, temperature=1.0, support=TopK(9))
    if not enabled:
        policy.disable_adapter_layers()
    value = entropy(policy(input_ids=ids).logits[:, :-1], support=TopK(9))
    output = policy(input_ids=ids, labels=ids, fused_lm_head=True, entropy_statistics=True)
    torch.testing.assert_close(output.clamped_entropy, value, rtol=1e-5, atol=1e-5)
    if not enabled:
        return
    weights = [weight for name, weight in policy.named_parameters() if "trainable_tokens_delta" in name]
    for mine, dense in zip(
        torch.autograd.grad(output.clamped_entropy.sum(), weights),
        torch.autograd.grad(value.sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, dense, rtol=1e-4, atol=1e-5)
        assert dense.abs().max() > 1e-3


def test_an_adapter_on_the_head_is_refused_by_trl(folder) -> None:
    with pytest.raises(ValueError, match=r"adapter to `lm_head` is not supported"):
        ours(folder, small.model(), peft_config=peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))


# ------------------------------------------------------------------------------------------------- heads and padding


def family(name, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


class Linear8bitLt(torch.nn.Module):
    """What bitsandbytes leaves in a model: a weight of whole numbers and a scale of its own."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(61, 16, dtype=torch.int8), requires_grad=False)


class WQLinear(torch.nn.Module):
    """What AWQ leaves: no weight at all."""


@pytest.mark.parametrize("kind", [Linear8bitLt, WQLinear])
def test_a_quantised_head_is_refused_by_its_class(kind) -> None:
    policy = family("Qwen2")
    add_fused_lm_head(policy)
    policy.lm_head = kind()
    with pytest.raises(ValueError, match=rf"Qwen2ForCausalLM is a {kind.__name__} with .*quantisation"):
        add_entropy_head(policy, temperature=1.0, support=None)


def test_tokens_of_a_head_with_a_bias_are_refused() -> None:
    policy = peft.get_peft_model(
        family("Phi"), peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices={"lm_head": [4, 5]})
    ).get_base_model()
    add_fused_lm_head(policy)
    with pytest.raises(ValueError, match="PEFT leaves the bias out"):
        add_entropy_head(policy, temperature=1.0, support=None)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Qwen2", {}),
        ("Phi", {}),
        ("GPTJ", {"rotary_dim": 4}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_known_heads_pass_and_leave_no_trace(name, options, temperature) -> None:
    policy = family(name, **options).train()
    torch.nn.init.normal_(policy.get_output_embeddings().weight)
    policy.base_model.eval()  # modes are put back one by one
    modes = [module.training for module in policy.modules()]
    add_fused_lm_head(policy, temperature=temperature)
    add_entropy_head(policy, temperature=temperature, support=None)
    state = torch.get_rng_state()
    agreement.check_head(policy, temperature)
    assert modes == [module.training for module in policy.modules()]
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="nats off"):  # negative control: the check sees the temperature
        agreement.check_head(policy, 2 * temperature)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ModernBertDecoder", {}),  # a dense layer and a norm before the matrix
        ("RecurrentGemma", {"logits_soft_cap": 2.0, "lru_width": 16, "attention_window_size": 16, "head_dim": 8}),
    ],
)
def test_a_head_that_is_more_than_a_matrix_is_refused_before_training(folder, name, options) -> None:
    """TRL trains these on probabilities that are not the model's, without a word."""
    policy = family(name, **options)
    torch.nn.init.normal_(policy.get_output_embeddings().weight)
    with pytest.raises(ValueError, match=f"{name}ForCausalLM turns hidden states into logits in a way"):
        ours(folder, policy)


def gpt2(folder):
    """Learned positions: shifted by padding, they are others."""
    torch.manual_seed(0)
    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    policy = GPT2LMHeadModel(
        GPT2Config(**{k: v for k, v in SIZES.items() if "key_value" not in k}, **silent, n_positions=32)
    ).eval()
    with torch.no_grad():
        policy.transformer.wpe.weight.normal_()
    policy.save_pretrained(folder / "gpt2")
    return GPT2LMHeadModel.from_pretrained(folder / "gpt2")


@pytest.mark.parametrize("trainer", [ours, plain_trl])
def test_learned_positions_are_scored_where_they_were_sampled(folder, trainer) -> None:
    """Prompts of one to three words: the log-probabilities are those of each text alone. In plain TRL they are not."""
    one = trainer(folder, gpt2(folder), beta=0.1, num_iterations=2)
    batches = seen(one)
    one.train()
    batch, gaps = batches[0], []
    for row in range(8):
        prompt, answer = (
            batch[f"{part}_ids"][row][batch[f"{part}_mask"][row].bool()] for part in ("prompt", "completion")
        )
        ids = torch.cat([prompt, answer])[None]
        with torch.no_grad():
            alone = gpt2(folder)(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = alone.gather(-1, answer[:, None])[:, 0]
        for scores in ("old_per_token_logps", "ref_per_token_logps"):
            gaps.append(float((batch[scores][row, : len(answer)] - expected).abs().max()))
    if trainer is ours:
        assert max(gaps) < 1e-4
    else:
        assert max(gaps) > 0.1


def test_positions_behind_a_prefix_are_counted_on(folder) -> None:
    """Prefix tuning makes the mask longer than the text; the text's positions come after the prefix."""
    policy = peft.get_peft_model(gpt2(folder), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    base = policy.get_base_model()
    add_fused_lm_head(base)
    add_entropy_head(base, temperature=1.0, support=None, positions_from_mask=True)
    ids = torch.randint(3, 60, (1, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    expected = policy(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])
    padded = torch.nn.functional.pad(ids, (2, 0)), torch.nn.functional.pad(mask, (2, 0))
    labels = torch.nn.functional.pad(ids, (2, 0), value=-100)
    output = policy(input_ids=padded[0], attention_mask=padded[1], labels=labels, fused_lm_head=True)
    torch.testing.assert_close(output.log_probs[:, -6:], expected[..., 0], rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_the_padding_is_named(folder, caplog) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16}
    policy = transformers.RwkvForCausalLM(transformers.RwkvConfig(**sizes, pad_token_id=0, eos_token_id=1))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.normal_()
    plain, counted = agreement.padding_gaps(policy)
    assert plain == counted > 0.1
    ours(folder, policy)
    (line,) = said(caplog)
    assert line.startswith("RwkvForCausalLM does not ignore the padding on the left")


@pytest.mark.parametrize("name", ["Qwen2", "Phi", "Bloom", "OPT"])
def test_relative_positions_ignore_padding(name) -> None:
    options = {"max_position_embeddings": 32, "word_embed_proj_dim": 16, "ffn_dim": 16} if name == "OPT" else {}
    assert agreement.padding_gaps(family(name, **options))[0] < 1e-5
