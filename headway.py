"""The command line: a line for each verb; the module of a verb is imported when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from profiles.files import BadInput
from reports.verbs import VERBS
from reports.verbs.style import examples, verb_app

__version__ = "0.1.0"


class Verbs(TyperGroup):
    """All verbs, known by their line of help until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the verb that is called, from its module."""
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and command(str(name)), rest


def command(verb: str) -> Any:
    """Return a verb's command, with all its options."""
    made = typer.main.get_command(import_module(f"reports.verbs.{verb}").app)
    made.name = verb
    return made


def _show_version(asked: bool) -> None:
    if asked:
        print(f"headway {__version__}")
        raise typer.Exit


app = verb_app(
    cls=Verbs, no_args_is_help=True, add_completion=True,
    help="Plan, simulate and run large-model training: will it fit, which strategy, how fast, how long, at what cost.",
    epilog=examples("plan llama-3-70b dgx-h100:16 --tokens 2T", "report plan.yaml", "plan --help"),
)


@app.callback()
def headway(
    show_version: Annotated[bool, typer.Option(
        "--version", help="Show the version.", callback=_show_version, is_eager=True,
    )] = False,
) -> None:
    """Take what all verbs share."""


for _name, _help in VERBS.items():
    app.command(_name, help=_help)(lambda: None)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; a person's mistake is one line on stderr and exit status 2."""
    try:
        status_ = typer.main.get_command(app).main(args=arguments, prog_name="headway", standalone_mode=False)
    except BadInput as e:
        _fail(str(e), 2)
    except TyperException as e:
        _fail(_usage_message(e, list(arguments if arguments is not None else sys.argv[1:])), 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        # the reader of our stdout has left; say nothing more to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except RuntimeError as e:
        _fail(str(e), 1)
    sys.exit(status_ if isinstance(status_, int) else 0)


def _usage_message(error: TyperException, arguments: list[str]) -> str:
    """Return one line that names the option, what was typed after it, and the mend."""
    message = str(getattr(error, "format_message", lambda: str(error))()).splitlines()[0]
    option = next((a for a in arguments if a.startswith("--") and f"'{a}'" in message), None)
    typed = arguments[arguments.index(option) + 1 : arguments.index(option) + 2] if option else []
    return message + (f" (is {typed[0]!r})" if typed else "") + "; see `headway --help`"


def _fail(message: str, code: int) -> NoReturn:
    print(f"headway: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
