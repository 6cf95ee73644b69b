"""Writes docs/settings.md anew from the declarations of the settings.

PYTHONPATH=. python tests/manual/settings_page.py
"""

import pathlib

from blt_jax.runs import settings_help

if __name__ == "__main__":
  page = pathlib.Path(__file__).parents[2] / "docs" / "settings.md"
  page.write_text(settings_help.to_markdown(), encoding="utf-8")
