r"""What a name on the command line stands for: named test sets on the hub, files, folders of models.

    resolve("math500").data             # fields for data.DataConfig
    model_path("runs/first/final")      # checked: config, weights and tokenizer are there

Ids, splits, columns and counts of the test sets were read in public evaluation code that loads and checks them, not on
the hub, which was out of reach. Least certain: whether every answer of ``minerva`` and ``olympiadbench`` (units, lists
of answers) can be scored; ``eval`` counts those that cannot. ``amc23`` holds the 40 problems of 2023 rewritten to
integer answers. ``math_hard`` is level 5 of the MATH test set and has no answer column: the answer is boxed in the
solution, as in ``aime24``.

Left out: few-shot prompts, several prompt styles, the text each paper used (the AEnt papers do not publish theirs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent.names import suggest

__all__ = ["BENCHMARKS", "Benchmark", "model_path", "resolve"]

FILES = (".jsonl", ".parquet")
BOXED = "{prompt}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."


@dataclass(frozen=True)
class Benchmark:
    """A named test set: fields of ``data.DataConfig``, the reward's name, the number of problems, its source.

    Without ``chat`` among the fields, the model's chat template is used where there is one.
    """

    data: dict[str, Any]
    reward: str
    problems: int | None
    source: str


def _math(hub: str, problems: int, source: str, **fields: Any) -> Benchmark:
    data = {"source": hub, "split": "test", "prompt": "problem", "answer": "answer", "template": BOXED, **fields}
    return Benchmark(data, "math_verify", problems, source)


_SOLUTION = {"answer": "solution", "answer_extract": "boxed"}
_OLYMPIAD = {"subset": "OE_TO_maths_en_COMP", "split": "train", "prompt": "question", "answer": "final_answer"}
_GSM8K = {"subset": "main", "prompt": "question", "answer_extract": "hash"}

BENCHMARKS: dict[str, Benchmark] = {
    "math500": _math("HuggingFaceH4/MATH-500", 500, "Lightman et al. 2023, arXiv:2305.20050"),
    "math_hard": _math("lighteval/MATH-Hard", 1324, "Hendrycks et al. 2021, arXiv:2103.03874, level 5", **_SOLUTION),
    "aime24": _math("math-ai/aime24", 30, "American Invitational Mathematics Examination 2024", **_SOLUTION),
    "aime25": _math("math-ai/aime25", 30, "American Invitational Mathematics Examination 2025"),
    "amc23": _math("math-ai/amc23", 40, "American Mathematics Competitions 2023, 12A and 12B", prompt="question"),
    "minerva": _math("math-ai/minervamath", 272, "Lewkowycz et al. 2022, arXiv:2206.14858", prompt="question"),
    "olympiadbench": _math("Hothan/OlympiadBench", 674, "He et al. 2024, arXiv:2402.14008", **_OLYMPIAD),
    "gsm8k": _math("openai/gsm8k", 1319, "Cobbe et al. 2021, arXiv:2110.14168", **_GSM8K),
    "tiny": Benchmark(
        {"source": "tiny", "split": "test", "count": 512, "chat": False}, "arithmetic", 512, "the embedded task"
    ),
}


def resolve(name: str) -> Benchmark:
    """A named set, a local file, or a hub id taken as it is.

    Raises:
        ValueError: none of these; near names are suggested, all are listed.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if Path(name).suffix in FILES or "/" in name:
        return Benchmark({"source": name, "chat": False}, "math_verify", None, "as given")
    raise ValueError(
        f"unknown benchmark {name!r}{suggest(name, BENCHMARKS) or '.'} There are "
        f"{', '.join(BENCHMARKS)}; or give a file ({', '.join(FILES)}) or a hub id (owner/name)"
    )


def model_path(source: str) -> str | Path:
    """Folder of a model that looks whole, or a hub id as it came; "tiny" builds the embedded model.

    Raises:
        FileNotFoundError: neither, or a folder without config, weights or tokenizer; what is missing is named.
    """
    if source == "tiny":
        from aent_llm.data import tiny

        return tiny.build()
    folder = Path(source)
    if not folder.exists():
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
            return source
        raise FileNotFoundError(f"--model {source}: no such folder, and not a hub id (owner/name) or 'tiny'")
    parts = {
        "config.json": ("config.json",),
        "weights": ("*.safetensors", "*.bin"),
        "tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    }
    missing = [part for part, names in parts.items() if not any(any(folder.glob(name)) for name in names)]
    if "config.json" in missing and (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{source} holds a LoRA adapter: merge it (merge_and_unload, save_pretrained), give that"
        )
    if missing:
        nested = sorted(str(one.parent) for one in folder.glob("*/config.json"))
        hint = f"; did you mean {nested[-1]}?" if nested else ": save model and tokenizer there with save_pretrained"
        raise FileNotFoundError(f"--model {source} has no {', no '.join(missing)}{hint}")
    return folder
