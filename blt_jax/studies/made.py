"""What arms need before they train: tokenizers, entropy models, tables, scored text.

Each is made by its own command, in a process of its own, and is there or not; so a study that
was stopped goes on with what is missing.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import grain
from absl import logging
from ml_collections import ConfigDict

from blt_jax import kinds
from blt_jax.runs import corpus, lock, settings_flags, tokenizers
from blt_jax.runs.patcher import read_threshold
from blt_jax.storage.folders import Folder
from blt_jax.studies import children, records
from blt_jax.studies.plan import Arm, Entropies, Plan, flags


class Made(NamedTuple):
  """The folders of what a study makes.

  Attributes:
    root: of all of it.
  """

  root: str

  @property
  def tokenizers(self) -> Folder:
    """The folder of tokenizers, and of what their pieces are like, by vocabulary."""
    return Folder(f"{self.root}/tokenizers")

  def tokenizer(self, config: ConfigDict) -> str:
    """The file of an arm's tokenizer."""
    return self.tokenizers.path_of(f"{config.model.vocab_size}.model")

  @property
  def ngrams(self) -> str:
    """The folder of tables of frequent n-grams."""
    return f"{self.root}/ngrams"

  def entropies(self, name: str) -> str:
    """The folder of an entropy model, or of a table."""
    return f"{self.root}/entropies/{name}/model"

  def scored(self, name: str, part: str) -> str:
    """The folder of the training or of the held-out text with its entropies."""
    return f"{self.root}/entropies/{name}/{part}"

  def notes(self, name: str) -> Folder:
    """Where it is noted what was made of an entropy model."""
    return Folder(f"{self.root}/entropies/{name}")

  def in_turn(self, name: str) -> contextlib.AbstractContextManager[None]:
    """While one thing is made, which other processes wait for."""
    return lock.in_turn(f"{self.root}/claims/{name}")


def make(plan: Plan, configs: Mapping[str, ConfigDict], made: Made) -> None:
  """Makes what is missing, after another process that does.

  Args:
    plan: of the study.
    configs: settings of its arms, of `plan.load_arms`.
    made: where to.

  Raises:
    ValueError: a command failed, or the text cannot be scored.
  """
  text = next(iter(configs.values())).data
  make_tokenizers(plan, configs, made)
  if any(plan.arms[name].ngrams for name in configs):
    with made.in_turn("ngrams"):
      if not Folder(made.ngrams).sizes():
        _run("count_ngrams", f"--input={text.path}", f"--output={made.ngrams}", *_reading(text))
  for name in dict.fromkeys(plan.arms[arm].entropies for arm in configs):
    if name:
      own = [arm for arm in configs if plan.arms[arm].entropies == name]
      found = [_thresholds(plan.arms[arm], configs[arm]) for arm in own]
      wanted = {file: asked for files in found for file, asked in files.items()}
      with made.in_turn(name):
        _make_entropies(name, plan, text, made, wanted)


def make_tokenizers(plan: Plan, configs: Mapping[str, ConfigDict], made: Made) -> None:
  """Makes the tokenizers that are missing, without which nobody knows what a model costs."""
  for name, config in configs.items():
    if tokenizers.needs_tokenizer(config):
      with made.in_turn(f"tokenizer_{config.model.vocab_size}"):
        _make_tokenizer(plan, plan.arms[name], config, made)


def _make_tokenizer(plan: Plan, arm: Arm, config: ConfigDict, made: Made) -> None:
  size, home = config.model.vocab_size, made.tokenizers
  if home.exists(f"{size}.json"):
    return
  if home.exists(f"{size}.model"):
    home.remove(f"{size}.model")  # of a process that ended before it had measured it
  own = {**plan.settings, **arm.settings, "patching.tokenizer": made.tokenizer(config)}
  told = _run("train_tokenizer", f"--config={arm.config}", *flags(own), is_told=True)
  home.make()
  home.write_json(f"{size}.json", json.loads(told))


def bytes_per_piece(config: ConfigDict, made: Made) -> float:
  """Of the tokenizer of an arm, on the training text."""
  return made.tokenizers.read_json(f"{config.model.vocab_size}.json")["bytes_per_piece"]


def apply(config: ConfigDict, arm: Arm, plan: Plan, made: Made) -> None:
  """Has the settings of an arm name what was made for it; rows of pieces hold as many bytes."""
  if tokenizers.needs_tokenizer(config):
    config.patching.tokenizer = made.tokenizer(config)
    if kinds.find_kind(config.model.kind).reads_pieces:
      pieces = config.data.seq_len / bytes_per_piece(config, made)
      config.data.seq_len = max(round(pieces / 8), 1) * 8
  if arm.ngrams:
    config.data.ngram_tables = made.ngrams
  if not arm.entropies:
    return
  source = plan.entropies[arm.entropies]
  config.patching.entropy_model = made.entropies(arm.entropies)
  notes = made.notes(arm.entropies)
  config.patching.threshold, *coarser = (
    notes.read_json(file)["threshold"] for file in _thresholds(arm, config)
  )
  config.patching.update(coarser=tuple(coarser), cumulative=arm.cumulative)
  if config.patching.entropies == "device":  # which reads the text itself
    return
  config.patching.entropies = "table" if source.is_table else "model"
  if source.stored:
    config.patching.entropies = "stored"
    config.data.path = made.scored(arm.entropies, "train")
    config.data.heldout_path = made.scored(arm.entropies, "heldout")


def lacks_entropies(arm: Arm, config: ConfigDict, made: Made) -> bool:
  """Whether the entropies of an arm, or thresholds for its settings, have still to be made."""
  if not arm.entropies:
    return False
  notes = made.notes(arm.entropies)
  return not all(map(notes.exists, _thresholds(arm, config)))


# --- Entropies


def _make_entropies(
  name: str, plan: Plan, text: ConfigDict, made: Made, thresholds: Mapping[str, list[str]]
) -> None:
  """Makes entropies and thresholds: name of a file -> what calibration is asked."""
  source, model = plan.entropies[name], made.entropies(name)
  if source.is_table:
    if not Folder(model).sizes():
      most = [f"--max_bytes={source.text}"] if source.text else []
      _run("train_table", f"--input={text.path}", f"--output={model}", *most, *_reading(text))
  else:
    _train(source, plan, model)
  if source.stored:
    _store(name, text, made)
  for file, asked in sorted(thresholds.items()):
    if not made.notes(name).exists(file):
      _run("calibrate", f"--run={model}", *asked)
      made.notes(name).make()
      made.notes(name).write_json(file, read_threshold(model))


def _train(source: Entropies, plan: Plan, model: str) -> None:
  own = {**_of_text(plan.settings), **source.settings, "workdir": model}
  config = settings_flags.load(source.config, flags(own))
  if records.final_bpb(model, config.num_steps) is None:
    _run("train", f"--config={source.config}", *flags(own))


def _store(name: str, text: ConfigDict, made: Made) -> None:
  """Scores training and held-out text, so that each has its entropies."""
  if not text.heldout_path:
    raise ValueError(
      f"entropies[{name!r}].stored needs a file of held-out text in config.data.heldout_path: "
      "split off scored text, it would not be that of the other arms."
    )
  if isinstance(corpus.open_corpus(text).stream(seed=0), grain.IterDataset):
    raise ValueError(
      f"entropies[{name!r}].stored needs text with random access, and {text.path} is a stream, "
      "as compressed files are: arms would read it in other orders. Unpack it."
    )
  for part, path in (("train", text.path), ("heldout", text.heldout_path)):
    note = f"{part}_is_scored.json"
    if not made.notes(name).exists(note):
      _run(
        "score_entropies", f"--model={made.entropies(name)}", f"--input={path}",
        f"--output={made.scored(name, part)}", *_reading(text),
      )  # fmt: skip
      made.notes(name).write_json(note, {"text": path})


def _thresholds(arm: Arm, config: ConfigDict) -> dict[str, list[str]]:
  """Files of the thresholds of an arm, the finest first, and what calibration is asked."""
  rule, suffix = (["--cumulative"], "_cumulative") if arm.cumulative else ([], "")
  sizes = [arm.bytes_per_patch, *config.model.get("patch_sizes", ())[1:]]
  return {
    f"threshold_{size:g}{suffix}.json": [f"--target_bytes_per_patch={size}", *rule]
    for size in sizes
  }


def _of_text(settings: Mapping[str, object]) -> dict[str, object]:
  return {name: value for name, value in settings.items() if name.startswith("data.")}


def _reading(text: ConfigDict) -> list[str]:
  names = ["format", "text_field", "on_error", "invalid_utf8"]
  names += ["template"] if text.template else []
  return [f"--{name}={text[name]}" for name in names]


# --- Commands


def _run(command: str, *arguments: str, is_told: bool = False) -> str:
  """Runs a command of this package and gives what it prints, if that is wanted.

  Raises:
    ValueError: it fails.
  """
  logging.info("== %s %s", command, " ".join(arguments))
  with children.ending_with_this() as processes:
    out = subprocess.PIPE if is_told else None
    # This process may have a share of the GPU's memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = children.start(command, arguments, stdout=out, env=environment)
    processes.append(process)
    told = process.communicate()[0]
  if process.returncode:
    raise ValueError(
      f"`python -m blt_jax.{command} {' '.join(arguments)}` failed (status "
      f"{process.returncode}); it says why above. Mend it and start the study again."
    )
  return told or ""
