#!/usr/bin/env bash
# pydantic's strict mode refuses true for int, but takes it for Literal[0, 1, 2], as 1. It takes 2.0 as well.
#
# One expects: strict mode converts nothing, so Literal[0, 1, 2] is a narrower int and refuses what a strict int refuses.
# Seen: a Literal looks its choices up by equality, and in Python True == 1 == 1.0. So true becomes 1 and 2.0 becomes 2;
# the other way round, 0 becomes False where False is a choice. An IntEnum refuses true in Python; from JSON it refused
# it in 2.11.0 and takes it in 2.14.4. Training configs use Literal for small numbers, such as a ZeRO stage. `stage: yes`
# in YAML is true and trains at stage 1 without an error, while an int next to it refuses `yes`. A validator that
# compares types before the Literal does avoids it.
#
# Seen with pydantic 2.11.0 and 2.14.4, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/validate.py" <<'PYTHON'
import enum
import json
from typing import Literal

from pydantic import TypeAdapter, ValidationError


class Stage(enum.IntEnum):
    ZERO = 0
    ONE = 1
    TWO = 2


def outcome(validate, value):
    try:
        return repr(validate(value, strict=True))
    except ValidationError:
        return "refused"


kinds = {"int": int, "Literal[0, 1, 2]": Literal[0, 1, 2], "Literal[False, 2]": Literal[False, 2], "IntEnum": Stage}
for name, kind in kinds.items():
    adapter = TypeAdapter(kind)
    for text in ("true", "0", "2.0"):
        from_json = outcome(adapter.validate_json, text)
        print(f"{name}: {text} in JSON is {from_json}, in Python {outcome(adapter.validate_python, json.loads(text))}")
PYTHON

check() { # VERSION TRUE TWO: what a strict IntEnum makes of true and of 2.0 in JSON
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/python" -m pip install -qq --disable-pip-version-check "pydantic==$1"
    found=$("$folder/$1/bin/python" "$folder/validate.py")
    printf 'pydantic %s, strict\n%s\n' "$1" "$found"
    expected=$(cat <<LINES
int: true in JSON is refused, in Python refused
int: 0 in JSON is 0, in Python 0
int: 2.0 in JSON is refused, in Python refused
Literal[0, 1, 2]: true in JSON is 1, in Python 1
Literal[0, 1, 2]: 0 in JSON is 0, in Python 0
Literal[0, 1, 2]: 2.0 in JSON is 2, in Python 2
Literal[False, 2]: true in JSON is refused, in Python refused
Literal[False, 2]: 0 in JSON is False, in Python False
Literal[False, 2]: 2.0 in JSON is 2, in Python 2
IntEnum: true in JSON is $2, in Python refused
IntEnum: 0 in JSON is <Stage.ZERO: 0>, in Python refused
IntEnum: 2.0 in JSON is $3, in Python refused
LINES
)
    [ "$found" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected"; exit 1; }
}

check 2.11.0 refused refused
check 2.14.4 '<Stage.ONE: 1>' '<Stage.TWO: 2>'
