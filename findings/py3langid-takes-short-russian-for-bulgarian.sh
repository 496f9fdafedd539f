#!/usr/bin/env bash
# py3langid calls everyday Russian sentences Bulgarian, in 0.2.2, 0.3.0 and 0.4.0.
#
# One expects: languages with millions of training texts are told apart in a sentence of five words, as fits a filter over
# captions and answers. Seen: short Russian texts without a letter that only Russian has are `bg`. A filter
# `language: [ru]` loses them; limiting the languages that may be answered (set_languages) helps. 0.4.0 also drops LanguageIdentifier.from_pickled_model; `classify` and `rank` stay.
#
# Seen with py3langid 0.2.2 (numpy 1.26.4), 0.3.0 and 0.4.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"

check() { # VERSION NUMPY
    "$python" -m pip install -qq --disable-pip-version-check "py3langid==$1" "numpy$2"
    found=$("$python" -c '
import py3langid
free = py3langid.classify("Подпишите изображение. Собака на траве.")[0]
py3langid.set_languages(["en", "ru"])
print(free, py3langid.classify("Подпишите изображение. Собака на траве.")[0])')
    echo "py3langid $1: any language: ${found% *}; of English and Russian: ${found#* }"
    [ "$found" = "bg ru" ] || { echo "changed: expected 'bg ru'"; exit 1; }
}

check 0.2.2 ==1.26.4
check 0.3.0 '>=2'
check 0.4.0 '>=2'
