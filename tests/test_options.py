"""Every option of every command is read by the code that the command runs; help is sound."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Iterator

import pytest
from conftest import ROOT

PACKAGES = ("utils", "metrics", "figures", "ckpt", "data", "models", "inference", "training")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "utils")
ARGUMENTS = {"args", "run_args"}  # what a parsed command line is called


def parser_of(script) -> argparse.ArgumentParser:
    return script.make_parser()


def commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    nested = [action for action in parser._actions
              if isinstance(action, argparse._SubParsersAction)]
    if nested:
        yield from nested[0].choices.items()
    else:
        yield "", parser


def functions_from(start) -> Iterator[tuple[object, ast.AST]]:
    """(function or class, its syntax tree) of everything of the project that ``start`` can reach by
    name."""
    seen, queue = set(), [start]
    while queue:
        found = queue.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        tree = ast.parse(textwrap.dedent(inspect.getsource(found)))
        yield found, tree
        names = dict(vars(inspect.getmodule(found)))
        for node in ast.walk(tree):  # imports inside the function
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
                module = importlib.import_module(node.module)
                names |= {alias.asname or alias.name: getattr(module, alias.name, None)
                          or importlib.import_module(f"{node.module}.{alias.name}")
                          for alias in node.names}
        for node in ast.walk(tree):
            value = None
            if isinstance(node, ast.Name):
                value = names.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                value = getattr(names.get(node.value.id), node.attr, None)
            if ((inspect.isfunction(value) or inspect.isclass(value))
                    and value.__module__.split(".")[0] in (*PACKAGES, *SCRIPTS)):
                queue.append(value)


def names_in(table: dict) -> set[str]:
    """The keys of a dict and of the dicts in it."""
    inner = [names_in(value) for value in table.values() if isinstance(value, dict)]
    return {str(key) for key in table}.union(*inner)


def options_read(start) -> set[str]:
    read = set()
    for found, tree in functions_from(start):
        constants = vars(inspect.getmodule(found))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(constants.get(node.id), dict):
                read |= names_in(constants[node.id])  # keys that getattr goes through
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                read |= {node.attr} if node.value.id in ARGUMENTS else set()
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)  # names in a list that getattr goes through
        if dataclasses.is_dataclass(found) and hasattr(found, "from_args"):
            read |= {field.name for field in dataclasses.fields(found)}
    return read


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_of_every_command_is_read(name):
    script = importlib.import_module(name)
    for command, parser in commands_of(parser_of(script)):
        start = parser.get_default("run") or script.main
        options = {action.dest for action in parser._actions} - {"help", "command"}
        unread = options - options_read(start)
        assert not unread, f"{name} {command}: {', '.join(sorted(unread))} are read nowhere"


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_each_default_once_and_as_it_is_typed(name):
    for command, parser in commands_of(parser_of(importlib.import_module(name))):
        formatter = parser._get_formatter()
        for action in parser._actions:
            text = formatter._expand_help(action) if action.help else ""
            assert text.count("(default") <= 1, f"{name} {command} {action.dest}: {text}"
            assert "default: [" not in text, f"{name} {command} {action.dest}: {text}"
