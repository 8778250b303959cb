"""Fails on what ptxas says of the CUDA kernels: serialised wgmma (C75xx), spills, or nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

log = Path(sys.argv[1]).read_text()
kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_90a'", log)
warnings = re.findall(r".*\bC75\d\d\b.*", log)
spills = [
    line
    for line in re.findall(r".*bytes spill stores.*", log)
    if not re.search(r"\b0 bytes spill stores, 0 bytes spill loads", line)
]
for line in warnings + spills:
    print(line)
print(f"ptxas: {len(kernels)} kernels, {len(warnings)} C75xx warnings, {len(spills)} with spills")
sys.exit(0 if kernels and not warnings and not spills else 1)
