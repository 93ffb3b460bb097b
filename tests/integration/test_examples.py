"""Every example runs, and does what it says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from integration_driver import ENVIRONMENT

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_all_examples_are_run_here():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == ["python_api.py"]


def test_python_api(tmp_path, sketch):
    shutil.copytree(sketch.root, tmp_path / "experts" / sketch.root.name)
    call = [sys.executable, EXAMPLES / "python_api.py", tmp_path]
    done = subprocess.run(call, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = {line[:28].strip(): float(line[28:].split()[0]) for line in done.stdout.splitlines() if "[" in line}
    winner = next(score for label, score in scores.items() if label.startswith("winner"))
    untuned = [score for label, score in scores.items() if not label.startswith(("winner", "single"))]
    assert winner > max(untuned) + 0.1
    assert (tmp_path / "merged" / "model.safetensors").exists()
