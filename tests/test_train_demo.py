"""examples/train_demo.py on a handful of made-up pictures: data, kill and resume, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chipmunk_kernels.demo.model import load_model

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "train_demo.py"

# The tensors are tiny: torch's threads would wait for each other most of the time.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

RECORDS: list[dict[str, Any]] = [
    {
        "name": "RED APPLE",
        "short_names": ["apple"],
        "unified": "1F34E",
        "category": "Food & Drink",
        "subcategory": "food-fruit",
    },
    {
        "name": "THUMBS UP SIGN",
        "short_names": ["+1", "thumbsup"],
        "unified": "1F44D",
        "category": "People & Body",
        "subcategory": "hand",
        "skin_variations": {
            "1F3FB": {"unified": "1F44D-1F3FB"},
            "1F3FE": {"unified": "1F44D-1F3FE"},
        },
    },
    {
        "name": None,
        "short_names": ["heart"],
        "unified": "2764-FE0F",
        "category": "Symbols",
        "subcategory": "heart",
    },
    {
        "name": "Egypt Flag",
        "short_names": ["flag-eg"],
        "unified": "1F1EA",
        "category": "Flags",
        "subcategory": "country-flag",
    },
]
STEMS = ["1f34e", "1f44d", "1f44d-1f3fb", "1f44d-1f3fe", "2764", "1f1ea"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of both packages: pictures with a half transparent edge, names."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "emoji.json").write_text(json.dumps(RECORDS))
    for number, stem in enumerate(STEMS):
        rgba = np.zeros((32, 32, 4), dtype=np.uint8)
        rgba[8:24, 8:24] = (200, 40 * number, 0, 255)
        rgba[0:2, 0:2] = (0, 0, 0, 128)
        Image.fromarray(rgba).save(folder / f"{stem}.webp", lossless=True, exact=True)
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    options = ["--data", str(data), "--out", str(out), "--steps", "60", "--stages", "8:4:1,16:4:1"]
    options += ["--width", "32", "--depth", "1", "--heads", "2", "--workers", "1", "--no-compile"]
    options += ["--sample-steps", "1", "--checkpoint-every", "0.05"]
    return [sys.executable, str(SCRIPT), *options, *more]


def train(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = command(data, out, *more)
    return subprocess.run(words, capture_output=True, text=True, check=False, env=ONE_THREAD)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_model(out / "weights.safetensors")[0].state_dict()


def load_pictures(paths: list[Path]) -> dict[str, Any]:
    """What demo_data.load makes of `paths`, from a process of its own: the script's folder holds
    modules that must not hide others here."""
    program = (
        "import json, sys, pathlib\n"
        f"sys.path[:0] = [{str(ROOT / 'python' / 'chipmunk_kernels')!r}, {str(SCRIPT.parent)!r}]\n"
        "import demo_data\n"
        "found = demo_data.load([pathlib.Path(p) for p in sys.argv[1:]], 16, None, 1)\n"
        "entries = [[e.stem, e.name, e.category, e.weight] for e in found.entries]\n"
        "print(json.dumps({'entries': entries, 'corner': found.pixels[0, 0, 0].tolist(),\n"
        "    'middle': found.pixels[0, 8, 8].tolist(), 'shape': found.pixels.shape}))\n"
    )
    arguments = [sys.executable, "-c", program, *map(str, paths)]
    done = subprocess.run(arguments, capture_output=True, check=True, env=ONE_THREAD)
    return json.loads(done.stdout)


def test_pictures_lie_on_white_with_words_and_weights(data: Path, tmp_path: Path) -> None:
    found = load_pictures([data])
    assert found["shape"] == [5, 16, 16, 3]
    assert found["middle"] == [200, 0, 0]
    assert found["corner"] == [127, 127, 127]  # half transparent black on white
    assert found["entries"] == [
        ["1f34e", ["red", "apple"], ["food", "fruit", "drink"], 1.0],
        ["1f44d", ["thumbs", "up", "sign", "1", "thumbsup"], ["hand", "people", "body"], 1.0],
        [
            "1f44d-1f3fb",
            ["thumbs", "up", "sign", "1", "thumbsup", "light", "skin", "tone"],
            ["hand", "people", "body"],
            0.5,
        ],
        [
            "1f44d-1f3fe",
            ["thumbs", "up", "sign", "1", "thumbsup", "medium", "dark", "skin", "tone"],
            ["hand", "people", "body"],
            0.5,
        ],
        ["2764", ["heart"], ["symbols"], 1.0],
    ]
    packed = tmp_path / "pictures.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        for path in sorted(data.glob("*.webp")):
            archive.add(path, f"package/assets/{path.name}")
    names = tmp_path / "names"
    names.mkdir()
    (data / "emoji.json").rename(names / "emoji.json")
    assert load_pictures([packed, names])["entries"] == found["entries"]


def test_a_killed_run_continues_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = train(data, whole)
    assert done.returncode == 0, done.stderr
    assert "60 steps in" in done.stdout
    process = subprocess.Popen(
        command(data, cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD
    )
    while not (cut / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(cut / "checkpoint.pt", weights_only=True)["step"]
    done = train(data, cut)
    assert done.returncode == 0, done.stderr
    assert f"continuing at step {step}," in done.stdout
    expected = weights(whole)
    for name, tensor in weights(cut).items():
        assert torch.equal(tensor, expected[name]), name
    with Image.open(cut / "weights.png") as grid:
        assert grid.height == 16

    done = train(data, cut, "--seed", "1")
    assert done.returncode == 1
    assert "expected a checkpoint of this run" in done.stderr
    assert "give another --out or --fresh" in done.stderr


def test_missing_data_is_named(tmp_path: Path) -> None:
    done = train(tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 1
    assert "--data: expected a folder or .tgz, got" in done.stderr
