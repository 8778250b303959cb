"""The command line: ``python -m chipmunk_kernels info`` and ``demo``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import chipmunk_kernels as ck


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m chipmunk_kernels")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="version, backends, instruction set, GPUs")
    info.add_argument(
        "--cmake-prefix", action="store_true", help="print the CMAKE_PREFIX_PATH to build against"
    )
    demo = commands.add_parser(
        "demo", help="draw the same pictures dense and column-sparse, and compare them"
    )
    # The demo's options need torch to be known; ask for it only when they are wanted.
    if arguments[:1] == ["demo"]:
        try:
            from chipmunk_kernels.demo import command
        except ModuleNotFoundError as error:
            print(
                f"demo: needs the Python package {error.name}, which is not installed; "
                f"pip install 'chipmunk_kernels[demo]' brings everything",
                file=sys.stderr,
            )
            return 1
        command.add_arguments(demo)
        options = parser.parse_args(arguments)
        try:
            command.run(options)
        except (command.OptionError, ck.UnsupportedError) as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    options = parser.parse_args(arguments)
    if options.cmake_prefix:
        print(Path(__file__).parent)
    else:
        print(ck.info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
