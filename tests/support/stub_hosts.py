"""Programs in the place of ssh and pdsh, and of SLURM: their hosts are all this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o || $1 == -p ]] && shift; shift; done
host=$1; shift
case " {dead} " in *" $host "*)
  echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255;;
esac
exec env -i HOME="$HOME" PATH="$PATH" bash -c "$*"
"""

_PDSH = """#!/bin/bash
# pdsh -S -f N -w HOSTS COMMAND: %n is a host's number; the exit code is the largest one
while [[ $1 == -* ]]; do
  case $1 in -w) hosts=$2; shift;; -f) shift;; esac; shift
done
number=0; jobs=()
for host in ${hosts//,/ }; do
  command="$*"; env -i HOME="$HOME" PATH="$PATH" bash -c "${command//%n/$number}" 2>&1 | sed "s/^/$host: /" & jobs+=($!)
  number=$((number + 1))
done
code=0
for job in "${jobs[@]}"; do wait "$job" || code=$?; done
exit $code
"""


_SLURM = {
    "scontrol": "#!/bin/bash\necho 127.0.0.1\necho node-b\n",
    "srun": '#!/bin/bash\nfor node in $(seq "$SLURM_NNODES"); do "$@" & jobs+=($!); done\n'
    'code=0; for job in "${jobs[@]}"; do wait "$job" || code=$?; done; exit $code\n',
    "torchrun": f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run --local-addr 127.0.0.1 "$@"\n',
    "dsvl-train": f'#!/bin/bash\nexec {sys.executable} -m trainer.cli "$@"\n',
}


def slurm_programs(folder: Path) -> str:
    """A search path with SLURM's programs, torchrun and ours before the others."""
    return _search_path(folder, _SLURM)


def stub_programs(folder: Path, *, dead: Sequence[str] = ()) -> str:
    """A search path with the two programs before the others. dead: hosts that do not answer."""
    return _search_path(folder, {"ssh": _SSH.replace("{dead}", " ".join(dead)), "pdsh": _PDSH})


def _search_path(folder: Path, programs: Mapping[str, str]) -> str:
    folder.mkdir()
    for name, text in programs.items():
        path = folder / name
        path.write_text(text.replace("#!/bin/bash\n", "#!/bin/bash\nset -o pipefail\n"), encoding="utf-8")
        path.chmod(0o755)
    return os.pathsep.join((str(folder), os.environ["PATH"]))
