"""What this build holds and what this machine offers."""

from __future__ import annotations

from dataclasses import dataclass

from chipmunk_kernels import _core


@dataclass(frozen=True)
class Gpu:
    """A CUDA device that the driver shows to this process."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int


@dataclass(frozen=True)
class Info:
    """Version, backends and hardware; `str()` gives a table for people."""

    version: str
    cpu_isa: str
    """The instruction set in use: "baseline", "avx2", "avx512", "avx512_bf16"."""
    cpu_isas: tuple[str, ...]
    """Every one that is compiled in and runs here; CHIPMUNK_CPU_ISA forces one."""
    cpu_threads: int
    cuda_compiled: bool
    cuda_toolkit: int
    """Version of the toolkit the kernels were compiled with, e.g. 13000; 0 without CUDA."""
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        """One line per fact."""
        others = ", ".join(isa for isa in self.cpu_isas if isa != self.cpu_isa)
        toolkit = f"{self.cuda_toolkit // 1000}.{self.cuda_toolkit % 1000 // 10}"
        lines = [
            f"chipmunk_kernels {self.version}",
            f"cpu   {self.cpu_isa}{f' (also runs {others})' if others else ''}, "
            f"{self.cpu_threads} threads",
            f"cuda  {f'compiled with {toolkit}' if self.cuda_compiled else 'not compiled in'}",
        ]
        for index, gpu in enumerate(self.gpus):
            major, minor = gpu.compute_capability
            lines.append(
                f"gpu {index} {gpu.name}, compute capability {major}.{minor}, "
                f"{gpu.multiprocessors} SMs, {gpu.memory_bytes / 1e9:.0f} GB"
            )
        if not self.gpus:
            lines.append("gpu   none")
        return "\n".join(lines)


def info() -> Info:
    """Version, backends, instruction set and GPUs of this installation."""
    found = _core.build_info()
    return Info(
        version=found["version"],
        cpu_isa=found["cpu_isa"],
        cpu_isas=found["cpu_isas"],
        cpu_threads=found["cpu_threads"],
        cuda_compiled=found["cuda_compiled"],
        cuda_toolkit=found["cuda_toolkit"],
        gpus=tuple(Gpu(**gpu) for gpu in found["gpus"]),
    )
