"""What all stages share: a recipe, a model and data in; a run of `transformers.Trainer`; a saved model out.

Flow: `check_output` looks for trouble -> `run` trains (from the newest complete checkpoint) -> the model is saved.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import get_int_from_env
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils.logging import disable_progress_bar

from .._compat import share_among_cpus
from ..data.bad_samples import TooManyBadSamples
from ..errors import cut, message, refuse_unknown, shorten
from ..text import ArlowDecoderLayer
from .muon import make_muon
from .recipe import CommonRecipe, write_recipe


RECIPE_NAME = "recipe.yaml"
RUN_NAME = "run.json"  # what else the order of the data hangs on: the number of processes
STATE_NAME = "trainer_state.json"  # the Trainer writes it last: a checkpoint that has it is complete
# What may differ between a run and its resumption without changing what is computed.
FREE_TO_CHANGE = {
    "output_dir",
    "resume",
    "save_steps",
    "keep_checkpoints",
    "log_steps",
    "eval_steps",
    "report_to",
    "workers",
    "bad_samples_limit",
    "cache",
}


# Of the Trainer's arguments: these would break exact resume, or are said otherwise in a recipe.
NEVER_IN_TRAINER = ("save_only_model", "ignore_data_skip", "num_train_epochs", "resume_from_checkpoint", "data_seed")


class Stopped(Exception):
    """SIGTERM came. A checkpoint was saved; the same command goes on from it."""


class TrainingError(RuntimeError):
    """Training had begun and could not go on. The error of the library is the cause."""


def total_draws(recipe: CommonRecipe, items: int) -> int:
    """How many samples a run draws, over all devices."""
    if recipe.max_steps is None:
        assert recipe.epochs is not None  # one of the two, as the recipe checks
        return math.ceil(recipe.epochs * items)
    return recipe.max_steps * samples_per_step(recipe)


def samples_per_step(recipe: CommonRecipe) -> int:
    """Of an optimiser step, over all devices."""
    return recipe.batch_size * recipe.accumulation * _world_size()


def _world_size() -> int:
    """How many processes the launcher started. Accelerate's own count is 1 on CPUs until the Trainer exists."""
    return get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1)


# Before training


def check_output(
    recipe: CommonRecipe,
    model: PreTrainedModel,
    *,
    record: CommonRecipe | None = None,
    copied: int = 0,
    besides: int = 0,
) -> Path | None:
    """Refuses an output that cannot take the run, before anything is computed or written.

    Args:
        record: the recipe as the user gave it, where this run is one part of it.
        copied: bytes of weights that every checkpoint, and the model at the end, hold twice.
        besides: bytes that will be written besides checkpoints and the model at the end.

    Returns:
        The checkpoint to go on from, if there is one.

    Raises:
        OSError: the directory cannot be written, or the disk is too full for the checkpoints.
        ValueError: it holds a run and `resume` is never, or a run of another recipe.
    """
    folder = recipe.output_dir
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise OSError(message("output_dir", str(folder), "a file, not a directory"))
    checkpoints = complete_checkpoints(folder)
    checkpoint = checkpoints[-1] if checkpoints else None
    used = (folder / RECIPE_NAME).exists()
    if used and recipe.resume == "never":
        raise ValueError(message("output_dir", str(folder), "already holds a run", "delete it, or set resume: auto"))
    if checkpoint is not None:
        _check_same_recipe(record or recipe, folder / RECIPE_NAME)
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"arlow")
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise OSError(message("output_dir", str(folder), problem)) from error
    # One checkpoint is written before the oldest is deleted. With the weights, AdamW's two float32 averages.
    count, weights = max(recipe.keep_checkpoints + 1 - len(checkpoints), 1), saved_bytes(model) + copied
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    need, free = count * (weights + 8 * trained) + weights + besides, shutil.disk_usage(there).free
    if need > free:
        problem = f"{free / 1e9:.2f} GB free, checkpoints and model take {need / 1e9:.2f} GB"
        raise OSError(message("output_dir", str(folder), problem, "free space or lower keep_checkpoints"))
    return checkpoint


def saved_bytes(model: torch.nn.Module) -> int:
    """Of the weights of a checkpoint: of an adapted model the adapter alone is saved."""
    saved = (p for p in model.parameters() if p.requires_grad or not hasattr(model, "peft_config"))
    return sum(p.numel() * p.element_size() for p in saved)


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step; one that a killed process left half-written does not count."""
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints by step."""
    found = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            step = int(json.loads((path / STATE_NAME).read_text(encoding="utf-8"))["global_step"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append((step, path))
    return [path for _, path in sorted(found)]


def _remove_incomplete(folder: Path) -> None:
    """The Trainer, which counts directories, would keep a half-written checkpoint and delete a whole one for it. What
    only looks like one (`checkpoint-best`) is somebody's."""
    for path in set(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")) - set(complete_checkpoints(folder)):
        if path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdigit():
            shutil.rmtree(path, ignore_errors=True)


def _check_same_recipe(recipe: CommonRecipe, path: Path) -> None:
    """A run goes on with the recipe it began with; else its data order or schedule would silently be another's."""
    try:
        before = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise ValueError(message("output_dir", str(path.parent), f"has checkpoints but no {path.name}")) from None
    for name, value in recipe.model_dump(mode="json").items():
        if name not in FREE_TO_CHANGE - recipe.never_free and before.get(name) != value:
            problem = f"the run in output_dir began with {shorten(before.get(name))}"
            raise ValueError(message(name, value, problem, "use that value or another output_dir"))
    try:
        processes = json.loads((path.parent / RUN_NAME).read_text(encoding="utf-8"))["processes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(message("output_dir", str(path.parent), f"has checkpoints but no {RUN_NAME}")) from None
    if processes != _world_size():
        problem = f"the run in output_dir began with {processes}: every process would go on with other data"
        raise ValueError(message("processes", _world_size(), problem))


# Training


def run(
    recipe: CommonRecipe,
    *,
    model: PreTrainedModel,
    train_data: Any,
    collate: Callable[[list], dict[str, Any]],
    eval_data: Any = None,
    processing: Any = None,
    count_tokens: Callable[[dict[str, Any]], torch.Tensor | int] | None = None,
    learning_rates: dict[str, float] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    trainer_class: type[ArlowTrainer] | None = None,
    record: CommonRecipe | None = None,
    copied: int = 0,
    besides: int = 0,
) -> Path:
    """Train, and save the model with its processing at the top of `output_dir`.

    Args:
        train_data: a dataset in its final order (see [`Draws`]), or an iterable one.
        collate: a list of samples to the arguments of `forward`.
        processing: tokenizer or processor, saved beside the weights.
        count_tokens: tokens in a batch, for the speed that is logged; default: the sum of `attention_mask`.
        learning_rates: parameter-name prefix -> peak learning rate, where it is not the recipe's.
        record: what is written to recipe.yaml; default: `recipe`.
        copied, besides: see `check_output`.

    Raises:
        ValueError, OSError: see `check_output`.
        Stopped: SIGTERM came; a checkpoint was saved.
        TooManyBadSamples, TrainingError: training began and could not go on.
    """
    arguments = training_arguments(recipe, evaluate=eval_data is not None)
    checkpoint = check_output(recipe, model, record=record, copied=copied, besides=besides)
    if arguments.fsdp_plugin_args is not None:
        arguments.fsdp_plugin_args.setdefault("transformer_cls_names_to_wrap", _whole_modules(model))
    if recipe.compile:
        compile_model(model)
    trainer = (trainer_class or ArlowTrainer)(
        model=model,
        args=arguments,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=collate,
        processing_class=processing,
        callbacks=callbacks,
    )
    trainer.count_tokens = count_tokens or _unpadded_tokens
    trainer.muon = recipe.optimizer == "muon"
    trainer.learning_rates = learning_rates or {}
    trainer.add_callback(_TakeOver)
    if not sys.stderr.isatty():
        disable_progress_bar()
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Lines)
    PartialState().wait_for_everyone()  # all have looked at the output before one writes to it
    if arguments.should_save:
        if (recipe.output_dir / RECIPE_NAME).exists():  # a run of ours was here
            _remove_incomplete(recipe.output_dir)
        recipe.output_dir.mkdir(parents=True, exist_ok=True)
        write_recipe(record or recipe, recipe.output_dir / RECIPE_NAME)
        (recipe.output_dir / RUN_NAME).write_text(json.dumps({"processes": _world_size()}) + "\n", encoding="utf-8")
    _train_and_save(trainer, recipe.output_dir, checkpoint)
    return recipe.output_dir


def _train_and_save(trainer: ArlowTrainer, folder: Path, checkpoint: Path | None) -> None:
    """The run itself; raises as `run` once training has begun."""
    stop = _StopOnSignal()
    trainer.add_callback(stop)
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        stopped = trainer.state.global_step < trainer.state.max_steps and stop.requested
        if not stopped:
            trainer.save_model(str(folder))
    except TooManyBadSamples as error:
        raise TooManyBadSamples(_last_line(error)) from error
    except RuntimeError as error:
        if not stop.requested:
            raise
        # A signal to every single process took the loaders, too: what was saved before has to do.
        raise Stopped("stopped by SIGTERM between checkpoints; the same command goes on from the last") from error
    except (ValueError, TypeError, OSError) as error:  # these mean a bad recipe; it was not
        raise TrainingError(cut(f"stopped at step {trainer.state.global_step}: {_last_line(error)}")) from error
    if stopped:
        where = newest_checkpoint(folder)
        raise Stopped(f"stopped by SIGTERM at step {trainer.state.global_step}; the same command goes on from {where}")


def _last_line(error: Exception) -> str:
    """What an error says; one from a loader process says it under a traceback, after the name of its class."""
    text = str(error).strip()
    return text if "Traceback (most recent call last)" not in text else text.splitlines()[-1].partition(": ")[2]


def compile_model(model: PreTrainedModel) -> None:
    """Has the decoder's layers compiled when they are first used: one graph for all of them and for any length. The
    vision encoder is left out, its work is cut by the sizes of the pictures. A model without is compiled whole."""
    layers = [module for module in model.modules() if isinstance(module, ArlowDecoderLayer)]
    for module in layers or [model]:
        module.compile(dynamic=True if layers else None)


def _whole_modules(model: PreTrainedModel) -> str:
    """The kinds of module that FSDP wraps, each as a whole. Only those the model has: a text model has no vision
    blocks, and FSDP asks for every kind it is told."""
    present = {type(module).__name__ for module in model.modules()}
    return ",".join(sorted(present & set(model._no_split_modules or ())))


def training_arguments(recipe: CommonRecipe, *, evaluate: bool) -> TrainingArguments:
    """The recipe in the Trainer's words.

    Raises:
        ImportError: what `report_to` names is not installed.
        ValueError: the Trainer refuses a value; `trainer` holds a name that it does not know.
    """
    for name in recipe.report_to:
        if find_spec(name) is None:
            raise ImportError(message("report_to", name, "not installed", f"pip install {name}"))
    known = TrainingArguments.__dataclass_fields__
    try:
        refuse_unknown("trainer", recipe.trainer, known)
    except TypeError as error:
        raise ValueError(str(error)) from error
    options = _options(recipe, evaluate=evaluate)
    taken = [name for name in recipe.trainer if name in options or name in NEVER_IN_TRAINER]
    if taken:
        raise ValueError(
            message(f"trainer.{taken[0]}", recipe.trainer[taken[0]], "the recipe has this under its own name")
        )
    try:
        arguments = TrainingArguments(**(options | recipe.trainer))
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(cut(f"recipe: {error}")) from error
    # Several GPUs take several processes: split along its first axis, a packed batch would make no sense.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if recipe.precision == "fp16" and arguments.device.type == "cpu":
        raise ValueError(message("precision", "fp16", "needs a GPU", "use bf16 or fp32"))
    _check_schedule(recipe)
    return arguments


def _options(recipe: CommonRecipe, *, evaluate: bool) -> dict[str, Any]:
    """The fields of TrainingArguments that the recipe has under names of its own."""
    length = {"max_steps": recipe.max_steps} if recipe.max_steps else {"num_train_epochs": 1.0}
    options: dict[str, Any] = {
        "output_dir": str(recipe.output_dir),
        **length,
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulation,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "lr_scheduler_kwargs": recipe.schedule_options,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch" if recipe.optimizer == "muon" else recipe.optimizer,
        "seed": recipe.seed,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "activation_checkpointing": recipe.gradient_checkpointing,
        # Without the word, several processes on CPUs would not find each other.
        "use_cpu": recipe.device == "cpu" or not torch.accelerator.is_available(),
        "dataloader_num_workers": recipe.workers,
        "dataloader_persistent_workers": recipe.workers > 0,
        "dataloader_pin_memory": torch.cuda.is_available() and recipe.device == "auto",
        "train_sampling_strategy": "sequential",  # the data come in their final order
        "logging_steps": recipe.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is no number is shown, not replaced by an older one
        "save_steps": recipe.save_steps,
        "save_total_limit": recipe.keep_checkpoints,
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": recipe.eval_steps or recipe.save_steps,
        "prediction_loss_only": True,
        "report_to": recipe.report_to or "none",
        "remove_unused_columns": False,
        "deepspeed": None if recipe.deepspeed is None else str(recipe.deepspeed),
        "disable_tqdm": not sys.stderr.isatty(),
    }
    if recipe.fsdp is not None:
        options |= {"fsdp": True, "fsdp_config": {"version": 2, **recipe.fsdp}}
    return options


def _check_schedule(recipe: CommonRecipe) -> None:
    """Options that the schedule does not take, said before the run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = dict(recipe.schedule_options)
    try:
        get_scheduler(recipe.schedule, optimizer, 1, 10, scheduler_specific_kwargs=options)
    except (ValueError, TypeError) as error:
        problem = f"{recipe.schedule} does not take these ({error})"
        raise ValueError(message("schedule_options", recipe.schedule_options, problem)) from error


def _unpadded_tokens(batch: dict[str, Any]) -> torch.Tensor | int:
    return batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()


def own_group(first: Callable[[int], None] | None, worker: int) -> None:
    """Begins a loader process: in a process group of its own, so that a signal to the run's group (`timeout`, a
    scheduler) reaches the training process, which still needs its loaders for a clean stop."""
    if os.name == "posix":
        os.setpgid(0, 0)
    if first is not None:
        first(worker)


def _switch_cache(model: torch.nn.Module, on: bool) -> None:
    """In the configs of all that generates: the library knows of the outermost alone."""
    for part in (model.config, getattr(model.config, "text_config", model.config)):
        part.use_cache = on


class ArlowTrainer(Trainer):
    """The stock Trainer, with learning rates by part of the model, and speed and remaining time in every log."""

    count_tokens: Callable[[dict[str, Any]], torch.Tensor | int] = staticmethod(_unpadded_tokens)
    learning_rates: dict[str, float] = {}
    muon = False
    skip_logits = False  # evaluations make none, as training does not: for models with a vocabulary
    optimizer: Any
    _tokens: Any = 0
    _since: tuple[float, int] | None = None  # when and at which step the present stretch began

    def train(self, *args: Any, **kwargs: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        _switch_cache(model, self.args.use_cache)
        try:
            return super().train(*args, **kwargs)
        finally:
            _switch_cache(model, True)

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp_plugin_args is not None:
            share_among_cpus()
        super().create_accelerator_and_postprocess()

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # Accelerate's goes through the loader inside it
        inner.worker_init_fn = partial(own_group, inner.worker_init_fn)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        loader = super().get_eval_dataloader(eval_dataset)
        getattr(loader, "base_dataloader", loader).worker_init_fn = partial(own_group, None)
        return loader

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        if fresh and self.muon:
            chosen = self.model if model is None else model
            self.optimizer = make_muon(
                chosen,
                learning_rate=self._learning_rate,
                weight_decay=self.args.weight_decay,
                decayed=set(self.get_decay_parameter_names(chosen)),
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                dtype=torch.bfloat16 if self.args.bf16 or self.args.fp16 else torch.float32,
            )
            return self.optimizer
        optimizer = super().create_optimizer(model)
        if fresh and self.learning_rates:
            named = (self.model if model is None else model).named_parameters()
            rates = {id(p): self._learning_rate(name) for name, p in named}
            groups = list(optimizer.param_groups)
            optimizer.param_groups.clear()
            for group in groups:
                for rate in sorted({rates[id(p)] for p in group["params"]}):
                    chosen = [p for p in group["params"] if rates[id(p)] == rate]
                    optimizer.add_param_group({**group, "params": chosen, "lr": rate})
        return optimizer

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        # The library goes by names; ours has vectors that are neither norms nor biases.
        named = model.named_parameters(remove_duplicate=False)
        shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in named}  # ZeRO-3 empties p
        return [name for name in super().get_decay_parameter_names(model) if len(shapes.get(name, ())) > 1]

    def _learning_rate(self, name: str) -> float:
        prefixes = [prefix for prefix in self.learning_rates if prefix in name]
        return self.learning_rates[max(prefixes, key=len)] if prefixes else self.args.learning_rate

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._since is None:
            self._since = time.perf_counter(), self.state.global_step
        self._tokens = self._tokens + self.count_tokens(inputs)  # on its device: no wait for it here
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = {**inputs, "skip_logits": True} if self.skip_logits else inputs
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the library's, but without a trace: neither chance nor the measured speed depends on evaluations."""
        began = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            metrics = super().evaluate(*args, **kwargs)
        if self._since is not None:
            self._since = self._since[0] + time.perf_counter() - began, self._since[1]
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        before = getattr(model.config, "use_cache", True)
        _switch_cache(model, True)  # what is saved is there to generate
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.use_cache = True
        try:
            super()._save(output_dir, state_dict)
        finally:
            _switch_cache(model, before)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what is written next says that the checkpoint is complete

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._since is not None:
            began, step = self._since
            seconds = time.perf_counter() - began
            tokens = self.accelerator.gather(torch.as_tensor(self._tokens, device=self.args.device)).sum().item()
            steps = max(self.state.global_step - step, 1)
            logs["tokens_per_second"] = round(tokens / seconds, 1)
            logs["eta_seconds"] = round(seconds / steps * (self.state.max_steps - self.state.global_step))
            self._since, self._tokens = (time.perf_counter(), self.state.global_step), 0
        super().log(logs, start_time)


class _TakeOver(TrainerCallback):
    """A resumed run saves, logs and evaluates as often as its recipe says now."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)


class _Lines(TrainerCallback):
    """Logs as plain lines, for files and pipes; a terminal has a progress bar instead."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_local_process_zero or not logs:
            return
        shown = {name: value for name, value in logs.items() if name not in ("epoch", "total_flos", "eta_seconds")}
        facts = "  ".join(f"{name} {float(value):.4g}" for name, value in shown.items())
        eta = (
            f"  ETA {int(logs['eta_seconds']) // 60}:{int(logs['eta_seconds']) % 60:02}"
            if "eta_seconds" in logs
            else ""
        )
        print(f"step {state.global_step}/{state.max_steps}  {facts}{eta}", flush=True)


class _StopOnSignal(TrainerCallback):
    """SIGTERM ends the run after the step in hand, with a checkpoint. All processes agree on the step."""

    requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        try:
            before = signal.signal(signal.SIGTERM, self._request)
        except ValueError:  # not in the main thread: nobody can send us signals there
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            flag = torch.tensor(int(self.requested), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.requested = bool(flag)
        if self.requested and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
