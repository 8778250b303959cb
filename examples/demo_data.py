"""Pictures and captions for train_demo.py: Fluent emoji in 3D with names from emoji-datasource.

Both are npm packages under the MIT licence. They come as unpacked folders, as the .tgz that
`npm pack` writes, or are fetched with `npm pack` when nothing is given. The category Flags is left
out, since its pictures have another origin.
"""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo.words import PAD, Vocabulary, split_words
from PIL import Image
from torch import Tensor

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "emoji-datasource-google@16.0.0"
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture: file stem, words of its name, words of its category, sampling weight."""

    stem: str
    name: tuple[str, ...]
    category: tuple[str, ...]
    weight: float


@dataclasses.dataclass(frozen=True)
class DataSet:
    """pixels uint8 ``[n, size, size, 3]`` on white, with one entry each."""

    pixels: np.ndarray
    entries: list[Entry]


class _Source:
    """Files of a folder or a .tgz by name; the .tgz is read once, keeping what `wanted` accepts."""

    def __init__(self, path: Path, wanted: Callable[[str], bool]) -> None:
        self.files: dict[str, Callable[[], bytes]] = {}
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if wanted(file.name):
                    self.files[file.name] = file.read_bytes
        elif path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                for member in archive:
                    name = Path(member.name).name
                    stream = archive.extractfile(member) if wanted(name) else None
                    if stream is not None:
                        self.files[name] = _held(stream.read())
        else:
            raise FileNotFoundError(f"train_demo: --data: expected a folder or .tgz, got {path}")


def _held(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def fetch(folder: Path) -> list[Path]:
    """Downloads both packages into `folder` with `npm pack` unless they are there.

    A download that is cut off leaves nothing that a later one would take for whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for package in (PICTURES, NAMES):
        file = folder / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                command = ["npm", "pack", package]
                subprocess.run(command, cwd=unfinished, check=True, capture_output=True)
                (Path(unfinished) / file.name).replace(file)
        paths.append(file)
    return paths


def read_entries(records: list[dict], stems: set[str]) -> list[Entry]:
    """Entries for the records of emoji.json (skin variants included) whose picture is in `stems`.

    Variants of one emoji together weigh about as much as one other emoji: they are half of all
    pictures and nearly alike.
    """
    entries: list[Entry] = []
    for record in records:
        if record["category"] == "Flags":
            continue
        names = split_words(" ".join([record["name"] or "", *record["short_names"]]))
        category = split_words(f"{record['subcategory']} {record['category']}")
        category = [word for word in category if word not in names]
        variants = record.get("skin_variations", {})
        pictures = [(record["unified"], "", 1.0)]
        pictures += [(v["unified"], key, 1 / len(variants)) for key, v in variants.items()]
        for code, tone_key, weight in pictures:
            stem = _find(code, stems)
            if stem is None:
                continue
            tones = [TONES[part] for part in tone_key.split("-") if part]
            words = split_words(" ".join(tones) + (" skin tone" if tones else ""))
            name = [*names[:6], *(word for word in words if word not in names)]
            entries.append(Entry(stem, tuple(name), tuple(category), weight))
    return entries


def _find(code: str, stems: set[str]) -> str | None:
    code = code.lower()
    return next((s for s in (code, code.replace("-fe0f", ""), f"{code}-fe0f") if s in stems), None)


def load(paths: Sequence[Path], size: int, limit: int | None, workers: int) -> DataSet:
    """Decodes the pictures to `size` pixels a side. `limit` takes evenly spaced entries only."""

    def wanted(name: str) -> bool:
        return name.endswith(".webp") or name == "emoji.json"

    files: dict[str, Callable[[], bytes]] = {}
    for path in paths:
        files.update(_Source(path, wanted).files)
    if "emoji.json" not in files:
        raise FileNotFoundError("train_demo: --data: expected emoji.json in one of the paths")
    stems = {name[: -len(".webp")] for name in files if name.endswith(".webp")}
    entries = read_entries(json.loads(files["emoji.json"]()), stems)
    if not entries:
        raise FileNotFoundError("train_demo: --data: expected .webp pictures, found none")
    if limit is not None and limit < len(entries):
        entries = [entries[i * len(entries) // limit] for i in range(limit)]

    def decode(entry: Entry) -> np.ndarray:
        with Image.open(io.BytesIO(files[entry.stem + ".webp"]())) as picture:
            rgba = picture.convert("RGBA")
        whole = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        whole.alpha_composite(rgba)
        small = whole.convert("RGB").resize((size, size), Image.Resampling.BOX)
        return np.asarray(small)

    with ThreadPoolExecutor(workers) as pool:
        pixels = np.stack(list(pool.map(decode, entries)))
    return DataSet(pixels, entries)


class Captions:
    """Word ids of all pictures on the device, and the random thinning of a batch of them."""

    def __init__(self, entries: list[Entry], slots: int, device: str) -> None:
        words = sorted({word for e in entries for word in (*e.name, *e.category)})
        self.vocabulary = Vocabulary(words)
        self.slots = slots
        ids = [self.vocabulary.ids([*e.name, *e.category], slots) for e in entries]
        self.ids = torch.tensor(ids, device=device)
        slot = torch.arange(slots, device=device)
        names = torch.tensor([len(e.name) for e in entries], device=device)
        self.is_category = slot >= names[:, None]

    def batch(self, index: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
        """Words ``[B, L]``: with `dropout` none at all, else without the category in 3 of 10
        cases and each further word dropped in 1 of 10, so that short prompts work."""
        draw = torch.rand(len(index), self.slots + 2, device=self.ids.device, generator=generator)
        keep = (draw[:, :1] >= dropout) & (draw[:, 2:] >= 0.1)
        keep &= ~self.is_category[index] | (draw[:, 1:2] >= 0.3)
        return torch.where(keep, self.ids[index], PAD)


def shrink(pixels: Tensor, resolution: int) -> Tensor:
    """Bytes ``[n, 3, S, S]`` averaged to ``[n, 3, resolution, resolution]``."""
    if pixels.shape[-1] == resolution:
        return pixels
    chunks = [
        F.interpolate(c.float(), (resolution, resolution), mode="area").round().byte()
        for c in pixels.split(256)
    ]
    return torch.cat(chunks)
