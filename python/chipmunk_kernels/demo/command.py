"""The command `python -m chipmunk_kernels demo`."""

from __future__ import annotations

import argparse
import math
import os
import platform
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

import chipmunk_kernels as ck

from . import flow, report
from .model import DiffusionTransformer, load_model
from .sample import Sampler, Settings, draw_all
from .words import Vocabulary

DEFAULT_PROMPTS = ("hamburger",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's options."""
    parser.add_argument(
        "--prompt",
        action="append",
        help=f"what to draw, repeatable; default: {', '.join(DEFAULT_PROMPTS)}",
    )
    parser.add_argument("--steps", type=int, default=20, help="denoising steps, default 20")
    parser.add_argument(
        "--columns", type=float, default=0.1, help="share of the keys kept per query group"
    )
    parser.add_argument(
        "--units", type=float, default=0.3, help="share of the hidden units recomputed"
    )
    parser.add_argument("--full-every", type=int, default=5, help="every so many steps is full")
    parser.add_argument("--dense-layers", type=int, default=0, help="first layers kept dense")
    parser.add_argument("--guidance", type=float, default=2.5, help="1 is without guidance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", type=int, help="pixels a side; default: as trained, 128")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..")
    parser.add_argument("--out", type=Path, default=Path("chipmunk_demo"), help="output folder")
    parser.add_argument("--no-controls", action="store_true", help="dense and column-sparse only")
    parser.add_argument("--weights", type=Path, help="other weights, from examples/train_demo.py")


class OptionError(ValueError):
    """An option that cannot be served, in the words of the command line."""


def check(arguments: argparse.Namespace) -> None:
    """Raises OptionError "demo: --option: expected .., got .." for a value out of range."""
    a = arguments
    limits = (
        ("--steps", a.steps, a.steps >= 2, "at least 2"),
        ("--columns", a.columns, 0 < a.columns <= 1, "more than 0 and at most 1"),
        ("--units", a.units, 0 < a.units <= 1, "more than 0 and at most 1"),
        ("--full-every", a.full_every, a.full_every >= 1, "at least 1"),
        ("--dense-layers", a.dense_layers, a.dense_layers >= 0, "at least 0"),
        ("--guidance", a.guidance, math.isfinite(a.guidance), "a finite number"),
        ("--seed", a.seed, 0 <= a.seed < 2**62, "0 to 2^62"),
        (
            "--resolution",
            a.resolution,
            a.resolution is None or (16 <= a.resolution <= 512 and a.resolution % 2 == 0),
            "an even number from 16 to 512",
        ),
    )
    for option, value, fine, expected in limits:
        if not fine:
            raise OptionError(f"demo: {option}: expected {expected}, got {value}")
    if a.weights is not None and not a.weights.is_file():
        raise OptionError(f"demo: --weights: expected a file, got {a.weights}")
    if a.out.exists() and not a.out.is_dir():
        raise OptionError(f"demo: --out: expected a folder, got the file {a.out}")


def pick_device(name: str) -> torch.device:
    """The device of this name. Raises OptionError for one that is unknown or not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"demo: --device: expected cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"demo: --device: expected cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"demo: --device: expected one of {torch.cuda.device_count()} CUDA devices, "
            f"got {name!r}"
        )
    return device


def make_folder(out: Path) -> None:
    """Makes the output folder now rather than after minutes of drawing. Raises OptionError where
    nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise OptionError(f"demo: --out: expected a folder that can be written, got {out}")


def load(
    weights: Path | None, device: torch.device
) -> tuple[DiffusionTransformer, Vocabulary, int]:
    """Model, vocabulary and trained resolution. Raises OptionError for a file of another kind."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        return load_model(weights, device=device, dtype=dtype)
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        if weights is None:
            raise
        raise OptionError(
            f"demo: --weights: expected a file from examples/train_demo.py, got {weights} "
            f"({type(error).__name__}: {error})"
        ) from error


def run(arguments: argparse.Namespace) -> None:
    """Draws, prints the table and writes the files. Raises OptionError for bad options."""
    check(arguments)
    device = pick_device(arguments.device)
    model, vocabulary, trained = load(arguments.weights, device)
    prompts = tuple(arguments.prompt or DEFAULT_PROMPTS)
    ids: list[list[int]] = []
    for prompt in prompts:
        try:
            found, remarks = vocabulary.encode_prompt(prompt, model.config.word_slots)
        except ValueError as error:
            raise OptionError(str(error)) from None
        ids.append(found)
        for remark in remarks:
            print(f"note: prompt {prompt!r}: {remark}")
    settings = Settings(
        prompts=prompts,
        steps=arguments.steps,
        columns=arguments.columns,
        units=arguments.units,
        seed=arguments.seed,
        resolution=arguments.resolution or trained,
        guidance=arguments.guidance,
        full_every=arguments.full_every,
        dense_layers=arguments.dense_layers,
        controls=not arguments.no_controls,
    )
    make_folder(arguments.out)
    if settings.resolution != trained:
        print(f"note: the model was trained at {trained} pixels; others look worse")
    facts = machine_facts(device, model.patch_in.weight.dtype)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    words = torch.tensor(ids, device=device)
    _warm_up(model, words)
    with tqdm(total=0, unit="step") as bar:

        def announce(steps: int) -> None:
            bar.total += steps

        def advance(title: str) -> None:
            bar.set_description(title, refresh=False)
            bar.update()

        runs = draw_all(Sampler(model, settings, words, announce=announce, advance=advance))
    path = report.write(arguments.out, settings, runs, facts)
    lines = report.rows(runs)
    print(report.table(lines))
    print(report.legend(lines))
    print(report.CAVEAT)
    print(f"wrote {path} and error_per_step.png, results.json beside it")


def machine_facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Where the numbers come from."""
    info = ck.info()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()}, {info.cpu_isa}, {torch.get_num_threads()} threads"
    return {
        "device": f"{device}, {machine}",
        "dtype": str(dtype).removeprefix("torch."),
        "versions": f"chipmunk_kernels {info.version}, torch {torch.__version__}",
    }


def _warm_up(model: torch.nn.Module, words: torch.Tensor) -> None:
    """One small untimed call: libraries load and thread pools start here."""
    dtype = next(model.parameters()).dtype
    start = flow.noise([0] * len(words), 32, words.device).to(dtype)
    with torch.no_grad():
        model(start, torch.ones(len(words), device=words.device), words)
