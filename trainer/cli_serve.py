"""`dsvl-train serve`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from dst.common.cli import note
from dst.common.terminal_text import visible
from dst.common.web_server import is_loopback
from dst.errors import ConfigError
from trainer.cli_options import PATH, TrainCommand, allow_extension, cache_options

KEY_VARIABLE = "DSVL_API_KEY"
_MEGABYTE = 1 << 20


@click.command(cls=TrainCommand)
@click.option("--model", required=True, type=PATH, help="An exported folder, a run's `out` folder, or a checkpoint.")
@click.option("--build", help="The path of the run's build, if it was moved.")
@click.option("--name", help="Of the model in requests.  [default: the folder's name]")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--allow-host", "names", multiple=True, help="A name of this server behind a proxy; may be given often.")
@click.option("--api-key-file", type=PATH, help=f"A file with the key of clients.  [default: ${KEY_VARIABLE}]")
@click.option("--without-key", is_flag=True, help="Serve other machines without a key.")
@click.option("--cors", "origins", multiple=True, help="A site whose pages may ask, https://HOST; may be given often.")
@click.option("--image-urls", is_flag=True, help="Fetch images that requests name by URL, from public addresses.")
@click.option("--max-images", type=click.IntRange(0), default=16, show_default=True, help="Of a request.")
@click.option("--max-body-mib", type=click.IntRange(1), default=64, show_default=True, help="Of a request.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=2048, show_default=True, help="Of an answer.")
@click.option("--temperature", default=1.0, show_default=True, help="Of requests that name none; 0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="Of requests that name none.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Answers at the same time.")
@click.option("--queue", type=click.IntRange(1), default=64, show_default=True, help="Requests that may wait.")
@click.option("--stop-within", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds, for answers.")
@cache_options
@allow_extension
def serve(
    model: Path,
    build: str | None,
    name: str | None,
    port: int,
    host: str,
    names: tuple[str, ...],
    api_key_file: Path | None,
    without_key: bool,
    origins: tuple[str, ...],
    image_urls: bool,
    max_images: int,
    max_body_mib: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch: int,
    queue: int,
    cache_gb: float,
    cache_dir: Path | None,
    stop_within: float,
    allow_extensions: tuple[str, ...],
) -> None:
    """Answer OpenAI's chat completions with a model, and show a page to chat with it.

    It answers only this machine unless --host says otherwise. SIGTERM or Ctrl-C stops it after the running answers, a
    second one at once.
    """
    key = _key(api_key_file)
    _check(host=host, has_key=key is not None, without_key=without_key, temperature=temperature, top_p=top_p)
    try:
        from trainer.serving.server import Address, serve
    except ModuleNotFoundError as error:
        needed = "dsvl-train serve needs the packages of pip install 'dsvl[train,serve]'"
        raise ConfigError([f"{error}; {needed}"]) from None
    from trainer.inference.generate import Generator
    from trainer.inference.open_model import open_model
    from trainer.serving.chat_request import Defaults
    from trainer.serving.engine import Engine
    from trainer.serving.limits import Limits
    from trainer.serving.prompts import PromptMaker
    from trainer.serving.service import ServedModel, Service

    def load() -> ServedModel:
        speaker, _ = open_model(model, build=build, allow_extensions=allow_extensions)
        generator = Generator(speaker.model, speaker.chat_tokenizer)
        engine = Engine(generator, batch=batch, queue=queue, cache_gb=cache_gb, cache_dir=cache_dir)
        for line in (*speaker.notes, *engine.notes):
            note(line)
        return ServedModel(engine=engine, prompts=PromptMaker(speaker=speaker, generator=generator))

    body_bytes = max_body_mib * _MEGABYTE
    service = Service(
        name=name or model.resolve().name,
        limits=Limits(
            body_bytes=body_bytes,
            buffered_bytes=4 * body_bytes,
            images=max_images,
            new_tokens=max_new_tokens,
        ),
        defaults=Defaults(temperature=temperature, top_p=top_p),
        queue=queue,
        key=key,
        image_urls=image_urls,
        cors_origins=origins,
    )
    serve(
        service,
        Address(host=host, port=port, names=names),
        load,
        stop_within_s=stop_within,
        started=lambda url: click.echo(f"{visible(model)} is at {url} as {visible(service.name)} (Ctrl-C to stop)"),
        log=lambda line: click.echo(line, err=True),
    )


def _check(*, host: str, has_key: bool, without_key: bool, temperature: float, top_p: float) -> None:
    """Raises ConfigError."""
    problems = []
    if not is_loopback(host) and not has_key and not without_key:
        problems.append(
            f"--host {host}: everybody who reaches this address could use the model; set {KEY_VARIABLE} or "
            "--api-key-file, or add --without-key"
        )
    if not 0 <= temperature <= 2:
        problems.append(f"--temperature: got {temperature}; expected 0 to 2")
    if not 0 < top_p <= 1:
        problems.append(f"--top-p: got {top_p}; expected more than 0, up to 1")
    if problems:
        raise ConfigError(problems)


def _key(file: Path | None) -> str | None:
    """The key from the file or the environment: an option would be visible in the list of processes."""
    named, key = f"--api-key-file {file}", os.environ.get(KEY_VARIABLE)
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError([f"{named}: cannot be read ({error}); expected a text file with the key"]) from None
    else:
        named = KEY_VARIABLE
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError([f"{named}: expected a key of printable ASCII characters without spaces"])
    return key
