"""``counterscan <verb> ...``: finds the verb, imports it and nothing else, and turns errors into one line.

Protocol of a verb: a row in ``VERBS`` and a module ``counterscan/cli/<verb>.py`` with

* ``COMMANDS``: command name -> a dataclass whose fields are its options (types, defaults and the field's docstring or
  comment make the help, by tyro), whose docstring is its help, and whose method ``run(self) -> int | None`` does the
  work; the number returned is the exit code, None is 0. Instead of a dataclass, ``Lazy(help, load)`` gives one later
  (when its fields need an import that is worth postponing), or a further mapping of commands.
* nothing heavy imported at the top (torch, pandas, pydicom, matplotlib): ``run`` imports what it needs. tyro is fine.

``run_commands("counterscan data", COMMANDS, argv)`` chooses the command, lets tyro fill the dataclass from the rest of
``argv`` and runs it. A command tells users what they did wrong by raising ``CounterscanError``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterscan import __version__
from counterscan.errors import CounterscanError
from counterscan.memory import keep_freed_memory

# verb -> (module, help)
VERBS: Mapping[str, tuple[str, str]] = {
    "data": ("counterscan.cli.data", "check, import, split and prepare images; make the phantom"),
    "classify": ("counterscan.cli.classify", "train and evaluate the classifier that the other verbs share"),
    "tag": ("counterscan.cli.tag", "disease maps, healthy counterparts and masks from image-level labels"),
    "explain": ("counterscan.cli.explain", "why a classifier said so: the way from an image to its counterpart"),
    "augment": ("counterscan.cli.augment", "synthetic images of rare findings: train a generator, ask it for images"),
}
_FOOTER = "For research. Not a medical device."


@dataclass(frozen=True)
class Lazy:
    """A command that is loaded when it is chosen.

    Attributes:
        help: its line in the list of commands.
        load: gives the dataclass, or a mapping of further commands.
    """

    help: str
    load: Callable[[], Any]


Command = type | Lazy
Commands = Mapping[str, Command]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default ``sys.argv[1:]``.

    Returns:
        exit code: 0, what the command returned, 2 for the user's errors, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in ("--version", "-V"):
            _say(f"counterscan {__version__}")
            return 0
        listing = {verb: text for verb, (_, text) in VERBS.items()}
        verb = _choose("counterscan", listing, arguments)
        if verb is None:
            return 0
        keep_freed_memory()
        module = importlib.import_module(VERBS[verb][0])
        return run_commands(f"counterscan {verb}", module.COMMANDS, arguments[1:])
    except CounterscanError as error:
        print("counterscan: error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("counterscan: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def run_commands(prog: str, commands: Commands, argv: Sequence[str]) -> int:
    """Choose a command by ``argv[0]``, fill it from the rest, run it.

    Args:
        prog: what was typed so far, for the help.
        commands: see the module's docstring.
        argv: what follows ``prog``.

    Returns:
        the exit code.

    Raises:
        CounterscanError: no such command, or what the command raises.
        SystemExit: tyro has shown the command's help (0) or refused its options (2).
    """
    name = _choose(prog, {name: _summary(command) for name, command in commands.items()}, argv)
    if name is None:
        return 0
    command: Any = commands[name]
    if isinstance(command, Lazy):
        command = command.load()
    if isinstance(command, Mapping):
        return run_commands(f"{prog} {name}", command, argv[1:])
    import tyro

    # Flags are the fields' own names, unless a command nests several configurations that share names.
    style = () if getattr(command, "nested_flags", False) else (tyro.conf.OmitArgPrefixes,)
    chosen = tyro.cli(command, prog=f"{prog} {name}", args=list(argv[1:]), config=style)
    return int(chosen.run() or 0)


def _choose(prog: str, listing: Mapping[str, str], argv: Sequence[str]) -> str | None:
    """The chosen name; None after showing the help that was asked for (or nothing was asked for).

    Raises:
        CounterscanError: no such name.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, listing))
        lines = [f"usage: {prog} <command> [options]   ({prog} <command> --help tells more)", ""]
        lines += [f"  {name:<{width}}  {text}" for name, text in listing.items()]
        _say("\n".join([*lines, "", _FOOTER]))
        return None
    if argv[0] in listing:
        return argv[0]
    near = difflib.get_close_matches(argv[0], listing, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(listing)}"
    raise CounterscanError(f"{prog} has no command {argv[0]!r}. {hint}")


def _summary(command: Command) -> str:
    text = command.help if isinstance(command, Lazy) else (command.__doc__ or "")
    return text.strip().split("\n")[0]


def _say(text: str) -> None:
    print(text, flush=True)
