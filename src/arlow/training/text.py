"""Stage `text`: causal language modelling of streamed, packed text, from scratch or continued.

Out comes a directory that loads with `AutoModelForCausalLM` and `AutoTokenizer`.
"""

from __future__ import annotations

import itertools
import math
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, set_seed

from ..configuration_arlow import ArlowTextConfig
from ..data.bad_samples import LIST_NAME, BadSamples, TooManyBadSamples
from ..data.text_stream import Reader, Source, TextStream, collate, is_held_out, pack, read_once, tokenize
from ..errors import message
from ..modeling_arlow import ArlowForCausalLM
from ..tokenization_arlow import ArlowTokenizer
from .loop import ArlowTrainer, check_output, newest_checkpoint, own_group, run, training_arguments
from .parts import check_tokenizer
from .recipe import CommonRecipe, FilePath


def _to_sources(value: Any) -> Any:
    """`data: a.txt`, a list of such, one source or a list of sources."""
    if isinstance(value, str):
        return [{"files": value}]
    if isinstance(value, dict):
        return [value]
    return [{"files": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


Sources = Annotated[list[Source], BeforeValidator(_to_sources), Field(min_length=1)]


SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


class TokenizerTraining(BaseModel):
    """How a tokenizer is trained on the data."""

    model_config = ConfigDict(extra="forbid", strict=True)

    vocab_size: PositiveInt = Field(description="tokens, special tokens and 256 bytes included")
    documents: PositiveInt = Field(100_000, description="it learns from the first so many documents")


class TokenizerSource(BaseModel):
    """A tokenizer that is there, or how to train one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: FilePath | None = Field(None, description="directory of a saved tokenizer")
    train: TokenizerTraining | None = Field(None, description="instead of path: train one on the data")

    @model_validator(mode="after")
    def _check_kind(self) -> TokenizerSource:
        if (self.path is None) == (self.train is None):
            raise ValueError("give either path or train")
        return self


def _to_tokenizer(value: Any) -> Any:
    return {"path": value} if isinstance(value, (str, Path)) else value


class Recipe(CommonRecipe):
    """A text model and its data."""

    never_free = frozenset({"workers"})  # each reads its own share of the text

    model: FilePath | None = Field(None, description="directory of a text model to go on from; give this or config")
    config: dict[str, Any] | FilePath | None = Field(
        None, description="a model from scratch: fields of ArlowTextConfig, or the path of a config.json"
    )
    tokenizer: Annotated[TokenizerSource, BeforeValidator(_to_tokenizer)] | None = Field(
        None, description="directory of a tokenizer, or {train: {vocab_size: N}}; default: the one beside model"
    )
    data: Sources = Field(description="what to train on: a path or glob of files, or a list of sources")
    sequence_length: int = Field(1024, ge=2, description="tokens of a row; documents are packed to fill it")
    shuffle_buffer: int = Field(
        10_000, ge=0, description="texts in memory of which the next one is drawn; 0: the order of the files"
    )
    eval_data: Sources | None = Field(None, description="what to evaluate on, as data; or see eval_share")
    eval_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the texts kept out of training to evaluate on, where eval_data is not given",
    )
    eval_rows: PositiveInt = Field(128, description="rows of the evaluation; longer data are cut")

    @model_validator(mode="after")
    def _check_text(self) -> Recipe:
        if self.max_steps is None:
            raise ValueError("epochs: streamed text has no known length; give max_steps")
        if (self.model is None) == (self.config is None):
            raise ValueError("give either model or config")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("tokenizer: a model from scratch needs one; give a directory or {train: {vocab_size: N}}")
        if self.eval_data is not None and self.eval_share:
            raise ValueError("give either eval_data or eval_share")
        return self


def train(recipe: Recipe) -> Path:
    """Run the stage and return the directory of the trained model.

    Raises:
        ValueError, OSError: the recipe, its files or its output are not fit for it; nothing was written.
        Stopped: SIGTERM came; a checkpoint was saved.
    """
    arguments = training_arguments(recipe, evaluate=True)
    _check_data(recipe)
    tokenizer = read_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    check_output(recipe, model)
    bad_samples = BadSamples(recipe.output_dir / LIST_NAME, limit=recipe.bad_samples_limit)
    eval_rows = list(_evaluation(recipe, tokenizer, bad_samples))
    assert recipe.max_steps is not None  # as the recipe checks
    stream = TextStream(
        recipe.data,
        tokenizer,
        length=recipe.sequence_length,
        batches=recipe.max_steps * recipe.accumulation,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        shuffle=recipe.shuffle_buffer,
        bad_samples=bad_samples,
        held_out=recipe.eval_share,
    )
    stream.device = Reader(arguments.process_index, arguments.world_size)
    return run(
        recipe,
        model=model,
        train_data=stream,
        collate=collate,
        eval_data=eval_rows or None,
        processing=tokenizer,
        trainer_class=TextTrainer,
    )


# Checks and parts


def _check_data(recipe: Recipe) -> None:
    """Every source can be opened and has a text; the evaluation is not empty."""
    unheard = BadSamples(None, limit=recipe.bad_samples_limit)
    try:
        for name, sources in (("data", recipe.data), ("eval_data", recipe.eval_data or [])):
            for source in sources:
                if next(read_once([source], unheard), None) is None:
                    raise ValueError(message(name, source.name, "holds no text"))
        if recipe.eval_share:
            texts = read_once(recipe.data, unheard)
            if not any(is_held_out(text, recipe.eval_share) for text in texts):
                raise ValueError(
                    message("eval_share", recipe.eval_share, "so small a share of the data holds no text")
                )
    except TooManyBadSamples as error:  # the run has not begun: these are not the data that were meant
        raise ValueError(str(error)) from error


def read_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names; a trained one comes back from the checkpoint that the run goes on from.

    Raises:
        OSError, ValueError: it cannot be read; it is not the model's.
    """
    source, folder = recipe.tokenizer, recipe.model
    if source is not None and source.train is not None:
        folder = newest_checkpoint(recipe.output_dir)
        if folder is None:
            return _train_tokenizer(recipe, source.train)
    elif source is not None:
        folder = source.path
    assert folder is not None  # model or tokenizer, as the recipe checks
    tokenizer = _load_tokenizer(folder)
    if recipe.model is not None and folder != recipe.model and (recipe.model / "tokenizer_config.json").is_file():
        own = _load_tokenizer(recipe.model)
        if own.get_vocab() != tokenizer.get_vocab():
            problem = f"has other tokens than the model's own in {recipe.model.name!r}"
            raise ValueError(message("tokenizer", str(folder), problem, "leave tokenizer out"))
    return tokenizer


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        raise OSError(message("tokenizer", str(folder), "no such directory"))
    return ArlowTokenizer.from_pretrained(str(folder))


def _train_tokenizer(recipe: Recipe, how: TokenizerTraining) -> PreTrainedTokenizerBase:
    texts = read_once(recipe.data, BadSamples(None, limit=recipe.bad_samples_limit))
    kept = (text for text in texts if not is_held_out(text, recipe.eval_share))
    return ArlowTokenizer.train(itertools.islice(kept, how.documents), how.vocab_size)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> ArlowForCausalLM:
    """The model in float32, fresh or loaded.

    Raises:
        OSError, ValueError: it cannot be read or built; the tokenizer does not fit it; rows are longer than it takes.
    """
    if recipe.model is not None:
        if not recipe.model.is_dir():
            raise OSError(message("model", str(recipe.model), "no such directory"))
        config = ArlowTextConfig.from_pretrained(str(recipe.model))
        check_tokenizer(tokenizer, config)
    else:
        config = _new_config(recipe, tokenizer)
        check_tokenizer(tokenizer, config, SPECIAL)
    if recipe.sequence_length > config.max_position_embeddings:
        problem = f"longer than the model's max_position_embeddings={config.max_position_embeddings}"
        raise ValueError(message("sequence_length", recipe.sequence_length, problem))
    if recipe.model is not None:
        options = {"dtype": torch.float32, "attn_implementation": recipe.attention}
        return ArlowForCausalLM.from_pretrained(str(recipe.model), **options)
    set_seed(recipe.seed)
    config._attn_implementation = recipe.attention
    return ArlowForCausalLM(config)


def _new_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> ArlowTextConfig:
    """What the config leaves open, the tokenizer decides: the size of the vocabulary and the special tokens."""
    if isinstance(recipe.config, Path):
        if not recipe.config.exists():
            raise OSError(message("config", str(recipe.config), "no such file"))
        config = ArlowTextConfig.from_pretrained(str(recipe.config))
    else:
        config = ArlowTextConfig(**{"vocab_size": len(tokenizer), **(recipe.config or {})})
    for name in SPECIAL:
        if getattr(config, name) is None:
            setattr(config, name, getattr(tokenizer, name))
    return config


def _evaluation(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, bad_samples: BadSamples) -> Any:
    if recipe.eval_data is not None:
        texts = read_once(recipe.eval_data, bad_samples)
    elif recipe.eval_share:
        texts = (text for text in read_once(recipe.data, bad_samples) if is_held_out(text, recipe.eval_share))
    else:
        return iter(())
    rows = pack(tokenize(texts, tokenizer), recipe.sequence_length, fill=tokenizer.eos_token_id)
    return itertools.islice(rows, recipe.eval_rows)


class TextTrainer(ArlowTrainer):
    """Each process reads its own share of the text; evaluations tell the perplexity."""

    skip_logits = True

    def get_train_dataloader(self) -> DataLoader:
        from accelerate.data_loader import prepare_data_loader

        stream, workers = self.train_dataset, self.args.dataloader_num_workers
        if workers:  # they are forks: threads of the tokenizer would not survive in them
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        loader = DataLoader(
            stream,
            batch_size=stream.batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=partial(own_group, None),
        )
        # As of one process: what is not shared out already, Accelerate would share out.
        options = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
        return prepare_data_loader(loader, self.args.device, put_on_device=True, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
        super().log(logs, start_time)
