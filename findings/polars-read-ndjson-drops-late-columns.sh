#!/usr/bin/env bash
# polars.read_ndjson drops a key that no row among the first 100 has, and says nothing.
#
# One expects: a key that appears later becomes a column, null in the rows before, as pyarrow's reader makes it; or an
# error, as polars.read_json raises for the same rows. Seen: the columns come from the first 100 rows, and every other key
# is dropped, in read_ndjson and scan_ndjson alike. Instruction data is often sorted by source: text-only samples first,
# then those with an "image". Such a file reads as text only. Whether it happens depends on the order of the lines, so a
# shuffled file mostly reads well. `infer_schema_length=None` reads all keys in 2.1.0 but not in 1.20.0; a `schema` that
# names them works in both.
#
# Seen with polars 1.20.0 and 2.1.0, pyarrow 26.0.1, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install -qq --disable-pip-version-check --no-deps --target "$folder/pyarrow" pyarrow==26.0.1

cat > "$folder/read.py" <<'PYTHON'
import io
import json

import polars
import pyarrow.json

rows = [{"id": str(number), "text": "a question"} for number in range(101)]
rows[100]["image"] = "cat.jpg"  # the 101st
late = "\n".join(json.dumps(row) for row in rows).encode()
early = "\n".join(json.dumps(row) for row in rows[1:]).encode()


def has_image(read, data, **options):
    return "image" in read(io.BytesIO(data), **options).collect_schema().names()


def scan(stream, **options):
    return polars.scan_ndjson(stream, **options)


print("image in row 100:", has_image(polars.read_ndjson, early))
print("image in row 101:", has_image(polars.read_ndjson, late))
print("scanned:", has_image(scan, late))
print("all rows inferred:", has_image(polars.read_ndjson, late, infer_schema_length=None))
schema = {"id": polars.String, "text": polars.String, "image": polars.String}
read = polars.read_ndjson(io.BytesIO(late), schema=schema)
print("with a schema:", read["image"][-1] == "cat.jpg")
print("pyarrow:", pyarrow.json.read_json(io.BytesIO(late))["image"][-1].as_py() == "cat.jpg")
try:
    polars.read_json(io.BytesIO(json.dumps(rows).encode()))
    print("read_json: no error")
except polars.exceptions.ComputeError as error:
    print("read_json:", str(error).split(",")[0])
PYTHON

check() { # VERSION EXPECTED: whether infer_schema_length=None reads the key
    python3 -m pip install -qq --disable-pip-version-check --target "$folder/polars-$1" "polars==$1"
    found=$(PYTHONPATH="$folder/polars-$1:$folder/pyarrow" python3 "$folder/read.py")
    printf 'polars %s\n%s\n' "$1" "$found"
    expected=$(printf '%s\n' 'image in row 100: True' 'image in row 101: False' 'scanned: False' "all rows inferred: $2" \
        'with a schema: True' 'pyarrow: True' 'read_json: extra field in struct data: image')
    [ "$found" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected"; exit 1; }
}

check 1.20.0 False
check 2.1.0 True
