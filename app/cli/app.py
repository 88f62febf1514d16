"""The command `img2img`: serve, edit, download, health, doctor. Each imports what it needs, when it runs."""

import json
import os
from typing import Annotated, Literal

import typer

from app import __version__
from app.cli.console import ExitCode, fail, own_url, read_settings, say
from app.observability.logs import configure

HEALTH_SECONDS = 3.0
"""The time that `img2img health` waits for a response."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="SDXL-Turbo image-to-image: an image and a prompt in, an image out.",
    epilog="Exit status: 0 done, 1 failed or not ready, 2 wrong usage or settings, 65 image or parameter refused, "
    "69 service unavailable, 70 internal error. Results go to standard output, all else to standard error.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="IMG2IMG_URL",
        show_default="where `img2img serve` listens, http://127.0.0.1:8000 unless IMG2IMG_PORT says otherwise",
        help="The service.",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(help="auto, embedded, a folder or a hub id.", show_default="IMG2IMG_MODEL")
]
DevicesOption = Annotated[
    str | None,
    typer.Option("--devices", "--device", help="auto, cpu, cuda:0, or a list.", show_default="IMG2IMG_DEVICES"),
]


def main() -> None:
    """The console script."""
    app(prog_name="img2img")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Without this, `--version` would have no command to belong to."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on.", show_default="IMG2IMG_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="The port.", show_default="IMG2IMG_PORT")] = None,
    model: ModelOption = None,
    devices: DevicesOption = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default="IMG2IMG_LOG_LEVEL")
    ] = None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C. All other settings are read from IMG2IMG_* in the environment."""
    settings = read_settings(host=host, port=port, model=model, devices=devices, log_level=log_level)
    from app.errors import Misconfigured
    from app.observability import otel_env

    try:
        otel_env.validate_otel_env(os.environ)
        from app.cli.serve import serve as run

        raise typer.Exit(run(settings))
    except Misconfigured as error:
        fail(str(error), ExitCode.USAGE)


@app.command()
def edit(
    image: Annotated[str, typer.Argument(metavar="IN", help="A PNG, JPEG or WebP file; - reads standard input.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the image should become.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            show_default="a new file in the current directory: IN's name and the seed, like dog-42.png",
            help="A file ending in .png, .webp or .jpg, or a folder; - writes to standard output.",
        ),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid; needs a guidance scale above 1.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the whole schedule; steps x strength of them run.", show_default="4")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of the image is redrawn, up to 1.", show_default="0.9")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="SDXL-Turbo wants 0.", show_default="0")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same image.", show_default="random")] = None,
    fit: Annotated[
        Literal["stretch", "crop", "pad"] | None,
        typer.Option(help="How the image becomes a square.", show_default="stretch"),
    ] = None,
    output_format: Annotated[
        Literal["png", "webp", "jpeg"] | None,
        typer.Option("--format", help="The file format.", show_default="by OUT's ending, else png"),
    ] = None,
    quality: Annotated[int | None, typer.Option(help="1 to 100, of a WebP or JPEG.")] = None,
    url: UrlOption = None,
    local: Annotated[bool, typer.Option("--local", help="Run the model here, without a service.")] = False,
    model: ModelOption = None,
    devices: DevicesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Redraw the image IN as the prompt says, by a running service or, with --local, without one."""
    from app.cli.edit import Target, edit_here, edit_there, read_image, report

    if (model or devices) and not local:
        fail("--model and --devices need --local: a running service has its own.", ExitCode.USAGE)
    target = Target(image, output, output_format, as_json)
    fields = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "strength": strength,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "fit": fit,
        "output_format": target.output_format,
        "quality": quality,
    }
    data = read_image(image)
    if local:
        edited = edit_here(data, fields, read_settings(model=model, devices=devices))
    else:
        edited = edit_there(data, fields, url or own_url(read_settings()))
    report(edited, target.write(edited), as_json)


@app.command()
def download(
    model: ModelOption = None,
    vae: Annotated[
        str | None, typer.Option(help="auto, checkpoint, tiny, a folder or a hub id.", show_default="IMG2IMG_VAE")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download the weights that a CUDA host loads, and print their folder. For a CPU host, set IMG2IMG_DEVICES=cpu.

    The model `auto` is stabilityai/sdxl-turbo here.
    """
    settings = read_settings(model=model, vae=vae).model_copy(update={"offline": False})
    configure(settings.log_level, settings.log_format)
    from app.errors import CheckpointError
    from app.model import checkpoint
    from app.model.sources import resolve_model

    device = "cpu" if settings.devices.startswith("cpu") else "cuda"
    try:
        if resolve_model(settings.model, device).folder:
            say("This model is on the disk: there is nothing to download.")
        found = checkpoint.fetch(settings, device)
    except CheckpointError as error:
        fail(str(error), ExitCode.FAILED)
    facts = {"folder": str(found.folder), "vae_folder": str(found.vae_folder or found.folder / "vae")}
    if as_json:
        facts |= {"model": found.info.model, "revision": found.info.revision, "vae": found.info.vae}
    typer.echo(json.dumps(facts) if as_json else facts["folder"])


@app.command()
def health(url: UrlOption = None) -> None:
    """Exit with 0 if a service is ready, else with 1 and the reason. A container's health check calls this."""
    from app.client import Img2Img, NoService

    address = url or own_url(read_settings())
    try:
        with Img2Img(address, timeout=HEALTH_SECONDS) as client:
            state = client.health()
    except NoService as error:
        fail(str(error), ExitCode.FAILED)
    except ValueError as error:
        fail(str(error), ExitCode.USAGE)
    if state["status"] != "ready":
        why = {
            "draining": "is shutting down",
            "unsigned": "cannot sign images: its certificate has expired",
            "starting": "is still loading its model, or another worker",
        }[state["status"]]
        fail(f"The service at {address} {why}.", ExitCode.FAILED)
    say(f"Ready: {state['model']['model']} on {state['model']['device']}.")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show what the service would run on here, and what would be slow or fail, and why."""
    settings = read_settings()
    configure("error")
    from app.cli.doctor import advise, as_dict, gather, render

    facts = gather(settings)
    advice = advise(facts)
    typer.echo(json.dumps(as_dict(facts, advice)) if as_json else render(facts, advice))
    if facts.problems:
        raise typer.Exit(ExitCode.FAILED)
