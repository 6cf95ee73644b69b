"""Tasks that are a file of a user's own, mistakes in them, and the sample of the package."""

import json

import fake_answers
import pytest

from blt_jax.evals import registry, suite
from blt_jax.evals.task import Choice, Continue, Text

CHOICE = {"context": "2 + 2 =", "choices": ["4", "five"], "label": 0}
ANSWER = {"prompt": "Capital of France?", "answer": ["Paris", "paris"], "max_bytes": 9}
PAIR = {"source": "a", "target": "b", "source_language": "fr", "target_language": "Thai"}


def write(folder, name, rows):
  (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))


def test_files_are_tasks(tmp_path):
  write(tmp_path, "sums", [CHOICE])
  write(
    tmp_path, "sums_shots", [CHOICE | {"context": "1 + 1 =", "choices": ["3", "2"], "label": 1}]
  )
  write(tmp_path, "quiz", [ANSWER])
  write(tmp_path, "pairs", [PAIR])
  write(tmp_path, "letters", [{"text": "some text", "lang": "en"}])
  names = ["sums", "sums_noise", "quiz", "pairs", "letters", "letters_noise"]
  sums, spoiled, quiz, pairs, letters, noised = suite.prepare(names, str(tmp_path))
  assert sums.asked == [[Choice("1 + 1 = 2\n\n2 + 2 =", (" 4", " five"))]]
  assert spoiled.asked[0][0] == sums.asked[0][0] and len(spoiled.asked[0]) == 16
  assert quiz.asked == [[Continue("Capital of France?", ("\n",), 9)]]
  assert pairs.asked == [[Continue("French phrase: a\nThai phrase:", ("\n",), 4)]]
  assert letters.asked == [[Text("some text")]] and len(noised.asked[0]) == 16
  assert suite.requests("sums", [CHOICE])[0][0].context == "2 + 2 ="
  scores, _ = suite.scores("quiz", [ANSWER] * 3, [[" Paris "], ["paris"], ["Pari"]])
  assert [s["exact_match"] for s in scores] == [1, 1, 0]


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (CHOICE | {"label": 2}, "line 3, of mine has label 2"),
    (CHOICE | {"label": "0"}, "line 3, of mine has label '0'"),
    (CHOICE | {"choices": "45"}, "line 3, of mine has choices '45'"),
    (CHOICE | {"choices": ["4"]}, r"line 3, of mine has choices \['4'\]; it needs two"),
    (CHOICE | {"context": "a\ud83d"}, "line 3, has half a surrogate pair"),
    (CHOICE | {"context": None}, "line 3, of mine has context None"),
    ({"contxt": "a", "choices": ["b"], "label": 0}, "no field 'context'.*Is it 'contxt'"),
  ],
)
def test_rows_are_named_by_file_and_line(row, message, tmp_path):
  write(tmp_path, "mine", [CHOICE, row])
  with pytest.raises(
    ValueError, match=rf"mine\.jsonl, {message}" if "line" in message else message
  ):
    suite.prepare(["mine"], str(tmp_path))


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (ANSWER | {"answer": []}, r"answer \[\]"),
    (ANSWER | {"answer": " "}, "answer ' '"),
    (ANSWER | {"stop": "x"}, "stop 'x'"),
    (ANSWER | {"max_bytes": 0}, "max_bytes 0"),
    (ANSWER | {"max_bytes": 4}, "never be given.*max_bytes=4"),
    (ANSWER | {"answer": "one\ntwo"}, "never be given: it has one of stop"),
    (PAIR | {"target": ""}, "target ''"),
    ({"context": "a", "choices": ["b", "c"]}, "nearest are context, choices, label"),
    (
      {"promt": "a", "answer": "b"},
      "line 1, has fields promt, answer.*nearest are prompt, answer",
    ),
  ],
)
def test_rows_without_an_answer(row, message, tmp_path):
  write(tmp_path, "mine", [row])
  with pytest.raises(ValueError, match=message):
    suite.prepare(["mine"], str(tmp_path))


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["mien"], "no task 'mien', nor a file mien.jsonl.*near are .*mine"),
    (["mine", "mine"], "'mine' is named twice"),
    (["mine.jsonl"], "Name the task 'mine.jsonl' without .jsonl"),
    (["quiz_noise"], "Only multiple choice and documents"),
    ([""], "no task ''"),
  ],
)
def test_names_that_are_none(names, message, tmp_path):
  write(tmp_path, "mine", [CHOICE])
  write(tmp_path, "quiz", [ANSWER])
  with pytest.raises(ValueError, match=message):
    suite.prepare(names, str(tmp_path))


@pytest.mark.parametrize("data", ["none", "mine.jsonl"])
def test_data_that_is_no_folder(data, tmp_path):
  write(tmp_path, "mine", [CHOICE])
  with pytest.raises(FileNotFoundError, match=f"{data} is no folder"):
    suite.prepare(["mine"], str(tmp_path / data))


def test_the_sample_has_rows_of_tasks():
  shipped = [
    name
    for name, task in registry.TASKS.items()
    if not task.file.startswith(("arc_", "translate_"))
  ]
  prepared = suite.prepare([*shipped, "translate_tatoeba"], "sample", run_code=True)
  for task, items, _ in prepared:
    assert len(items) == 20, task.name
    assert all(len(item.shots) == task.num_shots for item in items), task.name


def test_the_cost_of_noise_is_bits_over_clean_bytes():
  told = fake_answers.report(["bpb_noise"], "sample", limit=5)["bpb_noise"]
  sizes = [len(item.row["text"].encode()) for item in told.items]
  last = [[-a / 0.6931471805599453 for a in answers][-1] for answers in told.answers]
  clean = [-answers[0] / 0.6931471805599453 for answers in told.answers]
  wanted = (sum(last) - sum(clean)) / sum(sizes)
  found = told.summary
  assert found["extra_bits_per_byte_upper_case_1"].value == pytest.approx(wanted, rel=1e-9)
  each = [found[f"extra_bits_per_byte_{n}_1"].value for n in ("antspeak", "drop", "repeat")]
  each += [found[f"extra_bits_per_byte_{n}_1"].value for n in ("random_case", "upper_case")]
  assert found["extra_bits_per_byte"].value == pytest.approx(sum(each) / 5, rel=1e-9)
  assert set(told.groups) == {"lang", "source"}


def test_weak_noise_spoils_some_of_the_characters():
  text = "abcdefgh " * 500
  (row,) = suite.requests("bpb_noise", [{"text": text}])
  weak, half, full = (r.text for r in row[-3:])  # upper case
  assert full == text.upper()
  for some, share in ((weak, 0.25), (half, 0.5)):
    assert sum(c.isupper() for c in some) / 4000 == pytest.approx(share, abs=0.03)
  assert all(h.isupper() for w, h in zip(weak, half, strict=True) if w.isupper())
