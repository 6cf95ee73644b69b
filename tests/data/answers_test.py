"""Prompts and answers: from records to text, and to rows that know what is to be learned."""

import csv
import json

import grain
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from source_files import read

from blt_jax import tokenizer
from blt_jax.data import pipeline, template
from blt_jax.data.packing.rows import PackRows
from blt_jax.data.pieces import PieceEncoder
from blt_jax.data.pipeline import BatchShape
from blt_jax.data.reading import heldout, sources
from blt_jax.data.reading.documents import Document, Skipped, SourceOptions
from blt_jax.data.template import Template
from blt_jax.data.transforms import PatchDocument, mask_answers
from blt_jax.patching import PatchingConfig

# Whose byte it is shows in each byte: answers and what ends them are of these only.
TEMPLATE = Template(system=("(", ")"), user=("?", ";"), assistant=(":", "!"))
LEARNED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ !")
OPTIONS = SourceOptions(template=TEMPLATE)
PAIRS = [
  {"prompt": f"ask{i}" * (i % 5), "completion": "TELL ME" * (i % 4 + 1)} for i in range(9)
]
TALK = [
  ("system", "be"), ("user", "hi"), ("assistant", "HO"), ("user", "more"), ("assistant", "NO"),
  ("user", "bye"),
]  # fmt: skip


def messages_of(turns):
  return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


def documents_of(path, options=OPTIONS):
  return list(sources.each_document(sources.open_source(str(path), options)))


# --- Templates


def test_a_dialogue_by_hand():
  turns = [(role, content.encode()) for role, content in TALK]
  text, answers = TEMPLATE.render(turns)
  assert text == b"(be)?hi;:HO!?more;:NO!?bye;"
  assert [text[a:b] for a, b in answers] == [b"HO!", b"NO!"]
  assert TEMPLATE.ask(turns[:2]) == b"(be)?hi;:"
  assert text.startswith(TEMPLATE.ask(turns[:2]) + b"HO" + TEMPLATE.end)
  usual, answers = template.load("").render([("user", b"2+2?"), ("assistant", b"4")])
  assert usual == b"<|user|>\n2+2?<|end|>\n<|assistant|>\n4<|end|>\n"
  assert usual[slice(*answers[0])] == b"4<|end|>\n"


def test_templates_are_read_as_they_are_written(tmp_path):
  (tmp_path / "template.json").write_text(TEMPLATE.to_json())
  assert template.load(str(tmp_path / "template.json")) == TEMPLATE
  assert template.load(TEMPLATE.to_json()) == TEMPLATE
  assert template.parse(Template().to_json()) == Template()


GOOD = json.loads(TEMPLATE.to_json())


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("[1]", "A template is .1.; it must be an object with .'system', 'user', 'assistant'"),
    ("{", "A template is a JSON object, and this is none"),
    ({k: v for k, v in GOOD.items() if k != "user"}, "A template has .'system', 'assistant'.;"),
    (GOOD | {"tool": {}}, "it must be an object with"),
    (GOOD | {"user": {"prefix": "a"}}, "The role 'user' of a template has .'prefix'.; it must"),
    (GOOD | {"user": {"prefix": 1, "suffix": ""}}, "The prefix of 'user' is 1; it must be a"),
    (GOOD | {"user": {"prefix": "\ud800", "suffix": ""}}, "it must be a text"),
    (GOOD | {"assistant": {"prefix": "", "suffix": ""}}, "suffix of 'assistant' is empty"),
    ('{"user": 1, "user": 2}', "several fields 'user'"),
  ],
)
def test_what_is_no_template(tmp_path, content, message):
  path = tmp_path / "mine.json"
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  with pytest.raises(ValueError, match=f"mine.json: .*{message}"):
    template.load(str(path))


# --- Records


def write_all(folder, records, names):
  """The records in every format that can hold them."""
  write(folder / "lines.jsonl", records)
  (folder / "array.json").write_text(json.dumps(records, indent=1))
  parquet.write_table(pa.Table.from_pylist(records), folder / "rows.parquet")
  table = pa.Table.from_pylist(records)
  with (
    pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
    pa.ipc.new_file(file, table.schema) as writer,
  ):
    writer.write_table(table)
  if "prompt" in names:
    with (folder / "rows.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, names)
      writer.writeheader()
      writer.writerows(records)


@pytest.mark.parametrize("fields", [(), ("id",)])
def test_every_format_gives_the_same_documents(tmp_path, fields):
  pairs = [{"id": str(i), **pair} for i, pair in enumerate(PAIRS)]
  talks = [{"id": "0", **messages_of(TALK)}, {"id": "1", **messages_of(TALK[1:5])}]
  options = SourceOptions(template=TEMPLATE, fields=fields)
  for number, records in enumerate((pairs, talks)):
    folder = tmp_path / str(number)
    folder.mkdir()
    write_all(folder, records, list(records[0]))
    want = None
    for path in sorted(folder.iterdir()):
      found = [
        (d.text, d.answers.tolist(), d.row and {k: d.row[k] for k in fields})
        for d in documents_of(path, options)
      ]
      want = want or found
      assert found == want, path
    assert len(want) == len(records) and want[0][2] == ({"id": "0"} if fields else None)
  assert want[1][0] == b"?hi;:HO!?more;:NO!" and want[1][1] == [[5, 8], [15, 18]]


def test_forms_may_be_mixed_where_the_other_is_null(tmp_path):
  records = [PAIRS[1], messages_of(TALK), {"prompt": "a", "completion": "B", "messages": None}]
  texts = [d.text for d in documents_of(write(tmp_path / "a.jsonl", records))]
  assert texts[2] == b"?a;:B!" and len(texts) == 3
  table = pa.Table.from_pylist(
    [{"prompt": None, "completion": None, **messages_of(TALK)}, {**PAIRS[1], "messages": None}]
  )
  parquet.write_table(table, tmp_path / "a.parquet")
  assert [d.text for d in documents_of(tmp_path / "a.parquet")] == texts[1::-1]


def test_bytes_that_are_not_utf8_stay(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff", "completion": "A\xfe"}\n')
  (tmp_path / "a.csv").write_bytes(b"prompt,completion\n\xff,A\xfe\n")
  for name in ("a.jsonl", "a.csv"):
    (document,) = documents_of(tmp_path / name)
    assert document.text == b"?\xff;:A\xfe!" and document.answers.tolist() == [[4, 7]]


@pytest.mark.parametrize(
  ("record", "message"),
  [
    ({"prompt": "a"}, "no 'completion' .a record has 'prompt' and 'completion', or 'messages'"),
    ({"text": "a"}, "no 'prompt' and no 'messages' .*its fields: 'text'"),
    ({**PAIRS[1], **messages_of(TALK)}, "both 'prompt' and 'messages'"),
    ({"prompt": 5, "completion": "A"}, "no string where a text should be .'prompt': but int"),
    ({"prompt": "a", "completion": ""}, "an empty answer"),
    ({"prompt": "a", "completion": "A!B"}, "an answer that has the end of answers in it .*'!'"),
    (messages_of([("user", "a")]), "no answer .no message has the role 'assistant'"),
    (
      messages_of([("bot", "a")]),
      "an unknown role .'bot' in number 1; there are",
    ),
    (messages_of([("assistant", None)]), "number 1 has 'role'; a message has 'role' and"),
    (messages_of([("assistant", ["A"])]), "the content of message 1: but list"),
    ({"messages": []}, "no list of messages in 'messages' .an empty list"),
    ({"messages": "a"}, "no list of messages in 'messages' .but str"),
    ({"messages": ["a"]}, "a message that is no object"),
    (
      {"messages": [{"role": "assistant", "content": "A", "weight": 0}]},
      "a message with other fields .number 1 has 'content', 'role', 'weight'",
    ),
  ],
)
def test_bad_records_are_named_with_their_line(tmp_path, record, message):
  path = write(tmp_path / "bad.jsonl", [PAIRS[1], record])
  with pytest.raises(ValueError, match=f"bad.jsonl, line 2: .*{message}"):
    documents_of(path)
  skipped = Skipped()
  options = SourceOptions(template=TEMPLATE, on_error="skip")
  assert len(list(sources.each_document(sources.open_source(path, options, skipped)))) == 1
  assert sum(skipped.counts.values()) == 1


def test_twice_the_same_field_and_files_without_fields(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"prompt": "a", "prompt": "b", "completion": "A"}\n')
  with pytest.raises(ValueError, match="line 1: several fields 'prompt'"):
    documents_of(tmp_path / "a.jsonl")
  (tmp_path / "a.txt").write_text("text")
  with pytest.raises(ValueError, match="a.txt is plain text, and data.format=answers reads"):
    documents_of(tmp_path / "a.txt")
  (tmp_path / "a.csv").write_text("prompt,text\na,b\n")
  with pytest.raises(ValueError, match="row 1: no column 'completion' .its columns: 'prompt'"):
    documents_of(tmp_path / "a.csv")
  parquet.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
  with pytest.raises(ValueError, match="a.parquet: no columns of prompts and answers"):
    documents_of(tmp_path / "a.parquet")
  assert read(write(tmp_path / "b.jsonl", [{"text": "a"}])) == [b"a"]


# --- What is learned of ids


def test_mask_of_bytes_by_hand():
  """BOS ? a : A B ! ? b EOS: the answer counts, and the EOS only if it ends one."""
  ids = tokenizer.encode(b"?a:AB!?b")
  mask = mask_answers(ids, np.array([[3, 6]]))
  np.testing.assert_array_equal(mask, [0, 0, 0, 0, 1, 1, 1, 0, 0, 0])
  mask = mask_answers(ids[[0, 1, 2, 3, 4, 5, 6, 9]], np.array([[3, 6]]))
  np.testing.assert_array_equal(mask, [0, 0, 0, 0, 1, 1, 1, 1])


def test_mask_of_pieces_by_hand():
  """A piece counts if all of its bytes are of an answer: here those of 2, 3 and 1 bytes."""
  sizes = np.array([0, 0, 0, 0, 2, 3, 4, 1])
  ids = np.array([1, 4, 6, 5, 7, 4, 2])  # bytes 0-2, 2-6, 6-9, 9-10, 10-12
  mask = mask_answers(ids, np.array([[4, 12]]), sizes)
  np.testing.assert_array_equal(mask, [0, 0, 0, 1, 1, 1, 1])
  mask = mask_answers(ids, np.array([[0, 2], [6, 11]]), sizes)
  np.testing.assert_array_equal(mask, [0, 1, 0, 1, 1, 0, 0])


def test_delimiters_of_pieces_count_as_the_byte_after_them():
  ids = np.array([1, 3, 70, 71, 3, 72, 3, 73, 2])  # BOS | ab | c | d EOS
  mask = mask_answers(ids, np.array([[2, 4]]))
  np.testing.assert_array_equal(mask, [0, 0, 0, 0, 1, 1, 1, 1, 1])


# --- Rows, position by position


class _Pieces(PieceEncoder):
  """Pieces of up to three bytes, without a model."""

  def __init__(self):
    self._path = "none"

  def split(self, text):
    return (text[i : i + 3] for i in range(0, len(text), 3))


def _entropies(tokens):
  return (tokens.astype(np.float32) * 7919) % 5


PATCHERS = {
  "entropy": PatchDocument(PatchingConfig(scheme="entropy", threshold=3.0), _entropies),
  "space": PatchDocument(PatchingConfig(scheme="space")),
  "static": PatchDocument(PatchingConfig(scheme="static", patch_size=4)),
  "bpe": PatchDocument(PatchingConfig(scheme="bpe"), encode=_Pieces()),
}


def _wanted(row):
  """Which targets of a row are of answers, from what they are and what is before them."""
  wanted = np.zeros(len(row["targets"]), bool)
  for slot, (token, target) in enumerate(zip(row["tokens"], row["targets"], strict=True)):
    if target == tokenizer.EOS_ID:
      wanted[slot] = token - tokenizer.OFFSET == ord("!")
    elif target == tokenizer.BPE_ID:
      after = row["targets"][slot + 1] if slot + 1 < len(wanted) else -1
      wanted[slot] = after - tokenizer.OFFSET in LEARNED
    else:
      wanted[slot] = target - tokenizer.OFFSET in LEARNED
  return wanted


@pytest.fixture(scope="module", name="path")
def _path(tmp_path_factory):
  records = [*PAIRS, messages_of(TALK), messages_of(TALK[1:3])]
  return write(tmp_path_factory.mktemp("text") / "a.jsonl", records)


@pytest.mark.parametrize("scheme", PATCHERS)
@pytest.mark.parametrize("keep_whole", [False, True])
def test_rows_learn_answers_and_nothing_else(path, scheme, keep_whole):
  """Over documents that are cut into several pieces, too."""
  patch, source = PATCHERS[scheme], sources.open_source(path, OPTIONS)
  shape = BatchShape(2, 24, 12, pool_size=5, keep_whole=keep_whole)
  rows = [
    {key: array[i] for key, array in batch.items()}
    for batch in pipeline.training_batches(source, patch, shape)
    for i in range(2)
  ]
  ends = 0
  for row in rows:
    wanted = _wanted(row)
    if scheme == "bpe" and row["targets"][-1] == tokenizer.BPE_ID:  # its byte is elsewhere
      wanted[-1] = row["loss_mask"][-1]
    np.testing.assert_array_equal(row["loss_mask"], wanted)
    ends += (row["targets"][wanted] == tokenizer.EOS_ID).sum()
  learned = sum(row["loss_mask"][row["targets"] >= tokenizer.OFFSET].sum() for row in rows)
  assert learned == sum(d.num_learned for d in documents_of(path))
  assert ends == 10 and len(rows) > 11  # one of 11 records ends with a question


def test_text_without_answers_is_learned_whole():
  tokens = PATCHERS["space"](Document(b"a b"))
  assert tokens.keys() == {"tokens", "patch_lengths"}


def _stream(documents):
  return grain.MapDataset.source(documents).to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  )


def test_held_out_documents_keep_their_answers(path):
  sides = sources.open_split(path, 0.3, OPTIONS)
  whole = {d.text: d.answers.tolist() for d in documents_of(path)}
  found = [{d.text: d.answers.tolist() for d in sources.each_document(s)} for s in sides]
  assert all(found) and found[0] | found[1] == whole
  sides = heldout.hold_out_of_stream(_stream(documents_of(path)), 0.3)
  assert [{d.text: d.answers.tolist() for d in side} for side in sides] == found


def test_long_documents_are_said_and_others_stay_whole(path, caplog):
  """The 1st, the 10th, ...; a document that has room in a row is in one."""
  documents = [PATCHERS["static"](d) for d in documents_of(path)] * 2
  long = [d for d in documents if len(d["tokens"]) > 41]
  rows = list(PackRows(_stream(documents), 40, 16, 4, keep_whole=True))
  said = [r.message for r in caplog.records if "since a row has 41 and 16" in r.message]
  assert 1 < len(long) < 10 and len(said) == 1 and "(1 such so far)" in said[0]
  whole = 0
  for row in rows:
    ends = np.flatnonzero(row["targets"] == tokenizer.EOS_ID)
    # Where the document of each EOS begins in the row, if it does.
    starts = [np.flatnonzero(row["tokens"][: end + 1] == tokenizer.BOS_ID) for end in ends]
    before = [0, *(ends + 1)]
    whole += sum(bool((s >= b).any()) for s, b in zip(starts, before, strict=False))
  assert whole == len(documents) - len(long)
