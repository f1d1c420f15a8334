"""The embedded model and task: sums in steps, a peaked policy and a vocabulary that is mostly irrelevant.

Nothing is downloaded. ``build`` makes a Qwen2-architecture model and its tokenizer in about half a minute on one core
and keeps them in a cache. The task is ``a+b+c+d=`` over digits; the model may answer at once (``21``) or write the
running totals first (``11,13=21``): what follows the last ``=`` counts. The warm-up leaves what entropy control is
about:

- most of the 16,384 tokens never belong to an answer, yet together hold about ``tail_mass`` of the probability at every
  position of an answer, as the tail of a pretrained model does;
- the policy is peaked on a mediocre habit, the answer at once;
- the better way, the running totals first, is rare (``reasoning_share``): exploration that ends early never finds it.

The warm-up has two stages. ``skill``: both ways are taught over the task tokens alone (a small head, hence fast).
``habit``: the full vocabulary, the soft targets with a tail, and the rare share of the better way.

Left out on purpose: natural language, several kinds of problem, a validation split (train and test are enough here).

Shapes: N problems, T positions, R answer positions, V vocabulary, K task tokens (the first K ids), D width.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from aent.files import draft_folder, explain, move_into_place, remove_stale_drafts, write_atomically
from aent_llm.data.announcements import completion_text
from aent_llm.data.answers import reference_text
from aent_llm.schema import Count, NaturalNumber, Positive, Seed, convert_fields, setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

FORMAT = 2  # raised when a change of this file makes cached models stale
PAD, EOS, UNK = range(3)
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
TASK_CHARACTERS = "0123456789+-*=;:?()., \n"
TASK_TOKENS = len(SPECIAL_TOKENS) + len(TASK_CHARACTERS)
PROMPT_TOKENS = 8  # a+b+c+d=
COMPLETION_TOKENS = 9  # the longest is 11,13=21 and <eos>
LARGEST_VOCABULARY = TASK_TOKENS + 75**2 + 75**3  # words of two and three syllables
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
COMPLETE = {"spec.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
Width = Annotated[int, Field(ge=1, le=65_536)]
DIGESTS = "sha256.json"  # of every file that was written before it


@dataclass(frozen=True)
class TinySpec:
    """What is built; every field is part of the name in the cache.

    Raises:
        ValueError: a value of another type or out of its range.
    """

    vocabulary: int = setting(16_384, "tokens, of which the task has 26")
    hidden: Width = setting(64, "width, a multiple of `head_dim`")
    intermediate: Width = setting(256, "width of the feed-forward layers")
    layers: Annotated[int, Field(ge=1, le=1000)] = setting(2, "number of layers")
    head_dim: Width = setting(32, "width of an attention head; vLLM on a CPU takes no less than 32")
    warmup_steps: NaturalNumber = setting(400, "steps of the first stage, `skill`")
    skill_share: float = setting(0.95, "share of its examples that write the running totals first")
    habit_steps: NaturalNumber = setting(80, "steps of the second stage, `habit`")
    habit_learning_rate: Positive = setting(1.2e-3, "of the second stage")
    reasoning_share: float = setting(0.1, "share of its examples that write the running totals first")
    tail_mass: float = setting(0.04, "probability of the irrelevant tokens together, per position")
    tail_exponent: float = setting(1.0, "among them it falls as rank to the power `-tail_exponent`")
    batch_size: Count = setting(128, "problems a step")
    learning_rate: Positive = setting(5e-3, "of the first stage")
    seed: Seed = setting(0, "of weights and batches")

    def __post_init__(self) -> None:
        convert_fields(self, "tiny")
        if not TASK_TOKENS < self.vocabulary <= LARGEST_VOCABULARY:
            raise ValueError(
                f"vocabulary must be in [{TASK_TOKENS + 1}, {LARGEST_VOCABULARY}], got {self.vocabulary}; "
                f"the first {TASK_TOKENS} tokens belong to the task"
            )
        if self.hidden % self.head_dim:
            raise ValueError(f"hidden must be a multiple of head_dim, got {self.hidden} and {self.head_dim}")
        for name in ("skill_share", "reasoning_share", "tail_mass"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is a share in [0, 1), got {getattr(self, name)}")


# ---- the task ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _split(split: str) -> tuple[tuple[str, str, str], ...]:
    """(prompt, direct answer, worked-out answer) of every problem of a split; a problem's hash decides its split."""
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', got {split!r}")
    rows = []
    for a, b, c, d in itertools.product(range(1, 10), repeat=4):
        prompt = f"{a}+{b}+{c}+{d}="
        held_out = hashlib.sha256(prompt.encode()).digest()[0] < 51  # one in five
        if held_out == (split == "test"):
            answer = str(a + b + c + d)
            rows.append((prompt, answer, f"{a + b},{a + b + c}={answer}"))
    return tuple(rows)


def problems(count: int, *, seed: int = 0, split: str = "train") -> list[dict[str, str]]:
    """``count`` problems in random order, repeating only when the split is used up.

    Returns:
        Rows with a ``prompt`` such as ``5+6+2+8=`` and its ``answer``, here ``21``; the same for the same arguments.
        No prompt is in both splits.

    Examples:
        >>> problems(1, seed=0, split="test")[0].keys()
        dict_keys(['prompt', 'answer'])
    """
    rows = _split(split)
    order = np.random.default_rng(seed).permutation(len(rows))
    return [{"prompt": rows[i][0], "answer": rows[i][1]} for i in np.resize(order, count)]


def final_answer(completion: str | Sequence[dict[str, Any]]) -> str:
    """What follows the last ``=``, or everything when there is none; a chat completion is its last message."""
    return completion_text(completion).rsplit("=", 1)[-1].strip()


def reward(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1.0 where the final answer is exactly the right one, else 0.0 (reward ``arithmetic``; signature as in TRL).

    None where there is no reference answer.

    Examples:
        >>> reward(["47", "12+35=47", "12+35=46", "12+35="], ["47"] * 4)
        [1.0, 1.0, 0.0, 0.0]
    """
    pairs = zip(completions, map(reference_text, answer), strict=True)
    return [None if right is None else float(final_answer(text) == right) for text, right in pairs]


# ---- the tokenizer -------------------------------------------------------------------------------------------------


def _words() -> Iterator[str]:
    """Irrelevant tokens ``" bada"``, ``" badabe"`` ...: the leading space keeps neighbours apart."""
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstv" for vowel in "aeiou"]
    for length in (2, 3):
        for parts in itertools.product(syllables, repeat=length):
            yield " " + "".join(parts)


def tokenizer(spec: TinySpec) -> PreTrainedTokenizerFast:
    """One token per task character, one per irrelevant word; decoding concatenates. The chat template adds nothing."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = itertools.islice(_words(), spec.vocabulary - TASK_TOKENS)
    ids = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *TASK_CHARACTERS, *words))}
    core = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS[UNK]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" [a-z]+|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL_TOKENS[PAD],
        eos_token=SPECIAL_TOKENS[EOS],
        unk_token=SPECIAL_TOKENS[UNK],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        chat_template=CHAT_TEMPLATE,
    )


# ---- the model and its warm-up -------------------------------------------------------------------------------------


def tail_shares(spec: TinySpec) -> torch.Tensor:
    """``[V - K]`` shares of the irrelevant tokens in the tail: rank**-tail_exponent, ranks in random order, sum 1."""
    import torch

    ranks = 1.0 + np.random.default_rng(spec.seed).permutation(spec.vocabulary - TASK_TOKENS)
    return torch.as_tensor(ranks**-spec.tail_exponent / (ranks**-spec.tail_exponent).sum(), dtype=torch.float32)


def soft_loss(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, *, tail: torch.Tensor, tail_mass: float
) -> torch.Tensor:
    r"""Cross-entropy against ``(1-w) onehot(target) + w tail``, in nats, without the ``[R, V]`` targets.

    .. math:: \log Z - (1 - w)\, l_y - w \sum_v q_v l_v, \qquad \sum_v q_v l_v = h^\top \sum_v q_v W_v

    Args:
        hidden: ``[R, D]``. weight: ``[V, D]``. target: ``[R]``, task tokens.
        tail: ``[V - K]``, shares ``q`` that sum to 1. tail_mass: ``w``.
    """
    logits = hidden @ weight.T
    chosen = logits.gather(1, target[:, None])[:, 0]
    smeared = hidden @ (tail @ weight[TASK_TOKENS:])
    return (logits.logsumexp(dim=1) - (1.0 - tail_mass) * chosen - tail_mass * smeared).mean()


def _corpus(spec: TinySpec) -> torch.Tensor:
    """``[2, N, T]`` token ids of all training problems, answered at once (row 0) and worked out (row 1)."""
    import torch

    codes = tokenizer(spec)
    ids = torch.full((2, len(_split("train")), PROMPT_TOKENS + COMPLETION_TOKENS), PAD)
    for way in (0, 1):
        texts = [row[0] + row[1 + way] for row in _split("train")]
        for number, row in enumerate(codes(texts)["input_ids"]):
            ids[way, number, : len(row) + 1] = torch.tensor([*row, EOS])
    return ids


def architecture(spec: TinySpec, vocabulary: int | None = None) -> Qwen2Config:
    """The model's configuration, known before it is built; ``vocabulary``: of another head than the spec's."""
    from transformers import Qwen2Config

    heads = spec.hidden // spec.head_dim
    return Qwen2Config(
        vocab_size=vocabulary or spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # a context of 18 tokens
        tie_word_embeddings=False,
        initializer_range=0.1,  # near hidden**-0.5: the usual 0.02 is for widths of thousands
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def _model(spec: TinySpec, vocabulary: int) -> Qwen2ForCausalLM:
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM(architecture(spec, vocabulary))


def _answer_states(model: Qwen2ForCausalLM, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states ``[R, D]`` at the positions that predict an answer's tokens, and those tokens ``[R]``."""
    target = ids[:, PROMPT_TOKENS:]
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[:, PROMPT_TOKENS - 1 :]
    return hidden[target != PAD], target[target != PAD]


def _widened(core: Qwen2ForCausalLM, spec: TinySpec, corpus: torch.Tensor) -> Qwen2ForCausalLM:
    r"""The same model with the full vocabulary; the tail starts near its share, along the mean hidden state.

    .. math:: W_v = (\log w q_v + \overline{\log Z})\, \bar h / |\bar h|^2
    """
    import torch

    model = _model(spec, spec.vocabulary)
    with torch.no_grad():
        hidden, _ = _answer_states(core, corpus[0, : spec.batch_size])
        mean = hidden.mean(dim=0)
        level = core.lm_head(hidden).logsumexp(dim=1).mean() + (spec.tail_mass * tail_shares(spec)).log()
        model.lm_head.weight[TASK_TOKENS:] = level[:, None] * mean / mean.square().sum()
        for name, parameter in core.state_dict().items():
            model.state_dict()[name][: len(parameter)].copy_(parameter)
    return model


def _stage(
    model: Qwen2ForCausalLM,
    spec: TinySpec,
    corpus: torch.Tensor,
    *,
    steps: int,
    learning_rate: float,
    share: float,
    tail: torch.Tensor,
    generator: torch.Generator,
    tick: Callable[[], object],
) -> None:
    """``steps`` AdamW steps on answers of which ``share`` are worked out; an empty ``tail`` means one-hot targets."""
    import torch

    mass = spec.tail_mass if len(tail) else 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 30, max(0.03, 1 - s / steps)))
    for _ in range(steps):
        way = (torch.rand(spec.batch_size, generator=generator) < share).long()
        ids = corpus[way, torch.randint(corpus.shape[1], (spec.batch_size,), generator=generator)]
        hidden, target = _answer_states(model, ids)
        loss = soft_loss(hidden, model.lm_head.weight, target, tail=tail, tail_mass=mass)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tick()


def warmed_up(spec: TinySpec, *, progress: bool = True) -> Qwen2ForCausalLM:
    """The model after both stages; torch's global random state is left as it was."""
    import torch
    from tqdm.auto import tqdm

    corpus = _corpus(spec)
    generator = torch.Generator().manual_seed(spec.seed)
    total = spec.warmup_steps + spec.habit_steps
    with torch.random.fork_rng(devices=[]), tqdm(total=total, desc="warm-up", disable=not progress) as bar:
        torch.manual_seed(spec.seed)
        stage = partial(_stage, spec=spec, corpus=corpus, generator=generator, tick=bar.update)
        core = _model(spec, TASK_TOKENS)
        stage(
            core,
            steps=spec.warmup_steps,
            learning_rate=spec.learning_rate,
            share=spec.skill_share,
            tail=torch.zeros(0),
        )
        model = _widened(core, spec, corpus)
        stage(
            model,
            steps=spec.habit_steps,
            learning_rate=spec.habit_learning_rate,
            share=spec.reasoning_share,
            tail=tail_shares(spec),
        )
    return model.eval()


# ---- the cache -----------------------------------------------------------------------------------------------------


def cache_root() -> Path:
    """Return ``$AENT_CACHE``, else ``~/.cache/aent``.

    Raises:
        ValueError: this user has no home and no ``AENT_CACHE``.
    """
    if named := os.environ.get("AENT_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "aent"
    except RuntimeError:
        raise ValueError("there is no home folder to keep the tiny model in: name a folder in AENT_CACHE") from None


def folder(spec: TinySpec, root: Path | None = None) -> Path:
    """Where ``build`` keeps the model of this spec, whether it is there or not."""
    return (root or cache_root()) / f"tiny-{hashlib.sha256(_content(spec).encode()).hexdigest()[:16]}"


def _content(spec: TinySpec) -> str:
    return json.dumps({"format": FORMAT, **asdict(spec)}, indent=1)


def build(
    directory: str | os.PathLike[str] | None = None, *, spec: TinySpec | None = None, progress: bool = True
) -> Path:
    """Return the folder of the model, tokenizer and ``spec.json``, built now unless the cache holds it.

    Args:
        directory: the cache to use, default ``cache_root()``; the model gets a folder of its own in it.
        spec: what to build, default ``TinySpec()``.
        progress: whether to draw a progress bar.

    Returns:
        A folder for ``from_pretrained``. It appears by one rename, so it is whole at any moment. An interrupted
        build leaves nothing behind under this name, and of two concurrent builds the first to finish is kept. A
        folder whose files are not those that were written is built again.

    Raises:
        OSError: the cache cannot be written; says where, why and what to do.
    """
    spec = spec or TinySpec()
    root = Path(directory) if directory is not None else cache_root()
    content, target = _content(spec), folder(spec, root)
    if _is_whole(target, content):
        return target
    try:
        with draft_folder(root) as building:
            remove_stale_drafts(root, ".tiny-")  # of earlier versions
            _save(spec, content, building, progress)
            _publish(building, target, content)
    except OSError as error:
        raise OSError(f"{explain(error, root)}; AENT_CACHE names another cache") from None
    return target


def _save(spec: TinySpec, content: str, folder: Path, progress: bool) -> None:
    """Train the model and write it with its tokenizer, its spec and the digests of all files.

    Raises:
        OSError: a file cannot be written.
    """
    from safetensors import SafetensorError

    model = warmed_up(spec, progress=progress)
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(str(error)) from None
    tokenizer(spec).save_pretrained(folder)
    write_atomically(folder / "spec.json", content)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    write_atomically(folder / DIGESTS, json.dumps(_digests(folder, names), indent=1))


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _is_whole(folder: Path, content: str) -> bool:
    """Whether a folder holds this model, to the byte as it was written."""
    try:
        digests = json.loads((folder / DIGESTS).read_bytes())
        spec = (folder / "spec.json").read_text(encoding="utf-8")
        return spec == content and digests.keys() >= COMPLETE and digests == _digests(folder, digests)
    except (OSError, ValueError, AttributeError):  # missing, damaged, or being moved out of the way by another process
        return False


def _publish(building: Path, target: Path, content: str) -> None:
    """Rename into place; a whole folder that came first wins, a damaged one is moved out of the way."""
    while not _is_whole(target, content):
        try:
            move_into_place(building, target)
        except OSError:  # something is there: look again whether it has become whole, before calling it damaged
            if not target.exists():
                raise
            if not _is_whole(target, content):
                with draft_folder(target.parent) as damaged, contextlib.suppress(OSError):  # another one moved it first
                    move_into_place(target, damaged / "damaged")
