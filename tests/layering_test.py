"""Tests which module may import which, and that modules stay small and documented."""

import ast
import graphlib

import pytest
import rooms
from rooms import FILES, foreign, imports, in_rooms, is_command, ours, tree

COMMANDS = [module for module in FILES if is_command(module)]
ARRAYS_ONLY = ("tokenizer", "patching", "hashing")
SETTINGS_ROOMS = ("config", "runs", "studies")
LONG = ("main", "train", "get_config")  # straight lists of steps
NUMERIC_ROOMS = ("ops", "models", "decode", "training", "patching", "hashing")
KERNEL_ROOMS = ("blt_jax.ops.triton", "blt_jax.ops.hopper", "blt_jax.ops.tpu")
MODELS = {"BLT", "ByteLM", "BLTConfig", "ByteLMConfig", "BLTReader", "ByteLMReader"}


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
def test_storage_alone_knows_how_paths_are_reached(module):
  if not module.startswith("blt_jax.storage"):
    assert "fsspec" not in foreign(module)
    assert "etils" not in foreign(module) or module == "blt_jax.runs.checkpoint"
    used = {n.partition(".")[0] for n in imports(module)}
    if module not in ("blt_jax.cli.parsing", "blt_jax.evals.sandbox", "blt_jax.lm_eval"):
      assert not {"tempfile", "shutil", "glob"} & used


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


@pytest.mark.parametrize("module", FILES)
def test_only_doors_of_ops_import_kernels(module):
  kernels = {name for name in ours(module) if name.startswith(KERNEL_ROOMS)}
  is_door = module.startswith("blt_jax.ops.") and module.count(".") == 2
  assert is_door or module.startswith(KERNEL_ROOMS) or not kernels


@pytest.mark.parametrize("module", sorted(FILES.keys() - set(in_rooms("kinds"))))
def test_only_kinds_tells_models_apart(module):
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
      names = {part.rpartition(".")[2] for part in ast.unparse(node.args[1]).split(" | ")}
      assert not names & MODELS, f"line {node.lineno}"


@pytest.mark.parametrize("module", sorted(FILES.keys() - set(COMMANDS)))
def test_settings_end_above_the_rooms_of_arrays(module):
  if rooms.room_of(module) not in (*SETTINGS_ROOMS, ""):
    assert "ml_collections" not in foreign(module)


@pytest.mark.parametrize("module", in_rooms(*NUMERIC_ROOMS))
def test_public_functions_of_arrays_say_their_shapes(module):
  body = tree(module).body
  methods = [f for part in body if isinstance(part, ast.ClassDef) for f in part.body]
  for function in (*body, *methods):
    if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
      annotations = [ast.unparse(a.annotation) for a in function.args.args if a.annotation]
      if any(kind in text for text in annotations for kind in ("jax.Array", "np.ndarray")):
        text = ast.get_docstring(function) or ""
        assert "[" in text or "ee `" in text, function.name  # or says where shapes stand


@pytest.mark.parametrize("module", FILES)
def test_functions_are_short(module):
  for function in ast.walk(tree(module)):
    if isinstance(function, ast.FunctionDef) and function.name not in (
      "main",
      "train",
      "get_config",
    ):
      assert function.end_lineno - function.lineno < 70, function.name
