"""``python -m aent_llm train``: from an experiment file to a run directory with a table and a picture.

    python -m aent_llm train                                  # the embedded CPU experiment
    python -m aent_llm train --config my.yaml --set train.learning_rate=1e-6 --output runs/mine
    python -m aent_llm train --output runs/mine --resume      # after a kill: the same settings, the same numbers

Order of work: everything that can be known is checked before a model is loaded (``prepare.py``; ``--dry-run`` checks
the same), and the run directory is made last, right before training. Until it holds a step it is no run: a second try
takes its place. Under ``accelerate launch`` every rank runs this file; rank 0 writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from aent.runs import Run, read_run
from aent_llm.command_line import Parser
from aent_llm.experiment import Experiment, load_experiment, overridden, parse_experiment, reference
from aent_llm.prepare import Parts, from_cache_only, load_model, lora_config, prepare
from aent_llm.schema import Places, parse_yaml

DEFAULT = "cpu_aent"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    if options.settings:
        print(reference())
        return 0
    if options.processes < 1:
        raise ValueError(f"--processes {options.processes}: expected a number of GPUs, 1 or more")
    overrides = dict(_override(one) for one in options.set)
    if options.seed is not None:
        overrides["train.seed"] = options.seed
    if options.resume and not options.output:
        raise ValueError("--resume needs --output DIRECTORY: which run is to go on?")
    if options.resume and options.config is None:
        experiment = saved_experiment(Path(options.output), overrides)
    else:
        experiment = load_experiment(options.config or DEFAULT, overrides)
    if options.dry_run:
        if options.output:
            _check_directory(Path(options.output), options.resume)
        return dry_run(experiment, options.processes)
    output = Path(options.output) if options.output else free_directory(Path("runs") / experiment.name)
    return train(experiment, output, resume=options.resume)


def saved_experiment(output: Path, overrides: dict[str, Any]) -> Experiment:
    """The experiment as a run directory keeps it, overrides of its start included.

    Raises:
        FileNotFoundError: no run there. ValueError: other overrides, which would make it another run.
    """
    _check_directory(output, resume=True)
    if overrides:
        raise ValueError(f"--resume goes on with the settings in {output}: leave out --set and --seed")
    raw = read_run(output)[0]
    name = str(raw.pop("name", output.name))
    raw, places = overridden(raw, overrides, Places(str(output / "config.json")))
    return parse_experiment(raw, name, places)


def free_directory(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3`` ... that holds nothing."""
    names = itertools.chain([wanted.name], (f"{wanted.name}-{number}" for number in itertools.count(2)))
    paths = (wanted.with_name(name) for name in names)
    return next(path for path in paths if not path.exists() or not any(path.iterdir()))


def dry_run(experiment: Experiment, processes: int) -> int:
    """Check all that can be checked without weights, and print what would run; downloads nothing, needs no GPU."""
    from rich import print as show
    from torch.cuda import is_available

    skipped: list[str] = []
    changed = {}
    if not is_available() and not experiment.train.get("use_cpu") and experiment.train.get("bf16") is not False:
        changed = {"use_cpu": True, "bf16": False}  # else refused by transformers on this machine
        skipped.append("bfloat16 on a GPU: this machine has none")
    experiment.batch(processes)
    whole = experiment.of_train("per_device_train_batch_size") * processes  # one process that does what all would
    with from_cache_only():
        args = experiment.training_arguments("runs/dry", per_device_train_batch_size=whole, **changed)
        prepare(experiment, args, processes=processes, skipped=skipped)
    show(experiment.plan(processes))
    if experiment.paper:
        show({"paper": experiment.paper})
    for reason in skipped:
        print(f"not checked here: {reason}")
    return 0


def train(experiment: Experiment, output: Path, *, resume: bool = False) -> int:
    """The whole experiment, into ``output``.

    Raises:
        FileExistsError: the directory holds a run, or something else, and ``resume`` is not given.
        FileNotFoundError: ``resume`` without a run there.
        ValueError: whatever ``prepare`` finds, before the model is loaded and the directory is made.
    """
    from aent_llm.progress import RunLog

    started = time.perf_counter()
    if experiment.train.get("use_cpu"):
        keep_freed_memory()
    _check_directory(output, resume)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    experiment.batch(processes)
    args = experiment.training_arguments(output)
    parts = prepare(experiment, args, processes=processes)
    model = load_model(experiment, parts.source)
    main_process = int(os.environ.get("RANK", 0)) == 0
    if main_process:
        _show_log()
    trainer = make_trainer(experiment, model, args, parts)
    if main_process:
        trainer.add_callback(RunLog(_open_run(experiment, output, args.seed, resume)))
    trainer.accelerator.wait_for_everyone()  # no rank looks for before.json earlier
    before = _evaluated(trainer, experiment, parts, output / "before.json")
    _go_on(trainer, _checkpoint(output, main_process) if resume else None)
    trainer.save_model(str(output / "final"))
    after = _evaluated(trainer, experiment, parts, output / "after.json")
    if main_process:
        finish(output, before, after, seconds=time.perf_counter() - started)
    return 0


def keep_freed_memory() -> None:
    """Let glibc keep what is freed. A step on the CPU allocates the same large tensors again and again; handed back to

    the system each time, they are paged in anew, which took a third of the time of a step (EXPERIMENTS.md).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to set
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(parameter, value)


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record))


def _show_log() -> None:
    """Print what this package logs, such as which engine computes the head."""
    logger = logging.getLogger("aent_llm")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_AboveTheBar())


def make_trainer(experiment: Experiment, model: Any, args: Any, parts: Parts, run: Run | None = None) -> Any:
    """The trainer, with the run directory as its log if there is one already."""
    from transformers import PrinterCallback, ProgressCallback

    from aent_llm.progress import LastStep, RunLog, StepBar
    from aent_llm.trainer import AEntGRPOTrainer

    trainer = AEntGRPOTrainer(
        model,
        parts.rewards,
        args,
        train_dataset=parts.problems,
        processing_class=parts.tokenizer,
        peft_config=lora_config(experiment),
        callbacks=[StepBar(), LastStep(), *([RunLog(run)] if run else [])],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def finish(output: Path, before: dict | None, after: dict | None, *, seconds: float) -> None:
    """summary.json, curves.png and the table of one run."""
    from rich.console import Console

    from aent_llm.compare import draw, read_runs, table

    summary = {"before": before, "after": after, "seconds": round(seconds, 1)}
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if not read_run(output)[2]:
        print(f"run directory: {output} (no step was logged)")
        return
    runs = read_runs([output])
    draw(runs).savefig(output / "curves.png", dpi=150)
    Console().print(table(runs))
    print(f"run directory: {output}   curves: {output / 'curves.png'}")


# --------------------------------------------------------------------------------------------------------- internals


def _evaluated(trainer: Any, experiment: Experiment, parts: Parts, path: Path) -> dict | None:
    """Held-out accuracy; kept on disk so that a resumed run does not measure ``before`` on trained weights."""
    if experiment.evaluation is None or _is_sharded(trainer):
        return None  # a sharded policy is evaluated from its saved weights: python -m aent_llm eval --model .../final
    if path.is_file():
        return _read_result(path)
    result = None
    if trainer.accelerator.is_main_process:
        from aent_llm.evaluate import evaluate
        from aent_llm.generate import transformers_sampler

        policy = trainer.accelerator.unwrap_model(trainer.model)
        sampler = transformers_sampler(policy, parts.tokenizer, chat_template_kwargs=trainer.args.chat_template_kwargs)
        result = evaluate(
            sampler, parts.held_out, parts.rewards[0], experiment.evaluation.config,
            correct_reward=trainer.args.correct_reward,
        )  # fmt: skip
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(result) + "\n", encoding="utf-8")
        draft.replace(path)
    trainer.accelerator.wait_for_everyone()
    return result


def _check_directory(output: Path, resume: bool) -> None:
    if resume and not (output / "config.json").is_file():
        raise FileNotFoundError(f"--resume: {output} holds no run (no config.json); leave --resume out to start one")
    for name in ("before.json", "after.json") if resume else ():
        if (output / name).is_file():
            _read_result(output / name)
    if not resume and output.exists() and not _is_free(output):
        raise FileExistsError(
            f"{output} already holds a run, or something else; nothing was overwritten. Go on with it by --resume, or "
            "choose another --output"
        )


def _is_free(output: Path) -> bool:
    """Whether nothing is there, or a start that came to no step: a second try takes its place."""
    return output.is_dir() and (not any(output.iterdir()) or _is_stepless(output))


def _is_stepless(output: Path) -> bool:
    if not all((output / name).is_file() for name in ("config.json", "provenance.json", "metrics.jsonl")):
        return False
    logged = (output / "metrics.jsonl").read_bytes().count(b"\n")
    return not (logged or (output / "final").exists() or any(output.glob("checkpoint-*")))


def _open_run(experiment: Experiment, output: Path, seed: int, resume: bool) -> Run:
    config = {"name": experiment.name, **experiment.raw}
    if resume:
        return Run.resume(output, config)
    if not _is_stepless(output):
        return Run.create(output, config, seed)
    (output / "before.json").unlink(missing_ok=True)  # measured with the settings of that start
    return Run.restart(output, config, seed)


def _read_result(path: Path) -> dict[str, Any]:
    """What an evaluation has left.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        return found
    except ValueError as error:  # also damaged UTF-8
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is measured again") from None


def _checkpoint(output: Path, main_process: bool) -> str | None:
    from aent_llm.checkpoint import last_complete

    found, passed_over = last_complete(output)
    if main_process:
        for reason in passed_over:
            print(f"not used: {reason}")
        print(f"resuming from {found or 'the start: no complete checkpoint yet'}")
    return None if found is None else str(found)


def _go_on(trainer: Any, checkpoint: str | None) -> None:
    """Train, or go on. After the last step only the weights are needed: transformers would train a step more.

    Raises:
        ValueError: such a run with sharded weights.
    """
    from transformers import TrainerState

    if checkpoint is None:
        trainer.train()
        return
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
    elif _is_sharded(trainer):
        raise ValueError(f"all {state.max_steps} steps are done; the weights are in {checkpoint}")
    else:
        trainer._load_from_checkpoint(checkpoint)


def _is_sharded(trainer: Any) -> bool:
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected key=value, e.g. --set train.max_steps=20")
    return key, parse_yaml(value, f"--set {text}")


def _parser() -> Parser:
    parser = Parser(prog="python -m aent_llm train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--config",
        help=f"experiment file, or the name of one of the package (default: {DEFAULT}; with --resume the run's own)",
    )
    parser.add_argument("--output", help="run directory (default: the first free of runs/NAME, runs/NAME-2 ...)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. train.seed=1")
    parser.add_argument("--seed", type=int, help="short for --set train.seed=...")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output, with its settings")
    parser.add_argument("--dry-run", action="store_true", help="check everything but the weights, show the plan")
    parser.add_argument("--processes", type=int, default=1, help="GPUs to plan for with --dry-run (default: 1)")
    parser.add_argument("--settings", action="store_true", help="describe every setting of an experiment file and stop")
    return parser
