"""Rates, goodput, the guard of the loss, traces: numbers worked out by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import kinds
from blt_jax.cost import flops
from blt_jax.runs import metrics, stopwatch
from blt_jax.runs.log import RunLog
from blt_jax.runs.loss_guard import LossGuard
from blt_jax.runs.profiling import Profiled
from blt_jax.runs.stopwatch import Stopwatch
from blt_jax.runs.warning_signs import WarningSigns

_SUMS = dict(
  nats=60.0, targets=22, bytes=20, inputs=22, patches=11, one_byte_patches=3,
  byte_slots=40, patch_slots=22, read_targets=22, read_bytes=20,
)  # fmt: skip


def _batch(value=0):
  return {"tokens": jnp.full((2, 3), value), "patch_lengths": jnp.ones((2, 4), jnp.int32)}


class _Clock:
  """Stands in for the module `time`."""

  def __init__(self):
    self.now = 1000.0

  def time(self):
    return self.now

  monotonic = time


@pytest.fixture(name="clock")
def _clock(monkeypatch):
  clock = _Clock()
  monkeypatch.setattr(stopwatch, "time", clock)
  return clock


def test_sums_become_rates():
  numbers = metrics.summarise(_SUMS)
  assert numbers["loss"] == 60 / 22
  assert numbers["bpb"] == pytest.approx(60 / 0.6931471805599453 / 20)
  assert numbers["patch_size"] == 2.0 and numbers["one_byte_patches"] == 3 / 11
  assert numbers["byte_slot_use"] == 0.55 and numbers["patch_slot_use"] == 0.5


def test_speed_per_chip_and_share_of_the_peak(monkeypatch):
  monkeypatch.setattr(flops, "peak_flops", lambda kind: 1e4)
  monkeypatch.setattr(kinds, "flops_per_byte", lambda config, patch_size, seq_len: 100.0)
  speed = metrics.Speed(None, 4096, jax.devices()[:2])
  assert speed(_SUMS, seconds=0.5) == {
    "bytes_per_second": 40.0,
    "chip_bytes_per_second": 20.0,
    "chip_patches_per_second": 11.0,
    "mfu": 3 * 100 * 20 / 1e4,
  }


@pytest.mark.parametrize(("holds_pieces", "context"), [(False, 4096), (True, 8192)])
def test_a_context_is_counted_in_bytes(holds_pieces, context, monkeypatch):
  asked = []
  monkeypatch.setattr(flops, "peak_flops", lambda kind: 1e4)
  monkeypatch.setattr(kinds, "flops_per_byte", lambda *sizes: asked.append(sizes) or 100.0)
  metrics.Speed(None, 4096, jax.devices()[:2], holds_pieces)(_SUMS, seconds=0.5)
  assert asked == [(None, 2.0, context)]


def test_no_share_of_an_unknown_peak():
  assert "mfu" not in metrics.Speed(None, 4096, jax.devices("cpu")[:1])(_SUMS, 1.0)


def test_goodput_counts_steps_of_this_process_and_those_before(clock):
  watch = Stopwatch()
  clock.now += 10  # compiling
  watch.restart()
  with watch.waiting():
    clock.now += 1
  clock.now += 4
  first = watch.lap(5)
  assert (first["seconds"], first["step_seconds"], first["data_wait"]) == (5.0, 1.0, 0.2)
  assert first["goodput"] == 4 / 15
  saved = watch.state
  clock.now += 20  # steps after the checkpoint, lost, and the time until a restart
  watch = Stopwatch(**saved)
  clock.now += 5
  with watch.paused("checkpoint"):
    clock.now += 2
  clock.now += 3
  last = watch.lap(1)
  assert last["seconds"] == 3.0 and last["checkpoint_seconds"] == 2.0
  assert last["goodput"] == (4 + 3) / 45
  assert "checkpoint_seconds" not in watch.lap(1)


def test_guard_lets_a_usual_loss_pass(tmp_path):
  guard = LossGuard(tmp_path, max_jump=1.0)
  for step, nats in enumerate([60.0, 50.0, 80.0], start=1):
    guard.check(step, _SUMS | {"nats": nats, "grad_norm": 1.0}, _batch())
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    (dict(nats=np.nan), "NaN or infinite.*at step 2"),
    (dict(grad_norm=np.inf), "NaN or infinite.*at step 2"),
    (dict(nats=60.0 + 23), "jumped from about 2.727 to 3.773 at step 2.*max_loss_jump"),
  ],
)
def test_guard_stops_at_a_bad_loss_and_keeps_the_batch(bad, message, tmp_path):
  guard = LossGuard(tmp_path, max_jump=1.0)
  good = _SUMS | {"grad_norm": 1.0}
  guard.check(1, good, _batch(1))
  with pytest.raises(FloatingPointError, match=message):
    guard.check(2, good | bad, _batch(2))
  with np.load(tmp_path / "bad_batch_2_process_0.npz") as saved:
    np.testing.assert_array_equal(saved["tokens"], [[2, 2, 2], [2, 2, 2]])
    assert saved["patch_lengths"].shape == (2, 4)


def _log(tmp_path, writer, every_steps=2, signs=None):
  return RunLog(
    num_steps=10,
    every_steps=every_steps,
    rates={
      "learning_rate": lambda step: step * 0.5,
      "learning_rate/latent/*": lambda step: step,
    },
    speed=metrics.Speed(None, 16, jax.devices("cpu")[:1]),
    guard=LossGuard(tmp_path, max_jump=1.0),
    stopwatch=Stopwatch(),
    writer=writer,
    signs=signs,
  )


def test_log_reports_one_step_late_and_the_rest_when_asked(tmp_path):
  log = _log(tmp_path, metrics.MetricWriter(tmp_path, use_tensorboard=False))

  def lines():
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]

  step_metrics = {k: jnp.array(v, jnp.float32) for k, v in _SUMS.items()}
  step_metrics |= {"grad_norm": jnp.array(0.25), "update_ratio/latent/*": jnp.array(0.125)}
  for step in (1, 2):
    log.add(step, step_metrics, _batch())
  assert not lines()  # reading these two would wait for the newest
  log.add(3, step_metrics, _batch())
  assert [n["step"] for n in lines()] == [2]
  log.flush()
  log.flush()
  log.evaluation(3, {"bpb": 1.5})
  log.close()
  assert [(n["step"], n["kind"]) for n in lines()] == [(2, "train"), (3, "train"), (3, "eval")]
  assert lines()[0].items() >= {
    "learning_rate": 0.5, "learning_rate/latent/*": 1.0, "update_ratio/latent/*": 0.125
  }.items()  # fmt: skip
  assert lines()[0]["learning_rate"] == 0.5 and lines()[0]["grad_norm"] == 0.25
  assert lines()[0]["loss"] == pytest.approx(60 / 22)


@pytest.mark.parametrize("leads", [True, False])
def test_log_warns_of_rows_and_of_text_known_by_heart(leads, tmp_path, caplog):
  signs = WarningSigns(seq_len=4096, num_patches=1400, target_bytes_per_patch=4.5)
  log = _log(tmp_path, writer=None, signs=signs if leads else None)
  step_metrics = {k: jnp.array(v, jnp.float32) for k, v in _SUMS.items()}
  log.add(1, step_metrics | {"grad_norm": jnp.array(0.25)}, _batch())
  log.flush()
  log.evaluation(1, {"bpb": 7.0, "loss": 2 * 60 / 22 - 0.1})
  log.evaluation(1, {"bpb": 7.0, "loss": 2 * 60 / 22 + 0.1})
  warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
  if not leads:
    assert not warnings
    return
  size, rows, by_heart = warnings
  assert "2.00 bytes" in size and "config.data.num_patches=2048," in rows
  assert "held-out loss 5.555" in by_heart


def test_a_step_is_evaluated_in_one_row(tmp_path, caplog):
  """Also where a run that was done is started again, or a row was cut short by a kill."""
  caplog.set_level("INFO")
  (tmp_path / "metrics.jsonl").write_text('{"step": 2, "kind": "eval", "bp\n')
  for bpb in (1.5, 1.25):
    log = _log(tmp_path, metrics.MetricWriter(tmp_path, use_tensorboard=False))
    log.evaluation(2, {"bpb": bpb})
    log.close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()[1:]
  assert [json.loads(line)["bpb"] for line in lines] == [1.5]
  assert "at step 2: 1.2500 (metrics.jsonl keeps what it had)" in caplog.text


@pytest.mark.parametrize("half", ['{"step": 2, "kind": "eval", "bp', "\xff", "5\n[]\n{}"])
def test_half_a_line_stays_alone(tmp_path, half):
  path = tmp_path / "metrics.jsonl"
  path.write_text(half, encoding="latin-1")
  writer = metrics.MetricWriter(tmp_path, use_tensorboard=False)
  writer.write(3, "train", {"loss": 2.0})
  writer.close()
  *before, last = path.read_text(errors="replace").splitlines()
  assert json.loads(last)["step"] == 3 and len(before) == len(half.splitlines())


def test_a_process_that_does_not_lead_writes_nothing(tmp_path):
  log = _log(tmp_path, writer=None, every_steps=1)
  log.evaluation(3, {"bpb": 1.5})
  log.close()
  assert not list(tmp_path.iterdir())


def test_tensorboard_has_the_names_of_the_lines(tmp_path):
  writer = metrics.MetricWriter(tmp_path)
  writer.write(1, "train", {"loss": 2.0})
  writer.close()
  events = next(tmp_path.glob("events*")).read_bytes()
  assert b"train/loss" in events


def test_progress_line_names_what_one_watches():
  numbers = metrics.summarise(_SUMS) | dict(
    bytes_per_second=2000.0, data_wait=0.25, learning_rate=1e-3, step_seconds=2.0, mfu=0.4
  )
  rest = "2.0 kB/s  MFU 40.0%  patch 2.00 B  data wait 25.0%  lr 1.00e-03  ETA 2:00"
  assert metrics.progress_line(40, 100, numbers, interval=10) == (
    f"step 40/100  loss 2.727  bpb 4.328 (mean of 10 steps)  {rest}"
  )
  assert (
    metrics.progress_line(40, 100, numbers) == f"step 40/100  loss 2.727  bpb 4.328  {rest}"
  )


def test_a_window_of_steps_is_traced(tmp_path):
  step = Profiled(jax.jit(lambda x: x + 1), tmp_path, start=2, steps=2)
  x = jnp.zeros(())
  for i in range(1, 5):
    x = step(i, x)
  assert x == 4
  assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_no_window_no_trace(tmp_path):
  assert Profiled(lambda x: x, tmp_path, start=0, steps=3)(1, 5) == 5
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match="config.profile.steps 0"):
    Profiled(lambda x: x, tmp_path, start=1, steps=0)
