"""Runs the tests on the CPU with eight fake devices and reproducible examples."""

import importlib.metadata
import os

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


_set_environment()  # before JAX starts

import hypothesis  # noqa: E402

hypothesis.settings.register_profile(
  "ci",
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")
