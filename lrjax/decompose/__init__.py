"""Dense arrays to factored ones: specs, their options, and one solver a file."""

from lrjax.decompose.spec import Options, Spec, solve, spec_from_json
from lrjax.decompose.svd import SVD

__all__ = ["SVD", "Options", "Spec", "solve", "spec_from_json"]
