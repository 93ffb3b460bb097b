from collections.abc import Iterator
from contextlib import closing

import pytest

from cluster.pool import Pool
from cluster.ray_pool import RayPool
from cluster.testing import MakePool, PoolContract, Probe


@pytest.mark.usefixtures("ray_session")
class TestRayPool(PoolContract):
    @pytest.fixture
    def make_pool(self) -> MakePool:
        return lambda factory, workers: RayPool(factory, workers=workers)

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls, ray_session: object) -> Iterator[Pool]:
        with closing(RayPool(Probe, workers=2)) as pool:
            yield pool
