from collections.abc import Iterator

import pytest

from cluster.ray_session import RaySession

pytest.register_assert_rewrite("cluster.testing")


@pytest.fixture(scope="package")
def ray_session() -> Iterator[RaySession]:
    """A private cluster of four CPUs for all tests of this folder: it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch, RaySession("local", cpus=4) as session:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield session
