"""Whole runs: same seed, stop and resume, several devices, bad settings."""

import gzip
import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from tiny_runs import losses, stopped_at_batch, tiny_config

from blt_jax import config as settings
from blt_jax import evaluate, export, show_patches, train
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.parallel import distributed, sharding
from blt_jax.patching import PatchingConfig
from blt_jax.runs import folder as runs
from blt_jax.runs import loading, loop, patcher, resolve, stored_params
from blt_jax.runs.feed import Feed


@pytest.fixture(scope="module", name="text")
def _text(tmp_path_factory):
  folder = tmp_path_factory.mktemp("text")
  for i in range(6):
    lines = [f"def function_{i}_{n}(x): return x + {n}\n" for n in range(60)]
    (folder / f"file_{i}.py").write_text("".join(lines))
  return folder


def _config(kind, text, workdir, **overrides):
  config = tiny_config(kind, workdir=str(workdir), num_steps=6)
  if kind == "blt":
    config.patching.scheme = "space"
  config.data.update(path=str(text), heldout_fraction=0.2)
  config.optimizer.learning_rate = 1e-2
  config.schedule.warmup_steps = 2
  config.checkpoint.every_steps = 2
  config.eval.update(tasks="lambada", task_limit=3)
  config.update(overrides)
  return config


_no_tasks = dict(eval=dict(tasks=""))
_of_a_blt, _of_a_byte_lm = (  # where the kind of model makes no difference
  pytest.mark.parametrize("finished", [kind], indirect=True) for kind in ("blt", "byte_lm")
)


@pytest.fixture(scope="module", name="finished", params=["blt", "byte_lm"])
def _finished(request, text, tmp_path_factory):
  """A whole run: its kind, its folder, its held-out numbers."""
  workdir = tmp_path_factory.mktemp(request.param) / "run"
  return request.param, workdir, train.train(_config(request.param, text, workdir))


def test_same_seed_gives_the_same_losses_to_the_bit(finished, text, tmp_path):
  kind, workdir, numbers = finished
  assert train.train(_config(kind, text, tmp_path / "again")) == numbers
  assert losses(tmp_path / "again") == losses(workdir)
  assert len(losses(workdir)) == 6


def test_tasks_are_asked_where_held_out_text_is_scored(finished):
  _, workdir, numbers = finished
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
  assert [line for line in lines if line["kind"] == "eval"] == [
    {"step": 6, "kind": "eval"} | numbers
  ]
  assert numbers["lambada/acc"] <= 1 < numbers["lambada/perplexity"]
  assert numbers["lambada/acc_error"] >= 0


def test_stopped_and_resumed_equals_undisturbed_to_the_bit(
  finished, text, tmp_path, monkeypatch
):
  kind, workdir, numbers = finished

  with stopped_at_batch(5, monkeypatch):
    train.train(_config(kind, text, tmp_path / "cut"))
  assert train.train(_config(kind, text, tmp_path / "cut")) == numbers
  assert losses(tmp_path / "cut") == losses(workdir)


def test_an_evaluation_that_preemption_leaves_out_is_made_up_for(text, tmp_path, monkeypatch):
  config = _config("byte_lm", text, tmp_path / "run", **_no_tasks)
  config.eval.every_steps = 2
  with monkeypatch.context() as patched:
    patched.setattr(distributed, "preempted", lambda step: step == 4)
    assert train.train(config) is None
  train.train(config)
  lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
  assert [n["step"] for n in lines if n["kind"] == "eval"] == [2, 4, 6]


@_of_a_byte_lm
def test_a_finished_run_stays_as_it_is(finished, text):
  kind, workdir, numbers = finished
  before = (workdir / "metrics.jsonl").read_text()
  assert train.train(_config(kind, text, workdir)) == numbers
  assert (workdir / "metrics.jsonl").read_text() == before


@_of_a_blt
def test_evaluate_scores_a_run_on_files(finished, text, capsys):
  _, workdir, _ = finished
  evaluate.main([f"--run={workdir}", f"--data={text / 'file_0.py'}"])
  numbers = json.loads(capsys.readouterr().out)
  assert numbers["bytes"] == (text / "file_0.py").stat().st_size
  assert 0 < numbers["bpb"] < 9


@_of_a_byte_lm
def test_programs_read_the_checkpoint_that_is_asked_for(finished, text, tmp_path, capsys):
  _, workdir, _ = finished
  found = []
  for step in ("4", "6", "best"):  # the last one alone was evaluated
    evaluate.main([f"--run={workdir}", f"--data={text / 'file_0.py'}", f"--step={step}"])
    found.append(json.loads(capsys.readouterr().out))
  assert [numbers["step"] for numbers in found] == [4, 6, 6]
  assert found[0]["bpb"] != found[1]["bpb"] == found[2]["bpb"]
  export.main([f"--run={workdir}", f"--output={tmp_path / 'out'}", "--step=4"])
  old = runs.load_run(tmp_path / "out")
  assert old.step == 4
  jax.tree.map(np.testing.assert_array_equal, old.params, runs.load_run(workdir, 4).params)
  with pytest.raises(FileNotFoundError, match="no checkpoint of step 5; it has 4, 6"):
    evaluate.main([f"--run={workdir}", f"--data={text}", "--step=5"])
  with pytest.raises(SystemExit):
    evaluate.main([f"--run={workdir}/checkpoints/4", f"--data={text}"])
  assert f"--run={workdir} --step=4" in capsys.readouterr().err
  with pytest.raises(
    FileNotFoundError, match=f"is a checkpoint: give the run {workdir} and step"
  ):
    runs.load_run(workdir / "checkpoints" / "4")


def test_a_run_of_another_model_is_not_overwritten(finished, text):
  kind, workdir, _ = finished
  before = (workdir / "config.json").read_text()
  other = _config(kind, text, workdir)
  other.model.vocab_size = 300
  with pytest.raises(ValueError, match="another model.*vocab_size"):
    train.train(other)
  assert (workdir / "config.json").read_text() == before


def test_remat_may_change_while_a_model_trains(tmp_path):
  config = tiny_config("byte_lm")
  runs.save_config(tmp_path, config)
  config.model.transformer.update(remat="full", unroll=True)
  runs.save_config(tmp_path, config)
  assert runs.load_config(tmp_path).model.transformer.remat == "full"


def test_runs_from_before_a_setting_keep_their_ways(tmp_path, caplog, monkeypatch):
  later = "hash_document_masks", "cross_document_masks"

  def configure():
    return tiny_config("blt", workdir=str(tmp_path / "run"))

  resolved = []

  def stop(config):  # as soon as train knows what it trains
    resolved.append(config)
    raise InterruptedError([config.model[name] for name in later])

  monkeypatch.setattr(loop, "make_program", stop)
  with pytest.raises(InterruptedError, match="True, True"):
    train.train(configure())
  runs.save_config(tmp_path / "run", configure())
  path = tmp_path / "run" / "config.json"
  stored = json.loads(path.read_text())
  path.write_text(json.dumps(stored | {"model": {
      k: v for k, v in stored["model"].items() if k not in later}}))  # fmt: skip
  old = settings.make_model_config(runs.load_config(tmp_path / "run").model)
  assert not old.hash_document_masks and not old.cross_document_masks
  for _ in range(2):  # whether the run's settings lack it or say it
    caplog.clear()
    with pytest.raises(InterruptedError, match="False, False"):
      train.train(configure())
    assert all(f"config.model.{name}=False and goes on so" in caplog.text for name in later)
    runs.save_config(tmp_path / "run", resolved[-1])


def test_narrow_parameters_and_moments_are_restored(text, tmp_path):
  narrow = dict(param_dtype="bfloat16", moment_dtype="bfloat16")
  config = _config("byte_lm", text, tmp_path / "run", optimizer=narrow, **_no_tasks)
  numbers = train.train(config)
  assert train.train(config) == numbers
  params = jax.tree.leaves(runs.load_run(tmp_path / "run").params)
  assert {x.dtype for x in params} == {np.dtype("float32")}
  for x in params:  # what was stored was narrow
    np.testing.assert_array_equal(x, x.astype("bfloat16").astype("float32"))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs the fake devices of conftest.py")
@_of_a_blt
@pytest.mark.parametrize(
  ("mesh", "accumulate"),
  [
    (dict(data=2, fsdp=2, tensor=2), 2),
    (dict(slices=2, data=2, tensor=2), 1),
  ],
)
def test_meshes_and_accumulation_change_nothing(mesh, accumulate, finished, text, tmp_path):
  kind, workdir, _ = finished
  overrides = dict(mesh=mesh, optimizer=dict(accumulate=accumulate), **_no_tasks)
  train.train(_config(kind, text, tmp_path / "run", **overrides))
  np.testing.assert_allclose(
    list(losses(tmp_path / "run").values()), list(losses(workdir).values()), rtol=1e-4
  )


def test_entropy_patches_from_training_to_generation(text, tmp_path, capsys):
  patching = dict(scheme="entropy", entropy_model=str(tmp_path / "entropy"))
  train.train(_config("byte_lm", text, tmp_path / "entropy", **_no_tasks))
  with pytest.raises(ValueError, match="No threshold.*blt_jax.calibrate"):
    train.train(_config("blt", text, tmp_path / "blt", patching=patching))
  patcher.save_threshold(tmp_path / "entropy", PatchingConfig(threshold=5.0))
  config = _config("blt", text, tmp_path / "blt", patching=patching)
  numbers = train.train(config)
  assert 0 < numbers["bpb"] < 9 and numbers["patch_size"] > 1
  assert runs.load_config(tmp_path / "blt").patching.threshold == 5.0
  patcher.save_threshold(tmp_path / "entropy", PatchingConfig(threshold=4.0))
  goes_on = _config("blt", text, tmp_path / "blt", patching=patching)
  assert train.train(goes_on) == numbers and goes_on.patching.threshold is None
  assert runs.load_config(tmp_path / "blt").patching.threshold == 5.0
  generator = Generator(loading.load_language_model(tmp_path / "blt"), prefill_chunk=8)
  result = generator.generate(["def f"], Sampling(max_bytes=8))[0]
  assert 1 <= len(result.ids) <= 8 and result.starts.sum() > 1
  for name in ("blt", "entropy"):
    shutil.copytree(tmp_path / name, tmp_path / "moved" / name)
  moved = runs.load_config(tmp_path / "moved" / "blt").patching.entropy_model
  assert moved == str(tmp_path / "moved" / "entropy")
  sizes = []
  for other in ([], [f"--entropy_model={tmp_path / 'entropy'}", "--threshold=0.5"]):
    evaluate.main([f"--run={tmp_path}/moved/blt", f"--data={text / 'file_0.py'}", *other])
    sizes.append(json.loads(capsys.readouterr().out)["patch_size"])
  show_patches.main([f"--run={tmp_path}/moved/blt", *other])
  assert sizes[1] == 1 < sizes[0] and "in 38 patches" in capsys.readouterr().out
  with pytest.raises(ValueError, match="entropy_model and threshold may"):
    loading.load_language_model(tmp_path / "blt", entropy_model=str(tmp_path / "blt"))
  with pytest.raises(FileNotFoundError, match="holds no run.*entropy_model and"):
    loading.load_language_model(tmp_path / "blt", entropy_model=str(tmp_path / "nowhere"))
  with pytest.raises(ValueError, match="reads no patches, so"):
    loading.load_language_model(tmp_path / "entropy", threshold=1.0)
  entropy = runs.load_run(tmp_path / "entropy")
  more = jax.tree.map(lambda x: x + 1, entropy.params)
  stored_params.save(tmp_path / "entropy", 7, more, entropy.config)  # as if trained on
  for fails in (
    lambda: loading.load_language_model(tmp_path / "blt"),
    lambda: train.train(goes_on),
  ):
    with pytest.raises(ValueError, match="entropy is not the one that the run began with"):
      fails()
  loading.load_language_model(tmp_path / "blt", entropy_model=str(tmp_path / "entropy"))
  (tmp_path / "entropy" / "config.json").write_text("")
  with pytest.raises(ValueError, match="config.json is damaged.*entropy_model and"):
    loading.load_language_model(tmp_path / "blt")


@pytest.mark.parametrize("data", [None, [], {"seed": 42}, {"seed": 42, "streams": 3}])
def test_text_does_not_start_anew_where_a_checkpoint_lacks_its_place(data, text, tmp_path):
  config = resolve.resolve(_config("byte_lm", text, tmp_path))
  feed = Feed(config, sharding.make_mesh())
  with pytest.raises(ValueError, match="step 4 does not say where its text goes on"):
    feed.training_batches(4, data)


@_of_a_blt
def test_a_damaged_checkpoint_is_named(finished, tmp_path):
  shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
  with pytest.raises(ValueError, match="is '[a-z]+', so an entropy model"):
    loading.load_language_model(tmp_path, entropy_model="any")
  for file in (tmp_path / "checkpoints").rglob("state/**/*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(ValueError, match=r"Checkpoint \d+ of .* cannot be read"):
    loading.load_language_model(tmp_path)


_MISTAKES = {
  "batch and devices": (dict(data=dict(batch_size=6)), "batch_size 6 must be a multiple of 8"),
  "mesh": (dict(mesh=dict(data=3)), "config.mesh asks for 1 x 3 x 1 x 1"),
  "no data": (dict(data=dict(path="nowhere")), "No file or folder nowhere"),
  "mixture": (
    dict(data=dict(mixture=dict(web="stdlib"))),
    "config.data.mixture.web is 'stdlib'",
  ),
  "heads": (dict(model=dict(latent=dict(num_heads=5))), "dim 32 must be a multiple"),
  "scheme": (dict(patching=dict(scheme="words")), "scheme is 'words'; it must be one of"),
  "no entropy model": (dict(patching=dict(scheme="entropy")), "config.patching.entropy_model"),
  "no run": (
    dict(patching=dict(scheme="entropy", entropy_model="nothing")),
    "nothing holds no run",
  ),
  "schedule": (
    dict(schedule=dict(name="cosin")),
    "schedule.name is 'cosin'; it must be one of",
  ),
  "streams": (dict(data=dict(num_streams=3)), "num_streams 3 must be a multiple"),
  "interval": (dict(eval=dict(every_steps=0)), "config.eval.every_steps is 0"),
  "parts": (dict(optimizer=dict(accumulate=0)), "config.optimizer.accumulate is 0"),
  "kind": (dict(model=dict(kind="gpt")), "config.model.kind is 'gpt'"),
}


@pytest.mark.parametrize("name", _MISTAKES)
def test_a_mistake_gives_one_clear_error_and_leaves_nothing(name, text, tmp_path):
  overrides, message = _MISTAKES[name]
  config = _config("blt", text, tmp_path / "run", **overrides)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train.train(config)
  assert not (tmp_path / "run").exists()


def test_loss_that_explodes_stops_the_run_and_is_not_saved(text, tmp_path):
  config = _config("byte_lm", text, tmp_path / "run", num_steps=30, **_no_tasks)
  config.optimizer.update(learning_rate=1e30, clip_norm=1e30)
  config.checkpoint.every_steps = 1
  with pytest.raises(FloatingPointError, match="learning_rate"):
    train.train(config)
  assert len(list((tmp_path / "run").glob("bad_batch_*"))) == 1
  params = runs.load_run(tmp_path / "run").params
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_exported_weights_are_the_run_to_other_programs(finished, text, tmp_path, capsys):
  _, workdir, _ = finished
  export.main([f"--run={workdir}", f"--output={tmp_path / 'out'}"])
  found, expected = runs.load_run(tmp_path / "out"), runs.load_run(workdir)
  assert found.config == expected.config
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  evaluate.main([f"--run={tmp_path / 'out'}", f"--data={text / 'file_0.py'}"])
  assert json.loads(capsys.readouterr().out)["bytes"] > 0
  with pytest.raises(ValueError, match="name a new folder"):
    export.main([f"--run={workdir}", f"--output={tmp_path / 'out'}"])
  path = tmp_path / "out" / "config.json"
  path.write_text(path.read_text().replace('"window": 8', '"window": 4'))
  with pytest.raises(ValueError, match="trained with other settings: .*window was 8, now 4"):
    evaluate.main([f"--run={tmp_path / 'out'}", f"--data={text / 'file_0.py'}"])


@_of_a_byte_lm
def test_another_number_of_streams_goes_on_with_other_documents(
  finished, text, tmp_path, caplog
):
  kind, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / "run")
  config = _config(kind, text, tmp_path / "run", num_steps=8, allow_changes=True, **_no_tasks)
  config.data.num_streams = 2
  train.train(config)
  assert "1 streams of documents and this run 2" in caplog.text
  assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_another_number_of_workers_goes_on_with_other_documents(tmp_path, caplog):
  """Where text has no random access, and each worker is somewhere in it."""
  flags.FLAGS.mark_as_parsed()  # Grain's worker processes read flags
  lines = "".join(json.dumps({"text": f"document {i} " * 9}) + "\n" for i in range(99))
  (tmp_path / "text.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  for num_workers, num_steps in ((0, 3), (1, 5)):
    config = _config(
      "byte_lm", tmp_path / "text.jsonl.gz", tmp_path / "run", num_steps=num_steps, **_no_tasks
    )
    config.schedule.name = "constant"
    config.data.num_workers = num_workers
    train.train(config)
  assert "0 workers, 1 streams of documents and this run 1 workers, 1 streams" in caplog.text
  assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]


def test_misspelt_settings_are_errors():
  config = settings.get_config("blt")
  config.lock()
  with pytest.raises((AttributeError, KeyError), match="learning_rate"):
    config.optimizer.learning_rat = 1
  with config.unlocked():
    config.model.latent.num_layer = 3
  with pytest.raises(ValueError, match="num_layer"):
    settings.make_model_config(config.model)
