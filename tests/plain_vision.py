"""The vision encoder once more: one item, one head, one pair of tokens at a time, in float64."""

from __future__ import annotations

import math
from itertools import product

import torch

from arlow import ArlowVLVisionModel


class Plain:
    """One image or video through the weights of `model`."""

    def __init__(self, model: ArlowVLVisionModel) -> None:
        self.config = model.config
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def __call__(self, rows: torch.Tensor, grid: tuple[int, int, int]):
        """Rows of any width -> patches (N, E), merged tokens (M, W), merged taps."""
        config, places = self.config, self.places(grid)
        x = torch.stack([self.embed(row.double()) for row in rows])
        if config.use_progressive_patches:
            x = x + self.linear("progressive_proj", self.coarse(x, places, grid))
        if config.use_absolute_positions:
            x = x + torch.stack([self.told(place, grid) for place in places])
        taps = []
        for i in range(config.depth):
            name = f"blocks.{i}"
            x = x + self.attention(f"{name}.attn", self.norm(f"{name}.norm1", x), places, grid)
            hidden = self.gelu_tanh(self.linear(f"{name}.fc1", self.norm(f"{name}.norm2", x)))
            x = x + self.linear(f"{name}.fc2", hidden)
            if i in config.deepstack_visual_indexes:
                taps.append(self.merge(f"deepstack_mergers.{len(taps)}", x))
        return x, self.merge("merger", x), taps

    def places(self, grid):
        """(t, row, column) of each patch in packed order: frame by frame, block by block."""
        t, h, w = grid
        m = self.config.spatial_merge_size
        return [
            (f, by * m + y, bx * m + x)
            for f, by, bx, y, x in product(range(t), range(h // m), range(w // m), range(m), range(m))
        ]

    def embed(self, row):
        """The convolution, for the one place where its kernel fits."""
        kernel = self.weights["patch_embed.proj.weight"]
        channels, frames, side = kernel.shape[1], kernel.shape[2], kernel.shape[3]
        if row.numel() == channels * side * side and frames > 1:
            row = row.view(channels, 1, side, side).expand(-1, frames, -1, -1)
        return torch.nn.functional.conv3d(row.reshape(1, channels, frames, side, side), kernel).flatten()

    def told(self, place, grid):
        """Waves over the frame, of a quarter of one up to four: down and across, their sines, then their cosines."""
        count = self.config.embed_dim // 4
        turns = [
            (place[axis] + 0.5) / grid[axis] * 2 ** (4 * k / (count - 1) - 2) for axis in (1, 2) for k in range(count)
        ]
        waves = [wave(2 * math.pi * turn) for wave in (math.sin, math.cos) for turn in turns]
        return torch.tensor(waves + [0.0] * (self.config.embed_dim % 4), dtype=torch.float64)

    def coarse(self, x, places, grid):
        """Means of 2x2 patches, and between the centres of those a straight line along each axis."""
        t, h, w = grid
        at = {place: x[i] for i, place in enumerate(places)}
        rows, columns = math.ceil(h / 2), math.ceil(w / 2)

        def mean(f, y, x):
            inside = [at[f, a, b] for a in (2 * y, 2 * y + 1) for b in (2 * x, 2 * x + 1) if a < h and b < w]
            return sum(inside) / len(inside)

        small = {(f, y, x): mean(f, y, x) for f in range(t) for y in range(rows) for x in range(columns)}

        def between(position, big, little):
            source = max((position + 0.5) * little / big - 0.5, 0.0)
            low = int(source)
            return ((low, 1 - (source - low)), (min(low + 1, little - 1), source - low))

        return torch.stack(
            [
                sum(
                    wy * wx * small[f, sy, sx]
                    for (sy, wy), (sx, wx) in product(between(y, h, rows), between(x, w, columns))
                )
                for f, y, x in places
            ]
        )

    def attention(self, name, x, places, grid):
        config, n = self.config, len(places)
        query, key, value = self.linear(f"{name}.qkv", x).view(n, 3, config.num_heads, -1).unbind(1)
        output = torch.zeros_like(query)
        for head in range(config.num_heads):
            turned_query = torch.stack([self.turn(query[i, head], places[i]) for i in range(n)])
            turned_key = torch.stack([self.turn(key[i, head], places[i]) for i in range(n)])
            for i in range(n):
                seen = [j for j in range(n) if self.together(places[i], places[j])]
                scores = [
                    turned_query[i] @ turned_key[j] / math.sqrt(config.head_dim)
                    + self.bias(places[i], places[j], grid)
                    for j in seen
                ]
                output[i, head] = torch.stack(scores).softmax(0) @ value[seen, head]
        return self.linear(f"{name}.proj", output.flatten(1))

    def together(self, a, b):
        size = self.config.temporal_window_size
        return size is None or a[0] // size == b[0] // size

    def bias(self, a, b, grid):
        config = self.config
        if not config.use_deformable_attention:
            return 0.0
        scale = [1 / (side - 1) if side > 1 else 0.0 for side in grid]
        distance = math.sqrt(sum(((p - q) * s) ** 2 for p, q, s in zip(a, b, scale, strict=True)))
        beyond = distance > config.deformable_attention_window + 1e-9
        return -config.deformable_attention_strength * (distance + (100.0 if beyond else 0.0))

    def turn(self, x, place):
        """Pairs (i, i + half) as complex numbers, turned by position * theta^(-i/half)."""
        half = len(x) // 2
        third = 2 * half // 3
        sections = self.config.mrope_sections or [2 * half - 2 * third, third, third]
        out = x.clone()
        for i in range(half):
            axis = next((a for a in (1, 2) if i % 3 == a and i < 3 * sections[a]), 0)
            angle = place[axis] * self.config.rope_theta ** (-i / half)
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    def merge(self, name, x):
        x = self.norm(f"{name}.ln_q", x.reshape(-1, x.shape[-1] * self.config.spatial_merge_size**2))
        x = self.linear(f"{name}.mlp.0", x)
        return self.linear(f"{name}.mlp.2", x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    @staticmethod
    def gelu_tanh(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
