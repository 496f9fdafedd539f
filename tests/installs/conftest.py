"""Clean environments, each made once a session; commands run in them as processes, outside the repository."""

import pytest

from tests.support import clean_installs

venvs = pytest.fixture(scope="session")(clean_installs.venvs)
built = pytest.fixture(scope="session")(clean_installs.built)
user_folder = pytest.fixture(clean_installs.user_folder)
