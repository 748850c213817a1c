"""The help of `rsprune`: commands grouped by task, each with its whole description."""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import version

import click
import typer
from typer.core import TyperArgument, TyperGroup
from typer.utils import get_params_from_function

from rsprune_dagster.utils.terminal import say

GROUPS: Mapping[str, tuple[str, ...]] = {
    "A corpus": ("plan", "prune", "explain", "export", "report"),
    "The project": ("materialize", "study", "sample", "super-resolve", "synthesize", "reprune"),
    "Versions": ("lineage", "diff", "restore"),
    "To try it": ("demo", "synth"),
}


class GroupedCommands(TyperGroup):
    """`rsprune` itself: lists its commands by GROUPS."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section per group; click would truncate sentences to one line."""
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _sentence(self.commands[name])) for name in names])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command whose arguments have their help text."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.callback is not None:
            _describe_arguments(command, inspect.unwrap(command.callback))
        return command


def show_version(wanted: bool) -> None:
    """Print the version and exit; the callback of `--version`."""
    if wanted:
        say(f"rsprune {version('rsprune_dagster')}")
        raise typer.Exit


def _describe_arguments(command: click.Command, function: Callable[..., object]) -> None:
    """Set the help text of arguments to the declared one.

    With typer 0.25, click 8.5 drops it; with it, click would list the arguments a second time.
    """
    declared = get_params_from_function(function)
    for parameter in command.params:
        if isinstance(parameter, TyperArgument) and parameter.name in declared:
            parameter.help = declared[parameter.name].default.help
    command.format_arguments = lambda ctx, formatter: None  # type: ignore[method-assign]


def _sentence(command: click.Command) -> str:
    """The first paragraph of a command's help."""
    return " ".join((command.help or "").split("\n\n")[0].split())
