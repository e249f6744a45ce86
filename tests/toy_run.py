"""What stands for `python -m experiments` in the tests of sweeps: a run that takes no time and loads nothing.

Arguments: an experiment's name, --size, --seed, --fail, --hang, --out, --resume. The run's error is seed / size.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(name: str, *flags: str) -> int:
    """Leave the files of a run; the exit status."""
    given = {flag: value for flag, value in zip(flags, [*flags[1:], ""], strict=True) if flag.startswith("--")}
    out, size, seed = Path(given["--out"]), int(given.get("--size", 3)), int(given.get("--seed", 0))
    config = {"experiment": name, "seed": seed, "size": size, "fail": "--fail" in given, "hang": "--hang" in given,
              "quick": "--quick" in given, "steps": int(given.get("--steps", 5))}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "pid").write_text(str(os.getpid()), encoding="utf-8")
    while "--hang" in given:
        time.sleep(0.05)
    sys.stdout.write("1 of 2\r2 of 2\r")
    if "--fail" in given:
        print("\ntoy: the data are lost")
        return 3
    others = len(list(out.parent.glob("*/pid"))) - len(list(out.parent.glob("*/summary.json")))
    (out / "metrics.jsonl").write_text(f'{{"step": 1, "error": {seed / size}}}\n', encoding="utf-8")
    summary = {"experiment": name, "seed": seed, "steps": 1, "seconds": 1.5, "error": seed / size, "exact": seed == 1,
               "constant": 4, "at_a_time": others, "threads": int(os.environ["OMP_NUM_THREADS"]),
               "resumed": "--resume" in given}  # fmt: skip
    (out / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
