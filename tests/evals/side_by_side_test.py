"""Several models at the same tasks: differences by hand, curves, files and pictures."""

import json

import fake_answers
import numpy as np
import pytest

from blt_jax import evaluate
from blt_jax.evals import paired, patches, suite, variants
from blt_jax.evals.patches import TaskTexts
from blt_jax.patching import PatchingConfig
from blt_jax.runs import checkpoint, loading
from blt_jax.runs.patcher import Patcher

RULE = PatchingConfig(scheme="entropy", threshold=2.0)
FLAGS = ["--data=sample", "--tasks=piqa,bpb_noise", "--limit=9"]


def texts(seed=0):
  rng = np.random.default_rng(seed)
  made = [(np.arange(50) % 256 + 4, rng.random(50).astype(np.float32) * 4) for _ in range(9)]
  return TaskTexts(
    Patcher(RULE), {"piqa": made, "bpb_noise": made}, {"piqa": 9, "bpb_noise": 9}
  )


@pytest.fixture(name="loads")
def _loads(monkeypatch):
  """Fake models, told apart by run and threshold; what was loaded."""
  loaded = []

  def load(run, entropy_model, threshold, step, cumulative):
    loaded.append((run, threshold))
    return f"{run}{threshold}"

  def ask(model, prepared, *rest):
    return fake_answers.answer_all(prepared, model)

  monkeypatch.setattr(loading, "load_language_model", load)
  monkeypatch.setattr(checkpoint, "find_step", lambda run, step: step or 7)
  monkeypatch.setattr(suite, "ask", ask)
  monkeypatch.setattr(patches, "read", lambda run, *_: None if "lm" in run else texts())
  return loaded


def test_differences_are_paired():
  one, other = (fake_answers.report(["piqa", "bpb"], "sample", name) for name in "ab")
  found = paired.differences(one, other)
  by_item = [
    b["acc"] - a["acc"] for a, b in zip(one["piqa"].scores, other["piqa"].scores, strict=True)
  ]
  assert found["piqa"]["acc"].value == pytest.approx(np.mean(by_item), rel=1e-9)
  error = np.std(by_item, ddof=1) / len(by_item) ** 0.5
  assert found["piqa"]["acc"].error == pytest.approx(error, rel=1e-9)
  samples = np.random.default_rng(1).choice(by_item, (4000, len(by_item))).mean(axis=1)
  np.testing.assert_allclose(
    found["piqa"]["acc"].interval, np.percentile(samples, [2.5, 97.5]), atol=0.06
  )
  bits = other["bpb"].summary["bits_per_byte"].value - one["bpb"].summary["bits_per_byte"].value
  assert found["bpb"]["bits_per_byte"].value == pytest.approx(bits, rel=1e-9)
  low, high = found["bpb"]["bits_per_byte"].interval
  assert low < bits < high
  same = paired.differences(one, one)["piqa"]["acc"]
  assert same.value == 0 and same.interval == (0, 0)
  with pytest.raises(ValueError, match="other questions of piqa"):
    paired.differences(
      one,
      fake_answers.report(["piqa"], "sample", limit=20)
      | {"piqa": one["piqa"].__class__(**{**vars(one["piqa"]), "asked": []})},
    )


def test_runs_side_by_side(loads, tmp_path, capsys):
  output, png = tmp_path / "out", tmp_path / "bars.png"
  evaluate.main(["--run=a/blt", "--run=a/lm", *FLAGS, f"--output={output}", f"--png={png}"])
  assert loads == [("a/blt", None), ("a/lm", None)]
  table = capsys.readouterr().out
  assert "bytes per patch" in table and "difference" in table
  told = json.loads((output / "results.json").read_text())
  assert told["differences_from"] == "blt" and list(told["models"]) == ["blt", "lm"]
  each = {n: json.loads((output / n / "results.json").read_text()) for n in ("blt", "lm")}
  assert each == told["models"]
  values = [each[n]["tasks"]["piqa"]["metrics"]["acc"]["value"] for n in each]
  difference = told["differences"]["lm"]["piqa"]["acc"]
  assert difference["value"] == pytest.approx(values[1] - values[0])
  assert each["blt"]["threshold"] == 2.0 and each["lm"]["threshold"] is None
  use = each["blt"]["tasks"]["piqa"]
  assert use["bytes_per_patch"] * use["patches_per_item"] == pytest.approx(50)
  assert each["lm"]["tasks"]["piqa"]["bytes_per_patch"] is None
  assert len((output / "lm" / "items.jsonl").read_text().splitlines()) == 18
  assert png.read_bytes()[:4] == b"\x89PNG"


def test_a_curve_over_thresholds(loads, tmp_path, capsys):
  png = tmp_path / "curve.png"
  evaluate.main(["--run=a/blt", *FLAGS, "--threshold=0.6,3", f"--png={png}"])
  assert loads == [("a/blt", 0.6), ("a/blt", 3.0)] and png.stat().st_size > 10_000
  table = capsys.readouterr().out
  assert "threshold=0.6" in table and "threshold 3.0000 nats" in table


def test_a_curve_of_a_boundary_head(loads, tmp_path, capsys):
  """Whose patches are not known without the model."""
  png, flags = tmp_path / "curve.png", ["--run=lm", "--entropy_model=head"]
  evaluate.main([*flags, *FLAGS, "--threshold=-1,0.5", f"--png={png}"])
  assert loads == [("lm", -1.0), ("lm", 0.5)] and png.stat().st_size > 10_000
  assert "threshold=-1" in capsys.readouterr().out


def test_a_curve_over_patch_sizes(loads):
  evaluate.main(["--run=a/blt", *FLAGS, "--bytes_per_patch=1.5,3"])
  found = [texts().measure(threshold)["piqa"].bytes_per_patch for _, threshold in loads]
  np.testing.assert_allclose(found, [1.5, 3], rtol=0.05)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--run=a", "--run=a/"], "given twice"),
    (["--run=a", "--threshold=1", "--bytes_per_patch=2"], "say the same thing"),
    (["--run=a", "--run=b", "--threshold=1,2"], "Several runs and several thresholds"),
    (["--run=a", "--threshold=1,1"], "a number twice"),
    (["--run=lm", "--bytes_per_patch=3"], "lm reads no patches"),
    (["--run=a", "--bytes_per_patch=99"], "must be between"),
    (["--run=a", "--entropy_model=head", "--bytes_per_patch=3"], "patches as it reads, so"),
  ],
)
def test_what_does_not_go_together(flags, message, loads):
  with pytest.raises(ValueError, match=message):
    evaluate.main([*flags, *FLAGS])
  assert not loads


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--threshold=a,b"], "must be numbers"),
    (["--threshold=nan"], "must be numbers"),
    (["--tasks=piqa", "--png=out.nothing"], "must end in one of"),
  ],
)
def test_flags_that_cannot_be_read(flags, message, capsys):
  with pytest.raises(SystemExit):
    evaluate.main(["--run=a", "--data=sample", *flags])
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--run=b"], "Several runs or thresholds go with --tasks"),
    (["--threshold=1,2"], "Several runs or thresholds"),
    (["--bytes_per_patch=3"], "--bytes_per_patch is of --tasks"),
  ],
)
def test_flags_of_tasks_are_refused_on_text(flags, message):
  with pytest.raises(ValueError, match=message):
    evaluate.main(["--run=a", "--data=some", *flags])


def test_labels_tell_runs_apart(monkeypatch):
  monkeypatch.setattr(patches, "read", lambda *_: None)
  made = variants.make(["x/one/blt", "x/two/blt"], [])
  assert [v.label for v in made] == ["one-blt", "two-blt"]
