"""Fails on what ptxas says of the CUDA kernels: serialised wgmma (C75xx), spills, or nothing.

A few registers may be put aside: at the end of a tile that costs nothing that can be measured.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MOST_SPILLED = 48  # bytes a thread

log = Path(sys.argv[1]).read_text()
kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_90a'", log)
warnings = re.findall(r".*\bC75\d\d\b.*", log)
spills = [
    line
    for line, stored in re.findall(r"(.*?(\d+) bytes spill stores.*)", log)
    if int(stored) > MOST_SPILLED
]
for line in warnings + spills:
    print(line)
print(
    f"ptxas: {len(kernels)} kernels, {len(warnings)} C75xx warnings, "
    f"{len(spills)} that spill more than {MOST_SPILLED} bytes"
)
sys.exit(0 if kernels and not warnings and not spills else 1)
