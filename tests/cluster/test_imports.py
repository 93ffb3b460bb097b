import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(f"cluster.{file.stem}" for file in (ROOT / "cluster").glob("*.py") if file.stem != "__init__")


def test_no_module_loads_ray_or_torch() -> None:
    code = f"import sys, {', '.join(MODULES)}; sys.exit(len({{'ray', 'torch', 'numpy'}} & set(sys.modules)))"
    assert "cluster.ray_pool" in MODULES
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
