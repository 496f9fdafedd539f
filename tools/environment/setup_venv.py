"""Make or finish a virtual environment that has dsvl and its extras, at the versions of a lock file.

A second run does nothing. A run that was stopped at any moment, with Ctrl-C or kill -9, is resumed by the next one.

    python3 tools/environment/setup_venv.py --venv .venv --lock lock-cpu.txt --extras train

This file compiles on every Python 3, so that one which is too old gets a message and not a syntax error.
"""

import sys

SUPPORTED = ((3, 11), (3, 12))


REFUSAL = (
    "Python {}.{} ({}) cannot be used: dsvl needs Python 3.11 or 3.12. "
    "Name one that you have, for example: make test PYTHON=python3.12"
)


def main():  # type: ignore[no-untyped-def]  # the Pythons that are refused do not understand every annotation
    if sys.version_info[:2] not in SUPPORTED:
        sys.exit(REFUSAL.format(sys.version_info[0], sys.version_info[1], sys.executable))
    import venv_install  # does not compile on the Pythons that are refused above

    return venv_install.main()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[no-untyped-call]
