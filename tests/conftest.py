"""What several test modules need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the shared test data."""
    folder = os.environ.get("REFMOTION_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set REFMOTION_TEST_DATA to the folder with the shared test data")
    return Path(folder)
