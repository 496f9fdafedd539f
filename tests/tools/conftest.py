"""The scripts of tools/environment import each other by bare names, since they run before anything is installed."""

import sys

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools/environment"))
