"""Which checkpoints stay, and what happens when one cannot be written or read."""

import contextlib
import dataclasses
import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging
from tiny_runs import small_files

from blt_jax.runs import stored_params, stored_state
from blt_jax.runs.checkpoint import (
  Checkpoints,
  find_step,
  warn_if_old,
)
from blt_jax.training.state import TrainState


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
  monkeypatch.setattr(stored_state, "_WAITS", (0, 0, 0))


def _state(step, size=4):
  params = {"w": jnp.arange(size, dtype=jnp.float32) + step, "b": jnp.ones((2, 3))}
  return TrainState(jnp.array(step), params, (jnp.zeros(size), ()))


def _abstract(size=4):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), _state(0, size)
  )


@contextlib.contextmanager
def _open(workdir, **options):
  with contextlib.closing(Checkpoints(workdir, **options)) as checkpoints:
    yield checkpoints


def _save(workdir, *steps):
  with _open(workdir) as checkpoints:
    for step in steps:
      checkpoints.save(step, _state(step), {"at": step})


def _steps(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def _damage(workdir, step):
  """Cuts every array of a checkpoint short."""
  for path in (workdir / "checkpoints" / str(step)).rglob("d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_gives_back_what_was_saved(tmp_path):
  _save(tmp_path, 1, 2)
  with _open(tmp_path) as checkpoints:
    restored = checkpoints.restore(_abstract())
  assert restored.step == 2 and restored.extra == {"at": 2}
  for found, saved in zip(
    jax.tree.leaves(restored.state), jax.tree.leaves(_state(2)), strict=True
  ):
    np.testing.assert_array_equal(found, saved)


def test_scalars_of_a_model_come_back_and_older_checkpoints_have_none(tmp_path):
  old, new, state = tmp_path / "old", tmp_path / "new", _state(1)
  before = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
  with _open(old) as checkpoints:
    checkpoints.save(1, before, {})
  with _open(old) as checkpoints:
    assert checkpoints.restore(_abstract()).state.extra == {}
  assert stored_params.scalars_of(old, 1) == {}

  with _open(new) as checkpoints:
    checkpoints.save(1, dataclasses.replace(state, extra={"threshold": jnp.float32(1.25)}), {})
  abstract = _abstract()
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=abstract.params["w"].sharding)
  with _open(new) as checkpoints:
    restored = checkpoints.restore(dataclasses.replace(abstract, extra={"threshold": scalar}))
  assert restored.state.extra == {"threshold": 1.25}
  assert stored_params.scalars_of(new, 1) == {"threshold": 1.25}


def test_a_new_run_has_none(tmp_path):
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()) is None
  with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
    find_step(tmp_path)


def test_keeps_the_newest_those_at_multiples_and_the_best(tmp_path):
  bpb = {1: 3.0, 2: 1.5, 3: None, 4: 2.0, 5: 1.7, 6: None, 7: None, 8: 2.5}
  with _open(tmp_path, keep=2, keep_every=3, best=1) as checkpoints:
    for step, value in bpb.items():
      checkpoints.save(step, _state(step), {}, value)
  assert _steps(tmp_path) == [2, 3, 6, 7, 8]


def test_a_saved_step_is_not_saved_again(tmp_path):
  _save(tmp_path, 1)
  before = (tmp_path / "checkpoints" / "1").stat().st_mtime_ns
  _save(tmp_path, 1)
  assert (tmp_path / "checkpoints" / "1").stat().st_mtime_ns == before


def test_a_damaged_one_is_reported_and_the_one_before_used(tmp_path, caplog):
  _save(tmp_path, 1, 2)
  _damage(tmp_path, 2)
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()).step == 1
    checkpoints.save(2, _state(2), {})  # in its place
  assert "Checkpoint 2" in caplog.text and "damaged" in caplog.text
  assert _steps(tmp_path) == [1, 2]
  assert [path.name.split("-")[0] for path in (tmp_path / "damaged").iterdir()] == ["2"]


def test_damaged_metrics_are_damage(tmp_path):
  _save(tmp_path, 1, 2)
  (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text('{"bp')
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()).step == 1


def test_a_run_does_not_start_again_where_all_are_damaged(tmp_path):
  _save(tmp_path, 1)
  _damage(tmp_path, 1)
  with _open(tmp_path) as checkpoints, pytest.raises(ValueError, match="None of the check"):
    checkpoints.restore(_abstract())


def _noisy(workdir):
  """A checkpoint of step 1, and one of step 2 with noise, which compression leaves as it is."""
  noise = {"w": jax.random.bits(jax.random.key(0), (4000,))}
  with _open(workdir) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, TrainState(jnp.array(step), noise, ()), {})
  return noise


def test_flipped_bits_are_never_taken_for_parameters(tmp_path):
  noise = _noisy(tmp_path)
  files = [p for p in (tmp_path / "checkpoints/2/state").rglob("*") if p.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  whole, rng, seen = largest.read_bytes(), np.random.default_rng(0), []
  for _ in range(8):
    damaged = bytearray(whole)
    damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    largest.write_bytes(damaged)
    try:
      found = stored_params.load(tmp_path, noise)
    except ValueError as error:
      seen.append(
        "are not what was saved (bits changed since), the first is params/w" in str(error)
      )
    else:
      np.testing.assert_array_equal(found["w"], noise["w"])
  assert any(seen)


def test_arrays_that_are_not_what_was_saved_are_damage(tmp_path, caplog):
  noise = _noisy(tmp_path)
  path = tmp_path / "checkpoints/2/extra/metadata"
  digest = json.loads(path.read_text())["digests"]["params/w"]
  abstract = jax.eval_shape(lambda: TrainState(jnp.array(0), noise, ()))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(lambda x: x.update(sharding=device), abstract)
  for other in (digest, "uint32 00000000"):
    path.write_text(path.read_text().replace(digest, other))
    with _open(tmp_path) as checkpoints:
      assert checkpoints.restore(abstract).step == (2 if other == digest else 1)
  assert "1 of its arrays are not what was saved" in caplog.text
  assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_changed_extra_is_damage(tmp_path):
  _save(tmp_path, 1, 2)
  path = tmp_path / "checkpoints/2/extra/metadata"
  path.write_text(path.read_text().replace('"at": 2', '"at": 3'))
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()).step == 1


def test_checkpoints_of_before_there_were_digests_pass_with_a_note(tmp_path, caplog):
  logging.set_verbosity(logging.INFO)
  _save(tmp_path, 1)
  path = tmp_path / "checkpoints/1/extra/metadata"
  path.write_text('{"at": 1}')
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()).extra == {"at": 1}
  assert "Checkpoint 1 has no digests" in caplog.text
  shutil.rmtree(path.parent)  # as in weights that were exported before
  np.testing.assert_array_equal(
    stored_params.load(tmp_path, _abstract().params)["w"], [1, 2, 3, 4]
  )


def _fail(monkeypatch, error, times):
  """Lets the next reads of arrays fail."""
  real, left = ocp.StandardCheckpointHandler.restore, [error] * times

  def restore(*args, **kwargs):
    if left:
      raise left.pop()
    return real(*args, **kwargs)

  monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", restore)


@pytest.mark.parametrize(
  "error",
  [
    ValueError("UNAVAILABLE: HTTP response code: 503"),
    TimeoutError(),
    OSError(errno.ESTALE, "Stale file handle"),
    ConnectionResetError("closed by peer"),
  ],
)
def test_a_passing_error_moves_nothing(tmp_path, monkeypatch, error):
  _save(tmp_path, 1, 2)
  _fail(monkeypatch, error, times=2)
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()).step == 2
  _fail(monkeypatch, error, times=9)
  with _open(tmp_path) as checkpoints, pytest.raises(OSError, match="2 of .* It stays where"):
    checkpoints.restore(_abstract())
  assert _steps(tmp_path) == [1, 2] and not (tmp_path / "damaged").exists()


@pytest.mark.parametrize("part", ["extra", "state", "extra/metadata", "state/manifest.ocdbt"])
def test_a_missing_part_is_an_error_and_moves_nothing(tmp_path, part):
  _save(tmp_path, 1, 2)
  (tmp_path / "checkpoints/2" / part).rename(tmp_path / "kept")
  with _open(tmp_path) as checkpoints, pytest.raises(OSError, match="2 of .* or move it away"):
    checkpoints.restore(_abstract())
  (tmp_path / "kept").rename(tmp_path / "checkpoints/2" / part)
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()).step == 2
  assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize("name", ["a**b", "run [1]", "what?"])
def test_names_that_stand_for_others_are_refused(tmp_path, name):
  for attempt in (Checkpoints, find_step):
    with pytest.raises(ValueError, match="which stand for other names; rename it"):
      attempt(tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_arrays_come_in_the_dtype_that_is_asked_for(tmp_path):
  _save(tmp_path, 1)
  narrow = jax.tree.map(lambda x: x.update(dtype=jnp.bfloat16), _abstract().params)
  params = stored_params.load(tmp_path, narrow)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
  np.testing.assert_array_equal(params["w"].astype(np.float32), [1, 2, 3, 4])


def test_another_model_is_a_mistake_and_no_damage(tmp_path):
  _save(tmp_path, 1)
  message = r"of another model.*2 arrays differ.*opt_state/0, \(4,\) there and \(5,\) by"
  with _open(tmp_path) as checkpoints, pytest.raises(ValueError, match=message):
    checkpoints.restore(_abstract(size=5))
  assert _steps(tmp_path) == [1]


def test_a_full_disk_is_an_error_and_what_was_there_stays(tmp_path):
  _save(tmp_path, 1)
  noise = {"w": jax.random.normal(jax.random.key(0), (100_000,))}
  with pytest.raises(OSError, match="cannot be written into .*Check free space"):  # noqa: SIM117
    with _open(tmp_path) as checkpoints, small_files(100_000):
      checkpoints.save(2, TrainState(jnp.array(2), noise, ()), {})
      checkpoints.wait()
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(_abstract()).step == 1


@pytest.mark.parametrize(
  "error, kind, message",
  [
    (ValueError("no space left"), OSError, "no space left. Check free space"),
    (TimeoutError("at a barrier"), OSError, "at a barrier. Another process stopped first"),
    (
      jax.errors.JaxRuntimeError("closed by peer"),
      jax.errors.JaxRuntimeError,
      "closed by peer",
    ),
  ],
)
def test_the_disk_is_not_blamed_for_other_processes(
  tmp_path, monkeypatch, error, kind, message
):
  def fail(_):
    raise error

  with _open(tmp_path) as checkpoints:
    monkeypatch.setattr(ocp.CheckpointManager, "check_for_errors", fail)
    with pytest.raises(kind, match=message):
      checkpoints.check()
    monkeypatch.undo()


def test_a_checkpoint_is_found_by_its_step_or_as_the_best(tmp_path):
  with _open(tmp_path, keep=5) as checkpoints:
    for step, bpb in {1: None, 2: 1.5, 4: 1.25, 7: 2.0}.items():
      checkpoints.save(step, _state(step), {}, bpb)
  assert [find_step(tmp_path, step) for step in (None, "best", 2)] == [7, 4, 2]
  np.testing.assert_array_equal(
    stored_params.load(tmp_path, _abstract().params, "best")["w"], [4, 5, 6, 7]
  )
  with pytest.raises(FileNotFoundError, match="no checkpoint of step 3; it has 1, 2, 4, 7"):
    find_step(tmp_path, 3)
  (tmp_path / "checkpoints/4/metrics/metrics").write_text("{")
  assert find_step(tmp_path, "best") == 2


def test_no_best_where_none_was_evaluated(tmp_path):
  _save(tmp_path, 1, 2)
  with pytest.raises(ValueError, match="none is known to be the best; .* step of one: 1, 2"):
    find_step(tmp_path, "best")


def test_an_old_entropy_model_is_no_silent_choice(tmp_path, caplog):
  _save(tmp_path, 1, 2)
  warn_if_old(tmp_path, 2)
  assert "export" not in caplog.text
  warn_if_old(tmp_path, 1)
  assert f"export --run={tmp_path} --step=1" in caplog.text


def test_parameters_alone(tmp_path):
  stored_params.save(tmp_path, 7, _state(7).params)
  assert find_step(tmp_path) == 7
  params = stored_params.load(tmp_path, _abstract().params)
  np.testing.assert_array_equal(params["w"], [7, 8, 9, 10])
