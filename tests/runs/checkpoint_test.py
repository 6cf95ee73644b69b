"""Which checkpoints stay, and what happens when one cannot be written or read."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_runs import small_files

from blt_jax.runs.checkpoint import (
  Checkpoints,
  find_step,
  load_params,
  save_params,
  warn_if_old,
)
from blt_jax.training.state import TrainState


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
    with _open(tmp_path) as checkpoints, small_files(10_000):
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
    load_params(tmp_path, _abstract().params, "best")["w"], [4, 5, 6, 7]
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
  save_params(tmp_path, 7, _state(7).params)
  assert find_step(tmp_path) == 7
  params = load_params(tmp_path, _abstract().params)
  np.testing.assert_array_equal(params["w"], [7, 8, 9, 10])
