"""What the demo measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrjax.plan import Plan


@dataclass(frozen=True)
class Row:
    """One model, measured on the held-out pairs.

    Attributes:
        name: ``dense``, ``svd`` or ``compressed``.
        keep: its parameters, as a share of the dense model's.
        bytes: of its saved folder, on disk.
        cosine: mean to the dense model's embeddings of the documents.
        recall: k -> share of queries whose document is among the k nearest.
        sentences_per_s: texts embedded a second, compilation excluded.
    """

    name: str
    keep: float
    bytes: int
    cosine: float
    recall: Mapping[int, float]
    sentences_per_s: float

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object, with one key for each recall."""
        return {
            "name": self.name,
            "keep": round(self.keep, 4),
            "bytes": self.bytes,
            "cosine": round(self.cosine, 4),
            **{f"recall@{k}": round(share, 4) for k, share in self.recall.items()},
            "sentences_per_s": round(self.sentences_per_s, 1),
        }


@dataclass(frozen=True)
class Result:
    """The rows, and what they were measured on.

    Attributes:
        rows: dense, plain SVD, compressed.
        block_keep: share kept of the transformer blocks' matrices.
        embedding_keep: share kept of the word table.
        corpus: digest of the texts, which differ between Python versions.
        calibration_tokens: tokens that the statistics have seen.
        pairs: held-out pairs of query and document.
        seconds: wall time of the whole job.
        artefact: folder of the compressed model.
        picture: PNG of spectra and ranks.
        plan: the plan of the compressed model.
    """

    rows: tuple[Row, ...]
    block_keep: float
    embedding_keep: float
    corpus: str
    calibration_tokens: int
    pairs: int
    seconds: float
    artefact: Path
    picture: Path
    plan: Plan

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object; the plan is in the artefact."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "block_keep": self.block_keep,
            "embedding_keep": self.embedding_keep,
            "corpus": self.corpus,
            "calibration_tokens": self.calibration_tokens,
            "pairs": self.pairs,
            "reloaded_bit_equal": True,
            "seconds": round(self.seconds, 1),
            "artefact": str(self.artefact),
            "picture": str(self.picture),
        }
