"""Asserts what the self-test wrote on the serial console: every sample picture with its label, and a benchmark.

Usage: labels.py CONSOLE.log PICTURES_FOLDER
"""

import re
import sys
from pathlib import Path


def plain(label: str) -> str:
    """The way the sample pictures' names are made from their labels."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def main() -> int:
    console = Path(sys.argv[1]).read_bytes().decode(errors="replace").replace("\r", "")
    console = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console)
    wrong = 0
    for picture in sorted(Path(sys.argv[2]).glob("*.png")):
        # The line after the picture's own: "  Ankle boot    96.78 %", behind the console's prefix "edge-infer[123]: ".
        found = re.search(re.escape(picture.name) + r"\s.*?ms\n(?:.*\n)*?.*?\]:\s+(\S.*?)\s+([0-9.]+) %", console)
        label = found.group(1) if found else "nothing"
        good = bool(found) and plain(label) == picture.stem
        wrong += not good
        print(f"{'ok   ' if good else 'WRONG'} {picture.name:18} {label}" + (f" {found.group(2)} %" if found else ""))
    if not re.search(r"kernels, \d+ threads, 3 runs", console):
        print("WRONG no benchmark of 3 runs")
        wrong += 1
    return 1 if wrong else 0


sys.exit(main())
