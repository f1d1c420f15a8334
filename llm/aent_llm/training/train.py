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
import io
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aent import cli
from aent.files import check_writable, write_atomically
from aent.runs import Run, changes, locked, read_run
from aent_llm.schema import Places, matching, parse_yaml
from aent_llm.training import signals
from aent_llm.training.checkpoint import (
    SET_BY_TRAINER,
    check_settings,
    may_change,
    read_checked,
    read_seal,
    sealed,
    settings,
    write_checked,
)
from aent_llm.training.experiment import Experiment, load_experiment, overridden, parse_experiment, reference
from aent_llm.training.prepare import Parts, from_cache_only, load_model, lora_config, prepare

DEFAULT = "cpu_aent"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    if options.settings:
        print(reference() if options.settings is True else matching(reference(), options.settings))
        return 0
    if options.processes < 1:
        raise ValueError(f"--processes {options.processes}: expected a number of GPUs, 1 or more")
    overrides = dict(override(one) for one in options.set)
    if options.seed is not None:
        overrides["train.seed"] = options.seed
    if options.resume and not options.output:
        raise ValueError("--resume needs --output DIRECTORY: which run is to go on?")
    if options.resume and options.config is None:
        experiment = saved_experiment(Path(options.output), overrides)
    else:
        experiment = load_experiment(options.config or DEFAULT, overrides)
    if options.dry_run:
        output = Path(options.output) if options.output else None
        return dry_run(experiment, options.processes, output, resume=options.resume)
    output = Path(options.output) if options.output else free_directory(Path("runs") / experiment.name)
    return train(experiment, output, resume=options.resume)


def saved_experiment(output: Path, overrides: dict[str, Any]) -> Experiment:
    """Read the experiment that a run directory keeps, and apply ``overrides`` to it.

    Raises:
        FileNotFoundError: no run there.
    """
    _check_directory(output, resume=True)
    raw = read_run(output)[0]
    name = str(raw.pop("name", output.name))
    raw, places = overridden(raw, overrides, Places(str(output / "config.json")))
    return parse_experiment(raw, name, places)


def free_directory(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3`` ... that holds nothing."""
    names = itertools.chain([wanted.name], (f"{wanted.name}-{number}" for number in itertools.count(2)))
    paths = (wanted.with_name(name) for name in names)
    return next(path for path in paths if not path.exists() or not any(path.iterdir()))


def dry_run(experiment: Experiment, processes: int, output: Path | None = None, *, resume: bool = False) -> int:
    """Check all that can be checked without weights, and print what would run; downloads nothing, needs no GPU.

    Raises:
        OSError, ValueError: as ``train``, but for a lock that another process holds.
    """
    from rich import print as show
    from torch.cuda import is_available

    if output is not None:
        _check_directory(output, resume)
        if resume:
            changes(output, _config(experiment), may_change)
    skipped: list[str] = []
    changed = {}
    if not is_available() and not experiment.train.get("use_cpu") and experiment.train.get("bf16") is not False:
        changed = {"use_cpu": True, "bf16": False, "tf32": None}  # else refused by transformers on this machine
        skipped.append("bfloat16 on a GPU: this machine has none")
    experiment.batch(processes)
    whole = experiment.of_train("per_device_train_batch_size") * processes  # one process that does what all would
    with from_cache_only():
        args = experiment.training_arguments("runs/dry", per_device_train_batch_size=whole, **changed)
        parts = prepare(experiment, args, processes=processes, skipped=skipped)
    if output is not None and resume:
        own = {"per_device_train_batch_size": experiment.of_train("per_device_train_batch_size"), "ranks": processes}
        _check_checkpoint(output, args, parts, own, not_compared=changed)
    _tell(parts.notes)
    show(experiment.plan(processes))
    if experiment.paper:
        show({"paper": experiment.paper})
    for reason in skipped:
        print(f"not checked here: {reason}")
    return 0


def train(experiment: Experiment, output: Path, *, resume: bool = False) -> int:
    """Run the whole experiment, into ``output``; returns the exit status, 128 + its number after a signal.

    Raises:
        FileExistsError: the directory holds a run, or something else, and ``resume`` is not given.
        FileNotFoundError: ``resume`` without a run there.
        BlockingIOError: another process is at work on that run.
        ValueError: whatever ``prepare`` finds, before the model is loaded and the directory is made; on ``resume`` a
            setting that would make it another run, or no checkpoint that can be used.
    """
    with signals.handled() as stop:
        try:
            _train(experiment, output, resume, stop)
        except signals.Interrupted as stopped:
            if _is_main_process() or stopped.checkpoint is None:
                print(_how_to_go_on(stopped, output), file=sys.stderr)
            return stopped.status
    return 0


def _train(experiment: Experiment, output: Path, resume: bool, stop: signals.Stop) -> None:
    from aent_llm.training.callbacks import RunLog

    started = time.perf_counter()
    if experiment.train.get("use_cpu"):
        keep_freed_memory()
    _check_directory(output, resume)
    with contextlib.ExitStack() as held:
        mine = _lock(held, output)  # to go on with, or a start that came to no step
        if resume:
            changes(output, _config(experiment), may_change)
        experiment.batch(int(os.environ.get("WORLD_SIZE", 1)))
        args = experiment.training_arguments(output)
        parts = prepare(experiment, args, processes=args.world_size)
        if resume:
            _check_checkpoint(output, args, parts)
        if _is_main_process():
            _tell(parts.notes)
        model = load_model(experiment, parts.source)
        if _is_main_process():
            _show_log()
        trainer = make_trainer(experiment, model, args, parts)
        trainer.stop = stop
        mine = mine or _lock(held, output)  # another process may have begun meanwhile
        if _is_main_process():
            trainer.add_callback(RunLog(_open_run(experiment, output, args.seed, resume)))
        if not mine:
            _lock(held, output)
        trainer.accelerator.wait_for_everyone()  # no rank looks for before.json earlier
        before = _evaluated(trainer, experiment, parts, output / "before.json")
        _go_on(trainer, output, resume)
        trainer.save_model(str(output / "final"))
        after = _evaluated(trainer, experiment, parts, output / "after.json")
        if _is_main_process():
            finish(output, before, after, seconds=time.perf_counter() - started)
        stop.done = True
        if _is_main_process():
            _show(output)


def keep_freed_memory() -> None:
    """Keep freed memory in the process.

    A step on the CPU allocates the same large tensors again and again. glibc otherwise returns them to the system after
    every step and pays their page faults again, which took a third of the time of a step (EXPERIMENTS.md).
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

    from aent_llm.training.callbacks import RunLog, StepBar
    from aent_llm.training.trainer import AEntGRPOTrainer

    trainer = AEntGRPOTrainer(
        model,
        parts.rewards,
        args,
        train_dataset=parts.problems,
        processing_class=parts.tokenizer,
        peft_config=lora_config(experiment),
        callbacks=[StepBar(), *([RunLog(run)] if run else [])],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def finish(output: Path, before: dict | None, after: dict | None, *, seconds: float) -> None:
    """Write summary.json and, of what was logged, curves.png.

    Raises:
        OSError: a file cannot be written; says which, why and what to do.
    """
    from aent_llm.measure.compare import draw, read_runs

    summary = {"before": before, "after": after, "seconds": round(seconds, 1)}
    write_atomically(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    if read_run(output)[2]:
        picture = io.BytesIO()
        draw(read_runs([output])).savefig(picture, format="png", dpi=150)
        write_atomically(output / "curves.png", picture.getvalue())


def _show(output: Path) -> None:
    """Print the table of the run."""
    from rich.console import Console

    from aent_llm.measure.compare import read_runs, table

    if not read_run(output)[2]:
        print(f"run directory: {output}   no curves: nothing was logged (train.logging_strategy: no)")
        return
    Console().print(table(read_runs([output])))
    print(f"run directory: {output}   curves: {output / 'curves.png'}")


# --------------------------------------------------------------------------------------------------------- internals


def _evaluated(trainer: Any, experiment: Experiment, parts: Parts, path: Path) -> dict | None:
    """Measure held-out accuracy on rank 0; kept on disk, so that a run killed later does not measure it again."""
    if experiment.evaluation is None or trainer.is_sharded:
        return None  # a sharded policy is evaluated from its saved weights: python -m aent_llm eval --model .../final
    result = None
    if trainer.accelerator.is_main_process:
        result = _kept_result(path)
        if result is None:
            result = _measure(trainer, experiment, parts)
            write_checked(path, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _kept_result(path: Path) -> dict | None:
    """What was measured before, if it is as it was written."""
    try:
        return read_checked(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        print(f"{path} is damaged: measured anew")
        return None


def _measure(trainer: Any, experiment: Experiment, parts: Parts) -> dict:
    from aent_llm.measure.evaluate import evaluate
    from aent_llm.measure.generate import transformers_sampler

    policy: Any = trainer.accelerator.unwrap_model(trainer.model)
    evaluation: Any = experiment.evaluation
    sampler = transformers_sampler(policy, parts.tokenizer, chat_template_kwargs=trainer.args.chat_template_kwargs)
    return evaluate(
        sampler, parts.held_out, parts.rewards[0], evaluation.config, correct_reward=trainer.args.correct_reward
    )


def _check_directory(output: Path, resume: bool) -> None:
    if resume and not (output / "config.json").is_file():
        raise FileNotFoundError(f"--resume: {output} holds no run (no config.json); leave --resume out to start one")
    if not resume and output.exists() and not _is_free(output):
        if not (output / "config.json").is_file():
            raise FileExistsError(f"{output} holds something else; nothing was overwritten. Choose another --output")
        raise FileExistsError(
            f"{output} already holds a run; nothing was overwritten. Go on with it by --resume, or choose another "
            "--output"
        )
    place = next(one for one in (output.absolute(), *output.absolute().parents) if one.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, not a place for a run directory: choose another --output")
    check_writable(place)


def _is_main_process() -> bool:
    """Whether this is rank 0, the one that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def _lock(held: contextlib.ExitStack, output: Path) -> bool:
    """Take the lock of a run that is there, on rank 0; whether one is there."""
    there = (output / "config.json").is_file()
    if there and _is_main_process():
        held.enter_context(locked(output))
    return there


def _config(experiment: Experiment) -> dict[str, Any]:
    return {"name": experiment.name, **experiment.raw}


def _is_free(output: Path) -> bool:
    """Whether nothing is there, or a start that came to no step: a second try takes its place."""
    return output.is_dir() and (_is_empty(output) or _is_stepless(output))


def _is_empty(output: Path) -> bool:
    """Whether a directory holds nothing, or only the empty folder that TRL's trainer makes for ``log_completions``."""
    found = list(output.iterdir())
    return not found or (found == [output / "completions"] and found[0].is_dir() and not any(found[0].iterdir()))


def _is_stepless(output: Path) -> bool:
    if not all((output / name).is_file() for name in ("config.json", "provenance.json", "metrics.jsonl")):
        return False
    logged = (output / "metrics.jsonl").read_bytes().count(b"\n")
    return not (logged or (output / "final").exists() or any(output.glob("checkpoint-*")))


def _open_run(experiment: Experiment, output: Path, seed: int, resume: bool) -> Run:
    if resume:
        return Run.resume(output, _config(experiment), may_change)
    if not _is_stepless(output):
        made = (completions := output / "completions").is_dir()
        with contextlib.suppress(OSError):  # a run appears in one rename; what is not empty ``create`` refuses
            completions.rmdir()
        run = Run.create(output, _config(experiment), seed)
        if made:
            completions.mkdir()
        return run
    (output / "before.json").unlink(missing_ok=True)  # measured with the settings of that start
    return Run.restart(output, _config(experiment), seed)


def _tell(notes: list[str]) -> None:
    for note in notes:
        print(f"aent_llm train: {note}", file=sys.stderr)


def _check_checkpoint(
    output: Path,
    args: Any,
    parts: Parts,
    own: Mapping[str, Any] = MappingProxyType({}),
    not_compared: Iterable[str] = (),
) -> None:
    """Refuse before the model is loaded what the newest checkpoint and this launch do not agree on.

    A dry run has ``own`` values for what its arguments do not say, and settings that are ``not_compared``.
    """
    for folder in sealed(output):
        try:
            saved = read_seal(folder)["state"]["settings"]
        except ValueError:
            continue  # damaged: an earlier one will be used
        names = [function.__name__ for function in parts.rewards]
        given = {**settings(args, rewards=names, dataset=parts.problems), **own}
        left_out = {*SET_BY_TRAINER, *not_compared, *(["dataset"] if parts.problems is None else [])}
        check_settings(folder, saved, {key: value for key, value in given.items() if key not in left_out})
        return


def _go_on(trainer: Any, output: Path, resume: bool) -> None:
    """Train, from the last checkpoint if the run is to go on. What was measured after fewer steps is forgotten."""
    found = trainer.last_checkpoint() if resume else None
    if _is_main_process():
        ended = found is not None and trainer.is_done(found)
        if ended:
            print(f"the run had ended at {found}; --set train.max_steps=N with a larger N trains on")
        elif resume:
            print(f"resuming from {found or 'the start: no complete checkpoint yet'}")
        if not ended:
            (output / "after.json").unlink(missing_ok=True)
    from aent_llm.training.callbacks import StepBar

    try:
        trainer.train(resume_from_checkpoint=found)
    finally:
        for one in trainer.callback_handler.callbacks:
            if isinstance(one, StepBar):
                one.close()  # else an error's sentence stands behind the bar, on its line


def _how_to_go_on(stopped: signals.Interrupted, output: Path) -> str:
    if not (output / "config.json").is_file():
        return f"stopped by {stopped} before the run began; nothing was written"
    kept = f"{stopped.checkpoint} is complete" if stopped.checkpoint else "what its last checkpoint holds is kept"
    return f"stopped by {stopped}; {kept}. Go on with: python -m aent_llm train --output {output} --resume"


def override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` of ``--set``; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected key=value, e.g. --set train.max_steps=20")
    return key, parse_yaml(value, f"--set {text}")


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m aent_llm train", description=(__doc__ or "").partition("\n")[0])
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
    parser.add_argument(
        "--settings", nargs="?", const=True, metavar="WORD", help="describe every setting, or those with WORD, and stop"
    )
    return parser


if __name__ == "__main__":
    cli.run_as("aent_llm", "train")
