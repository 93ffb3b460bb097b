"""What all tests share."""

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/fakes.py
ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("EVOMERGE_TEST_CACHE", ROOT / ".cache" / "foundry"))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; what is started inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What the user's own cache holds plays no part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("evomerge-cache")))
        yield


@pytest.fixture(scope="session")
def foundry_cache():
    """Where trained experts are kept for all processes and later runs."""
    return CACHE


@pytest.fixture(scope="session")
def sketch(foundry_cache):
    """Two tiny experts that can do something, trained once in seconds."""
    from evomerge.foundry import FoundrySettings, build

    return build(FoundrySettings.sketch(), cache=foundry_cache)


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for all tests of this process that use it."""
    from postgres_server import PostgresServer, find_binaries

    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt install postgresql")
    with closing(PostgresServer(binaries)) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def storage(request, tmp_path):
    """The storage URL of a database that is not there yet (SQLite) or empty (PostgreSQL): a test runs on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/record.db"
    return request.getfixturevalue("postgres").new_database()
