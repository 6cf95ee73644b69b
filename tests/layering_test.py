"""Tests which module may import which, and that modules stay small and documented."""

import ast
import graphlib
import pathlib
import sys

import pytest

import blt_jax

ROOT = pathlib.Path(blt_jax.__file__).parent


def name_of(path):
  parts = path.relative_to(ROOT.parent).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
MAINS = {
    f"blt_jax.{name}"
    for name in (
        "train", "train_compile", "evaluate", "generate", "score_entropies", "calibrate",
        "show_patches", "train_table", "export",
    )
}  # fmt: skip
BYTES = {"blt_jax.tokenizer", "blt_jax.patching", "blt_jax.hashing"}


def in_rooms(*rooms):
  return [m for m in FILES if any(m == r or m.startswith(f"{r}.") for r in rooms)]


def tree(module):
  return ast.parse(FILES[module].read_text())


def imports(module):
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


def foreign(module):
  """Top-level packages that a module imports, without ours and the standard library."""
  roots = {name.partition(".")[0] for name in imports(module)}
  return roots - {"blt_jax"} - set(sys.stdlib_module_names)


def ours(module):
  return {name for name in imports(module) if name.partition(".")[0] == "blt_jax"}


@pytest.mark.parametrize("module", in_rooms("blt_jax.ops"))
def test_ops_stand_alone(module):
  assert foreign(module) <= {"jax", "numpy"}
  assert all(name.startswith("blt_jax.ops") for name in ours(module))


@pytest.mark.parametrize("module", sorted(BYTES))
def test_bytes_need_arrays_only(module):
  assert foreign(module) <= {"jax", "numpy"}
  assert ours(module) <= BYTES


@pytest.mark.parametrize("module", in_rooms("blt_jax.models", "blt_jax.decode"))
def test_models_know_nothing_of_training(module):
  assert not foreign(module) & {"optax", "orbax", "grain", "absl", "ml_collections"}


@pytest.mark.parametrize("module", in_rooms("blt_jax.data"))
def test_data_knows_nothing_of_models(module):
  if module != "blt_jax.data.entropy":
    assert not foreign(module) & {"flax", "optax"}
    assert not any(name.startswith("blt_jax.models") for name in ours(module))


@pytest.mark.parametrize("module", FILES)
def test_nothing_imports_a_main(module):
  assert not ours(module) & MAINS


@pytest.mark.parametrize("module", FILES)
def test_flags_are_defined_in_mains_only(module):
  if module in MAINS | {"blt_jax.convert"}:
    return
  flags = {"absl.flags", "absl.app"}
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.ImportFrom) and node.module == "absl":
      assert not {f"absl.{alias.name}" for alias in node.names} & flags
  assert not imports(module) & flags


def test_imports_are_not_circular():
  graph = {module: ours(module) & FILES.keys() - {module} for module in FILES}
  list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", FILES)
def test_files_are_small_and_documented(module):
  assert len(FILES[module].read_text().splitlines()) <= 500
  assert ast.get_docstring(tree(module))
