"""Names of a blend's `fields`, `keys`, `roles` and `filter.fields` that no record of the dataset has.

Rule: a name that decides what is read or kept is an error: it is misspelled, or in the wrong dataset. A key that is
left out and a role may be rare, so they are only listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dst.common.suggest import nearest
from preprocess.adapters.base import Tally
from preprocess.adapters.parsing.fields import printable
from preprocess.errors import DataError


def check_fields(tally: Tally, wanted: Sequence[str]) -> None:
    """Raises DataError for a field of the filter that no record has: a rule over it would keep or drop all of them."""
    if not tally.possible_fields and not tally.fields_found:
        return  # no record was read as far as its fields
    for name in wanted:
        if name not in tally.fields_found:
            known = ", ".join(sorted(map(printable, tally.possible_fields)))
            hint = nearest(name, tally.possible_fields)
            expected = f"expected one of {known}" if known else "no key holds text, a number, true or false"
            raise DataError(f"filter.fields.{name}: no record has the key {name}{hint}; {expected}")


def unused_names(tally: Tally, keys: Mapping[str, str | None], roles: Mapping[str, str]) -> list[str]:
    """The names that no record has, each with its setting."""
    unused = [f"{'keys' if keys[name] is None else 'fields'}.{name}" for name in keys if name not in tally.keys_found]
    return unused + [f"roles.{name}" for name in roles if name not in tally.roles_found]


def check_names(tally: Tally, keys: Mapping[str, str | None]) -> None:
    """Raises DataError for a name of `fields` that no record has. One that is left out, or a role, may be rare."""
    for name, ours in keys.items():
        if ours is not None and name not in tally.keys_found:
            hint = nearest(name, tally.ignored_keys)
            known = ", ".join(sorted(tally.ignored_keys))
            others = f"; keys that are not read: {known}" if known else ""
            raise DataError(
                f"fields.{name}: no record or turn has the key {name}{hint}{others}; correct it or remove it"
            )
