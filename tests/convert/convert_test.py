"""Tests of converting weights and configurations."""

import dataclasses
import json
import shutil

import chex
import golden_cases
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from blt_jax import convert
from blt_jax.convert import meta
from blt_jax.models.blt import BLT
from blt_jax.models.config import CrossAttentionConfig
from blt_jax.patching import PatchingConfig

HF = golden_cases.GOLDEN / "hf_tiny"
META = golden_cases.GOLDEN / "meta_tiny"


def hf_config():
  return golden_cases.load_json("hf_tiny/config.json")


def hf_arrays():
  return load_file(HF / "model.safetensors")


def meta_args():
  return golden_cases.load_json("meta_tiny/args.json")


def meta_directory(path):
  """Lays the golden Meta model out as published."""
  args = meta_args()
  (path / "entropy_model").mkdir(parents=True)
  shutil.copy(META / "model.safetensors", path / "model.safetensors")
  shutil.copy(
    META / "entropy_model.safetensors", path / "entropy_model" / "consolidated.safetensors"
  )
  patcher = {"patching_mode": "entropy", **args["patcher"]}
  for name, content in (
    ("config.json", {"args": args["model"]}),
    ("entropy_model/params.json", {"entropy_model": args["entropy_model"]}),
    ("train_args.json", {"data": {"patcher_args": patcher}}),
  ):
    (path / name).write_text(json.dumps(content))
  return path


def check_equal(got, want):
  assert dataclasses.replace(got, params=None, entropy_params=None) == dataclasses.replace(
    want, params=None, entropy_params=None
  )
  chex.assert_trees_all_equal(got.params, want.params)
  chex.assert_trees_all_equal(got.entropy_params, want.entropy_params)


def test_from_hf_reads_everything():
  c = convert.from_hf(HF)
  assert c.config.encoder.window == c.entropy_config.transformer.window == 8
  assert c.config.encoder.rope_theta == 500_000 and c.config.encoder.mlp_dim == 96
  assert c.entropy_config.transformer.rope_theta == 10_000
  assert (c.config.hash_vocab_size, c.config.hash_sizes) == (101, (3, 4, 5, 6, 7, 8))
  assert c.config.repool and not c.config.document_masks
  assert not c.config.hash_document_masks and not c.config.cross_document_masks
  assert c.patching == PatchingConfig(threshold=2.8846821784973145)
  kernel = c.params["encoder"]["layers_0"]["attention"]["query"]["kernel"]
  want = hf_arrays()["model.local_encoder.layers.0.self_attn.q_proj.weight"]
  chex.assert_trees_all_equal(np.asarray(kernel), want.T)
  table = hf_arrays()["model.encoder_hash_tok_embedding.weight"]  # rows that pad it are 0
  ours = np.asarray(c.params["embedder"]["hashes"]["embedding"])
  assert len(table) == 6 * 101 and len(ours) == c.config.hash_rows == 8192
  chex.assert_trees_all_equal(ours, np.pad(table, ((0, 8192 - 606), (0, 0))))


def test_converted_trees_have_the_structure_of_new_ones():
  c = convert.from_hf(HF)
  shapes = jax.tree.map(np.shape, c.params)
  tokens, lengths = np.zeros((1, 4), np.int32), np.ones((1, 5), np.int32)
  new = jax.eval_shape(BLT(c.config).init, jax.random.key(0), tokens, lengths)
  new = jax.tree.map(np.shape, new["params"])
  assert jax.tree.leaves(shapes) == jax.tree.leaves(new)


def test_hf_round_trip(tmp_path):
  c = convert.from_hf(HF)
  convert.to_hf(tmp_path / "model", c)
  check_equal(convert.from_hf(tmp_path / "model"), c)
  written, original = load_file(tmp_path / "model" / "model.safetensors"), hf_arrays()
  chex.assert_trees_all_equal(written, original)
  assert not list((tmp_path / "model").glob("*.partial"))


def test_hf_round_trip_without_patcher(tmp_path):
  c = dataclasses.replace(
      convert.from_hf(HF), entropy_config=None, entropy_params=None,
      patching=PatchingConfig("byte"))  # fmt: skip
  convert.to_hf(tmp_path, c)
  back = convert.from_hf(tmp_path)
  assert back.entropy_config is None and back.patching.scheme == "byte"
  chex.assert_trees_all_equal(back.params, c.params)


@pytest.mark.parametrize(
  ("read", "kind", "message"),
  [
    (convert.from_hf, "llama", "a BLT of Hugging Face has 'blt'.* a Llama by --from=llama"),
    (convert.from_hf, None, "model_type None"),
    (convert.from_meta, "blt", "Those of Hugging Face are read by --from=hf"),
    (convert.from_llama, "blt", "a 'blt' becomes a run by --from=hf"),
  ],
)
def test_folders_of_another_layout_are_refused_by_name(read, kind, message, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(hf_config() | {"model_type": kind}))
  shutil.copy(HF / "model.safetensors", tmp_path)
  with pytest.raises(ValueError, match=message):
    read(tmp_path)


def test_to_hf_does_not_overwrite(tmp_path):
  c = convert.from_hf(HF)
  convert.to_hf(tmp_path, c)
  with pytest.raises(FileExistsError, match="model.safetensors exists"):
    convert.to_hf(tmp_path, c)


def test_wrong_arrays_are_named_together():
  arrays = hf_arrays()
  del arrays["model.local_decoder.norm.weight"]
  arrays["model.surprise"] = np.zeros(3, np.float32)
  arrays["lm_head.weight"] = np.zeros((259, 32), np.float32)
  with pytest.raises(ValueError) as error:
    convert.from_hf_state(hf_config(), arrays)
  for part in (
    "missing: model.local_decoder.norm.weight",
    "not expected: model.surprise",
    r"lm_head.weight has shape (259, 32), the configuration asks for (260, 32)",
  ):
    assert part in str(error.value)


def test_wrong_patcher_arrays_are_named():
  arrays = hf_arrays()
  del arrays["model.patcher.norm.weight"]
  with pytest.raises(ValueError, match="missing: model.patcher.norm.weight"):
    convert.from_hf_state(hf_config(), arrays)


def test_many_problems_are_shortened():
  patcher = {k: v for k, v in hf_arrays().items() if ".patcher." in k}
  with pytest.raises(ValueError, match="and [0-9]+ more"):
    convert.from_hf_state(hf_config(), patcher)


@pytest.mark.parametrize(
  "changes",
  [dict(rope_parameters=dict(rope_type="yarn")), dict(hidden_act="gelu")],
)
def test_unknown_hf_settings(changes):
  config = hf_config()
  config["encoder_config"] |= changes
  with pytest.raises(ValueError, match="encoder_config: only rope_type default"):
    convert.from_hf_state(config, hf_arrays())


@pytest.mark.parametrize(
  ("section", "name", "value"),
  [
    (None, "encoder_hash_byte_group_size", "3,5"),
    (None, "local_attention_window_len", "6"),
    (None, "decoder_config", "small"),
    ("global_config", "hidden_size", 64.0),
  ],
)
def test_settings_of_another_type_are_named(section, name, value):
  config = hf_config()
  (config[section] if section else config)[name] = value
  with pytest.raises(ValueError, match=f"{name} {value!r}; it must be"):
    convert.from_hf_state(config, hf_arrays())


def test_from_meta_state_equals_from_meta(tmp_path):
  args = meta_args()
  want = convert.from_meta_state(
      args["model"], load_file(META / "model.safetensors"),
      args["entropy_model"], load_file(META / "entropy_model.safetensors"))  # fmt: skip
  assert want.patching is None
  got = convert.from_meta(meta_directory(tmp_path))
  assert got.patching == PatchingConfig(threshold=args["patcher"]["threshold"])
  check_equal(dataclasses.replace(got, patching=None), want)
  assert got.config.document_masks and got.config.latent_document_masks
  assert not got.config.hash_document_masks and not got.config.cross_document_masks
  assert got.config.encoder.window == 8 and not got.config.repool


def test_from_meta_without_the_optional_files(tmp_path):
  directory = meta_directory(tmp_path)
  shutil.rmtree(directory / "entropy_model")
  (directory / "train_args.json").unlink()
  got = convert.from_meta(directory)
  assert got.entropy_config is got.entropy_params is got.patching is None


def test_from_meta_reads_pth(tmp_path):
  torch = pytest.importorskip("torch", reason="reading .pth needs torch")
  want = convert.from_meta(meta_directory(tmp_path / "safe"))
  directory = meta_directory(tmp_path / "pth")
  path = directory / "entropy_model" / "consolidated.safetensors"
  state = {k: torch.tensor(v) for k, v in load_file(path).items()}
  path.unlink()
  torch.save({"model": state}, path.with_suffix(".pth"))
  check_equal(convert.from_meta(directory), want)
  weights = {k: torch.tensor(v) for k, v in load_file(directory / "model.safetensors").items()}
  (directory / "model.safetensors").unlink()
  (directory / "consolidated").mkdir()
  torch.save(weights, directory / "consolidated" / "consolidated.pth")
  check_equal(convert.from_meta(directory), want)


def test_meta_weights_in_bfloat16_become_float32(tmp_path):
  torch = pytest.importorskip("torch", reason="reading .pth needs torch")
  directory = meta_directory(tmp_path)
  arrays = load_file(directory / "model.safetensors")
  (directory / "model.safetensors").unlink()
  state = {k: torch.tensor(v).bfloat16() for k, v in arrays.items()}
  torch.save({"model": state}, directory / "consolidated.pth")
  got = convert.from_meta(directory).params
  assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype("float32")}
  norm = state["local_decoder.norm.weight"].float().numpy()
  chex.assert_trees_all_equal(np.asarray(got["decoder"]["norm"]["scale"]), norm)


def test_from_meta_names_missing_arrays(tmp_path):
  args, arrays = meta_args(), load_file(META / "model.safetensors")
  del arrays["encoder_hash_tok_embedding.1.weight"]
  with pytest.raises(ValueError, match="missing: encoder_hash_tok_embedding.1.weight"):
    convert.from_meta_state(args["model"], arrays)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(patching_mode=""), "patching_mode ''"),
    (dict(attn_bias_type="local_block_causal"), "needs a latent window"),
  ],
)
def test_unknown_meta_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    meta.blt_from_meta(meta_args()["model"] | changes)


def test_meta_attention_other_than_xformers_ignores_windows_and_documents():
  config = meta.blt_from_meta(meta_args()["model"] | dict(attn_impl="sdpa"))
  assert config.encoder.window is None and config.decoder.window is None
  assert not config.document_masks and not config.latent_document_masks


def test_meta_sizes_may_be_strings():
  args = meta_args()["model"] | dict(
      encoder_hash_byte_group_size="3,4", encoder_enable_byte_ngrams=True,
      encoder_ngram_to_size_str="2:38396,3:50000")  # fmt: skip
  config = meta.blt_from_meta(args)
  assert config.hash_sizes == (3, 4)
  assert config.ngram_vocab_sizes == (38400, 50004)


def test_missing_files(tmp_path):
  with pytest.raises(FileNotFoundError, match="config.json is missing"):
    convert.from_hf(tmp_path)
  shutil.copy(HF / "config.json", tmp_path)
  with pytest.raises(FileNotFoundError, match="no .*safetensors and no consolidated.pth"):
    convert.from_hf(tmp_path)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(encoder_cross=None), "without cross-attention"),
    (dict(decoder_cross=CrossAttentionConfig(4, window=2)), "cross-attention windows"),
    (dict(pooling="avg"), "pooling 'avg'"),
    (dict(ngram_vocab_sizes=(10,)), "frequency n-gram tables"),
    (dict(hash_sizes=()), "without hash tables"),
    (dict(project_latent=False), "without projection"),
    (dict(decoder_cross=CrossAttentionConfig(2)), "heads that differ"),
  ],
)
def test_obstacles_of_to_hf(tmp_path, changes, message):
  c = convert.from_hf(HF)
  config = dataclasses.replace(c.config, **changes)
  with pytest.raises(ValueError, match=f"no counterpart for: .*{message}"):
    convert.to_hf(tmp_path / "model", dataclasses.replace(c, config=config))
  assert not (tmp_path / "model").exists()


def test_obstacles_of_to_hf_in_the_stacks(tmp_path):
  c = convert.from_hf(HF)
  narrow = dataclasses.replace(c.config.decoder, window=3)
  config = dataclasses.replace(c.config, decoder=narrow)
  with pytest.raises(ValueError, match="different windows"):
    convert.to_hf(tmp_path, dataclasses.replace(c, config=config))
  wide = dataclasses.replace(c.config.latent, head_dim=32)
  config = dataclasses.replace(c.config, latent=wide)
  with pytest.raises(ValueError, match="head_dim other than"):
    convert.to_hf(tmp_path, dataclasses.replace(c, config=config))


def test_refined_patches_and_odd_patching_are_obstacles(tmp_path):
  args = meta_args()
  c = convert.from_meta_state(args["model"], load_file(META / "model.safetensors"))
  with pytest.raises(ValueError, match="refined over several encoder layers"):
    convert.to_hf(tmp_path, c)
  c = convert.from_hf(HF)
  rules = [dict(scheme="space")]
  rules += [{name: True} for name in ("monotonic", "cumulative", "reset_at_newline")]
  for rule in rules:
    with pytest.raises(ValueError, match="patching scheme"):
      convert.to_hf(tmp_path, dataclasses.replace(c, patching=PatchingConfig(**rule)))
