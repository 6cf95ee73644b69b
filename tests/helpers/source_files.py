"""Files of documents in every format, written and read."""

import json

import fsspec
import pytest
from array_record.python import array_record_module

from blt_jax.data.reading import sources
from blt_jax.data.reading.documents import SourceOptions

SKIP = SourceOptions(on_error="skip")


def lines_of(texts):
  return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()


def write(path, texts):
  """A file of documents in the format of its name."""
  path = str(path)
  if path.endswith(".parquet"):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": texts, "id": [1] * len(texts)}), path, row_group_size=2)
  elif "record" in path:
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for text in texts:
      writer.write(text.encode())
    writer.close()
  else:
    write_bytes(path, lines_of(texts))
  return path


def write_bytes(path, content):
  with fsspec.open(str(path), "wb", compression="infer") as file:
    file.write(content)
  return str(path)


def read(path, options=None, skipped=None):
  dataset = sources.open_source(str(path), options, skipped)
  return [document.text for document in dataset]
