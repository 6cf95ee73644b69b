"""The suite with a model: answers in their places, files, mistakes."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
from forward import stack
from uncached import random_params

from blt_jax import evaluate, tokenizer
from blt_jax.decode import Generator, Sampling, Scorer
from blt_jax.decode.byte_lm import ByteLMReader
from blt_jax.decode.generation import Generation
from blt_jax.decode.language_model import from_byte_lm
from blt_jax.evals import asking, patches, suite
from blt_jax.evals import report as reports
from blt_jax.evals.memory import Memory
from blt_jax.evals.task import Choice, Continue, FirstLine, Text
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig
from blt_jax.runs import checkpoint, entropy_digest, loading

ROWS = {
  "piqa_valid": [
    {"goal": "sit" * i, "sol1": "a" * i, "sol2": "bcd", "label": i % 2} for i in range(1, 6)
  ],
  "lambada_test": [{"text": "one two"}, {"text": "a much longer text"}],
  "bpb": [{"text": "some document"}, {"text": "é"}],
  "g2p_cmudict": [{"word": "cat", "phonemes": "K AE1 T"}, {"word": "dogs", "phonemes": "D"}],
  "g2p_cmudict_shots": [{"word": "a", "phonemes": "AH0"}],
}


@pytest.fixture(scope="module", name="model")
def _model():
  config = ByteLMConfig(stack(16, 1, window=8))
  params = random_params(config)
  params["output"]["kernel"] *= 5
  return from_byte_lm(ByteLM(config), params)


@pytest.fixture(name="run")
def _run(model, monkeypatch):
  monkeypatch.setattr(loading, "load_language_model", lambda *_: model)
  monkeypatch.setattr(checkpoint, "find_step", lambda run, step: step or 7)
  monkeypatch.setattr(patches, "read", lambda *_: None)
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])  # one to compile for


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  for name, rows in ROWS.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


def test_answers_are_those_of_scorer_and_generator(model, data):
  report = suite.evaluate(model, ["piqa", "lambada", "bpb", "g2p"], str(data))
  pairs = [
    (f"Question: {row['goal']}\nAnswer:", f" {row[side]}")
    for row in ROWS["piqa_valid"]
    for side in ("sol1", "sol2")
  ]
  nats = np.array([x.log_prob for x in Scorer(model).loglikelihood(pairs)]).reshape(-1, 2)
  found = [[nats for nats, _ in answers[0]] for answers in report["piqa"].answers]
  np.testing.assert_allclose(found, nats, rtol=1e-5)
  right = nats.argmax(axis=1) == [row["label"] for row in ROWS["piqa_valid"]]
  assert report["piqa"].summary["acc"].value == pytest.approx(right.mean())
  bits = -sum(Scorer(model).loglikelihood_rolling([row["text"] for row in ROWS["bpb"]]))
  wanted = bits / np.log(2) / sum(len(row["text"].encode()) for row in ROWS["bpb"])
  assert report["bpb"].summary["bits_per_byte"].value == pytest.approx(wanted, rel=1e-5)
  prompts = [report["g2p"].task.requests(item)[0].prompt for item in report["g2p"].items]
  assert prompts[1] == "Word: a\nPhonemes: AH0\n\nWord: dogs\nPhonemes:"
  told = Generator(model).generate(prompts, Sampling(max_bytes=128))
  for (answer,), whole in zip(report["g2p"].answers, told, strict=True):
    assert whole.text.startswith(answer)
    lines = [[x for x in text.split("\n") if x.strip()][:1] for text in (answer, whole.text)]
    assert lines[0] == lines[1]


def test_a_first_line_may_be_blank(monkeypatch):
  texts = {
    "a": ("K AE1", "stop"),
    "b": (" ", "stop"),
    "b \n": ("D\nE", "length"),
    "c": ("", "end"),
  }
  asked = []

  def write(model, prompts, options, batch_size, room):
    for number, (prompt, sampling) in enumerate(zip(prompts, options, strict=True)):
      asked.append((prompt, sampling.stop, sampling.max_bytes))
      text, finish = texts[prompt]
      ids = tokenizer.encode(text, add_bos=False, add_eos=False)
      yield number, Generation(np.zeros(1), ids, np.zeros(len(ids)), finish)

  monkeypatch.setattr(asking, "write", write)
  requests = [[FirstLine(prompt, (), 9)] for prompt in "abc"]
  told = dict(asking.ask(None, requests))
  assert told == {0: ["K AE1"], 1: [" \nD\nE"], 2: [""]}
  assert asked == [(p, ("\n",), 9) for p in "abc"] + [("b \n", (), 7)]


def test_examples_of_another_folder(data, tmp_path):
  row = {"word": "b", "phonemes": "B IY1"}
  (tmp_path / "g2p_cmudict_shots.jsonl").write_text(json.dumps(row) + "\n")
  ((_, _, asked),) = suite.prepare(["g2p"], str(data), shots=str(tmp_path))
  assert asked[0][0].prompt == "Word: b\nPhonemes: B IY1\n\nWord: cat\nPhonemes:"
  with pytest.raises(ValueError, match="examples for none of piqa"):
    suite.prepare(["piqa"], str(data), shots=str(tmp_path))


@pytest.mark.usefixtures("run")
def test_the_command_writes_a_table_and_files(data, tmp_path, capsys):
  output = tmp_path / "out"
  tasks = "--tasks=piqa,piqa_noise,bpb"
  evaluate.main(["--run=RUN", tasks, f"--data={data}", f"--output={output}", "--limit=3"])
  table = capsys.readouterr().out
  assert "piqa_noise" in table and "acc_norm_drop" in table and "bits_per_byte*" in table
  results = json.loads((output / "results.json").read_text())
  noisy = results["tasks"]["piqa_noise"]
  assert noisy["n"] == 3 and len(noisy["digest_of_prompts"]) == 64
  low, high = noisy["metrics"]["acc_norm"]["interval_95"]
  assert low <= noisy["metrics"]["acc_norm"]["value"] <= high
  assert results["versions"]["jax"] == jax.__version__ and results["limit"] == 3
  lines = [json.loads(line) for line in (output / "items.jsonl").open()]
  assert [line["task"] for line in lines] == ["piqa"] * 3 + ["piqa_noise"] * 3 + ["bpb"] * 2
  assert lines[0]["row"] == ROWS["piqa_valid"][0] and len(lines[3]["answers"]) == 16


@pytest.mark.usefixtures("run")
def test_other_weights_in_a_folder_are_asked_anew(data, tmp_path, monkeypatch):
  keys = []
  for digest in ("one", "other", "one"):
    monkeypatch.setattr(entropy_digest, "find", lambda *_, digest=digest: digest)
    evaluate.main(["--run=RUN", "--tasks=piqa", f"--data={data}", f"--output={tmp_path}"])
    keys.append([json.loads(line)["key"] for line in (tmp_path / "items.jsonl").open()])
  assert keys[0] == keys[2] and not set(keys[0]) & set(keys[1])
  assert len((tmp_path / "items.jsonl.earlier").read_text().splitlines()) == len(keys[1])


@pytest.mark.parametrize(
  ("flags", "error"),
  [
    (["--tasks=hellaswagg"], "near are hellaswag"),
    (["--tasks=piqa,blimp"], "blimp.jsonl is missing"),
    (["--tasks=piqa", "--limit=0"], "--limit must be 1 or more"),
    (["--tasks=piqa", "--max_batches=2"], "--max_batches is of text"),
    (["--tasks=piqa,humaneval"], "--run_code"),
    (["--tasks=piqa,"], "has an empty name"),
    (["--limit=3"], "--limit is of --tasks"),
    (["--run_code"], "--run_code is of --tasks"),
  ],
)
@pytest.mark.usefixtures("run")
def test_mistakes_are_named(flags, error, data):
  with pytest.raises((ValueError, FileNotFoundError), match=error):
    evaluate.main(["--run=RUN", f"--data={data}", *flags])


@pytest.mark.usefixtures("run")
def test_the_command_patches_as_it_is_told(model, data, monkeypatch):
  given = []
  monkeypatch.setattr(
    loading, "load_language_model", lambda *flags: given.append(flags) or model
  )
  flags = ["--entropy_model=OTHER", "--threshold=0.1", "--cumulative", "--step=4"]
  evaluate.main(["--run=RUN", "--tasks=lambada", f"--data={data}", *flags])
  assert given == [("RUN", "OTHER", 0.1, 4, True)]


def test_an_evaluation_goes_on_where_it_was_stopped(model, data, tmp_path, monkeypatch):
  names, about, given = ["piqa", "bpb", "g2p"], {"run": "RUN", "step": 1}, []
  whole = suite.evaluate(model, names, str(data))
  answer = asking.ask

  def stop_after(count):
    def ask(model, asked, batch_size, devices):
      for place, answers in answer(model, asked, 1):
        given.append(asked[place])
        if len(given) > count:
          raise KeyboardInterrupt
        yield place, answers

    monkeypatch.setattr(asking, "ask", ask)

  stop_after(4)  # of nine items
  with pytest.raises(KeyboardInterrupt):
    suite.evaluate(model, names, str(data), memory=Memory(tmp_path, about))
  with (tmp_path / "items.jsonl.unfinished").open("a") as file:
    file.write('{"key": "half a li')  # as a kill leaves it
  given.clear()
  stop_after(100)
  memory = Memory(tmp_path, about)
  report = suite.evaluate(model, names, str(data), memory=memory)
  assert len(given) == 9 - 4
  for name in names:
    for metric, value in whole[name].summary.items():
      assert report[name].summary[metric] == pytest.approx(value, rel=1e-5)
  reports.save(tmp_path, report, {}, memory)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["items.jsonl", "results.json"]
  given.clear()
  suite.evaluate(model, names, str(data), memory=Memory(tmp_path, about))
  assert not given
  suite.evaluate(model, names, str(data), memory=Memory(tmp_path, about | {"step": 2}))
  assert len(given) == 9


def test_what_other_calls_asked_is_kept(model, data, tmp_path):
  def ask(names):
    memory = Memory(tmp_path, {"run": "RUN"})
    reports.save(tmp_path, suite.evaluate(model, names, str(data), memory=memory), {}, memory)

  def keys(name):
    return {json.loads(line)["key"] for line in (tmp_path / name).read_text().splitlines()}

  ask(["piqa", "bpb"])
  both = keys("items.jsonl")
  ask(["piqa"])
  assert keys("items.jsonl") | keys("items.jsonl.earlier") == both
  assert not keys("items.jsonl") & keys("items.jsonl.earlier")
  ask(["piqa", "bpb"])
  assert keys("items.jsonl") == both and not keys("items.jsonl.earlier")


def test_several_devices_answer_as_one(model, data, monkeypatch):
  """Each takes the next batch; both prompts are at work at the same time."""
  prepared = suite.prepare(["piqa", "g2p"], str(data))
  asked = [requests for one in prepared for requests in one.asked]
  used, together = [], threading.Barrier(1)

  def write(copy, prompts, options, *_):  # what is written is tested elsewhere
    used.append(jax.tree.leaves(copy.weights)[0].device)
    together.wait(300)
    nothing = np.zeros(0)
    return (
      (i, Generation(nothing, tokenizer.encode(p.upper(), False, False), nothing, "length"))
      for i, p in enumerate(prompts)
    )

  monkeypatch.setattr(asking, "write", write)
  alone = dict(asking.ask(model, asked, 1))
  together = threading.Barrier(2)
  shared = dict(asking.ask(model, asked, 1, jax.devices()[:2]))
  assert set(used[-2:]) == set(jax.devices()[:2])
  assert shared.keys() == alone.keys() == set(range(7))
  assert [shared[i] for i in (5, 6)] == [[asked[i][0].prompt.upper()] for i in (5, 6)]
  for place in range(5):
    np.testing.assert_allclose(shared[place][0], alone[place][0], rtol=1e-5)


def test_an_error_on_one_device_ends_all(model, monkeypatch):
  def fail(*_):
    raise ValueError("a row that is none")

  monkeypatch.setattr(asking, "_windows", fail)
  with pytest.raises(ValueError, match="a row that is none"):
    list(asking.ask(model, [[Text("a")], [Text("b")], [Text("c")]], 1, jax.devices()[:2]))


def test_what_does_not_fit_is_cut_from_the_left(model):
  class Narrow(ByteLMReader):
    max_length = 9

  reader = model.reader
  narrow = dataclasses.replace(
    model, reader=Narrow(reader.config, reader.dtype, reader.reset_at_newline)
  )
  asked = [
    [Choice("a long context", (" ab", " c"))],
    [Choice("bc", (" ab",))],
    [Text("a text of some length")],
    [Continue("prompt of a text", (), 3)],
    [Choice("context", ("a choice of some length", "c"))],
  ]
  told = dict(asking.ask(narrow, asked))
  pairs = [(b"ntext", b" ab"), (b"ntext", b" c"), (b"bc", b" ab")]
  scores = [tuple(score) for score in Scorer(model).loglikelihood(pairs)]
  found = [told[0][0][0], told[0][0][1], told[1][0][0]]
  np.testing.assert_allclose([x for x, _ in found], [x for x, _ in scores], rtol=1e-5)
  for text, found in ((b"a text of some length", told[2][0]),
                      (b"a choice of some length", told[4][0][0][0])):  # fmt: skip
    pairs = [(text[max(i - 4, 0) : i], text[i : i + 4]) for i in range(0, len(text), 4)]
    wanted = sum(score.log_prob for score in Scorer(model).loglikelihood(pairs))
    assert found == pytest.approx(wanted, rel=1e-5)
  (written,) = Generator(model).generate([b" text"], Sampling(max_bytes=3))
  assert told[3] == [written.text]
  cut = [asking.is_cut(narrow, request) for (request,) in asked]
  assert cut == [True, False, True, True, True]
  assert not any(asking.is_cut(model, request) for (request,) in asked)


@pytest.mark.parametrize(
  "content",
  [b"[1]\n", b'{"a": \n', b"\n", b'{"a": "\xff"}\n', b'{"a": 1, "a": 2}\n', b"[" * 100_000],
)
def test_lines_that_are_no_rows(content, model, tmp_path):
  (tmp_path / "piqa_valid.jsonl").write_bytes(content)
  with pytest.raises(ValueError, match="piqa_valid.jsonl(, line 1, is| has no rows)"):
    suite.evaluate(model, ["piqa"], str(tmp_path))
