"""The stage `.ci/run gpu` without a GPU: what it makes of reports and of a benchmark's result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CI = ROOT / ".ci"
sys.path.append(str(CI))

import gpu_stage  # noqa: E402
import guard  # noqa: E402
import sanitizer  # noqa: E402
import sanitizer_cases  # noqa: E402
import torch  # noqa: E402

KERNEL = "_ZN8chipmunk4cuda28column_sparse_attention_sm90INS0_6TraitsILi128EEEEEvNS0_6ParamsE"
SASS = f"""
	code for sm_90a
		Function : {KERNEL}
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000fe20000000800 */
        /*1f20*/                   LDSM.16.MT88.4 R4, [R2] ;              /* 0x000000000204783b */
        /*1f30*/              @!P0 LDS.128 R8, [R3+0x10] ;                /* 0x0000100003088984 */
        /*1f40*/            @!UPT0 LDGSTS.E.BYPASS.128 [R5], desc[UR4][R6.64] ;
        /*14b0*/               @P1 STS [R9], R10 ;                        /* 0x0000000a09001388 */
		Function : other
        /*1f20*/                   STS [R9], R10 ;
"""
CLEAN = "========= COMPUTE-SANITIZER\nmerge\n========= ERROR SUMMARY: 0 errors\n"
MEMCHECK = """========= COMPUTE-SANITIZER
d64-g192
========= Invalid __global__ read of size 16 bytes
=========     at select_columns_sm90+0x2b0
=========     by thread (64,0,0) in block (3,0,0)
=========     Access to 0x7f3a4d000400 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f3a4d000000 of size 1,024 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernel [0x344c5b] in libcuda.so.1
=========                in /usr/lib/x86_64-linux-gnu/libcuda.so.1
=========
========= ERROR SUMMARY: 1 error
"""
SYNCCHECK = """========= COMPUTE-SANITIZER
========= Barrier error detected. Divergent thread(s) in block.
=========     at merge_sm90+0x90
=========     by thread (0,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 1 error
"""
INITCHECK = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at columns_from_mask_sm90+0x150
=========     by thread (1,0,0) in block (0,0,0)
=========     Access to 0x7fc406200400
=========
========= ERROR SUMMARY: 2 errors
"""


def racecheck(*lines: str, hazards: int | None = None) -> str:
    told = [f"========= {line}" for line in lines]
    count = sum("Race reported" in line for line in lines) if hazards is None else hazards
    end = f"========= RACECHECK SUMMARY: {count} hazards displayed (0 errors, {count} warnings)"
    return "\n".join(["========= COMPUTE-SANITIZER", *told, "=========", end, ""])


def first(kind: str, offset: str, kernel: str = KERNEL) -> str:
    return f"Warning: Race reported between {kind} access at {kernel}+{offset}"


def second(kind: str, offset: str, count: int, kernel: str = KERNEL) -> str:
    return f"    and {kind} access at {kernel}+{offset} [{count} hazards]"


RING = racecheck(first("Read", "0x1f20"), second("Write", "0x1f40", 12))
WORK = racecheck(first("Write", "0x14b0"), second("Read", "0x1f30", 4))


# Reports


@pytest.mark.parametrize(
    ("text", "count"),
    [(CLEAN, 0), (MEMCHECK, 1), (SYNCCHECK, 1), (INITCHECK, 2), (RING, 1), ("killed\n", None)],
)
def test_the_count_of_a_report(text: str, count: int | None) -> None:
    assert sanitizer.summary(text) == count


def test_a_report_is_shown_without_host_frames() -> None:
    shown = sanitizer.reports(MEMCHECK)
    assert "=========     at select_columns_sm90+0x2b0" in shown
    assert not any("libcuda" in line for line in shown)
    assert sanitizer.reports(MEMCHECK, limit=2)[-1] == f"and {len(shown) - 2} more lines"


def test_opcodes_of_a_dump() -> None:
    found = sanitizer.instructions(SASS)
    assert found[KERNEL] == {
        0: "LDC",
        0x1F20: "LDSM",
        0x1F30: "LDS",
        0x1F40: "LDGSTS",
        0x14B0: "STS",
    }
    assert found["other"] == {0x1F20: "STS"}


def test_hazards_of_a_report() -> None:
    text = racecheck(
        first("Read", "0x10"), second("Write", "0x20", 3), second("Write", "0x30", 1), hazards=1
    )
    one, two = sanitizer.hazards(text)
    assert one.first == two.first == sanitizer.Access("Read", KERNEL, 0x10)
    assert (one.second.offset, one.count) == (0x20, 3)
    assert (two.second.offset, two.count) == (0x30, 1)


def test_hazards_in_older_words_and_with_source_lines() -> None:
    text = racecheck(
        "Error: Race reported between Read access at 0x1f20 in void kernel<int>(T1, int)",
        "    and Write access at 0x14b0 in void kernel<int>(T1, int) [4 hazards]",
        "Error: Race reported between Write access at void kernel<int>(T1, int)+0xd790 in a.h:3",
        "    and Read access at void kernel<int>(T1, int)+0xd5c0 in a.cuh:312 [1 hazard]",
    )
    one, two = sanitizer.hazards(text)
    name = "void kernel<int>(T1, int)"
    assert one.second == sanitizer.Access("Write", name, 0x14B0)
    assert two.first == sanitizer.Access("Write", name, 0xD790)
    assert (one.count, two.count) == (4, 1)


# What is known


def judged(kind: str, text: str, code: int | None = 0) -> list[str]:
    known = sanitizer.read_known(CI / "racecheck_known.json")
    return gpu_stage.judged(kind, code, text, known, sanitizer.instructions(SASS))[0]


@pytest.mark.parametrize("text", [RING, WORK, racecheck(hazards=0)])
def test_known_hazards_pass(text: str) -> None:
    assert judged("racecheck", text) == []


def test_known_hazards_are_counted() -> None:
    known = sanitizer.read_known(CI / "racecheck_known.json")
    _, note = gpu_stage.judged("racecheck", 0, RING, known, sanitizer.instructions(SASS))
    assert note == "  12 hazards of 1 known kinds"


@pytest.mark.parametrize(
    "lines",
    [
        (first("Write", "0x1f40"), second("Write", "0x14b0", 2)),  # two writes
        (first("Read", "0x1f20"), second("Write", "0x14b0", 2)),  # LDSM against STS
        (first("Read", "0x1f30"), second("Write", "0x1f50", 2)),  # what stands there is not known
        (first("Read", "0x1f30", "other"), second("Write", "0x1f20", 2, "other")),
    ],
)
def test_other_hazards_fail(lines: Sequence[str]) -> None:
    (line,) = judged("racecheck", racecheck(*lines))
    assert line.endswith(", 2 hazards")
    both = RING.replace("RACECHECK SUMMARY: 1", "RACECHECK SUMMARY: 2")
    both = both.replace("=========\n", "\n".join([*(f"========= {x}" for x in lines), ""]))
    assert judged("racecheck", both) == [line]  # beside a known one


def test_a_racecheck_report_that_cannot_be_read_fails() -> None:
    limit = "Warning: Maximum number of hazards reached. Environment variable NV_X can be used"
    (told, *_) = judged("racecheck", racecheck(limit, first("Read", "0x10")))
    assert "a line of another form" in told
    (told, *_) = judged("racecheck", racecheck(second("Read", "0x10", 1), hazards=1))
    assert "a second access without a first" in told
    (told, *_) = judged("racecheck", RING.replace("SUMMARY: 1", "SUMMARY: 7"))
    assert told == "racecheck: 7 hazards, but 1 of them are told"


@pytest.mark.parametrize("text", [MEMCHECK, SYNCCHECK, INITCHECK])
def test_errors_of_the_other_tools_fail(text: str) -> None:
    assert judged("memcheck", text) == sanitizer.reports(text)
    assert judged("memcheck", CLEAN) == []


def test_a_program_that_fails_or_hangs_fails() -> None:
    assert judged("memcheck", CLEAN, code=1)[0] == "exit status 1"
    assert judged("memcheck", "Traceback\nValueError: x\n")[-1] == "ValueError: x"
    assert judged("racecheck", "mask\n", code=None) == ["it ran out of time", "mask"]


def test_every_known_kind_has_a_reason() -> None:
    for entry in sanitizer.read_known(CI / "racecheck_known.json"):
        assert len(entry.reason) > 40
        assert entry.read
        assert entry.write


# The cases


def test_the_cases_cover_what_the_kernels_distinguish() -> None:
    cases = [
        case.__self__
        for case in sanitizer_cases.CASES.values()
        if isinstance(getattr(case, "__self__", None), sanitizer_cases.Attention)
    ]
    assert {case.head_dim for case in cases} == {64, 96, 128, 256}
    assert {case.query_group for case in cases} == {64, 128, 192, 256}
    assert {case.dtype for case in cases} == {torch.bfloat16, torch.float16}
    for several in (False, True):
        some = [case for case in cases if bool(case.groups_per_sm) is several]
        assert {case.with_rest for case in some} == {False, True}
    assert {case.with_order for case in cases if case.groups_per_sm} == {False, True}
    assert {"select-bf16", "select-f32", "mask", "merge"} < set(sanitizer_cases.CASES)


@pytest.mark.parametrize("name", sanitizer_cases.CASES)
def test_the_cases_run(name: str) -> None:
    sanitizer_cases.CASES[name](torch.device("cpu"))


def test_every_tool_sees_every_case_and_racecheck_one_at_a_time() -> None:
    names = list(sanitizer_cases.CASES)
    runs = gpu_stage.sanitizer_runs(names)
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        seen = [case for kind, _, cases in runs if kind == tool for case in cases]
        assert sorted(seen) == sorted(names)
    assert all(len(cases) == 1 for kind, _, cases in runs if kind == "racecheck")
    assert len({(kind, label) for kind, label, _ in runs}) == len(runs)


# The guard


def row(over_fa3: float | None, count: int = 784, **more: Any) -> dict[str, Any]:
    sustained = {} if over_fa3 is None else {"sustained": {"over_fa3": over_fa3}}
    shape = {"heads": 24, "tokens": 4_608, "head_dim": 128, "dtype": "bfloat16"}
    variants = {"random": sustained}
    return {
        **shape,
        "query_group": 192,
        "count": count,
        "variants": variants,
        "left_out": {},
    } | more


def result(*rows: dict[str, Any], not_measured: Sequence[str] = ()) -> dict[str, Any]:
    return {"rows": list(rows), "not_measured": list(not_measured)}


def test_ratios_above_the_limit_pass() -> None:
    record = result(row(5.0), row(9.0, 336), row(3.0, 1_344))
    lines, failures = guard.compare(result(row(4.81), row(9.5, 336)), record)
    assert failures == []
    assert lines == [
        "24 x 4,608, 784 columns: 4.81x, record 5.00x, -3.8%",
        "24 x 4,608, 336 columns: 9.50x, record 9.00x, +5.6%",
    ]


def test_a_ratio_below_the_limit_fails() -> None:
    _, failures = guard.compare(result(row(4.79), row(9.0, 336)), result(row(5.0), row(9.0, 336)))
    what = "24 x 4,608, 784 columns: 4.79x, record 5.00x, -4.2%"
    assert failures == [f"{what}: more than 4% below the record"]


def test_what_cannot_be_compared_fails() -> None:
    missing = row(None, left_out={"fa3": "ImportError: No module named 'fa3_fwd_interface'"})
    measured = result(missing, row(2.0, 16), row(None, 32), not_measured=["x: the time is spent"])
    _, failures = guard.compare(measured, result(row(5.0)))
    assert failures == [
        "not measured: x: the time is spent",
        "24 x 4,608, 784 columns: cannot compare: "
        "fa3: ImportError: No module named 'fa3_fwd_interface'",
        "24 x 4,608, 16 columns: cannot compare: the record has no such row",
        "24 x 4,608, 32 columns: cannot compare: no sustained time",
    ]
    assert guard.compare(result(), result(row(5.0)))[1] == ["nothing was measured"]


def test_the_record_is_that_of_the_same_gpu(tmp_path: Path) -> None:
    for path, name in (("", "NVIDIA H200"), ("h100", "NVIDIA H100 80GB HBM3")):
        (tmp_path / path).mkdir(exist_ok=True)
        text = json.dumps({"gpu": {"name": name}})
        (tmp_path / path / "attention_gpu.json").write_text(text)
    h200, h100 = tmp_path / "attention_gpu.json", tmp_path / "h100" / "attention_gpu.json"
    assert guard.record_for("NVIDIA H200", tmp_path) == h200
    assert guard.record_for("NVIDIA H100 80GB HBM3", tmp_path) == h100
    assert guard.record_for("another", tmp_path) == h200


# The stage


def run_stage(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CI / "gpu_stage.py"), *argv]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_without_a_hopper_gpu_the_stage_says_so_and_fails() -> None:
    done = run_stage(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    message = "gpu: check: this stage needs a GPU of compute capability 9.0; found none\n"
    assert done.stderr == message


def test_a_prefix_without_a_core_is_refused(tmp_path: Path) -> None:
    done = run_stage("build", CHIPMUNK_PREBUILT=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"gpu: build: {tmp_path} holds no lib/libchipmunk_kernels.so\n"
    done = run_stage("cpp", CHIPMUNK_PREBUILT=str(tmp_path))
    assert done.stderr == f"gpu: cpp: no C++ tests in {tmp_path / 'tests'}\n"


def test_unknown_steps_are_refused() -> None:
    done = run_stage("sanitisers")
    assert done.returncode == 2
    assert "unknown: sanitisers; there are check, build, tests" in done.stderr


def test_the_step_fails_with_the_report_of_the_case_that_raced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raced = racecheck(first("Read", "0x1f20"), second("Write", "0x14b0", 2))
    (tmp_path / "raced").write_text(raced)
    (tmp_path / "clean").write_text(CLEAN)
    (tmp_path / "sass").write_text(SASS)
    for name, script in {
        "cuobjdump": f"cat {tmp_path}/sass",
        "compute-sanitizer": f'case "$*" in *racecheck*mask) cat {tmp_path}/raced;; '
        f"*) cat {tmp_path}/clean;; esac",
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu_stage, "LOGS", tmp_path / "logs")
    with pytest.raises(gpu_stage.StageError, match="1 lines of reports"):
        gpu_stage.sanitizers()
    assert (tmp_path / "logs" / "racecheck-mask.log").read_text() == raced
    printed = capsys.readouterr().out
    assert f"racecheck mask: Read (LDSM) at {KERNEL}+0x1f20 and Write (STS)" in printed
    assert printed.count(" ok ") == len(gpu_stage.sanitizer_runs(list(sanitizer_cases.CASES))) - 1


def test_a_run_that_takes_too_long_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho started; sleep 60 & sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_stage, "CASE_TIMEOUT_S", 1)
    assert gpu_stage.under(str(tool), "memcheck", []) == (None, "started\n")
