"""What benchmarks share: the experts, the machine, and where results go."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("EVOMERGE_BENCHMARK_CACHE", ROOT / ".cache" / "foundry"))
RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Return hardware, versions and commit."""
    names = ("torch", "transformers", "lm_eval", "ray", "cma", "numpy")
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cpu": model.partition(": ")[2],
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``result`` with the machine it was measured on to ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def mergekit_python() -> str:
    """Return the interpreter of the environment that `make mergekit-env` makes.

    Raises:
        SystemExit: it is not there.
    """
    default = ROOT / ".mergekit-env" / "bin" / "python"
    found = os.environ.get("EVOMERGE_MERGEKIT_PYTHON", str(default))
    if not Path(found).exists():
        raise SystemExit(f"no mergekit at {found}: run `make mergekit-env`, or set EVOMERGE_MERGEKIT_PYTHON")
    return found


def experts(seed: int = 0, *, cache: Path = CACHE) -> Any:
    """Return the foundry's experts from ``cache``, trained on the first call."""
    from evomerge.foundry import FoundrySettings, build

    return build(FoundrySettings(seed=seed), cache=cache, progress=lambda what, share: None)


def name_of(foundry: Any) -> str:
    """A name for experts that no others have: of the digests of their files."""
    manifest = json.loads((foundry.root / "manifest.json").read_text(encoding="utf-8"))["files"]
    weights = sorted((path, entry["sha256"]) for path, entry in manifest.items() if path.endswith(".safetensors"))
    return hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:8]
