"""What every command does: settle the settings, and print text or one JSON value."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ..settings import Settings

Command = Callable[[argparse.Namespace], int]


def settings_of(arguments: argparse.Namespace, **options: Any) -> Settings:
    given = {f"kevolve.{name}": value for name, value in options.items() if value is not None}
    if arguments.store is not None:
        given["kevolve.store"] = arguments.store
    return Settings.resolve(given, None)[0]


def show(arguments: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, indent=1, default=str) if arguments.json else text)
