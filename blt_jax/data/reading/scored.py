"""Documents stored with their entropies.

A folder, local or at a URL that fsspec knows, such as gs://, holds `entropies.json`, what
made the entropies, and the shards of each of the processes that wrote it.
"""

import bisect
import dataclasses
import itertools
import os
import re
import struct

import grain

from blt_jax.data.reading import shards
from blt_jax.data.reading.documents import (
  BadInputError,
  Document,
  Drought,
  Policy,
  Skipped,
  SourceOptions,
)
from blt_jax.storage.folders import Folder

_MANIFEST = "entropies.json"
_FACTS = re.compile(r"\d\d-(\d{5}|done)\.json")  # which `shards` writes beside the shards
FORMAT = 1
_MOST = 100_000  # processes


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What made a folder of entropies; they belong together only if all of it is equal.

  Attributes:
    model: folder of the run of the entropy model, or of the BLT.
    step: of its checkpoint.
    digest: of its parameters.
    window: bytes that its attention sees, or that a prediction of a BLT does at most.
    compute_dtype: of its activations.
    entropy_dtype: of the entropies as stored, "float16" or "float32".
    reset_at_newline: the context begins anew after each newline byte.
    input: path of the text.
    num_processes: that share the work.
    input_files: what tells its files from others, see `files.fingerprint`.
    text_field: where the text was in them.
    invalid_utf8: whether documents that are not UTF-8 were kept.
    template: how prompts and answers became text, see `Template.to_json`; "" of other text.
    patching: of a BLT, how it was patched; "" of an entropy model.
    format: version of the layout of the folder.
  """

  model: str
  step: int
  digest: str
  window: int
  compute_dtype: str
  entropy_dtype: str
  reset_at_newline: bool
  input: str
  num_processes: int
  input_files: str = ""
  text_field: str = "text"
  invalid_utf8: str = "keep"
  template: str = ""
  patching: str = ""
  format: int = FORMAT

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if type(value := getattr(self, field.name)) is not field.type:
        raise ValueError(f"{field.name} is {value!r}")
    if self.entropy_dtype not in ("float16", "float32"):
      raise ValueError(f"entropy_dtype is {self.entropy_dtype!r}")
    if not 1 <= self.num_processes <= _MOST:
      raise ValueError(f"num_processes is {self.num_processes}")


def is_scored(path: str | os.PathLike) -> bool:
  """Whether a path is such a folder."""
  return Folder(path).exists(_MANIFEST)


def has_lost_manifest(folder: str | os.PathLike) -> bool:
  """Whether shards lie in a folder, and what says what made them does not."""
  names = Folder(folder).sizes()
  return _MANIFEST not in names and any(map(_FACTS.fullmatch, names))


def load_manifest(folder: str | os.PathLike) -> Manifest:
  """Reads what made a folder of entropies.

  Raises:
    ValueError: the folder was written by another version, or its manifest is damaged.
  """
  fields = Folder(folder).read_json(_MANIFEST)
  if fields.get("format") != FORMAT:
    raise ValueError(
      f"{folder} has entropies of format {fields.get('format')!r}, this version reads "
      f"{FORMAT}; score the text again (python -m blt_jax.score_entropies)."
    )
  try:
    return Manifest(**fields)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{folder}/{_MANIFEST} is damaged: {error}.") from error


def begin(folder: str | os.PathLike, manifest: Manifest) -> None:
  """Starts or goes on with a folder.

  Raises:
    ValueError: the folder holds entropies that something else made, or other files.
    OSError: it cannot be written.
  """
  home, new = Folder(folder), dataclasses.asdict(manifest)
  home.make()
  names = [n for n in home.sizes() if not n.startswith(".") and not n.endswith(".partial")]
  if names and _MANIFEST not in names:
    raise ValueError(f"{folder} holds other files, such as {names[0]}; choose an empty folder.")
  if not names:
    home.write_json(_MANIFEST, new)
    return
  old = dataclasses.asdict(load_manifest(folder))
  changed = [f"{k} {old[k]!r}, now {new[k]!r}" for k in new if old[k] != new[k]]
  if changed:
    raise ValueError(
      f"{folder} holds entropies made otherwise: {'; '.join(changed)}. Choose another "
      "folder, or remove this one."
    )


class ScoredReader(grain.MapDataset[Document]):
  """Random access to the documents of a folder, in no particular order of the input."""

  def __init__(self, folder: str | os.PathLike, policy: Policy | None = None):
    """Opens a folder; the shards of a remote one are copied, see `files.copy_here`.

    Args:
      folder: the folder.
      policy: what happens to records that cannot be read; None raises.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: scoring has not finished, shards are damaged, or `policy` has another
        template than the text was written with.
    """
    super().__init__()
    self._folder = str(folder)
    self._policy = policy or Policy(SourceOptions(), Skipped())
    self._drought = Drought([self._folder])
    if not is_scored(folder):
      raise FileNotFoundError(
        f"{folder} holds no stored entropies (no {_MANIFEST}); make them with python -m "
        "blt_jax.score_entropies, or choose another config.patching.entropies."
      )
    self.manifest = load_manifest(folder)
    if policy is not None:
      self._check_template(policy.options)
    opened = shards.open_shards(folder, self.manifest.num_processes)
    self._source = grain.sources.ArrayRecordDataSource([shard.path for shard in opened])
    self._seeds = [shard.seed for shard in opened]
    self._ends = list(itertools.accumulate(shard.records for shard in opened))

  def _check_template(self, options: SourceOptions) -> None:
    wanted = "" if options.template is None else options.template.to_json()
    if wanted != self.manifest.template:
      stored, asked = (t or "format=text" for t in (self.manifest.template, wanted))
      raise ValueError(
        f"{self._folder} was scored with {stored}, and is to be read with {asked}; give the "
        "format and the template that it was scored with, or score the text again."
      )

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    index %= len(self)  # later epochs
    where = f"{self._folder}, record {index}"
    seed = self._seeds[bisect.bisect_right(self._ends, index)]
    try:
      document = shards.decode(
        self._source[index], self.manifest.entropy_dtype, seed, bool(self.manifest.template)
      )
    except (OSError, RuntimeError, ValueError, struct.error) as error:
      self._policy.reject(BadInputError("cannot be read", str(error)), where)
      return self._drought.check(None, len(self))
    return self._drought.check(self._policy.admit(document, where), len(self))

  def __str__(self) -> str:
    return f"ScoredReader({self._folder!r})"
