"""Whole searches, each in a folder of its own."""

import pytest
from integration_driver import Driver


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)
