"""The command line `dsvl-train`.

Exit codes: 0 success, also for a run that saved after a signal; 1 bad data or a failed run; 2 bad usage or
configuration. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

import click

from dst.common.cli import note, print_error, run_command
from dst.common.terminal_text import visible
from dst.errors import ConfigError, DsvlError
from trainer.cli_measure import evaluate, report
from trainer.cli_options import PATH, TrainCommand, allow_extension, cache_options, report_torch
from trainer.cli_serve import serve
from trainer.errors import GpuMemoryError, LostRankError

_LESS_MEMORY = (
    "in training lower batch.micro_batch_size or batch.max_images, set gradient_checkpointing: true, or raise "
    "zero.stage; in eval lower --batch"
)
_OURS = ("dst", "shards", "trainer")


class _TrainGroup(click.Group):
    command_class = TrainCommand


@click.group(cls=_TrainGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="dsvl")
@click.option("--local_rank", type=int, hidden=True, expose_value=False)  # DeepSpeed's launcher adds it
def cli() -> None:
    """Train, evaluate, export and chat with multi-image models, on builds of dsvl-prep."""


@cli.command()
@click.option("--config", "path", required=True, type=PATH, help="The run's file; `dsvl-train config` prints one.")
@click.option("--num-gpus", type=click.IntRange(min=1), help="Ranks on each node.  [default: one process]")
@click.option("--num-nodes", type=click.IntRange(min=1), help="Use only so many hosts of the hostfile.")
@click.option("--hostfile", type=PATH, help="The hosts, as `HOST slots=8` on each line (docs/hosts.md).")
@click.option("--set", "settings", multiple=True, metavar="a.b=value", help="Change a setting; may be given often.")
@allow_extension
def run(
    path: Path,
    num_gpus: int | None,
    num_nodes: int | None,
    hostfile: Path | None,
    settings: tuple[str, ...],
    allow_extensions: tuple[str, ...],
) -> None:
    """Train; the same command resumes from the newest checkpoint. Works under deepspeed and torchrun as well."""
    from trainer.distributed.failures import telling_failures
    from trainer.distributed.launch import STOP, LaunchLayout, launch, report_end
    from trainer.distributed.launcher_environment import world_size_of
    from trainer.training.preflight import prepare

    layout = LaunchLayout.of(num_gpus, num_nodes, hostfile)
    launched = world_size_of(os.environ)
    launches = launched is None and not layout.is_single_process
    world_size = layout.world_size if launches else launched or 1
    with telling_failures(os.environ):
        config, build = prepare(
            path,
            settings,
            world_size,
            loads_model=not launches,
            allow_extensions=allow_extensions,
            before_torch=report_torch,
        )
    if launches:
        options = [*(f"--set={each}" for each in settings), *(f"--allow-extension={each}" for each in allow_extensions)]
        sys.exit(launch(layout, ["run", "--config", str(path), *options], Path(config.out)))
    from trainer.distributed.stop_signal import Stopped
    from trainer.training.run import run_training

    if launched is None:
        (Path(config.out) / STOP).unlink(missing_ok=True)  # a leftover of an earlier run
    try:
        run_training(config, build)
    except Stopped:
        if os.environ["RANK"] == "0":
            (Path(config.out) / STOP).unlink(missing_ok=True)
        note("stopped before the first step; the same command starts again")
    report_end()


@cli.command()
@click.option("--model", required=True, type=PATH, help="A run's `out` folder, or one of its checkpoints.")
@click.option("--out", required=True, type=PATH, help="Folder to write; must be empty or missing.")
@click.option("--build", help="The path of the run's build, if it was moved.")
@click.option("--init-from", help="The path of the folder at model.init_from, if it was moved.")
@click.option("--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Of weights.  [default: as trained]")
@click.option("--adapter", "as_adapter", is_flag=True, help="Write a peft adapter for the LLaVA at model.init_from.")
@click.option("--file-gb", default=4.0, show_default=True, type=click.FloatRange(min=0.001), help="A file's size.")
@allow_extension
def export(
    model: Path,
    out: Path,
    build: str | None,
    init_from: str | None,
    precision: str | None,
    as_adapter: bool,
    file_gb: float,
    allow_extensions: tuple[str, ...],
) -> None:
    """Write a trained model, adapters merged: a LLaVA folder if possible, else one that trainer.load opens."""
    if as_adapter:
        from trainer.export.adapter import export_adapter

        adapter = export_adapter(
            model, out, build=build, init_from=init_from, precision=precision, allow_extensions=allow_extensions
        )
        for line in adapter.notes:
            note(line)
        size = f"{adapter.parameters:,} parameters, {adapter.size_bytes / 1e6:,.1f} MB"
        click.echo(f"{visible(adapter.folder)}: an adapter for {visible(adapter.base)}, {size}")
        return
    from trainer.export import export as exporting

    shard_bytes = int(file_gb * (1 << 30))
    exported = exporting.export(
        model,
        out,
        build=build,
        init_from=init_from,
        precision=precision,
        shard_bytes=shard_bytes,
        allow_extensions=allow_extensions,
    )
    for line in exported.notes:
        note(line)
    for reason in exported.refusals:
        click.echo(f"not a LLaVA folder: {visible(reason)}", err=True)
    own = "a dsvl folder (for trainer.load, and for transformers after `import trainer`)"
    kind = {"llava": "a LLaVA folder", "internvl": "an InternVL folder", "dsvl": own}[exported.form]
    size = f"{exported.parameters:,} parameters, {exported.size_bytes / 1e6:,.1f} MB"
    click.echo(f"{visible(exported.folder)}: {kind}, {size}")


@cli.command()
@click.option("--model", required=True, type=PATH, help="An exported folder, a run's `out` folder, or a checkpoint.")
@click.option("--build", help="The path of the run's build, if it was moved.")
@click.option("--max-new-tokens", default=512, show_default=True, help="Of one answer.")
@click.option("--temperature", default=0.0, show_default=True, help="Above 0 answers are sampled; 0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample from the likeliest tokens with this probability.")
@click.option("--seed", default=0, show_default=True, help="Seed of sampling.")
@cache_options
@allow_extension
def chat(
    model: Path,
    build: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    cache_gb: float,
    cache_dir: Path | None,
    allow_extensions: tuple[str, ...],
) -> None:
    """Chat with a model about images, in rounds; lines come from the terminal or a pipe.

    With a pipe the exit code is 1 if any line failed, for example for a missing image.
    """
    from trainer.inference.generate import Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if problems := sampling.problems():
        raise ConfigError(problems)
    from trainer.inference.caches import CacheSettings
    from trainer.inference.chat import Chat
    from trainer.inference.open_model import open_model

    speaker, _ = open_model(model, build=build, allow_extensions=allow_extensions)
    for line in speaker.notes:
        note(line)
    conversation = Chat(speaker, sampling, cache=CacheSettings(gb=cache_gb, folder=cache_dir))
    conversation.run(sys.stdin)
    if conversation.refused and not sys.stdin.isatty():
        sys.exit(1)


@cli.command()
@click.argument("folder", type=PATH)
def verify(folder: Path) -> None:
    """Compare every byte of FOLDER with its digests: a run, a checkpoint, an export or an exported adapter.

    The exit code is 1 if anything is damaged, missing or foreign.
    """
    from trainer.verify import verify_folder

    verified = verify_folder(folder)
    for line in verified.notes:
        note(line)
    for problem in verified.problems:
        click.echo(visible(problem), err=True)
    count = len(verified.problems)
    result = f"{count} problem{'s' if count > 1 else ''}" if count else "no problems"
    click.echo(f"{visible(folder)}: {verified.files} files, {verified.size_bytes / 1e6:,.1f} MB: {result}")
    if verified.problems:
        sys.exit(1)


@cli.command()
def config() -> None:
    """Print the whole default configuration, with what each field means."""
    from trainer.config.defaults import default_yaml

    click.echo(default_yaml(), nl=False)


@cli.command()
def schema() -> None:
    """Print the JSON schema of train.yaml, by which editors complete and check the file."""
    from trainer.config.run import train_schema

    click.echo(json.dumps(train_schema(), indent=2))


for _command in (evaluate, report, serve):
    cli.add_command(_command)


def main() -> None:
    run_command(cli, stopped="stopped", translate=_translate, report=_report)


def _translate(error: Exception) -> DsvlError | None:
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return GpuMemoryError(f"{str(error).partition('. ')[0]}; {_LESS_MEMORY}")
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in _OURS:
        return ConfigError([f"{error}; dsvl-train needs the packages of pip install 'dsvl[train]'"])
    return None


def _report(error: DsvlError) -> None:
    """Print an error. All ranks raise the same one, so one rank per node prints it; but any may run out of memory."""
    from trainer.distributed.launcher_environment import speaks_for_host

    lost = error.rank if isinstance(error, LostRankError) else -1
    if speaks_for_host(os.environ, lost) or isinstance(error, GpuMemoryError):
        print_error(error)


def program() -> NoReturn:
    """Run `main` and end the process; without tearing down the interpreter if it trained.

    torch's gloo threads release the tensors of the last collectives some time after a run, and take the interpreter's
    lock for it. A thread that does so during tear-down aborts the process (exit code -6), although the run is saved.
    DeepSpeed never releases the process groups, so those threads cannot be ended before.
    """
    code: str | int | None = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    if "trainer.distributed.deepspeed_engine" not in sys.modules:  # no process group was started
        sys.exit(code)
    number = code if isinstance(code, int) else int(code is not None)
    try:
        if number and number is not code:
            click.echo(code, err=True)
        # As the interpreter does it: threads that are not daemons end first. Neither function is declared as public.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # stdout is closed, or the disk is full
        number = number or 1
    finally:
        os._exit(number)


if __name__ == "__main__":
    program()
