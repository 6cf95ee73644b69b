"""One process of a tiny run: python train_process.py KIND CACHE SETTINGS_AS_JSON."""

import json
import sys

import jax
from absl import flags
from tiny_runs import tiny_config

from blt_jax import train
from blt_jax.cli import logs
from blt_jax.parallel import distributed


def main(kind, cache, overrides):
  flags.FLAGS.mark_as_parsed()
  logs.show_progress()
  distributed.start(heartbeat_seconds=10)
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  with distributed.ending_together():
    train.train(tiny_config(kind, **json.loads(overrides)))
  return distributed.exit_status()


if __name__ == "__main__":
  logs.run(lambda: main(*sys.argv[1:]))
