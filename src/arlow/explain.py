"""What the model will see of a conversation, made visible without weights.

`processor.explain(conversation)` processes it as for a model and takes the result apart again: the pictures in a
`Report` are read back from `pixel_values`, so they show what really arrives, not what should have.

Boxes are `(x0, y0, x1, y1)` in pixels, x to the right, y down. Sizes: T frames per row, P patch side, M merge side.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .chat_template import check_conversation, split_batch
from .errors import message
from .media import Picture, flatten_pictures, load_picture
from .positions import get_rope_index
from .processing_arlow import ArlowProcessor, no_media
from .pruning import kept_tokens
from .token_rows import any_of


Box = tuple[float, float, float, float]
NORMALISING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
TYPE_NAMES = ("text", "image", "video")


@dataclass(frozen=True, eq=False)
class View:
    """One picture as the encoder gets it: a whole image, a crop of one, or a frame group of a video."""

    box: tuple[int, int, int, int]  # what it shows of the original, pixels
    grid: tuple[int, int]  # patches: rows, columns
    merged_grid: tuple[int, int]  # tokens: rows, columns
    frames: np.ndarray  # (1 or T, H, W, 3) uint8, read back from the pixel values
    time: float | None = None  # seconds, of a frame group
    kept: np.ndarray | None = None  # (rows, columns) bool, which tokens the decoder gets; None: all

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, after resizing."""
        return self.frames.shape[1:3]

    @property
    def tokens(self) -> int:
        return self.merged_grid[0] * self.merged_grid[1] if self.kept is None else int(self.kept.sum())


@dataclass(frozen=True, eq=False)
class Medium:
    """One image or video of the conversation."""

    kind: str  # "image" or "video"
    row: int  # of the batch
    original_size: tuple[int, int]  # height and width in pixels, upright
    views: tuple[View, ...]  # an image and its crops; the frame groups of a video
    source: str = ""
    fps: float | None = None  # frames per second of the source; None where nobody knows
    total_frames: int | None = None
    frames_indices: tuple[int, ...] = ()  # which frames were taken

    @property
    def tokens(self) -> int:
        return sum(view.tokens for view in self.views)

    @property
    def timestamps(self) -> list[float] | None:
        """Seconds of the frame groups, or None."""
        times = [view.time for view in self.views if view.time is not None]
        return times if len(times) == len(self.views) else None


@dataclass(frozen=True, eq=False)
class Row:
    """One conversation of the batch, without padding."""

    prompt: str  # with every placeholder written out
    short_prompt: str  # runs of placeholders as `<image>x391`, control tokens that people typed as `\\<image>`
    input_ids: np.ndarray  # (S,) int64
    mm_token_type_ids: np.ndarray  # (S,) 0 text, 1 image, 2 video
    positions: np.ndarray  # (3, S) t, h, w

    def segments(self) -> Iterator[tuple[str, int, int]]:
        """Runs of tokens of one type: (name of the type, start, end)."""
        start = 0
        for kind, run in itertools.groupby(self.mm_token_type_ids.tolist()):
            end = start + len(list(run))
            yield TYPE_NAMES[kind], start, end
            start = end


@dataclass(frozen=True, eq=False)
class Report:
    """What `processor.explain` gives. `print(report)` tells it, `report.save("sheet.png")` draws it."""

    media: tuple[Medium, ...]
    rows: tuple[Row, ...]
    inputs: Mapping[str, Any]  # what the model would be called with, torch tensors

    @property
    def images(self) -> list[Medium]:
        return [medium for medium in self.media if medium.kind == "image"]

    @property
    def videos(self) -> list[Medium]:
        return [medium for medium in self.media if medium.kind == "video"]

    def to_resized(self, image_index: int, box: Sequence[float], *, view: int = 0, kind: str = "image") -> Box:
        """A box of the original picture in pixels of the resized one (`view` 0) or of a crop (1, 2, ...).

        Raises `IndexError` for an image or view that is not there and `ValueError` for something that is no box, or
        not within what the view shows.
        """
        shown = self._view(kind, image_index, view)
        x0, y0, x1, y1 = _check_box(box, shown.box)
        sx, sy, left, top = _scales(shown)
        return (x0 - left) * sx, (y0 - top) * sy, (x1 - left) * sx, (y1 - top) * sy

    def to_original(self, image_index: int, box: Sequence[float], *, view: int = 0, kind: str = "image") -> Box:
        """A box of the resized picture (or of a crop) in pixels of the original. The inverse of `to_resized`."""
        shown = self._view(kind, image_index, view)
        x0, y0, x1, y1 = _check_box(box, (0, 0, *shown.size[::-1]))
        sx, sy, left, top = _scales(shown)
        return x0 / sx + left, y0 / sy + top, x1 / sx + left, y1 / sy + top

    def _view(self, kind: str, index: int, view: int) -> View:
        if kind not in ("image", "video"):
            raise ValueError(message("kind", kind, "is neither 'image' nor 'video'"))
        found = [medium for medium in self.media if medium.kind == kind]
        if not 0 <= index < len(found):
            raise IndexError(message("image_index", index, f"the conversation has {len(found)} of kind {kind!r}"))
        if not 0 <= view < len(found[index].views):
            raise IndexError(message("view", view, f"{kind} {index} has {len(found[index].views)}"))
        return found[index].views[view]

    def __str__(self) -> str:
        lines = [headline(self), ""]
        numbers = {"image": itertools.count(), "video": itertools.count()}
        for medium in self.media:
            lines += [*describe(medium, next(numbers[medium.kind])), ""]
        for index, row in enumerate(self.rows):
            lines += [*describe_row(row, index), ""]
        return "\n".join(lines).rstrip()

    def sheet(self) -> Image.Image:
        """The report as a picture: every view with its token grid, and every row as a bar of token types."""
        return draw_sheet(self)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the sheet as a PNG and return its path. Raises `ValueError` for a name of another kind of file."""
        path = Path(path)
        if path.suffix.lower() not in (".png", ""):
            raise ValueError(message("path", str(path), "the sheet is a PNG", "let the name end in .png"))
        self.sheet().save(path, format="PNG")
        return path

    def show(self) -> None:
        """Open the sheet where there is a display, else print the text."""
        if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            self.sheet().show()
        else:
            print(self)

    def _repr_png_(self) -> bytes:
        """Notebooks show the sheet."""
        stream = io.BytesIO()
        self.sheet().save(stream, format="PNG")
        return stream.getvalue()


def _scales(view: View) -> tuple[float, float, int, int]:
    """Resized pixels per original pixel along x and y, and where the view begins in the original."""
    left, top, right, bottom = view.box
    height, width = view.size
    return width / (right - left), height / (bottom - top), left, top


def _check_box(box: Sequence[float], within: tuple[int, int, int, int]) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError):
        raise ValueError(message("box", box, "is not (x0, y0, x1, y1)")) from None
    left, top, right, bottom = within
    slack = 1e-6 * max(within)
    if not (left - slack <= x0 <= x1 <= right + slack and top - slack <= y0 <= y1 <= bottom + slack):
        raise ValueError(message("box", box, f"is not within {within}, which the view shows"))
    return x0, y0, x1, y1


# --- Making the report -------------------------------------------------------------------------------------------


class Options:
    """The options of one call to the image or video processor: its keywords over the processor's own values."""

    def __init__(self, part: Any, given: Mapping[str, Any]):
        self.part = part
        self.given = {key: value for key, value in given.items() if value is not None}
        tower = getattr(part, "tower_processor", None) or {}
        self.tower = {name: tower[name] for name in NORMALISING if name in tower}

    def __getitem__(self, name: str) -> Any:
        if name in self.tower:  # how the tower's own processor normalises
            return self.tower[name]
        return self.given.get(name, getattr(self.part, name))

    def unpack(self, rows: torch.Tensor, grid: tuple[int, int, int]) -> np.ndarray:
        """Rows of pixel values back as frames, see `unpack_rows`."""
        samples = rows.dtype == torch.uint8  # which the encoder normalises
        normalised = self["do_normalize"] and not samples
        return unpack_rows(
            rows.numpy(),
            grid,
            patch_size=self["patch_size"],
            merge_size=self["merge_size"],
            scale=self["rescale_factor"] if self["do_rescale"] and not samples else 1.0,
            mean=self["image_mean"] if normalised else 0.0,
            std=self["image_std"] if normalised else 1.0,
        )


def explain(processor: ArlowProcessor, conversation: Any, **kwargs: Any) -> Report:
    """Process a conversation (or a batch) and describe the result; `kwargs` as for `apply_chat_template`."""
    given = {**(kwargs.get("processor_kwargs") or {}), **kwargs}
    options = processor._options({key: given[key] for key in processor._keywords() if key in given})
    for_images = Options(processor.image_processor, options["images_kwargs"])
    for_videos = Options(processor.video_processor, options["videos_kwargs"])
    pictures: list[Picture] = []
    loading = {name: for_images[name] for name in ("input_data_format", "value_range")}
    loading["convert_rgb"] = for_images["do_convert_rgb"]
    chats, _ = split_batch(conversation)
    chats = [_with_pictures(processor, chat, row, pictures, loading) for row, chat in enumerate(chats)]
    if not no_media(given.get("images")):
        pictures = flatten_pictures(given["images"], policy=processor.policy, **loading)
    for key in ("tokenize", "return_dict", "return_tensors", "return_metadata", "padding"):
        kwargs.pop(key, None)
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", return_metadata=True, padding=True, **kwargs
    )
    metadata = inputs.pop("video_metadata", [])
    found = {"image": _images(pictures, inputs, for_images), "video": _videos(metadata, inputs, for_videos)}
    kinds = [(kind, row) for row, chat in enumerate(chats) for kind in _kinds(chat)]
    media = tuple(Medium(kind=kind, row=row, **next(found[kind])) for kind, row in kinds)
    return Report(media, tuple(_rows(processor, inputs, for_images)), inputs)


def _kinds(chat: Sequence[Mapping]) -> Iterator[str]:
    for item in chat:
        if not isinstance(item.get("content", ""), str):
            yield from (part["type"] for part in item["content"] if part["type"] != "text")


def _with_pictures(
    processor: ArlowProcessor, chat: Any, row: int, pictures: list[Picture], loading: dict[str, Any]
) -> list[dict[str, Any]]:
    """A checked copy of the messages with every image loaded; the pictures are appended to `pictures`."""
    messages = check_conversation(chat, name=f"conversation[{row}]", roles=None)
    for item in messages:
        if isinstance(item.get("content", ""), str):
            continue
        for at, part in enumerate(item["content"]):
            sources = [value for key, value in part.items() if key != "type"]
            if part["type"] == "image" and sources:
                name = f"images[{len(pictures)}]"
                pictures.append(load_picture(sources[0], policy=processor.policy, name=name, **loading))
                item["content"][at] = {"type": "image", "image": pictures[-1]}
    return messages


def _images(pictures: list[Picture], inputs: Mapping[str, Any], options: Options) -> Iterator[dict[str, Any]]:
    """The fields of each image's `Medium`."""
    merge, start, at = options["merge_size"], 0, 0
    grids = inputs["image_grid_thw"].tolist() if pictures else []
    for picture in pictures:
        views = []
        for (top, left, height, width), _, _ in options.part.plan(picture.height, picture.width, **options.given):
            _, h, w = grids[at]
            rows = inputs["pixel_values"][start : start + h * w]
            frames = options.unpack(rows, (1, h, w))
            x0, y0, x1, y1 = options.part.seen(height, width)
            box = (left + x0, top + y0, left + x1, top + y1)
            grid = h // merge, w // merge
            kept = _kept({"image_grid_thw": [[1, h, w]], "pixel_values": rows}, options)
            views.append(View(box, (h, w), grid, frames, kept=None if kept is None else kept.view(grid).numpy()))
            start, at = start + h * w, at + 1
        yield {"original_size": (picture.height, picture.width), "views": tuple(views), "source": picture.source}


def _videos(metadata: Sequence[Any], inputs: Mapping[str, Any], options: Options) -> Iterator[dict[str, Any]]:
    """The fields of each video's `Medium`."""
    merge, T, start = options["merge_size"], options["temporal_patch_size"], 0
    grids = inputs["video_grid_thw"].tolist() if metadata else []
    for facts, (groups, h, w) in zip(metadata, grids, strict=True):
        frames = options.unpack(inputs["pixel_values_videos"][start : start + groups * h * w], (groups, h, w))
        start += groups * h * w
        times = facts.group_timestamps or [None] * groups
        box = options.part.seen(facts.height, facts.width)
        yield {
            "original_size": (facts.height, facts.width),
            "views": tuple(
                View(box, (h, w), (h // merge, w // merge), frames[group * T : (group + 1) * T], times[group])
                for group in range(groups)
            ),
            "fps": facts.fps,
            "total_frames": facts.total_num_frames,
            "frames_indices": tuple(facts.frames_indices),
        }


def unpack_rows(
    rows: np.ndarray,
    grid: tuple[int, int, int],
    *,
    patch_size: int,
    merge_size: int,
    scale: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> np.ndarray:
    """Rows of pixel values (G*h*w, C*T*P*P) as frames (G*T, h*P, w*P, C) uint8: packing and normalising undone."""
    groups, h, w = grid
    P, M, C = patch_size, merge_size, 3
    T = rows.shape[1] // (C * P * P)
    values = rows.reshape(groups, h // M, w // M, M, M, C, T, P, P)
    values = values.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)  # (G, T, h/M, M, P, w/M, M, P, C)
    values = values.reshape(groups * T, h * P, w * P, C)
    samples = (values * np.asarray(std, np.float32) + np.asarray(mean, np.float32)) / scale
    return np.clip(np.rint(samples), 0, 255).astype(np.uint8)


def _kept(inputs: Mapping[str, Any], options: Options) -> torch.Tensor | None:
    """Which tokens of all images the decoder gets; None: all, or there are no images."""
    ratio, grids = options["token_pruning_ratio"], inputs.get("image_grid_thw")
    if not ratio or grids is None:
        return None
    layout = {"merge": options["merge_size"], "channels": 3, "ratio": ratio, "std": options["image_std"]}
    return kept_tokens(inputs["pixel_values"], np.asarray(grids).tolist(), **layout)


def _rows(processor: ArlowProcessor, inputs: Mapping[str, Any], options: Options) -> Iterator[Row]:
    positions, _ = get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        spatial_merge_size=options["merge_size"],
        image_token_mask=_kept(inputs, options),
    )
    for row, real in enumerate(inputs["attention_mask"].bool()):
        ids = inputs["input_ids"][row][real]
        yield Row(
            prompt=processor.tokenizer.decode(ids),
            short_prompt=_short_prompt(processor.tokenizer, ids.tolist()),
            input_ids=ids.numpy(),
            mm_token_type_ids=inputs["mm_token_type_ids"][row][real].numpy(),
            positions=positions[:, row, real].numpy(),
        )


def _short_prompt(tokenizer: Any, ids: list[int]) -> str:
    """The prompt with runs of placeholders counted and typed control tokens behind a backslash."""
    media = {tokenizer.image_token_id, tokenizer.video_token_id}
    control = set(tokenizer.all_special_ids)
    typed = any_of(tuple(tokenizer.all_special_tokens))
    pieces = []
    for (written, placeholder), group in itertools.groupby(ids, lambda x: (x in control, x if x in media else None)):
        run = list(group)
        text = tokenizer.decode(run if placeholder is None else placeholder)
        if placeholder is not None:
            text += f"x{len(run)}"
        pieces.append(text if written else typed.sub(r"\\\g<0>", text))
    return "".join(pieces)


# --- Telling it --------------------------------------------------------------------------------------------------


def headline(report: Report) -> str:
    """How much there is of everything."""
    counts = {
        "row": len(report.rows),
        "image": len(report.images),
        "video": len(report.videos),
        "token": sum(len(row.input_ids) for row in report.rows),
    }
    return ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())


def describe(medium: Medium, index: int) -> list[str]:
    """A medium in a few lines of text."""
    height, width = medium.original_size
    name = f"{medium.kind} {index} (row {medium.row})"
    head = f"{name}: {width} x {height} pixels (width x height), {medium.tokens} tokens"
    if medium.kind == "image":
        return [head, *(f"  {line}" for line in map(describe_view, medium.views))]
    rate = "no frame rate" if medium.fps is None else f"{medium.fps:g} frames per second"
    taken = shortened(medium.frames_indices)
    times = (
        "no times" if medium.timestamps is None else "at " + shortened([f"{time:.1f} s" for time in medium.timestamps])
    )
    return [
        head,
        f"  {medium.total_frames} frames, {rate}; {len(medium.frames_indices)} taken: {taken}",
        f"  {len(medium.views)} frame groups {times}",
        f"  each {describe_view(medium.views[0])}",
    ]


def describe_view(view: View) -> str:
    height, width = view.size
    rows, columns = view.merged_grid
    size = f"{width} x {height} pixels, {view.grid[0]} x {view.grid[1]} patches"
    return f"box {view.box} -> {size}, {rows} x {columns} = {view.tokens} tokens"


def describe_row(row: Row, index: int) -> list[str]:
    """A row: its prompt, ids, and the runs of its tokens with their positions."""
    lines = [f"row {index}: {len(row.input_ids)} tokens", "  prompt:"]
    lines += [f"    {line}" for line in row.short_prompt.splitlines()]
    lines += [f"  ids: {shortened(row.input_ids.tolist())}", "  tokens and positions (t, h, w):"]
    for kind, start, end in row.segments():
        axes = ", ".join(f"{axis.min()}..{axis.max()}" for axis in row.positions[:, start:end])
        lines.append(f"    {start:>6}..{end - 1:<6} {kind:<5} ({axes})")
    return lines


def shortened(items: Sequence[Any], keep: int = 12) -> str:
    """The items in one line, the middle left out where there are many."""
    if len(items) <= keep:
        return ", ".join(map(str, items))
    return ", ".join([*map(str, items[: keep - 2]), "...", *map(str, items[-2:])])


# --- Drawing it --------------------------------------------------------------------------------------------------

INK, FAINT, PAPER = (28, 32, 40), (110, 118, 130), (250, 250, 248)
COLOURS = {"text": (170, 178, 190), "image": (66, 133, 214), "video": (224, 122, 48)}
SHEET_WIDTH = 1200  # pixels
MARGIN = 28
TILE = {"image": 540, "video": 270}  # pixels, longest side of a drawn picture or frame
MAX_VIEWS = 12  # of one medium
MAX_ZOOM = 4.0
MAX_LINES = 10  # of a prompt


class Sheet:
    """Draws downwards on a page that grows."""

    def __init__(self) -> None:
        self.page = Image.new("RGB", (SHEET_WIDTH, 4000), PAPER)
        self.draw = ImageDraw.Draw(self.page)
        self.y = MARGIN
        self.fonts = {size: ImageFont.load_default(size) for size in (13, 15, 22)}

    def reserve(self, height: float) -> None:
        """Make the page long enough for `height` more pixels."""
        need = int(self.y + height + MARGIN)
        if need > self.page.height:
            longer = Image.new("RGB", (SHEET_WIDTH, max(need, 2 * self.page.height)), PAPER)
            longer.paste(self.page)
            self.page, self.draw = longer, ImageDraw.Draw(longer)

    def line(self, text: str, *, size: int = 13, colour: tuple = INK, x: float = MARGIN) -> None:
        self.reserve(size + 8)
        self.draw.text((x, self.y), text, font=self.fonts[size], fill=colour)
        self.y += size + 7

    def finished(self) -> Image.Image:
        return self.page.crop((0, 0, SHEET_WIDTH, int(self.y) + MARGIN))


def draw_sheet(report: Report) -> Image.Image:
    """The whole report as one picture."""
    sheet = Sheet()
    sheet.line(f"What the model sees: {headline(report)}", size=22)
    sheet.y += 8
    numbers = {"image": itertools.count(), "video": itertools.count()}
    for medium in report.media:
        draw_medium(sheet, medium, next(numbers[medium.kind]))
    for index, row in enumerate(report.rows):
        draw_row(sheet, row, index)
    return sheet.finished()


def draw_medium(sheet: Sheet, medium: Medium, index: int) -> None:
    """A heading and the views, left to right, in as many lines as they need."""
    lines = describe(medium, index)
    sheet.line(lines[0], size=15, colour=COLOURS[medium.kind])
    for line in lines[1:]:
        sheet.line(line.strip(), colour=FAINT)
    sheet.y += 4
    x, line_height = MARGIN, 0
    longest = max(max(view.size) for view in medium.views)
    zoom = min(MAX_ZOOM, TILE[medium.kind] / longest)  # one scale for all views of a medium
    for number, view in enumerate(medium.views[:MAX_VIEWS]):
        tile = draw_view(view, zoom)
        if x > MARGIN and x + tile.width > SHEET_WIDTH - MARGIN:
            x, line_height = MARGIN, 0
            sheet.y += tile.height + 30
        sheet.reserve(tile.height + 30)
        sheet.page.paste(tile, (x, int(sheet.y)))
        sheet.draw.text((x, sheet.y + tile.height + 4), caption(medium, number), font=sheet.fonts[13], fill=INK)
        line_height = max(line_height, tile.height)
        x += max(tile.width, 150) + 16
    sheet.y += line_height + 30
    if len(medium.views) > MAX_VIEWS:
        sheet.line(f"and {len(medium.views) - MAX_VIEWS} more", colour=FAINT)
    sheet.y += 14


def caption(medium: Medium, number: int) -> str:
    view = medium.views[number]
    size = f"{view.size[1]} x {view.size[0]}, {view.tokens} tokens"
    if medium.kind == "image":
        return f"{'whole' if number == 0 else f'crop {number}'}: {size}"
    time = "" if view.time is None else f" at {view.time:.1f} s"
    return f"group {number}{time}: {view.tokens} tokens"


def draw_view(view: View, zoom: float) -> Image.Image:
    """The frames of a view side by side, the token grid over the first."""
    height, width = (round(side * zoom) for side in view.size)
    gap = 3
    tile = Image.new("RGB", (len(view.frames) * (width + gap) - gap, height), PAPER)
    for at, frame in enumerate(view.frames):
        tile.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC), (at * (width + gap), 0))
    layer = Image.new("RGBA", tile.size)
    draw = ImageDraw.Draw(layer)
    rows, columns = view.merged_grid
    for step in range(columns + 1):
        x = min(width - 1, round(step * width / columns))
        draw.line((x, 0, x, height), fill=(255, 255, 255, 130))
    for step in range(rows + 1):
        y = min(height - 1, round(step * height / rows))
        draw.line((0, y, width - 1, y), fill=(255, 255, 255, 130))
    if view.kept is not None:
        for row, column in np.argwhere(~view.kept):
            left, right = (round(at * width / columns) for at in (column, column + 1))
            top, bottom = (round(at * height / rows) for at in (row, row + 1))
            draw.rectangle((left, top, right, bottom), fill=(255, 255, 255, 190))  # faded: the decoder lacks it
    draw.rectangle((0, 0, width - 1, height - 1), outline=(0, 0, 0, 160))
    return Image.alpha_composite(tile.convert("RGBA"), layer).convert("RGB")


def draw_row(sheet: Sheet, row: Row, index: int) -> None:
    """The tokens of a row as one bar coloured by type, and the start of its prompt."""
    sheet.line(f"row {index}: {len(row.input_ids)} tokens", size=15)
    bar, total = SHEET_WIDTH - 2 * MARGIN, len(row.input_ids)
    sheet.reserve(60)
    for kind, start, end in row.segments():
        left, right = MARGIN + bar * start / total, MARGIN + bar * end / total
        sheet.draw.rectangle((left, sheet.y, right - 1, sheet.y + 20), fill=COLOURS[kind])
        label = f"{end - start} {kind}"
        if sheet.draw.textlength(label, font=sheet.fonts[13]) + 6 < right - left:
            sheet.draw.text(
                (left + 4, sheet.y + 3), label, font=sheet.fonts[13], fill=PAPER if kind != "text" else INK
            )
    sheet.y += 30
    lines = [part for line in row.short_prompt.splitlines() for part in textwrap.wrap(line, 150) or [""]]
    for line in lines[:MAX_LINES]:
        sheet.line(line, colour=FAINT)
    if len(lines) > MAX_LINES:
        sheet.line(f"... {len(lines) - MAX_LINES} more lines", colour=FAINT)
    sheet.y += 14
