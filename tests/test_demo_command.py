"""The demo: report, files and command line, at tiny sizes."""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_cases import run_of, save_tiny, settings, tiny_model
from PIL import Image

from chipmunk_kernels.__main__ import main
from chipmunk_kernels.demo import command, report
from chipmunk_kernels.demo.files import atomic_path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_tiny(tiny_model(), tmp_path)


# Report


def test_rows_hold_the_numbers_of_the_runs() -> None:
    reference = torch.zeros(1, 3, 16, 16)  # pixel 128
    near = torch.full((1, 3, 16, 16), 10 / 127.5)  # pixel 138
    states = [torch.ones(1, 3, 16, 16), reference]
    dense = run_of("dense", [50.0, 50.0], states)
    other = run_of("sparse", [30.0, 10.0], [states[0] * 1.5, near])
    fewer = run_of("fewer", [50.0], [reference])
    base, sparse, short = report.rows([dense, other, fewer])
    assert (base.psnr, base.speed_up, base.error_per_step) == (None, 1, None)
    assert (sparse.ms_per_step, sparse.ms_full_step, sparse.ms_sparse_step) == (20, 30, 10)
    assert sparse.speed_up == 2.5
    assert report.legend([base, sparse]).endswith(
        "A dense step takes 50 ms, a full step of the column-sparse run 30 ms, "
        "a sparse one 10 ms (5.00x)."
    )
    assert sparse.psnr == pytest.approx(10 * math.log10(65025 / 100))
    assert sparse.foreground_psnr == sparse.psnr
    assert sparse.error_per_step is not None
    assert sparse.error_per_step[0] == 0.5
    assert (short.psnr, short.error_per_step) == (math.inf, None)


def test_table_text() -> None:
    row = report.Row(
        key="x",
        title="column-sparse",
        steps=8,
        ms_per_step=123.4,
        ms_full_step=200,
        ms_sparse_step=100,
        seconds=0.987,
        speed_up=2.345,
        psnr=31.26,
        foreground_psnr=math.inf,
        ssim=0.95678,
        columns_kept=0.1027,
        units_kept=None,
        mass_kept=0.5,
        error_per_step=None,
    )
    head, rule, line = report.table([row]).split("\n")
    assert head.split() == [
        *("steps", "ms/step", "seconds", "speed-up", "PSNR", "fg", "PSNR", "SSIM"),
        *("columns", "units", "mass"),
    ]
    assert len(rule) == len(line)
    assert line.split() == [
        *("column-sparse", "8", "123", "1.0", "2.35x", "31.3", "equal", "0.9568"),
        *("10.3%", "-", "50.0%"),
    ]


# Files


def test_atomic_path_replaces_on_success_only(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with atomic_path(target) as part:
        assert part.suffix == ".txt"
        part.write_text("good")

    def fail_midway() -> None:
        with atomic_path(target) as part:
            part.write_text("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert target.read_text() == "good"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_kill_midway_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("good")
    program = (
        "import os, signal, sys\n"
        "from chipmunk_kernels.demo.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as part:\n"
        "    part.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "good"


# Command line


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "1", "demo: --steps: expected at least 2, got 1"),
        ("--columns", "0", "demo: --columns: expected more than 0 and at most 1, got 0.0"),
        ("--columns", "nan", "demo: --columns: expected more than 0 and at most 1, got nan"),
        ("--units", "1.5", "demo: --units: expected more than 0 and at most 1, got 1.5"),
        ("--full-every", "0", "demo: --full-every: expected at least 1, got 0"),
        ("--dense-layers", "-1", "demo: --dense-layers: expected at least 0, got -1"),
        ("--guidance", "inf", "demo: --guidance: expected a finite number, got inf"),
        ("--seed", "-1", "demo: --seed: expected 0 to 2^62, got -1"),
        (
            "--resolution",
            "33",
            "demo: --resolution: expected an even number from 16 to 512, got 33",
        ),
        ("--device", "tpu9", "demo: --device: expected cpu or cuda, got 'tpu9'"),
        (
            "--device",
            "cuda:99",
            f"demo: --device: expected one of {torch.cuda.device_count()} CUDA devices, "
            f"got 'cuda:99'",
        ),
        ("--weights", "/no/such", "demo: --weights: expected a file, got /no/such"),
        ("--prompt", "xqzw", "demo: prompt: expected at least one known word, got 'xqzw'"),
    ],
)
def test_bad_options_are_named(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", option, value]) == 2
    assert message in capsys.readouterr().err


def test_out_that_is_a_file_is_refused(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(weights)]) == 2
    assert "demo: --out: expected a folder, got the file" in capsys.readouterr().err


def test_out_that_cannot_be_written_is_refused_before_drawing(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below_a_file = weights / "out"
    options = ["--weights", str(weights), "--prompt", "cat", "--out", str(below_a_file)]
    assert main(["demo", *options]) == 2
    captured = capsys.readouterr()
    assert "demo: --out: expected a folder that can be written, got" in captured.err
    assert "dense" not in captured.out


@pytest.mark.parametrize("content", [b"", b"no weights at all, but longer than a header"])
def test_weights_of_another_kind_are_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    assert main(["demo", "--weights", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "--weights: expected a file from examples/train_demo.py, got" in capsys.readouterr().err


def test_numbers_of_a_run_that_diverged_are_written(tmp_path: Path) -> None:
    state = [torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), math.nan)]
    runs = [run_of("dense", [1.0, 1.0], state), run_of("sparse", [1.0, 1.0], state)]
    report.write(tmp_path, settings(prompts=("cat",)), runs, {})
    sparse = json.loads((tmp_path / "results.json").read_text())["runs"][1]
    assert sparse["error_per_step"] == ["nan", "nan"]
    assert sparse["psnr"] == "inf"


def test_the_command_writes_pictures_plot_and_numbers(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["demo", "--weights", str(weights), "--out", str(out), "--prompt", "red apple"]
    options += ["--prompt", "gren cat", "--steps", "3", "--full-every", "2", "--columns", "0.5"]
    assert main(options) == 0
    text = capsys.readouterr().out
    assert "note: prompt 'gren cat': 'gren' is unknown (near: green" in text
    assert report.CAVEAT in text
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["prompts"] == ["red apple", "gren cat"]
    assert results["settings"]["resolution"] == 16
    keys = [run["key"] for run in results["runs"]]
    assert keys == ["dense", "sparse", "difference", "random", "no_rest", "fewer"]
    sparse = results["runs"][1]
    assert sparse["columns_kept"] == pytest.approx((32 + 4) / (64 + 4))
    assert sparse["speed_up"] == pytest.approx(results["runs"][0]["seconds"] / sparse["seconds"])
    assert len(sparse["error_per_step"]) == 3
    assert sparse["error_per_step"][0] < 1e-4  # the first step is full
    for name in ("pictures.png", "error_per_step.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400
            assert np.asarray(picture.convert("L")).std() > 5
    assert sorted(path.name for path in out.iterdir()) == [
        "error_per_step.png",
        "pictures.png",
        "results.json",
    ]


def test_defaults_pass_their_own_check() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.check(parser.parse_args([]))


def test_info_tells_version_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("chipmunk_kernels ")
    assert "cpu " in text
    assert main(["info", "--cmake-prefix"]) == 0
    prefix = Path(capsys.readouterr().out.strip())
    assert (prefix / "__init__.py").is_file()


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "command" in capsys.readouterr().err
