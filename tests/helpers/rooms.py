"""The rooms of `blt_jax`, the floors they lie on, and what imports what.

  python tests/helpers/rooms.py

prints each room with its floor and the rooms that it imports; an arrow that does not point
down is marked.
"""

import ast
import pathlib
import sys
from collections.abc import Iterable

import blt_jax

ROOT = pathlib.Path(blt_jax.__file__).parent
FLOORS = [
  {"ops", "patching", "hashing", "tokenizer", "storage", "parallel"},
  {"models", "data"},
  {"entropy", "training", "convert", "cost"},
  {"decode"},
  {"kinds"},
  {"config", "cli"},
  {"runs"},
  {"evals", "studies"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
COMMANDS_FLOOR = len(FLOORS) + 1


def name_of(path: pathlib.Path) -> str:
  """Dotted name of a module's file."""
  parts = path.relative_to(ROOT.parent).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def in_rooms(*rooms: str) -> list[str]:
  """Modules of rooms, or of folders in them."""
  names = [f"blt_jax.{room}" for room in rooms]
  return [m for m in FILES if any(m == name or m.startswith(f"{name}.") for name in names)]


def room_of(module: str) -> str:
  """First part of a module's name below the package."""
  return module.split(".")[1] if "." in module else ""


def floor_of(module: str) -> int:
  """Floor of a module: a room's, or that of the commands."""
  if module == "blt_jax":
    return 0
  return COMMANDS_FLOOR if is_command(module) else FLOOR[room_of(module)]


def is_command(module: str) -> bool:
  """Whether `python -m` runs it: a file at the door, or a room's `__main__`."""
  room = room_of(module)
  return module.endswith(".__main__") or (bool(room) and room not in FLOOR)


def tree(module: str) -> ast.Module:
  """Its syntax tree."""
  return ast.parse(FILES[module].read_text())


def imports(module: str) -> set[str]:
  """Full names of the modules that a module imports, anywhere in its file."""
  package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
  found = set()
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, *filter(None, [base])])
      names = {f"{base}.{alias.name}" for alias in node.names}
      found |= {name if name in FILES else base for name in names}
  return found


def foreign(module: str) -> set[str]:
  """Top-level packages that a module imports, without ours and the standard library."""
  roots = {name.partition(".")[0] for name in imports(module)}
  return roots - {"blt_jax"} - set(sys.stdlib_module_names)


def ours(module: str) -> set[str]:
  """Modules of this package that a module imports."""
  return {name for name in imports(module) if name.partition(".")[0] == "blt_jax"}


def wrong_arrows(modules: Iterable[str] = FILES) -> list[str]:
  """Imports that neither stay in their room nor point down; ids are the ground of floor 1."""
  return [
    f"{module} ({floor_of(module)}) -> {name} ({floor_of(name)})"
    for module in modules
    for name in sorted(ours(module))
    if room_of(name) not in (room_of(module), "tokenizer")
    and floor_of(name) >= floor_of(module)
  ]


def main() -> None:
  """Prints the arrows."""
  rooms: dict[str, list[str]] = {}
  for module in FILES:
    name = "commands" if is_command(module) else room_of(module)
    rooms.setdefault(name, []).append(module)
  for room, modules in sorted(rooms.items(), key=lambda item: -floor_of(item[1][-1])):
    targets = {room_of(name) for module in modules for name in ours(module)} - {room, ""}
    count = f"({len(modules)} files)"
    print(floor_of(modules[-1]), room, count, "->", *sorted(targets))
  print(*(f"WRONG {arrow}" for arrow in wrong_arrows()), sep="\n")


if __name__ == "__main__":
  main()
