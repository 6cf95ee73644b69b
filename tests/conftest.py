"""Runs the tests on the CPU with eight fake devices and reproducible examples."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

_FLAGS = {
  "--xla_force_host_platform_device_count": "8",
  "--xla_backend_optimization_level": "0",  # tests compile far longer than they run
}
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # so too; later versions reject it


def _set_environment():
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  flags = os.environ.get("XLA_FLAGS", "").split()
  given = {flag.partition("=")[0] for flag in flags}
  flags += [f"{name}={value}" for name, value in _FLAGS.items() if name not in given]
  os.environ["XLA_FLAGS"] = " ".join(flags)
  if "PYTEST_XDIST_WORKER" not in os.environ:  # whose cache is that of the first process
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


_set_environment()  # before JAX starts

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")  # broadcasting is written out

hypothesis.settings.register_profile(
  "ci",
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def _programs(tmp_path_factory):
  """Tests share their compiled programs; each process has its own, as writes may collide."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


_MOST_MAPS = 20_000  # of the 65,530 memory maps that Linux gives a process


@pytest.fixture(scope="module", autouse=True)
def _forgotten_programs():
  """Lets compiled programs go before they have taken all memory maps of the process."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
    jax.clear_caches()
