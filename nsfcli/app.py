"""The Typer app; the one place where an error becomes a sentence and an exit code."""

import ast
import functools
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from os.path import realpath
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from nsfcli import __version__
from nsfcli.command import Settings, file_option
from nsfcli.console import Console, forget_stdout
from stages import distributed
from stages.errors import BadParameter, CannotWrite, UserError

# The subcommands, in pipeline order, and the help panel of each; a module of that name holds the function of that name.
COMMANDS = {
    "init": "Before: a folder, a classifier to repair",
    "doctor": "Before: a folder, a classifier to repair",
    "train": "Before: a folder, a classifier to repair",
    "extract": "The six stages, in pipeline order",
    "identify": "The six stages, in pipeline order",
    "neutralize": "The six stages, in pipeline order",
    "eliminate": "The six stages, in pipeline order",
    "update": "The six stages, in pipeline order",
    "evaluate": "The six stages, in pipeline order",
    "metrics": "After: what came of it",
    "compare": "After: what came of it",
    "export": "After: what came of it",
    "predict": "After: what came of it",
}

# Options of every command: they may stand before or after its name. Value: whether the option takes a value.
GLOBAL_OPTIONS = {"--json": False, "--quiet": False, "--debug": False, "--params": True, "--device": True}

# Where a context holds all arguments as they were given.
ARGUMENTS = "nsf.arguments"

EXIT_USER_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
EXIT_TERMINATED = 143


class Commands(Mapping[str, Any]):
    """The subcommands by name as a list of them needs them: the page of `nsf --help` imports none of their modules."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        source = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")).body
        text = next(ast.get_docstring(node) for node in source if isinstance(node, ast.FunctionDef) and node.name == name)
        return TyperCommand(name, help=_paragraphs(text), rich_help_panel=COMMANDS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@functools.cache
def imported(name: str) -> Any:
    """The subcommand itself, imported when it is asked for: a stage does not wait for the other commands."""
    function = getattr(import_module(f"nsfcli.{name}"), name)
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    alone.command(name, cls=Command, help=_paragraphs(function.__doc__), rich_help_panel=COMMANDS[name])(
        _placed(name, function)
    )
    return typer.main.get_command(alone)


@contextmanager
def _page() -> Iterator[None]:
    """While arguments are read: the page of help and the version are printed here."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_stdout()
        Console().error(str(CannotWrite(f"cannot be written ({error.strerror})", where="stdout")))
        raise typer.Exit(EXIT_USER_ERROR) from error


class Command(TyperCommand):
    """A subcommand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _page():
            return super().parse_args(ctx, args)


class Group(TyperGroup):
    """The top-level command: takes global options anywhere, and turns errors into sentences and exit codes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else imported(name), rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        with _page():
            return super().parse_args(ctx, hoist(args))

    def invoke(self, ctx: Any) -> Any:
        settings: Settings | None = None
        try:
            return super().invoke(ctx)
        except UserError as error:
            settings = ctx.obj
            if settings is not None and settings.debug:
                raise
            Console().error(str(error))
            raise typer.Exit(EXIT_USER_ERROR) from error
        except KeyboardInterrupt as error:
            # Imported long ago, where anything has been written.
            from stages.outputs import Outputs

            Console().error(f"interrupted; {'all outputs were' if Outputs.written else 'no artifact was'} written.")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:
            # Whoever read our stdout has stopped reading: nothing to tell.
            forget_stdout()
            raise typer.Exit(EXIT_PIPE_CLOSED) from error
        except Exception as error:
            # Typer's and Click's own exceptions know how to show themselves.
            settings = ctx.obj
            if type(error).__module__.startswith("typer") or settings is None or settings.debug:
                raise
            if isinstance(error, UnicodeEncodeError):
                shown = error.object[max(0, error.start - 60) : error.end + 20]
                Console().error(f"{shown!r} is no text in UTF-8; rename the file, or mend the text.")
            else:
                text = " ".join(str(error).split())
                Console().error(f"unexpected failure ({type(error).__name__}: {text}); --debug shows where.")
            raise typer.Exit(EXIT_USER_ERROR) from error


def hoist(args: list[str]) -> list[str]:
    """Move global options in front of the subcommand, so that `nsf identify --json` is `nsf --json identify`."""
    front: list[str] = []
    rest: list[str] = []
    queue = list(args)
    while queue:
        word = queue.pop(0)
        if word == "--":
            rest += [word, *queue]
            break
        name, equals, _ = word.partition("=")
        takes_next = GLOBAL_OPTIONS.get(name, False) and not equals
        if name not in GLOBAL_OPTIONS:
            rest.append(word)
            continue
        if takes_next and not queue:
            # Alone, so that what is said is that its value is missing: a command after it would be taken for that.
            return [*front, word]
        front += [word, queue.pop(0)] if takes_next else [word]
    return front + rest


app = typer.Typer(
    name="nsf",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Global options may stand before or after the command. Docs: README.md",
)


def _paragraphs(text: str | None) -> str:
    """A docstring with each paragraph on one line: the help page breaks lines where the terminal's width wants it."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _version(ctx: typer.Context, value: bool) -> None:
    if value:
        typer.echo(json.dumps({"version": __version__}) if "--json" in ctx.meta[ARGUMENTS] else f"nsf {__version__}")
        raise typer.Exit


@app.callback(
    help=_paragraphs(
        """Find and remove spurious correlations from a trained classifier, without group labels, by rebuilding only its
        last layer.

        Each command reads and writes safetensors artifacts; with no option it uses the standard paths and params.yaml of
        the current folder. [bold]dvc repro[/bold] runs them all."""
    )
)
def nsf(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors (and --json).")] = False,
    params: Annotated[Path | None, file_option("Parameters; default: params.yaml in this folder.", panel=None)] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where to compute.")] = "auto",
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """The global options, before any command."""
    ctx.obj = Settings(Console(as_json=as_json, quiet=quiet), params, device, debug)


def _placed(name: str, function: Callable[..., None]) -> Callable[..., None]:
    """The command in the processes where it belongs: here, or in several that `distributed.launch` starts."""

    @functools.wraps(function)
    def command(ctx: typer.Context, **options: Any) -> None:
        from nsfcli import launch, params
        from stages.runtime import check_device

        settings: Settings = ctx.obj
        # Here, for there are commands that need neither.
        check_device(settings.device)
        params.check_named(settings.params)
        if name not in launch.STAGES:
            if distributed.size() > 1:
                raise BadParameter(f"`nsf {name}` runs in one process", where="torchrun", do="run it without torchrun")
        # Started by a launcher there is nothing more to start.
        elif not os.environ.get("WORLD_SIZE") and (words := params.launch(settings.params)) is not None:
            raise typer.Exit(launch.launched(words, ctx.meta[ARGUMENTS], settings.params, debug=settings.debug))
        _spare(settings.params or params.STANDARD_PATH, options)
        function(ctx, **options)

    return command


def _spare(parameters: Path, options: Mapping[str, Any]) -> None:
    """Refuse the parameters' file under any other name than theirs: an output would take its place.

    Raises:
        BadParameter: as said.
    """
    for name, value in options.items():
        if isinstance(value, Path) and realpath(value) == realpath(parameters):
            option = f"option --{name.replace('_', '-')}"
            raise BadParameter(f"'{value}' holds the parameters", where=option, do="name another file")


def _terminated(number: int, frame: Any) -> None:
    # What is taken down with its loader processes has nothing more to say.
    sys.unraisablehook = lambda _: None
    # torchrun ends all processes when one has ended, perhaps before the first has noticed and said so.
    if distributed.size() > 1 and distributed.rank() == 0 and not Console.failed:
        Console().error("torchrun has ended this process: another of this run has ended before, or it was told to stop.")
    sys.exit(EXIT_TERMINATED)


def main() -> None:
    """The entry point `nsf`."""
    # A polite kill cleans up like an interruption: temporary files go, nothing half-written stays.
    signal.signal(signal.SIGTERM, _terminated)
    # OpenMP's threads sleep while they wait for each other: on cores that others use too, spinning takes many times as long
    # (docs/scale.md). It reads this once, when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Closed by whoever called us: nobody wants to read what is printed.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a class's name shows its escape; results are written by then.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        several = distributed.size() > 1
    except UserError as error:
        Console().error(str(error))
        sys.exit(EXIT_USER_ERROR)
    if several:
        from nsfcli.launch import work

        work(app)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as end:
        # Typer's pages end as if they had failed when nobody reads them to their end.
        if isinstance(end.__context__, BrokenPipeError):
            sys.exit(EXIT_PIPE_CLOSED)
        raise
