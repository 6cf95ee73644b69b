"""Lines of prompts: options, other fields, several samples."""

import dataclasses

import numpy as np
import pytest

from blt_jax import tokenizer
from blt_jax.cli import prompt_lines
from blt_jax.decode.generation import Generation
from blt_jax.decode.sampling import Sampling


def read(fields, num_samples=1, **options):
  return prompt_lines.read(fields, Sampling(**options), num_samples)


def generation(continuation):
  ids = tokenizer.encode(continuation, add_bos=False, add_eos=False)
  return Generation(tokenizer.encode("x"), ids, np.full(len(ids), -0.5, np.float32), "length")


def test_other_fields_are_passed_on():
  line = read({"prompt": "x", "id": 7, "tags": ["a"], "temperature": 0.5})
  assert line.others == {"id": 7, "tags": ["a"]} and line.samples[0].temperature == 0.5
  record = prompt_lines.record(line, 0, generation("y"), show_patches=False)
  assert record == {
    "id": 7, "tags": ["a"], "prompt": "x", "text": "y", "finish": "length", "bytes": 1,
    "log_prob": -0.5,
  }  # fmt: skip


@pytest.mark.parametrize(
  ("name", "meant"),
  [("max_byte", "max_bytes"), ("Seed", "seed"), ("num_sample", "num_samples"),
   ("stops", "stop"), ("prompts", "prompt")],
)  # fmt: skip
def test_a_misspelt_option_is_an_error_that_names_both(name, meant):
  with pytest.raises(ValueError, match=f"field '{name}' is no option; write '{meant}'"):
    read({"prompt": "x", name: 1})


@pytest.mark.parametrize("name", ["id", "seq", "topic", "source", "task_id", "label"])
def test_names_that_are_far_from_options_are_none(name):
  assert read({"prompt": "x", name: 1}).others == {name: 1}


def test_fields_do_not_hide_results():
  with pytest.raises(ValueError, match="output has a field 'text' of its own"):
    read({"prompt": "x", "text": "y"})


def test_fields_come_once():
  with pytest.raises(ValueError, match="no JSON .several fields 'prompt'"):
    prompt_lines.parse_fields(b'{"prompt": "x", "pr\\u006fmpt": "y"}')


def test_samples_differ_in_their_seeds():
  line = read({"prompt": "x", "num_samples": 3, "seed": 5}, temperature=1.0)
  assert [s.seed for s in line.samples] == [5, 6, 7]
  assert {dataclasses.replace(s, seed=0) for s in line.samples} == {Sampling(temperature=1.0)}
  record = prompt_lines.record(line, 2, generation("y"), show_patches=False)
  assert record["seed"] == 7


@pytest.mark.parametrize(
  ("count", "temperature", "message"),
  [
    (0, 1.0, "num_samples is 0; it must be an integer in .1, 65536"),
    (10**9, 1.0, "num_samples is 1000000000; it must be"),
    (True, 1.0, "num_samples is True"),
    (2.0, 1.0, "num_samples is 2.0"),
    (2, 0.0, "temperature 0 takes the likeliest byte, so all num_samples 2"),
  ],
)
def test_samples_are_counted_and_random(count, temperature, message):
  with pytest.raises(ValueError, match=message):
    read({"prompt": "x", "num_samples": count}, temperature=temperature)


def test_bytes_that_are_no_text_are_told_in_hex():
  record = prompt_lines.record(read({"prompt": "x"}), 0, generation(b"a\xff"), False)
  assert record["text"] == "a\ufffd" and record["bytes_hex"] == "61ff" and record["bytes"] == 2
  record = prompt_lines.record(read({"prompt": "x"}), 0, generation("\ufffd"), False)
  assert record["text"] == "\ufffd" and "bytes_hex" not in record
