"""Dialogues with a model whose template says what ends its answers."""

import dataclasses
import io
import json
import sys

import pytest
from generated import GREEDY, model
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import generate as command
from blt_jax.cli import logs
from blt_jax.data.template import Template
from blt_jax.decode import generator, loop
from blt_jax.decode.generator import Generator
from blt_jax.runs import folder, loading

_PLAIN = Template(system=("[", "]"), user=("Q ", "\n"), assistant=("A ", "\0"))


def _stream(prompt, end):
  """What the model itself makes of a prompt."""
  options = dataclasses.replace(GREEDY, stop=[end])
  return Generator(model(), batch_size=1).generate([prompt], options)[0]


@pytest.fixture(scope="module", name="template")
def _template():
  """One that ends answers with an ASCII byte that the model writes soon, and often."""
  written = _stream(_PLAIN.ask([("user", b"hello")]), _PLAIN.end).bytes
  end = next(chr(byte) for byte in written[1:] if byte < 128)
  return dataclasses.replace(_PLAIN, assistant=("A ", end))


@pytest.fixture(autouse=True)
def _tiny_run(monkeypatch, template):
  config = settings.get_config()
  config.data.update(format="answers", template=template.to_json())
  runs = {"some/run": config, "plain/run": settings.get_config(), "old": ConfigDict({})}
  monkeypatch.setattr(folder, "load_config", runs.__getitem__)
  monkeypatch.setattr(loading, "load_language_model", lambda *_: model())
  monkeypatch.setattr(generator, "_LEAST_ROOM", 128)  # as of single prompts: fewer programs


def run(*arguments, path="some/run"):
  """The exit status, or the message that stands for it."""
  given = [f"--run={path}", "--max_bytes=24", "--batch_size=1", *arguments]
  with pytest.raises(SystemExit) as exit_:
    logs.run(lambda: command.main(given))
  return exit_.value.code


def test_an_answer_stops_where_the_template_ends_it(template, capfdbinary):
  asked = template.ask([("user", b"hello")])
  want = _stream(asked, template.end)
  assert want.finish == "stop" and asked == b"Q hello\nA "
  assert run("--chat", "--prompt=hello") == 0
  assert capfdbinary.readouterr().out == want.bytes + b"\n"
  assert run("--chat", "--prompt=hello", "--system=S") == 0
  told = template.ask([("system", b"S"), ("user", b"hello")])
  assert capfdbinary.readouterr().out == _stream(told, template.end).bytes + b"\n"


def test_a_dialogue_goes_on_without_reading_again(template, capfdbinary, monkeypatch):
  """Each answer is what the whole dialogue so far gives; its start is read once."""
  lines, calls, turns, want = [b"hello", b"a", b"and so on"], [], [], b""
  for line in lines:
    turns.append(("user", line))
    answer = _stream(template.ask(turns), template.end)
    turns.append(("assistant", answer.bytes))
    want += answer.bytes + b"\n"
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join([*lines, b" \n"]))))
  for name in ("prefill", "read_more"):
    real = getattr(loop, name)
    monkeypatch.setattr(loop, name, lambda *a, f=real, n=name: calls.append(n) or f(*a))
  assert run("--chat") == 0
  assert capfdbinary.readouterr().out == want
  assert calls == ["prefill", "read_more", "read_more"]


def test_lines_with_prompts_and_with_messages(template, tmp_path):
  turns = [("user", "hello"), ("assistant", "x"), ("user", "a")]
  messages = [{"role": role, "content": text} for role, text in turns]
  lines = [
    {"prompt": "hello", "id": 1},
    {"messages": messages},
    {"messages": messages[:2]},
    {"messages": messages, "prompt": "a"},
    {"messages": [{"role": "bot", "content": "a"}]},
    {"prompt": 5},
    {"prompt": "\ud800"},
  ]
  (tmp_path / "in").write_text("\n".join(map(json.dumps, lines)))
  files = [f"--input={tmp_path}/in", f"--output={tmp_path}/out"]
  assert run("--chat", *files).startswith("error: 5 of 7 lines failed")
  found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
  want = _stream(template.ask([("user", b"hello")]), template.end)
  assert found[0]["text"] == want.text and found[0]["finish"] == "stop"
  assert found[0]["prompt"] == "hello" and found[0]["id"] == 1
  want = _stream(template.ask([(r, t.encode()) for r, t in turns]), template.end)
  assert found[1]["text"] == want.text and found[1]["messages"] == messages
  assert "prompt" not in found[1]
  assert "the last message is an answer already" in found[2]["error"]
  assert '"prompt", or with "messages"' in found[3]["error"]
  assert "unknown role ('bot' in number 1" in found[4]["error"]
  assert "no string" in found[5]["error"] and "surrogate" in found[6]["error"]
  assert run(*files).startswith("error: ")
  assert "dialogues need --chat" in (tmp_path / "out").read_text()


def test_mistakes_are_named():
  assert "plain/run was not trained on answers" in run("--chat", path="plain/run")
  assert "--system begins a dialogue" in run("--system=a", "--prompt=b")
  assert "--show_patches is for single prompts" in run("--chat", "--show_patches")
  assert "--num_samples is for" in run("--chat", "--num_samples=2", "--temperature=1")
