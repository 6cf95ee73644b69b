"""A study of two tiny models: its cost, its runs, a stop in their midst, its report."""

import csv
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs
from tiny_runs import losses, stopped_at_batch, tiny_config, write_text

from blt_jax import study as command
from blt_jax.parallel import distributed
from blt_jax.runs import lock, loop
from blt_jax.studies import bill, cost, made, measure, plan, report, runner, sweep
from blt_jax.studies.study import Study

_CONFIG = """
from tiny_runs import tiny_config

def get_config(kind):
  config = tiny_config(kind)
  config.data.update(path={text!r}, heldout_fraction=0.2)
  return config
"""
_PLAN = """
from blt_jax.studies.plan import Arm, Plan

def get_plan():
  return Plan(
    arms=dict(
      flat=Arm("models.py:byte_lm"),
      pool=Arm("models.py:byte_lm", {{"data.pool_size": 8}}),  # of the same programs
    ),
    budgets={{8e7: 2}},
    rates=(3e-2,),
    evaluations=2,
    reference="flat",
    {more}
  )
"""


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """A folder with text, settings and a plan, and programs that are compiled once."""
  home = tmp_path_factory.mktemp("study")
  (home / "models.py").write_text(_CONFIG.format(text=str(write_text(home / "text"))))
  (home / "plan.py").write_text(_PLAN.format(more=""))
  return home


def _run(home, *arguments, name="plan.py", output="out"):
  return command.main([f"--plan={home / name}", f"--output={home / output}", *arguments])


@pytest.fixture(scope="module", name="done")
def _done(home):
  """A study that was killed in the midst of a run, and gone on with."""
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(distributed, "start", lambda: None)
    patched.setattr(measure, "_SAMPLE_BYTES", 1024)
    patched.setattr(runner.loop, "train", _dying_once(patched))
    with pytest.raises(SystemError, match="killed"):
      _run(home)
    assert _run(home) is None
  return Study(plan.load(str(home / "plan.py")), str(home / "out"))


def _dying_once(patched):
  """Trains; the second run ends where its fourth batch would go to the devices."""
  real, calls = loop.train, []

  def train(config, **options):
    calls.append(config)
    if len(calls) != 2:
      return real(config, **options)
    with stopped_at_batch(4, patched):
      real(config, **options)
    raise SystemError("killed")

  return train


def test_all_runs_are_done_and_no_others(done, home):
  for arm in ("flat", "pool"):
    names = {p.name for p in home.glob(f"out/runs/{arm}/*")}
    assert names == {"8e+07_rate0.03_seed0", "8e+07_rate0.03_seed1"}
  assert runner.work(done, {}) is True  # nothing is left


def test_a_process_of_its_own_wakes_no_device_before_it_connects(done, home):
  paths = [pathlib.Path(loop.__file__).parents[2], pathlib.Path(tiny_runs.__file__).parent]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
  command = ["-m", "blt_jax.study", f"--plan={home / 'plan.py'}", f"--output={home / 'out'}"]
  result = subprocess.run(
    [sys.executable, *command, "--dry_run"], env=environment, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  assert "pool" in result.stdout


def test_a_killed_study_goes_on_to_the_same_numbers(done, home):
  (cut,) = home.glob("out/runs/pool/*_seed0")  # the second run
  config = done.config_of(sweep.Run("pool", 8e7, 0.03, 0), done.find_measured("pool"))
  config.workdir = str(home / "whole")
  loop.train(config)
  assert losses(cut) == losses(home / "whole")
  assert _last_bpb(cut) == _last_bpb(home / "whole")


def test_the_report_by_hand(done, home):
  rows = {}
  with (home / "out" / "report" / "comparison.csv").open() as file:
    for row in csv.DictReader(file):
      rows[row["arm"], float(row["budget"])] = row
  found = {arm: [_last_bpb(path) for path in _runs(home, arm)] for arm in ("flat", "pool")}
  row = rows["pool", 8e7]
  assert float(row["bpb"]) == pytest.approx(np.mean(found["pool"]))
  differences = np.subtract(found["pool"], found["flat"])
  assert float(row["difference"]) == pytest.approx(differences.mean())
  half = 12.706205 * differences.std(ddof=1) / math.sqrt(2)  # t of one degree of freedom
  assert float(row["difference_high"]) == pytest.approx(differences.mean() + half, rel=1e-4)
  assert rows["flat", 8e7]["difference"] == ""
  text = (home / "out" / "report" / "report.md").read_text()
  assert f"{differences.mean():+.4f}" in text and "## Learning rates" in text
  for name in ("differences", "training_flops", "inference_flops", "bytes_seen"):
    assert (home / "out" / "report" / f"{name}.png").read_bytes()[1:4] == b"PNG"


def _runs(home, arm):
  """Folders of an arm's runs, by seed."""
  return sorted(home.glob(f"out/runs/{arm}/*"))


def _last_bpb(folder):
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [line["bpb"] for line in lines if line["kind"] == "eval"][-1]


def test_budgets_are_kept(done):
  for record in done.records(done.done()):
    assert record.training_flops == pytest.approx(record.budget, rel=0.1)
    assert [p.bpb for p in record.curve][-1] == record.bpb and len(record.curve) == 2


def test_another_seed_is_another_start(done, home):
  folders = [path for arm in ("flat", "pool") for path in _runs(home, arm)]
  configs = [json.loads((path / "config.json").read_text()) for path in folders]
  assert [c["seed"] for c in configs] == [0, 1, 0, 1]
  assert losses(folders[0]) != losses(folders[1])


def test_what_it_costs_is_said_first(done, home, capsys, monkeypatch):
  monkeypatch.setattr(distributed, "start", lambda: None)
  before = sorted(home.glob("out/runs/*/*"))
  assert _run(home, "--dry_run") is None
  told = capsys.readouterr().out
  flat = done.find_measured("flat")
  steps = round(8e7 / (3 * flat.cost.paper * flat.bytes_per_step))
  assert f" {steps} " in told and "4 runs, 4 of them done" in told
  assert sorted(home.glob("out/runs/*/*")) == before


def test_an_arm_alone_waits_for_the_sweep_of_its_rate(home, capsys, monkeypatch):
  monkeypatch.setattr(distributed, "start", lambda: None)
  monkeypatch.setattr(measure, "_SAMPLE_BYTES", 1024)
  alone = _PLAN.format(more="").replace("{8e7: 2}", "{8e7: 1, 1.6e8: 2}")
  alone = alone.replace("8}),", '8}, budgets=(1.6e8,), rate_of="flat"),')
  (home / "alone.py").write_text(alone)
  assert _run(home, "--arms=pool", "--dry_run", name="alone.py", output="alone") is None
  runs = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if "e+0" in line]
  assert runs == [["flat", "8e+07", "1"], ["pool", "1.6e+08", "2"]]


def test_runs_of_a_users_own(done, home, monkeypatch):
  monkeypatch.setattr(report.plots, "draw_all", lambda *_: [])
  a, b = (_runs(home, arm) for arm in ("flat", "pool"))
  groups = [f"{n}={','.join(map(str, paths))}" for n, paths in (("x", a), ("y", b))]
  text = report.of_runs(str(home / "own"), groups)
  assert "compared with x" in text
  with (home / "own" / "runs.csv").open() as file:
    assert [row["arm"] for row in csv.DictReader(file)] == ["x", "x", "y", "y"]


def test_a_folder_of_another_plan_is_refused(done, home):
  (home / "other.py").write_text(_PLAN.format(more="warmup=0.2,"))
  with pytest.raises(ValueError, match="another plan; warmup was 0.05, now 0.2. Choose"):
    _run(home, name="other.py")
  with pytest.raises(ValueError, match="is not empty and holds no study"):
    _run(home, output="text")


@pytest.mark.parametrize(
  ("more", "arguments", "message"),
  [
    ("", ["--arms=flat,bpe"], "The plan has no arm 'bpe'"),
    ("", ["--reference=bpe"], "--reference=bpe is no arm"),
    ("settings={'data.sequence': 3},", [], "Arm 'flat': config.data.sequence is no setting"),
    ("settings={'patching.scheme': 'entropy'},", [], "entropy scheme needs some"),
    ("budget=3,", [], "unexpected keyword argument 'budget'"),
  ],
)
def test_plans_with_mistakes(more, arguments, message, home):
  (home / "wrong.py").write_text(_PLAN.format(more=more))
  with pytest.raises(ValueError, match=message):
    _run(home, *arguments, name="wrong.py", output="wrong")
  assert not (home / "wrong").exists()


def test_budgets_that_the_text_or_a_batch_does_not_allow(done):
  measured = {arm: done.find_measured(arm) for arm in done.arms}
  with pytest.raises(ValueError, match="would read its 100 bytes .* times, and the plan's"):
    bill.check_epochs(done, measured, measure.TextSize(100, 100))
  with pytest.raises(ValueError, match="would read its 100 bytes .* times, and the plan's"):
    bill.check_early(done, measure.TextSize(100, 100))
  flat = measured["flat"]
  with pytest.raises(ValueError, match="less than one step of arm 'flat', which takes"):
    cost.num_steps(1e3, flat.cost.paper, flat.bytes_per_step, "flat")


def test_patches_that_a_model_learns_are_counted_as_they_come_to_be():
  config = tiny_config("end_to_end")
  config.model.patch_size = 6.0
  assert measure.patch_size(config, 2.0) == 6.0
  assert measure.patch_size(tiny_config("blt"), 2.0) == 2.0
  numbers = {"bytes": 90.0, "dropped_targets": 0.1}  # for lack of slots, as yet
  assert measure.bytes_of(config, numbers) == pytest.approx(100)
  assert measure.bytes_of(tiny_config("spacebyte"), numbers) == 90
  assert measure.bytes_of(tiny_config("blt"), {"bytes": 90.0}) == 90


def test_what_arms_need_is_made_once(home, monkeypatch):
  told = []

  def note(name, *arguments, is_told=False):
    told.append((name, arguments))
    options = dict(a.removeprefix("--").partition("=")[::2] for a in arguments)
    if name == "calibrate":
      size = float(options["target_bytes_per_patch"])
      fields = {"threshold": 9.0 if "cumulative" in options else size / 3, "monotonic": False}
      pathlib.Path(options["run"]).mkdir(parents=True, exist_ok=True)
      pathlib.Path(options["run"], "threshold.json").write_text(json.dumps(fields))
    return json.dumps({"bytes_per_piece": 4.0})

  monkeypatch.setattr(made, "_run", note)
  source = plan.Entropies()
  arms = {
    "blt": plan.Arm("m:blt", entropies="counts", bytes_per_patch=4.5),
    "sums": plan.Arm("m:blt", entropies="counts", bytes_per_patch=4.5, cumulative=True),
    "bpe": plan.Arm("m:bpe_lm", ngrams=True),
    "mixture": plan.Arm("m:mixture", entropies="counts", bytes_per_patch=4.5),
  }
  whole = plan.Plan(arms, {1e9: 1}, (1e-3,), "blt", entropies={"counts": source})
  configs = {n: tiny_config(arm.config.removeprefix("m:")) for n, arm in arms.items()}
  place = made.Made(str(home / "made"))
  made.make(whole, configs, place)
  names = ["train_tokenizer", "count_ngrams", "train_table", *["calibrate"] * 3]
  assert [name for name, _ in told] == names
  for name, arm in arms.items():
    made.apply(configs[name], arm, whole, place)
  assert configs["blt"].patching.threshold == 1.5 and not configs["blt"].patching.cumulative
  assert configs["sums"].patching.threshold == 9.0 and configs["sums"].patching.cumulative
  assert configs["blt"].patching.entropies == "table"
  found = [(c.patching.threshold, c.patching.coarser) for c in configs.values()]
  assert found == [(1.5, ()), (9.0, ()), (None, ()), (1.5, (3.0,))]  # 4.5 and 9 bytes
  device = tiny_config("blt")
  device.patching.entropies = "device"
  made.apply(device, arms["blt"], whole, place)
  assert (device.patching.threshold, device.patching.entropies) == (1.5, "device")
  assert configs["bpe"].data.seq_len == 8 and configs["bpe"].data.ngram_tables == place.ngrams
  made.make_tokenizers(whole, {"bpe": configs["bpe"]}, place)
  assert [name for name, _ in told] == names  # it is there


def test_a_run_that_another_trains_is_left_to_it(done, monkeypatch):
  run = sweep.Run("flat", 8e7, 7e-3, 0)
  trained, waited = [], []
  monkeypatch.setattr(runner.sweep, "wanted", lambda *_: [run])
  monkeypatch.setattr(runner, "_train", lambda *found: trained.append(found) is not None)
  monkeypatch.setattr(runner.time, "sleep", waited.append)
  monkeypatch.setattr(runner.distributed, "preempted", lambda step: True)
  monkeypatch.setattr(runner._Clock, "tell", lambda *_: None)
  measured = {"flat": done.find_measured("flat")}
  with lock.hold(done.claim(run)):
    assert runner.work(done, measured) is False
  assert waited and not trained
  assert runner.work(done, measured) is False and len(trained) == 1


def test_an_arm_that_another_measures_is_left_to_it(done, monkeypatch):
  kept = {arm: done.find_measured(arm) for arm in done.arms}
  first, second = done.arms
  found, told = {}, []

  def other_is_done(_):
    found[first] = kept[first]

  monkeypatch.setattr(done, "find_measured", found.get)
  monkeypatch.setattr(done, "keep_measured", found.__setitem__)
  monkeypatch.setattr(measure, "measure", lambda _, arm, *__: told.append(arm) or kept[arm])
  monkeypatch.setattr(measure.time, "sleep", other_is_done)
  with lock.hold(done.home.path_of(f"claims/measured/{first}")):
    assert measure.measure_all(done) == (kept, [])
  assert told == [second]


def test_a_run_that_diverges_is_a_result(done, monkeypatch):
  def fail(config, **options):
    raise FloatingPointError("the loss is no number")

  monkeypatch.setattr(runner.loop, "train", fail)
  run = sweep.Run("flat", 8e7, 9.0, 0)
  assert runner._train(done, run, done.find_measured("flat"), None)
  assert math.isinf(done.score(run, done.find_measured("flat")))
