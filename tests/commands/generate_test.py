"""The generate command."""

import io
import json
import sys

import fsspec
import pytest
from generated import GREEDY, generate, model

from blt_jax import generate as command
from blt_jax.cli import logs
from blt_jax.decode import generator
from blt_jax.runs import loading
from blt_jax.storage import files
from blt_jax.storage.folders import Folder

RUN = ["--run=some/run", "--max_bytes=24"]


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
  monkeypatch.setattr(loading, "load_language_model", lambda *_: model())
  monkeypatch.setattr(generator.Generator, "__init__", _with_small_chunks)


_init = generator.Generator.__init__


def _with_small_chunks(self, model, **options):
  _init(self, model, **{**options, "batch_size": 2, "prefill_chunk": 4})


def run(*arguments):
  """The exit status, or the message that stands for it."""
  with pytest.raises(SystemExit) as exit_:
    logs.run(lambda: command.main([*RUN, *arguments]))
  return exit_.value.code


@pytest.mark.parametrize("options", [[], ["--no_stream"]])
def test_prompt_and_continuation_are_printed(options, capfdbinary):
  assert run("--prompt=hello world", *options) == 0
  assert capfdbinary.readouterr().out == b"hello world" + generate()[2].bytes + b"\n"


def test_prompt_from_file_or_stdin_need_not_be_utf8(tmp_path, capfdbinary, monkeypatch):
  (tmp_path / "prompt").write_bytes(b"\xff\xfe" * 8)
  want = b"\xff\xfe" * 8 + generate()[3].bytes + b"\n"
  assert run(f"--file={tmp_path}/prompt") == 0
  assert capfdbinary.readouterr().out == want
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe" * 8)))
  assert run() == 0
  assert capfdbinary.readouterr().out == want


def test_patches_are_shown(capfdbinary):
  assert run("--prompt=a", "--show_patches") == 0
  out = capfdbinary.readouterr().out.decode(errors="replace")
  result = generate()[1]
  assert f"{len(result.starts)} bytes in {result.starts.sum()} patches" in out
  assert "entropy of the next byte" in out


def test_lines_of_a_file(tmp_path):
  lines = [
    {"prompt": "a"},
    {"prompt": "hello world", "max_bytes": 3, "id": 7},
    {"prompt": "x", "temperature": -1, "id": 8},
    {"prompt": "x", "max_byte": 3},
    {"text": "x"},
    {"prompt": "x", "max_bytes": None},
    {"prompt": "x\ud800"},
  ]
  text = "\n".join([json.dumps(line) for line in lines] + ["{", " ", "[" * 99999])
  (tmp_path / "in").write_text(text)
  out = tmp_path / "out"
  status = run(f"--input={tmp_path}/in", f"--output={out}", "--show_patches")
  assert status == f"error: 7 of 9 lines failed; see {out}."
  results = [json.loads(line) for line in out.read_text().splitlines()]
  alone = generate()
  assert results[0]["text"] == alone[1].text and results[0]["finish"] == alone[1].finish
  assert results[0]["log_prob"] == pytest.approx(float(alone[1].log_probs.sum()), abs=1e-3)
  assert len(results[0]["entropies"]) == len(alone[1].starts)
  assert results[1]["finish"] == "length" and results[1]["patch_starts"][:2] == [0, 1]
  assert results[1]["id"] == 7 and results[2]["id"] == 8
  assert "line 3: temperature is -1" in results[2]["error"]
  assert "'max_byte' is no option; write 'max_bytes'" in results[3]["error"]
  assert '"prompt"' in results[4]["error"] and "max_bytes is None" in results[5]["error"]
  assert "lone surrogate" in results[6]["error"] and "line 8" in results[7]["error"]
  assert "line 10: it is no JSON" in results[8]["error"]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_several_samples_of_a_line_and_of_a_prompt(tmp_path, capfdbinary):
  lines = [{"prompt": "a", "id": 1, "num_samples": 1}, {"prompt": "hello", "id": 2, "seed": 7}]
  (tmp_path / "in").write_text("\n".join(map(json.dumps, lines)))
  options = ["--temperature=1", "--num_samples=2"]
  assert run(f"--input={tmp_path}/in", f"--output={tmp_path}/out", *options) == 0
  results = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
  assert [(r["id"], r.get("seed")) for r in results] == [(1, None), (2, 7), (2, 8)]
  first, second = (bytes.fromhex(r["bytes_hex"]) for r in results[1:])  # of random weights
  assert first != second and len(first) == results[1]["bytes"]
  capfdbinary.readouterr()
  assert run("--prompt=hello", "--seed=7", *options) == 0
  out = capfdbinary.readouterr().out
  assert out == b"--- seed 7\nhello" + first + b"\n--- seed 8\nhello" + second + b"\n"


def test_results_are_whole_or_not_there(tmp_path, monkeypatch):
  """Where they cannot be written, that is said before anything is computed."""
  (tmp_path / "in").write_text('{"prompt": "a"}\n')
  assert run(f"--input={tmp_path}/in", f"--output={tmp_path}").endswith("name of a file.")
  assert run(f"--input={tmp_path}/in", f"--output={tmp_path}/no/out").startswith("error: ")
  (tmp_path / "link").symlink_to(tmp_path / "out")
  assert run(f"--input={tmp_path}/in", f"--output={tmp_path}/link") == 0
  assert (tmp_path / "link").is_symlink() and "a" in (tmp_path / "out").read_text()
  (tmp_path / "link").unlink()
  (tmp_path / "out").write_text("of before")
  monkeypatch.setattr(generator.Generator, "stream", _interrupted)
  assert run(f"--input={tmp_path}/in", f"--output={tmp_path}/out") == 130
  assert (tmp_path / "out").read_text() == "of before"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_lines_of_a_bucket(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  memory = fsspec.filesystem("memory")
  memory.pipe_file("/in", b'{"prompt": "a"}\n')
  assert run("--input=memory://in", "--output=memory://out") == 0
  assert json.loads(memory.cat_file("/out"))["text"] == generate()[1].text
  assert run("--input=memory://none", "--output=memory://out").endswith("'memory://none'")
  assert not list(tmp_path.iterdir())


def _interrupted(*_, **__):
  raise KeyboardInterrupt


def test_mistakes_are_named(tmp_path):
  assert run("--prompt=a", "--top_p=0.5").startswith("error: temperature 0")
  assert run("--prompt=a", "--stop=").startswith("error: The stop string b''")
  assert "max_length" in run("--prompt=" + "a" * 60, "--max_length=50")
  assert "say how to --draft" in run("--prompt=a", "--draft_length=3")
  assert run(f"--file={tmp_path}/none").startswith("error: ")
  assert run(f"--input={tmp_path}/none").endswith("where results go: give both.")
  assert run(f"--input={tmp_path}/none", "--output=x").startswith("error: ")
  assert "give both" in run("--prompt=a", f"--output={tmp_path}/x")
  assert "would be the same" in run("--prompt=a", "--num_samples=2")
  assert run("--promt=a") == 2
  assert run("--help") == 0
  assert GREEDY.max_bytes == 24


def test_results_do_not_take_the_place_of_prompts(tmp_path):
  prompts = tmp_path / "prompts.jsonl"
  prompts.write_text('{"prompt": "a"}')
  (tmp_path / "link").symlink_to(prompts)
  for output in (
    prompts,
    tmp_path / "." / "link",
    f"{tmp_path}/../{tmp_path.name}/prompts.jsonl",
  ):
    assert "is the file of --input" in run(f"--input={prompts}", f"--output={output}")
  assert prompts.read_text() == '{"prompt": "a"}'


@pytest.mark.parametrize("root", ["{tmp}", "memory://journal"])
def test_what_was_stopped_goes_on(tmp_path, monkeypatch, root):
  root = root.format(tmp=tmp_path)
  lines = [{"prompt": "ab" * (i % 3 + 1), "seed": i, "id": i} for i in range(6)] + [{"text": 5}]
  with fsspec.open(f"{root}/in", "wb") as file:
    file.write("\n".join(map(json.dumps, lines)).encode())
  options = ["--temperature=1", "--num_samples=2"]
  given = [f"--input={root}/in", f"--output={root}/out", *options]
  assert "1 of 13 lines failed" in run(f"--input={root}/in", f"--output={root}/whole", *options)
  stream, asked = generator.Generator.stream, []

  def stop_after_six(self, prompts, *args, **kwargs):
    asked.append(len(prompts))
    results = 0
    for piece in stream(self, prompts, *args, **kwargs):
      yield piece
      results += piece.result is not None
      if results == 6 and len(asked) == 1:
        raise KeyboardInterrupt

  monkeypatch.setattr(generator.Generator, "stream", stop_after_six)
  assert run(*given) == 130
  journal = files.read_bytes(f"{root}/out.unfinished")
  with fsspec.open(f"{root}/out.unfinished", "wb") as file:
    file.write(journal + b'[[3, 1], {"te')  # as a kill leaves it
  assert "made otherwise: max_length changed" in run(*given, "--max_length=99")
  assert "1 of 13 lines failed" in run(*given)
  assert asked == [12, 6]
  records = [
    map(json.loads, files.read_bytes(f"{root}/{n}").splitlines()) for n in ("out", "whole")
  ]
  for got, want in zip(*records, strict=True):  # batches differ, and the last bits with them
    assert got.pop("log_prob", 0) == pytest.approx(want.pop("log_prob", 0), abs=1e-4)
    assert got == want
  names = {"in", "out", "whole"}
  assert names == Folder(root).sizes().keys()


@pytest.mark.parametrize("content", ["mine\n", "[]\n", "{}\n5\n", "{}\n[[1], 2]\n", "\xff\n"])
def test_a_file_that_is_no_journal_stays(tmp_path, content):
  (tmp_path / "in").write_text('{"prompt": "a"}\n')
  (tmp_path / "out.unfinished").write_text(content, encoding="latin-1")
  given = f"--input={tmp_path}/in", f"--output={tmp_path}/out"
  assert "out.unfinished" in run(*given)
  assert (tmp_path / "out.unfinished").read_text(encoding="latin-1") == content
