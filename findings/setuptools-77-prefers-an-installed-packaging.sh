#!/usr/bin/env bash
# setuptools 77.0.1 does not import where packaging 24.0 or 24.1 is installed, though it vendors a packaging that fits.
#
# One expects: setuptools carries its own copies of what it needs (setuptools/_vendor), so no package installed next to it
# can break it, and it declares no dependency that a resolver could check. Seen: the vendored copies only come last on
# sys.path. An installed packaging shadows the vendored one, and before 24.2 it has no `packaging.licenses`. The first
# `pip install --no-build-isolation -e .` into an environment works, because packaging is not there yet when the build
# starts; the second, which changes nothing, fails. A lower bound of packaging>=24.2 in the project avoids it.
#
# Seen with setuptools 77.0.1; packaging 24.0, 24.1, 24.2; pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

check() { # PACKAGING EXPECTED: what importing setuptools prints last with this packaging installed next to it, or with none
    site="$folder/site-${1:-none}"
    python3 -m pip install -qq --disable-pip-version-check --no-deps --target "$site" setuptools==77.0.1 ${1:+"packaging==$1"}
    found=$(python3 -I -S -c "import sys; sys.path.insert(0, '$site'); import setuptools; print('imports')" 2>&1 | tail -n 1 || true)
    echo "setuptools 77.0.1 with packaging ${1:-not installed}: $found"
    [ "$found" = "$2" ] || { echo "changed: expected '$2'"; exit 1; }
}

check '' imports
check 24.0 "ModuleNotFoundError: No module named 'packaging.licenses'"
check 24.1 "ModuleNotFoundError: No module named 'packaging.licenses'"
check 24.2 imports
