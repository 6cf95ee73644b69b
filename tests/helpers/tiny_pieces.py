"""A tokenizer of few pieces, and texts of all kinds to try it on."""

import pathlib

from blt_jax import train_tokenizer

SIZE = 400  # ids
LEARNED = [
  b"def patch(text):\n    return text.split()  # the patches of the text\n" * 9,
  "Der Text ist schön, und die Bäume sind grün; größer wird's nicht.\n".encode() * 9,
  "быть или не быть — вот в чём вопрос\n".encode() * 9,
  b"the patch of bytes is a text, and the text is patched: check.\n" * 9,
]
TEXTS = {
  "german": "Die schönen Bäume, größer als der Text ¿?".encode(),
  "russian": "вот быть — не вопрос".encode(),
  "chinese": "日本語と中文 the text 🌳".encode(),
  "code": b"def patch(text):\n\tif  text:\r\n        return text\n",
  "leading spaces": b"   the text  is patched:   ",
  "invalid": b"the \xff\xfe text \xe2\x82 is \xc3( \xed\xa0\x80",
  "confusing": "a ▁text▁ <0x41> <s> \0 is\ufeff".encode(),
  "empty": b"",
}


def write_tokenizer(path: pathlib.Path, size: int = SIZE, texts=None) -> pathlib.Path:
  """Trains one as `train_tokenizer` does, and writes its file."""
  path.write_bytes(train_tokenizer.train(texts or LEARNED, size))
  return path


def write_home(home: pathlib.Path) -> None:
  """Writes twelve files of text to `text` in a folder, and their tokenizer to `bpe.model`."""
  (home / "text").mkdir()
  for number in range(12):
    text = LEARNED[number % len(LEARNED)] + b"%d\n" % number
    (home / "text" / f"{number}.txt").write_bytes(text)
  write_tokenizer(home / "bpe.model")
