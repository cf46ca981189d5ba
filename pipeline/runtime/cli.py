"""The command lines of `python -m pipeline`, `python -m slurm`, `python -m data_prep`, and `mudi`, which has them all.

`pipeline.runtime.commands` is the table of commands. The module of a command is imported when the command runs, so that
`--help` loads nothing. A command is a function of the words that are no options, with its options as keywords; it
returns an exit code, or None for 0.
"""

import argparse
import importlib
import importlib.metadata
import os
import select
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipeline.runtime.commit import commit_of
from pipeline.runtime.errors import NonFiniteError, RendezvousError, UserError, did_you_mean
from pipeline.runtime.parts import one_task_only, parse_part

BAD_INPUT, NON_FINITE, OUT_OF_MEMORY, NO_RENDEZVOUS, INTERRUPTED, NO_READER = 2, 76, 77, 78, 130, 141
EXIT_CODES = (
    "Exit codes: 0 done, 1 something failed, 2 bad input, 75 stopped and saved, 76 not finite, 77 out of memory, "
    "78 other ranks not found, 130 interrupted."
)
ARGUMENTS = {  # what may stand in `Command.arguments`
    "RUN": "a run directory, or what the run is made with: experiment=NAME and settings",
    "DATA": "a run directory, or experiment=NAME, or data=NAME of configs/data",
    "RUN_DIR": "a run directory",
    "EXPORT": "a folder that `export` wrote",
    "FOLDER": "a folder; of runs, where it may stand for a run directory",
    "JOB": "such as train; default: the one whose log is the newest",
    "PREFIX": "of names of settings",
    "key=value": "a setting: `mudi list settings` lists them",
}


@dataclass(frozen=True)
class Command:
    """One row of the table."""

    name: str  # one word, or several
    place: str  # "package.module:function"; the package is the program that has the command
    help: str
    arguments: str = ""  # usage of what is no option
    more: str = ""  # more sentences of its --help
    options: tuple[str, ...] = ()  # "-n --lines N  what it means": see `_add`
    examples: tuple[str, ...] = ()  # arguments after the command
    alone: bool = False  # several tasks cannot share the work
    own: bool = False  # the function takes options among its arguments, and parses them itself

    @property
    def program(self) -> str:
        """The package whose `python -m` it belongs to."""
        return self.place.partition(".")[0]

    def called(self, program: str) -> str:
        """How it is called: in `mudi`, the stages of data_prep have a word before them."""
        stage = "prepare " if program == "mudi" and self.program == "data_prep" else ""
        return f"{called(program)} {stage}{self.name}"

    def parser(self, program: str) -> "_Parser":
        """For its options. All other arguments are left over."""
        name = self.called(program)
        said = _filled(f"{self.help[0].upper()}{self.help[1:]}. {self.more}")
        told = [
            _row(word, text, 10) for word, text in ARGUMENTS.items() if word in self.arguments.translate(_MARKS).split()
        ]
        parser = _Parser(
            prog=name,
            usage=f"{name} {self.arguments}{' [options]' if self.options else ''}",
            description="\n\n".join(filter(None, [said, "\n".join(told)])),
            epilog="\n  ".join(["examples:", *(f"{name} {example}".rstrip() for example in self.examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,  # what is not given is the function's to say
        )
        for line in self.options:
            _add(parser, line)
        return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}. `{self.prog} --help` tells more.")


def _add(parser: _Parser, line: str) -> None:
    """`--flag  help`, `-n --name METAVAR  help`, `--name a|b  help` of a choice, `--name METAVAR...` to be repeated."""
    usage, _, text = line.partition("  ")
    names = [word for word in usage.split() if word.startswith("-")]
    metavar = usage.split()[-1]
    if metavar in names:
        parser.add_argument(*names, action="store_true", help=text)
    elif "|" in metavar:
        parser.add_argument(*names, choices=metavar.split("|"), help=text)
    else:
        one, action = metavar.removesuffix("..."), "append" if metavar.endswith("...") else "store"
        parser.add_argument(*names, metavar=one, type=_TYPES.get(one, str), action=action, help=text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number, such as 40")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number of seconds")
    return value


def _step(text: str) -> int | str:
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found '{text}', expected the number of a checkpoint's step, or best")
    return "best" if text == "best" else int(text)


_TYPES: dict[str, Callable[[str], Any]] = {
    "N": _count,
    "SECONDS": _seconds,
    "STEP": _step,
    "K/N": parse_part,
    "FOLDER": Path,
    "FILE": Path,
}
_MARKS = str.maketrans("[]|", "   ")


def called(program: str) -> str:
    """How a program is called."""
    return "mudi" if program == "mudi" else f"python -m {program}"


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, 120) - 2


def _filled(text: str) -> str:
    return textwrap.fill(text, _columns())


def _row(name: str, text: str, width: int) -> str:
    return textwrap.fill(text, _columns(), initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4))


def table_of(program: str) -> dict[str, Command]:
    """The commands of a program, by what is typed after its name."""
    from pipeline.runtime.commands import COMMANDS

    every = [command for topic in COMMANDS.values() for command in topic if program in ("mudi", command.program)]
    return {command.called(program).removeprefix(f"{called(program)} "): command for command in every}


def overview(program: str, group: str = "") -> str:
    """All commands of a program by topic, with a line each; or those alone that begin with the word `group`."""
    from pipeline.runtime.commands import COMMANDS

    name = f"{called(program)} {group}".rstrip()
    lines = [_filled(f"usage: {name} COMMAND ...; `{name} COMMAND --help` tells more, with examples")]
    for topic, commands in COMMANDS.items():
        rows = {n: c.help for n, c in table_of(program).items() if c in commands and n.startswith(group)}
        width = max(map(len, rows), default=0)
        lines += ["", f"{topic}:", *(_row(n, text, width) for n, text in rows.items())] if rows else []
    return "\n".join([*lines, "", _filled(EXIT_CODES)])


def main(program: str, argv: list[str]) -> int:
    """Run one command of a program; its exit code, see EXIT_CODES."""
    code = _code_of(program, argv)
    if code in (BAD_INPUT, NON_FINITE, INTERRUPTED) and (ranks := sys.modules.get("pipeline.runtime.distributed")):
        ranks.leave()  # so that the process ends with this code
    return code


def mudi() -> int:
    """The console command."""
    return main("mudi", sys.argv[1:])


def _code_of(program: str, argv: list[str]) -> int:
    try:
        code = _run(program, argv)
        sys.stdout.flush()  # a reader that has gone is noticed here, not when Python ends
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_RENDEZVOUS if isinstance(error, RendezvousError) else BAD_INPUT
    except NonFiniteError as error:
        print(f"not finite: {error}", file=sys.stderr)
        return NON_FINITE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_gone():  # another pipe, such as one to a worker
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        return NO_READER
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; it need not be imported to be recognised
            raise
        traceback.print_exc()
        print("out of memory: lower train.micro_batch (the result stays the same) or sample.batch.", file=sys.stderr)
        return OUT_OF_MEMORY


def _reader_gone() -> bool:
    """Whether nobody reads standard output any more, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(program: str, argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(overview(program))
        return 0
    if argv[0] == "--version":
        print(version())
        return 0
    if set(argv[1:]) <= {"-h", "--help"} and argv[0] not in table_of(program) and _is_group(program, argv[0]):
        print(overview(program, argv[0]))
        return 0
    command, rest = _found(program, argv)
    parser = command.parser(program)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        return 0
    options: dict[str, Any] = {}
    if not command.own:
        given, rest = parser.parse_known_args(rest)
        options = vars(given)
        _refuse_options(command, rest, parser)
    if not rest and command.arguments and not command.arguments.startswith("["):
        raise UserError(f"{command.name} what? For example: {parser.prog} {command.examples[0]}")
    if command.alone and not one_task_only(command.name):
        return 0
    module, _, function = command.place.partition(":")
    code: int | None = getattr(importlib.import_module(module), function)(rest, **options)
    return code or 0


def _refuse_options(command: Command, argv: Iterable[str], parser: _Parser) -> None:
    known = [
        argument for line in command.options for argument in line.partition("  ")[0].split() if argument.startswith("-")
    ]
    for argument in (argument.partition("=")[0] for argument in argv if argument.startswith("-")):
        hint = did_you_mean(argument, known) or f" It has {', '.join(known) or 'none'}."
        raise UserError(f"{argument}: no such option of `{parser.prog}`.{hint}")


def _found(program: str, argv: list[str]) -> tuple[Command, list[str]]:
    """The command that a command line begins with, and the arguments after it."""
    table = table_of(program)
    for length in (3, 2, 1):
        if (command := table.get(" ".join(argv[:length]))) is not None:
            return command, argv[length:]
    group = _is_group(program, argv[0])  # two words are a name
    name = " ".join(argv[: 1 + group])
    elsewhere = [command for command in table_of("mudi").values() if command.name == name]
    near = f" It is {elsewhere[0].called('mudi')}." if elsewhere else did_you_mean(name, table)
    raise UserError(f"no command '{name}'.{near} `{called(program)}{f' {argv[0]}' * group} --help` lists all.")


def _is_group(program: str, word: str) -> bool:
    """Whether names of several commands begin with the word, as `prepare` and `sweep`."""
    return any(name.startswith(f"{word} ") for name in table_of(program))


def version() -> str:
    """Version and commit of this code."""
    try:
        number = importlib.metadata.version("mudi")
    except importlib.metadata.PackageNotFoundError:  # a copy that was not installed
        number = "(not installed)"
    return f"mudi {number}, commit {commit_of()}"
