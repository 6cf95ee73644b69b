"""Names of languages by their codes, and how BLEU cuts their texts into words."""

_NAMES = {
  "Arabic": "ar ara arb",
  "Bengali": "bn ben",
  "Burmese": "my mya",
  "Chinese": "zh zho cmn",
  "Czech": "cs ces",
  "Dutch": "nl nld",
  "English": "en eng",
  "Esperanto": "eo epo",
  "Finnish": "fi fin",
  "French": "fr fra",
  "Georgian": "ka kat",
  "German": "de deu",
  "Greek": "el ell",
  "Hebrew": "he heb",
  "Hindi": "hi hin",
  "Hungarian": "hu hun",
  "Indonesian": "id ind",
  "Italian": "it ita",
  "Japanese": "ja jpn",
  "Khmer": "km khm",
  "Korean": "ko kor",
  "Lao": "lo lao",
  "Malayalam": "ml mal",
  "Nepali": "ne nep npi",
  "Pashto": "ps pus pbt",
  "Persian": "fa fas pes",
  "Polish": "pl pol",
  "Portuguese": "pt por",
  "Russian": "ru rus",
  "Sinhala": "si sin",
  "Spanish": "es spa",
  "Swahili": "sw swa swh",
  "Swedish": "sv swe",
  "Tamil": "ta tam",
  "Telugu": "te tel",
  "Thai": "th tha",
  "Turkish": "tr tur",
  "Ukrainian": "uk ukr",
  "Urdu": "ur urd",
  "Vietnamese": "vi vie",
}
_BY_CODE = {code: name for name, codes in _NAMES.items() for code in codes.split()}
_WITHOUT_SPACES = ("Burmese", "Japanese", "Khmer", "Lao", "Thai", "Tibetan")


def name_of(language: str) -> str:
  """The English name of a language, given by its name or by an ISO 639 code.

  Args:
    language: such as "French", "fr", "fra", "por-BR" or "zho_Hans".

  Raises:
    ValueError: it is a code that is not known.
  """
  code = language.replace("_", "-").partition("-")[0].lower()
  if code in _BY_CODE:
    return _BY_CODE[code]
  if len(language) <= 3 or not language[:1].isupper():
    raise ValueError(
      f"has language {language!r}, a code that is not known; write its English name instead, "
      "such as 'Swedish'."
    )
  return language


def tokenizer_of(name: str) -> str:
  """The tokenizer of sacrebleu for a language, given by its English name."""
  if name.startswith("Chinese"):
    return "zh"
  return "char" if name in _WITHOUT_SPACES else "13a"
