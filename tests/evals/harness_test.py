"""The suite against lm-evaluation-harness: the same requests, and answers in their places."""

import json
import logging
import sys

import numpy as np
import pytest
from forward import stack
from uncached import random_params

from blt_jax import lm_eval as launcher
from blt_jax.decode.language_model import from_byte_lm
from blt_jax.evals import suite
from blt_jax.evals.task import Choice
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig
from blt_jax.runs import loading

pytest.importorskip("lm_eval", reason="needs blt_jax[eval]")

QUESTION = {"question": " Why is a  b? ", "choices": ["x", "yy ", "z", "é"], "label": 2}
ROWS = {
  "hellaswag_val": [{"ctx": "A man sits", "endings": ["on.", "in", "é", "by a"], "label": 1}],
  "arc_challenge_test": [QUESTION, QUESTION | {"choices": ["a", "b", "c"], "label": 0}],
  "arc_easy_test": [QUESTION],
  "piqa_valid": [{"goal": "To sit", "sol1": "sit ", "sol2": " stand", "label": 0}],
  "lambada_test": [{"text": "the  end of the\n road"}],
  "blimp": [{"uid": "a", "good": "She is.", "bad": "She are."}],
  "mmlu_test": [
    QUESTION | {"subject": "world_religions"},
    QUESTION | {"subject": "law", "question": "Who?"},
  ],
  "mmlu_dev": [
    QUESTION | {"subject": subject, "question": f"Q{number}", "label": number % 4}
    for number in range(6)
    for subject in ("law", "world_religions")
  ],
  "gsm8k_test": [{"question": "How many?", "answer": "Two.\n#### 2"}],
  "gsm8k_test_shots": [
    {"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(5)
  ],
}


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rows")
  for name, rows in ROWS.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


@pytest.fixture(scope="module", name="tasks")
def _tasks(data, tmp_path_factory):
  from lm_eval.tasks import TaskManager

  from blt_jax.evals import harness_tasks

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.mktemp("tasks")
    names = harness_tasks.write(str(data), folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    leaves = [name for name in names if name != "blt_mmlu"]
    leaves += ["blt_mmlu_law", "blt_mmlu_world_religions"]
    loaded = manager.load(leaves)["tasks"]
  for task in loaded.values():
    task.build_all_requests(rank=0, world_size=1)
  return loaded


@pytest.mark.parametrize(
  "name",
  ["hellaswag", "arc_easy", "arc_challenge", "piqa", "lambada", "blimp", "gsm8k", "mmlu_law"],
)
def test_requests_are_those_of_the_harness(name, tasks):
  task = suite.TASKS["mmlu" if "mmlu" in name else name]
  rows = [r for r in ROWS[task.file] if r.get("subject", "law") == "law"]
  shots = ROWS["mmlu_dev"] if "mmlu" in name else ROWS.get(f"{task.file}_shots", ())
  wanted = []
  for (request,) in suite.requests(task.name, rows, shots):
    if isinstance(request, Choice):
      wanted += [(request.context, c) for c in request.continuations]
    else:
      wanted.append((request.prompt, {"until": ["Question:", "</s>", "<|im_end|>"]}))
  found = [instance.args for instance in tasks[f"blt_{name}"].instances]
  if name == "gsm8k":
    found = [(prompt, {"until": kwargs["until"]}) for prompt, kwargs in found]
  assert found == wanted


def test_rows_that_are_not_there_are_an_error(tmp_path):
  from blt_jax.evals import harness_tasks

  for data in ("", "nowhere"):
    with pytest.raises(FileNotFoundError, match=f"no folder '{data}'; give that of the files"):
      harness_tasks.write(data, tmp_path)
  with pytest.raises(FileNotFoundError, match="has rows of no task"):
    harness_tasks.write(str(tmp_path), tmp_path)
  assert "blt_piqa" in harness_tasks.write("sample", tmp_path)


def test_the_harness_finds_what_the_suite_finds(data, tmp_path, monkeypatch):
  config = ByteLMConfig(stack(16, 1, window=8))
  params = random_params(config)
  model = from_byte_lm(ByteLM(config), params)
  monkeypatch.setattr(loading, "load_language_model", lambda *_: model)
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(sys, "argv", ["pytest"])
  names = ["piqa", "hellaswag", "mmlu", "gsm8k", "lambada"]
  tasks = ",".join(f"blt_{name}" for name in names)
  launcher.main(
    [f"--data={data}", "--model=blt_jax", "--model_args=run=RUN", f"--tasks={tasks}",
     f"--output_path={tmp_path}", "--log_samples"]
  )  # fmt: skip
  logging.getLogger().setLevel(logging.WARNING)
  (path,) = tmp_path.rglob("results_*.json")
  results = json.loads(path.read_text())["results"]
  report = suite.evaluate(model, names, str(data))
  for name, metric, key in (
    ("piqa", "acc_norm", "acc_norm,none"),
    ("hellaswag", "acc", "acc,none"),
    ("mmlu", "acc", "acc,none"),
    ("gsm8k", "exact_match_flexible", "exact_match,flexible-extract"),
    ("lambada", "perplexity", "perplexity,none"),
  ):
    value = report[name].summary[metric].value
    np.testing.assert_allclose(results[f"blt_{name}"][key], value, rtol=1e-5)


def test_words_of_the_harness(monkeypatch):
  from blt_jax.evals.harness import HarnessModel

  monkeypatch.setattr(loading, "load_language_model", lambda *_: None)
  model = HarnessModel("RUN", batch_size="auto", max_batch_size=4)
  assert model.batch_size == 4
  sampling = model._sampling({"until": "\n", "max_gen_toks": 10, "do_sample": False})
  assert sampling.max_bytes == 40 and sampling.stop == ("\n",) and sampling.temperature == 0
  assert model._sampling({}).max_bytes == 1024
  assert model._sampling({"temperature": 0.5, "do_sample": True}).temperature == 0.5
  with pytest.raises(ValueError, match="num_beams"):
    model._sampling({"num_beams": 4})
  with pytest.raises(ValueError, match="run=FOLDER"):
    HarnessModel()
  for name in ("batch_size", "max_batch_size", "bytes_per_token", "threshold"):
    for value in ("x", "-3", float("nan")) + (0,) * (name != "threshold"):
      with pytest.raises(ValueError, match=f"{name} is '?{value}'?; it must be"):
        HarnessModel("RUN", **{name: value})
