"""The command line: names of commands, messages and exit codes.

A command's module is loaded when the command is asked for, and every room inside the command that needs it, so that a
command starts with little more than typer.
"""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Annotated, Any

# A command is short: collecting garbage while modules load would be a tenth of its time.
gc.set_threshold(100_000)

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402
from typer.main import get_command_from_info  # noqa: E402
from typer.models import CommandInfo  # noqa: E402

COMMANDS = (
    "predict",
    "compare",
    "explain",
    "generate",
    "simulate",
    "calibrate",
    "validate",
    "roofline",
    "reality-check",
    "claims",
    "tradeoff",
    "plan",
    "whatif",
    "list",
    "show",
    "cite",
    "page",
    "report",
)
"""In the order of the help; `costmodel.commands` has a module of each name."""
INTERNAL_ERROR = 70
"""Exit code of a bug: EX_SOFTWARE of sysexits.h."""


class Commands(TyperGroup):
    """The group of commands, with this project's messages and exit codes instead of tracebacks."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        """Run a command and leave with its exit code."""
        sys.exit(_exit_code(partial(self._run, sys.argv[1:] if args is None else list(args))))

    def _run(self, args: list[str]) -> None:
        with self.make_context("costmodel", args) as context:
            self.invoke(context)

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, loaded or not."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, from its module; none of an unknown name, which is compared with all."""
        if cmd_name not in COMMANDS:
            self.commands.update({name: self._load(name) for name in COMMANDS})
        elif cmd_name not in self.commands:
            self.commands[cmd_name] = self._load(cmd_name)
        return self.commands.get(cmd_name)

    @staticmethod
    def _load(name: str) -> Any:
        module = import_module(f"costmodel.commands.{name.replace('-', '_')}")
        asked = CommandInfo(name=name, callback=module.run)
        return get_command_from_info(asked, pretty_exceptions_short=False, rich_markup_mode=None)


def _exit_code(run: Callable[[], None]) -> int:
    """Run, tell what went wrong in one message, and say with which code to leave."""
    from costmodel.errors import BadInput, Impossible

    try:
        run()
        sys.stdout.flush()
        return 0
    except typer.Exit as leaving:
        return leaving.exit_code
    except (BadInput, Impossible) as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has seen enough. What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):
            return _usage_error(error)
        if isinstance(error, OSError) and error.errno is not None:
            return _complain(f"{error.filename or 'output'}: {error.strerror}", 2)
        if os.environ.get("COSTMODEL_DEBUG") == "1":
            raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        return _complain(f"internal error: {reason}; please report it (COSTMODEL_DEBUG=1 shows where)", INTERNAL_ERROR)


def _complain(message: str, code: int) -> int:
    from costmodel.report.output import note

    note(message if message.startswith("internal") else f"error: {message}")
    return code


def _usage_error(error: Any) -> int:
    """What click says of a command line, with the nearest option and where help is."""
    message = error.format_message().rstrip(" .")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message, err=True)
        return 2
    if type(error).__name__ == "NoSuchOption" and context is not None:
        from costmodel.errors import suggestion

        known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        message = f"unknown option {error.option_name[:80]!r}{suggestion(error.option_name, known)}"
    where = f"; see: {context.command_path} --help" if context else ""
    return _complain(f"{message}{where}", 2)


app = typer.Typer(
    cls=Commands,
    name="costmodel",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        import costmodel

        typer.echo(f"costmodel {costmodel.__version__}")
        raise typer.Exit


@app.callback()
def describe_program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What a sequence-mixing mechanism really costs: time, memory and energy at any context, on any accelerator.

    Data go to stdout, notes to stderr. Counts are written 131072, 128k (x 1024) or 1M; 4k..1M doubles.
    Exit codes: 0 done, 1 understood but impossible, 2 bad input, 130 interrupted.
    """


def main() -> None:
    """Run the command line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    try:
        app()
    finally:
        # The interpreter looks for garbage once more as it leaves: a tenth of a short command's time, for nothing.
        gc.freeze()


if __name__ == "__main__":
    main()
