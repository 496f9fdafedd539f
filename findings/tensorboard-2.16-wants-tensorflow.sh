#!/usr/bin/env bash
# tensorboard 2.16.0 requires tf-keras-nightly, and 2.16.1 tf-keras: each brings all of TensorFlow.
#
# One expects: tensorboard works without TensorFlow, as the releases before and after do, so `tensorboard>=2.16` is a
# harmless lower bound. Seen: tf-keras-nightly has pre-releases only, and a resolver that takes the lowest version (uv
# --resolution lowest-direct) follows it to tf-nightly, keras-nightly, libclang and h5py, although nobody asked for
# pre-releases; a test run "with the oldest versions" then has a nightly TensorFlow in it. A bound of 2.16.2 avoids it.
#
# Seen with the wheels of tensorboard 2.15.2, 2.16.0, 2.16.1, 2.16.2; pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

check() { # VERSION EXPECTED: what its wheel requires of TensorFlow
    python3 -m pip download -qq --disable-pip-version-check --no-deps -d "$folder/$1" "tensorboard==$1"
    python3 -m zipfile -e "$folder/$1"/*.whl "$folder/$1"
    found=$(sed -n 's/^Requires-Dist: *\(tf-.*\|tensorflow.*\)/\1/p' "$folder/$1"/tensorboard-*.dist-info/METADATA)
    echo "tensorboard $1: ${found:-nothing of TensorFlow}"
    [ "$found" = "$2" ] || { echo "changed: expected '$2'"; exit 1; }
}

check 2.15.2 ''
check 2.16.0 'tf-keras-nightly'
check 2.16.1 'tf-keras >=2.15.0'
check 2.16.2 ''
