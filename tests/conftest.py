"""What every test needs, set before jax starts: eight simulated CPU devices, and quick compilation.

The suite compiles far more than it computes: without the last passes of the compiler it takes two
thirds of the time. The examples run with all of them.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
wanted = {"xla_force_host_platform_device_count": 8, "xla_backend_optimization_level": 0}
flags = os.environ.get("XLA_FLAGS", "")
added = [f"--{name}={value}" for name, value in wanted.items() if name not in flags]
os.environ["XLA_FLAGS"] = " ".join([flags, *added]).strip()
