"""`python -m blt_jax.convert`: runs from weights of others and back, whole or not at all."""

import json
import shutil

import chex
import golden_cases
import jax.numpy as jnp
import llama_folder
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_runs import small_files

from blt_jax import convert, evaluate, export
from blt_jax.convert import __main__ as command
from blt_jax.runs import folder, loading

HF = golden_cases.GOLDEN / "hf_tiny"


def _convert(**flags):
  flags = {"from": flags.pop("source", None)} | flags
  command.main([f"--{name}={value}" for name, value in flags.items() if value is not None])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The run of the golden BLT of Hugging Face."""
  output = tmp_path_factory.mktemp("runs") / "blt"
  _convert(source="hf", path=HF, output=output)
  return output


def test_a_run_has_the_model_and_its_patching(run):
  found, want = folder.load_run(run), convert.from_hf(HF)
  assert found.model.config == want.config and found.step == 0
  chex.assert_trees_all_equal(found.params, want.params)
  assert found.config.patching.threshold == want.patching.threshold
  entropy = folder.load_entropy_model(run / "entropy_model")
  assert entropy.config == want.entropy_config
  chex.assert_trees_all_equal(entropy.params, want.entropy_params)


def test_back_to_hugging_face_equal_to_the_bit(run, tmp_path):
  _convert(run=run, to="hf", output=tmp_path / "hf")
  written = load_file(tmp_path / "hf/model.safetensors")
  original = load_file(HF / "model.safetensors")
  chex.assert_trees_all_equal(written, original)
  c, want = convert.from_hf(tmp_path / "hf"), convert.from_hf(HF)
  assert (c.config, c.entropy_config, c.patching) == (
    want.config, want.entropy_config, want.patching
  )  # fmt: skip


def test_a_run_whose_settings_were_edited_is_refused(run, tmp_path):
  edited = tmp_path / "edited"
  shutil.copytree(run, edited)
  settings = json.loads((edited / "config.json").read_text())
  settings["model"]["latent"]["rope_theta"] += 1.0
  (edited / "config.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=r"other settings.*model\.latent\.rope_theta"):
    folder.load_run(edited)
  with pytest.raises(ValueError, match=r"other settings.*model\.latent\.rope_theta"):
    _convert(run=edited, to="hf", output=tmp_path / "hf")
  assert not (tmp_path / "hf").exists()


def test_half_precision_stays_as_it_is(tmp_path):
  arrays = {k: v.astype(jnp.bfloat16) for k, v in load_file(HF / "model.safetensors").items()}
  (tmp_path / "half").mkdir()
  shutil.copy(HF / "config.json", tmp_path / "half")
  save_file(arrays, tmp_path / "half/model.safetensors")
  _convert(source="hf", path=tmp_path / "half", output=tmp_path / "run")
  assert folder.load_run(tmp_path / "run").params["output"]["kernel"].dtype == jnp.float32
  _convert(run=tmp_path / "run", to="hf", output=tmp_path / "back")
  written = load_file(tmp_path / "back/model.safetensors")
  assert {x.dtype for x in written.values()} == {np.dtype(jnp.bfloat16)}
  chex.assert_trees_all_equal(written, arrays)


def test_the_report_names_every_array(tmp_path, capsys):
  _convert(source="hf", path=HF, output=tmp_path / "run")
  printed = capsys.readouterr().out
  assert all(name in printed for name in ("lm_head.weight", "model.patcher.norm.weight"))
  assert "embedder/hashes/embedding  [8192 x 32] float32  <- model.encoder_hash_tok" in printed


def test_programs_take_the_run(run, tmp_path, capsys):
  """It evaluates, generates and exports, as a run that was trained here."""
  text = tmp_path / "text.txt"
  text.write_text("some text to be read, and some more\n" * 20)
  evaluate.main([f"--run={run}", f"--data={text}"])
  assert "bpb" in capsys.readouterr().out
  assert loading.load_language_model(run).reader is not None
  export.export(str(run), str(tmp_path / "exported"))
  assert loading.load_language_model(tmp_path / "exported").reader is not None


@pytest.mark.parametrize(
  "flags, message",
  [
    (dict(source="hf", path="nowhere"), "nowhere/config.json is missing"),
    (dict(source="llama", path=HF), "model_type 'blt'; only"),
  ],
)
def test_nothing_is_left_of_what_fails(tmp_path, flags, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _convert(**flags, output=tmp_path / "run")
  assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_damaged_weights(tmp_path):
  """NaN is found while the folder is written."""
  (tmp_path / "hf").mkdir()
  shutil.copy(HF / "config.json", tmp_path / "hf")
  arrays = load_file(HF / "model.safetensors")
  arrays["lm_head.weight"][3, 3] = np.nan
  save_file(arrays, tmp_path / "hf/model.safetensors")
  with pytest.raises(ValueError, match="lm_head.weight in .*/model.safetensors holds NaN"):
    _convert(source="hf", path=tmp_path / "hf", output=tmp_path / "run")
  assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_outputs_that_cannot_be_written_are_named(tmp_path):
  with small_files(2000), pytest.raises(OSError, match="/full/.* be written: .*too large"):
    _convert(source="hf", path=HF, output=tmp_path / "full")
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match="file/run cannot be written: .*exists"):
    _convert(source="hf", path=HF, output=tmp_path / "file/run")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_text_is_read_by_a_llama(tmp_path):
  (tmp_path / "llama").mkdir()
  llama_folder.write(
    tmp_path / "llama", hidden_size=32, intermediate_size=48, num_attention_heads=2
  )
  _convert(source="llama", path=tmp_path / "llama", output=tmp_path / "run")
  (tmp_path / "text.txt").write_text("a text")
  with pytest.raises(ValueError, match="run are pieces of a tokenizer, and there is none in"):
    evaluate.main([f"--run={tmp_path}/run", f"--data={tmp_path}/text.txt"])
  with pytest.raises(ValueError, match="run are pieces of a tokenizer, and there is none in"):
    loading.load_language_model(tmp_path / "run")


def test_outputs_that_exist_stay(run, tmp_path):
  for flags in (dict(source="hf", path=HF), dict(run=run, to="hf")):
    with pytest.raises(ValueError, match="exists; name a new folder"):
      _convert(**flags, output=tmp_path)


def test_only_a_blt_goes_to_hugging_face(run, tmp_path):
  with pytest.raises(ValueError, match="is the run of a byte_lm, and only a blt"):
    _convert(run=run / "entropy_model", to="hf", output=tmp_path / "hf")


@pytest.mark.parametrize(
  "flags", [dict(source="hf"), dict(run="x"), dict(source="hf", path="x", run="y")]
)
def test_flags_that_do_not_go_together(flags, tmp_path, capsys):
  with pytest.raises(SystemExit):
    _convert(**flags, output=tmp_path / "run")
  assert "either --from and --path, or --run and --to" in capsys.readouterr().err
