"""What the demo hands over: a picture, a plot, a table and the numbers as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure

from . import metrics
from .files import atomic_path
from .sample import Run, Settings

CAVEAT = (
    "This 6.7 M parameter model was trained for nine minutes on emoji. It shows that the kernels\n"
    "compute what they should, and what the cache and the choice of columns are worth. It says\n"
    "nothing about picture quality on FLUX, HunyuanVideo or WAN."
)
_AMPLIFY = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. Quality is against the dense run: the mean over the pictures of each
    one's own figure; None for the dense run itself."""

    key: str
    title: str
    steps: int
    ms_per_step: float
    ms_full_step: float | None
    ms_sparse_step: float | None
    seconds: float
    speed_up: float
    psnr: float | None
    foreground_psnr: float | None
    ssim: float | None
    columns_kept: float | None
    units_kept: float | None
    mass_kept: float | None
    error_per_step: tuple[float, ...] | None
    """Relative error of the state after each step, where the dense run has the same steps."""


def rows(runs: Sequence[Run]) -> list[Row]:
    """A line per run; the first run is the dense one."""
    return [_row(run, runs[0]) for run in runs]


def _row(run: Run, dense: Run) -> Row:
    quality: dict[str, float | None] = {"psnr": None, "foreground_psnr": None, "ssim": None}
    errors = None
    if run is not dense:
        pairs = list(zip(run.pixels, dense.pixels, strict=True))
        quality = {
            "psnr": statistics.fmean(metrics.psnr(a, b) for a, b in pairs),
            "foreground_psnr": statistics.fmean(
                metrics.psnr(a, b, metrics.foreground(b)) for a, b in pairs
            ),
            "ssim": statistics.fmean(metrics.ssim(a, b) for a, b in pairs),
        }
        if run.steps == dense.steps:
            states = zip(run.states, dense.states, strict=True)
            errors = tuple(metrics.relative_error(a, b) for a, b in states)
    return Row(
        key=run.key,
        title=run.title,
        steps=run.steps,
        ms_per_step=run.total_ms / run.steps,
        ms_full_step=run.mean_ms(full=True),
        ms_sparse_step=run.mean_ms(full=False),
        seconds=run.total_ms / 1e3,
        speed_up=dense.total_ms / run.total_ms,
        columns_kept=run.columns_kept,
        units_kept=run.units_kept,
        mass_kept=run.mass_kept,
        error_per_step=errors,
        **quality,
    )


def table(lines: Sequence[Row]) -> str:
    """The lines as text for people."""
    head = ("", "steps", "ms/step", "seconds", "speed-up", "PSNR", "fg PSNR", "SSIM")
    head += ("columns", "units", "mass")
    cells = [
        (
            row.title,
            str(row.steps),
            f"{row.ms_per_step:.0f}",
            f"{row.seconds:.1f}",
            f"{row.speed_up:.2f}x",
            _number(row.psnr, ".1f"),
            _number(row.foreground_psnr, ".1f"),
            _number(row.ssim, ".4f"),
            _number(row.columns_kept, ".1%"),
            _number(row.units_kept, ".1%"),
            _number(row.mass_kept, ".1%"),
        )
        for row in lines
    ]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *cells)
    ]
    text.insert(1, "-" * sum(widths, 2 * (len(widths) - 1)))
    return "\n".join(text)


def legend(lines: Sequence[Row]) -> str:
    """What the table's columns mean, and what one sparse step takes."""
    dense, sparse = lines[0], lines[1]
    text = [
        "PSNR, fg PSNR (pixels that are not white) and SSIM are against the dense pictures.",
        "columns, units: share of keys read and of hidden units recomputed on a sparse step;",
        "mass: share of the softmax weight that the chosen keys held when they were chosen.",
        "'no rest cache' drops the attention's cache only; the MLP keeps its own.",
    ]
    if sparse.ms_full_step is not None and sparse.ms_sparse_step is not None:
        text.append(
            f"A dense step takes {dense.ms_per_step:.0f} ms, a full step of the column-sparse run "
            f"{sparse.ms_full_step:.0f} ms, a sparse one {sparse.ms_sparse_step:.0f} ms "
            f"({dense.ms_per_step / sparse.ms_sparse_step:.2f}x)."
        )
    return "\n".join(text)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return "equal" if math.isinf(value) else format(value, form)


def write(folder: Path, settings: Settings, runs: Sequence[Run], facts: dict[str, str]) -> Path:
    """Writes pictures.png, error_per_step.png and results.json into `folder`, each whole or not at
    all, and returns the path of the first."""
    lines = rows(runs)
    pictures = folder / "pictures.png"
    for path, figure in (
        (pictures, _pictures(settings, runs)),
        (folder / "error_per_step.png", _errors(lines)),
    ):
        with atomic_path(path) as part:
            canvas: Any = figure  # matplotlib's own types are partly unknown
            canvas.savefig(part, dpi=100)
    results = {
        "settings": dataclasses.asdict(settings),
        "facts": facts,
        "caveat": CAVEAT.replace("\n", " "),
        "runs": [_finite(dataclasses.asdict(row)) for row in lines],
    }
    with atomic_path(folder / "results.json") as part:
        part.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    return pictures


def _finite(value: Any) -> Any:
    """JSON knows no infinity: equal pictures have "inf" dB, a run that diverged "nan" errors."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in cast("dict[str, Any]", value).items()}
    if isinstance(value, tuple):
        return [_finite(entry) for entry in cast("tuple[Any, ...]", value)]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _pictures(settings: Settings, runs: Sequence[Run]) -> Figure:
    """Per prompt: dense, column-sparse, their difference, then every control."""
    dense, sparse, *controls = runs
    difference = (sparse.pixels.int() - dense.pixels.int()).abs() * _AMPLIFY
    panels = [
        (dense.title, dense.pixels),
        (sparse.title, sparse.pixels),
        (f"|difference| x {_AMPLIFY}", difference.clamp(max=255).to(torch.uint8)),
        *((run.title, run.pixels) for run in controls),
    ]
    count = len(settings.prompts)
    figure = Figure(figsize=(2.1 * len(panels), 2.2 * count + 0.3), layout="constrained")
    axes: Any = figure.subplots(count, len(panels), squeeze=False)
    for row, prompt in enumerate(settings.prompts):
        for column, (title, pixels) in enumerate(panels):
            axis = axes[row][column]
            axis.imshow(pixels[row].numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=9)
            if column == 0:
                axis.set_ylabel(prompt, fontsize=9)
    return figure


def _errors(lines: Sequence[Row]) -> Figure:
    """Relative error of the state after each step, one curve per run."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis: Any = figure.subplots()
    for row in lines:
        if row.error_per_step is not None:
            steps = range(1, len(row.error_per_step) + 1)
            shown = [max(error, 1e-8) for error in row.error_per_step]
            axis.plot(list(steps), shown, marker=".", label=row.title)
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("|x - dense| / |dense|")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
