"""Tests which module may import which, and that modules stay small and documented."""

import ast
import graphlib

import pytest
import rooms
from rooms import FILES, foreign, imports, in_rooms, is_command, ours, tree

COMMANDS = [module for module in FILES if is_command(module)]
ARRAYS_ONLY = ("tokenizer", "patching", "hashing")
SETTINGS_ROOMS = ("config", "runs", "studies")


def test_imports_point_down():
  assert not rooms.wrong_arrows()


def test_imports_are_not_circular():
  graph = {module: ours(module) & FILES.keys() - {module} for module in FILES}
  list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", in_rooms("ops"))
def test_ops_stand_alone(module):
  assert foreign(module) <= {"jax", "numpy"}
  assert all(name.startswith("blt_jax.ops") for name in ours(module))


@pytest.mark.parametrize("module", in_rooms(*ARRAYS_ONLY))
def test_bytes_need_arrays_only(module):
  assert foreign(module) <= {"jax", "numpy"}
  assert ours(module) <= set(in_rooms(*ARRAYS_ONLY))


@pytest.mark.parametrize("module", in_rooms("models", "decode"))
def test_models_know_nothing_of_training(module):
  assert not foreign(module) & {"optax", "orbax", "grain", "absl", "ml_collections"}


@pytest.mark.parametrize("module", in_rooms("data"))
def test_data_knows_nothing_of_models(module):
  assert not foreign(module) & {"flax", "optax"}


@pytest.mark.parametrize("module", FILES)
def test_nothing_imports_a_command(module):
  assert not ours(module) & set(COMMANDS)


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"blt_jax.runs.settings_flags"}))
def test_one_module_reads_flags_of_absl(module):
  """As `config_flags` wants them; nothing adds any to those of the process."""
  flags = {"absl.flags", "absl.app"}
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.ImportFrom) and node.module == "absl":
      assert not {f"absl.{alias.name}" for alias in node.names} & flags
  assert not imports(module) & flags


@pytest.mark.parametrize("module", FILES)
def test_files_are_small_and_documented(module):
  assert len(FILES[module].read_text().splitlines()) <= 450
  assert ast.get_docstring(tree(module))
