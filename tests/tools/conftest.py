"""Small projects for the scripts of tools/environment.

The scripts import each other by bare names, since they run before anything is installed.
"""

import sys

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools/environment"))

from tests.support import venv_projects

new = pytest.fixture(venv_projects.new)
made = pytest.fixture(scope="session")(venv_projects.made)
ready = pytest.fixture(venv_projects.ready)
