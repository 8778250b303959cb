"""The stage `.ci/run gpu`: everything that needs a Hopper GPU. Its steps, in order:

    check       a GPU of compute capability 9.0 is there
    build       the core with CUDA, the extension and the C++ tests, into build/gpu/prefix
    tests       pytest -m gpu
    cpp         the C++ tests with ctest's label cuda
    sanitizers  memcheck, racecheck, synccheck and initcheck of compute-sanitizer over the cases of
                sanitizer_cases.py; hazards in racecheck_known.json are false reports
    guard       a two-minute benchmark; no ratio to FlashAttention-3 may fall more than 4% below the
                record in bench/results

    python3 .ci/gpu_stage.py [STEP ..]

CHIPMUNK_PREBUILT=FOLDER takes the place of compiling the CUDA code: an install prefix, with
lib/libchipmunk_kernels.so and include/, as the step build leaves it in build/gpu/prefix. The Python
extension is compiled from it unless it holds one for this Python. Its tests/, if any, holds the C++
tests. Logs of the sanitizers are in build/gpu/logs.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import guard
import sanitizer

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
SITE = BUILD / "site"  # on PYTHONPATH: the package with its compiled parts
LOGS = BUILD / "logs"
CASES = ROOT / ".ci" / "sanitizer_cases.py"
KNOWN = ROOT / ".ci" / "racecheck_known.json"
RESULTS = ROOT / "bench" / "results"
CORE = "libchipmunk_kernels.so"

SANITIZERS = {
    "memcheck": ["--padding", "512"],
    "synccheck": [],
    # torch's own copies read what was never written.
    "initcheck": ["--check-api-memory-access", "no"],
    "racecheck": [],
}
CASE_TIMEOUT_S = 240  # of a process; longer where it has several cases
JOBS = 4
TEST_PROCESSES = 7
MAX_HAZARDS = 10**9  # of a process under racecheck; beyond, it stops to report
# cuDevice attributes
_MAJOR, _MINOR = 75, 76


class StageError(Exception):
    """What fails the stage, in words for its last line."""


def prefix() -> Path:
    """Where the core, its headers and the C++ tests are."""
    return Path(os.environ.get("CHIPMUNK_PREBUILT") or BUILD / "prefix").resolve()


def environment() -> dict[str, str]:
    paths = [str(SITE), os.environ.get("PYTHONPATH", "")]
    libraries = [str(prefix() / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }


def call(command: Sequence[object], *, allowed: Sequence[int] = (0,)) -> int:
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    code = subprocess.run(words, cwd=ROOT, env=environment(), check=False).returncode
    if code not in allowed:
        raise StageError(f"exit status {code}: {' '.join(words)}")
    return code


def compute_capabilities() -> list[tuple[int, int]]:
    """Of the GPUs that the driver shows; none without a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, value = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found: list[tuple[int, int]] = []
    for device in range(count.value):
        numbers: list[int] = []
        for attribute in (_MAJOR, _MINOR):
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        found.append((numbers[0], numbers[1]))
    return found


def check() -> None:
    found = compute_capabilities()
    if (9, 0) not in found:
        seen = ", ".join(f"one of {major}.{minor}" for major, minor in found) or "none"
        raise StageError(f"this stage needs a GPU of compute capability 9.0; found {seen}")


def build() -> None:
    """Fills the prefix, unless it is given, and SITE."""
    if not os.environ.get("CHIPMUNK_PREBUILT"):
        options = [f"-DCHIPMUNK_{name}=ON" for name in ("CUDA", "PYTHON", "TESTS", "WERROR")]
        options += ["-DCMAKE_INSTALL_LIBDIR=lib", f"-DPython_EXECUTABLE={sys.executable}"]
        call(["cmake", "-G", "Ninja", "-S", ROOT, "-B", BUILD / "cmake", *options])
        call(["cmake", "--build", BUILD / "cmake"])
        call(["cmake", "--install", BUILD / "cmake", "--prefix", prefix()])
        copy_tests()
    if not (prefix() / "lib" / CORE).exists():
        raise StageError(f"{prefix()} holds no lib/{CORE}")
    shutil.rmtree(SITE, ignore_errors=True)
    package = SITE / "chipmunk_kernels"
    ours = shutil.ignore_patterns("*.so", "lib", "include", "__pycache__")
    shutil.copytree(ROOT / "python" / "chipmunk_kernels", package, ignore=ours)
    shutil.copytree(prefix() / "lib", package / "lib")
    extension = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    if (prefix() / extension).exists():
        shutil.copy2(prefix() / extension, package / extension)
    else:
        compile_extension(package / extension)
    program = "import torch, chipmunk_kernels as ck; print(ck.info()); "
    program += "assert ck.info().cuda_compiled and torch.cuda.is_available()"
    call([sys.executable, "-c", program])


def copy_tests() -> None:
    """Takes the programs behind ctest's label cuda along in the prefix."""
    listed = ["ctest", "--test-dir", str(BUILD / "cmake"), "-L", "cuda", "--show-only=json-v1"]
    text = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    shutil.rmtree(prefix() / "tests", ignore_errors=True)
    (prefix() / "tests").mkdir(parents=True)
    for test in json.loads(text)["tests"]:
        shutil.copy2(test["command"][0], prefix() / "tests" / test["name"])


def compile_extension(path: Path) -> None:
    """The bindings against the prebuilt core, for this Python."""
    import pybind11

    folders = [ROOT / "cpp", ROOT / "cpp/bindings", prefix() / "include", pybind11.get_include()]
    folders.append(sysconfig.get_path("include"))
    compiler = os.environ.get("CXX", "c++")
    options = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-c"]
    options += [f"-I{folder}" for folder in folders]
    objects = BUILD / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "cpp" / "bindings").glob("*.cpp"))
    made = [objects / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, into: Path) -> None:
        call([compiler, *options, source, "-o", into])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, made))
    libraries = [f"-L{path.parent / 'lib'}", "-lchipmunk_kernels", "-Wl,-rpath,$ORIGIN/lib"]
    call([compiler, "-shared", *made, *libraries, "-o", path])


def tests() -> None:
    """In several processes where pytest-xdist is installed: they share the GPU."""
    parallel = importlib.util.find_spec("xdist") is not None
    options = ["-n", TEST_PROCESSES, "-p", "no:benchmark"] if parallel else []
    call([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *options])


def cpp() -> None:
    programs = sorted((prefix() / "tests").glob("*"))
    if not programs:
        raise StageError(f"no C++ tests in {prefix() / 'tests'}")
    for program in programs:
        call([program])  # 77, skipped, fails here: there is a GPU


def sanitizers() -> None:
    """Every tool over every case; racecheck in a process each: no report hides another."""
    tool = find_program("compute-sanitizer")
    known = sanitizer.read_known(KNOWN)
    core = SITE / "chipmunk_kernels" / "lib" / CORE
    dump = [find_program("cuobjdump"), "--dump-sass", str(core)]
    sass = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    instructions = sanitizer.instructions(sass)
    listed = [sys.executable, str(CASES), "--list"]
    names = subprocess.run(
        listed, env=environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    LOGS.mkdir(parents=True, exist_ok=True)

    def one(kind: str, label: str, cases: Sequence[str]) -> list[str]:
        began = time.monotonic()
        code, text = under(tool, kind, cases)
        (LOGS / f"{kind}-{label}.log").write_text(text)
        found, notes = judged(kind, code, text, known, instructions)
        seconds = time.monotonic() - began
        state = "FAILED" if found else "ok"
        print(f"{kind:10} {label:22} {state:7} {seconds:5.0f} s{notes}", flush=True)
        return [f"{kind} {label}: {line}" for line in found]

    with ThreadPoolExecutor(JOBS) as pool:
        runs = [pool.submit(one, *run) for run in sanitizer_runs(names)]
    failures = [line for run in runs for line in run.result()]
    print("\n".join(failures))
    if failures:
        raise StageError(f"sanitizers: {len(failures)} lines of reports, above; logs in {LOGS}")


def sanitizer_runs(cases: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Tool, label and cases of each process, the longest first."""
    tiles = [case for case in cases if case.startswith("tiles-")]
    small = [case for case in cases if case not in tiles]
    runs = [("racecheck", case, [case]) for case in (*tiles, *small)]
    for tool in SANITIZERS:
        if tool != "racecheck":
            runs += [(tool, "tiles", tiles), (tool, "small", small)]
    return runs


def under(tool: str, kind: str, cases: Sequence[str]) -> tuple[int | None, str]:
    """Runs cases under a tool: the exit status, None if they ran out of time, and all output."""
    command = [tool, "--tool", kind, "--print-limit", "1000", "--demangle", "no"]
    command += [*SANITIZERS[kind], sys.executable, str(CASES), *cases]
    # Without its cache torch asks the driver for every tensor: bounds and first writes are known.
    variables = {**environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
    variables["NV_COMPUTE_SANITIZER_MAX_RACECHECK_HAZARDS"] = str(MAX_HAZARDS)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=max(CASE_TIMEOUT_S, 60 * len(cases)))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the tool's child, too
        return None, process.communicate()[0]
    return process.returncode, text


def judged(
    kind: str,
    code: int | None,
    text: str,
    known: Sequence[sanitizer.Known],
    instructions: sanitizer.Instructions,
) -> tuple[list[str], str]:
    """What is wrong with a run, and a note on what is known to be harmless."""
    count = sanitizer.summary(text)
    if code is None:
        return ["it ran out of time", *text.splitlines()[-15:]], ""
    if count is None or code != 0:
        return [f"exit status {code}", *(sanitizer.reports(text) or text.splitlines()[-15:])], ""
    if count == 0:
        return [], ""
    if kind != "racecheck":
        return sanitizer.reports(text), ""
    try:
        unknown, covered = sanitizer.unknown_hazards(text, known, instructions)
    except ValueError as error:
        return [str(error), *sanitizer.reports(text)], ""
    return unknown, f"  {sum(covered.values())} hazards of {len(covered)} known kinds"


def find_program(name: str) -> str:
    """In PATH, or in a CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise StageError(f"{name} is in neither PATH nor a CUDA toolkit")
    return found


def run_guard() -> None:
    out = BUILD / "guard"
    shutil.rmtree(out, ignore_errors=True)
    script = ROOT / "bench" / "bench_attention.py"
    options = ["--suite", "guard", "--mode", "sustained", "--peers", "fa3", "--out", out]
    call([sys.executable, script, *options], allowed=(0, 1))  # 1: a row failed, which is told below
    path = out / "attention_gpu_guard.json"
    if not path.exists():
        raise StageError("guard: nothing was measured")
    measured = json.loads(path.read_text())
    record = guard.record_for(measured["gpu"]["name"], RESULTS)
    print(f"guard: the record is {record.relative_to(ROOT)}")
    lines, failures = guard.compare(measured, json.loads(record.read_text()))
    print("\n".join(lines))
    if failures:
        raise StageError("\n".join(["guard:", *failures]))


STEPS: dict[str, Callable[[], None]] = {
    "check": check,
    "build": build,
    "tests": tests,
    "cpp": cpp,
    "sanitizers": sanitizers,
    "guard": run_guard,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; none: all")
    wanted = parser.parse_args().steps or list(STEPS)
    unknown = sorted(set(wanted) - set(STEPS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    for step in wanted:
        print(f"--- gpu: {step}", flush=True)
        try:
            STEPS[step]()
        except StageError as error:
            print(f"gpu: {step}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
