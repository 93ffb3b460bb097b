"""What all tests share."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/fakes.py
ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("EVOMERGE_TEST_CACHE", ROOT / ".cache" / "foundry"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What the user's own cache holds plays no part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("evomerge-cache")))
        yield


@pytest.fixture(scope="session")
def sketch():
    """Two tiny experts that can do something, trained once in seconds; later runs find them in the cache."""
    from evomerge.foundry import FoundrySettings, build

    return build(FoundrySettings.sketch(), cache=CACHE)
