"""Argument parsing with one-line errors that name the nearest option, and output that commands share."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from dist_prune.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """Raises argument errors as UserError, instead of printing usage and error on every rank."""

    def __init__(self, program: str, description: str | None) -> None:
        super().__init__(program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UserError; argparse calls this for a mistake."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse, and refuse unknown options."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            odd = unknown[0].split("=")[0]
            raise UserError(f"unknown option '{odd}'; {nearest(odd, known)}")
        return parsed


def show(values: Mapping[str, Any]) -> None:
    """Print a table of names and values; None is shown as not measured."""
    from tabulate import tabulate

    print(tabulate(values.items(), tablefmt="plain", disable_numparse=True, missingval="not measured"))


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return an argument type: a number of ``kind`` above 0."""

    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse
