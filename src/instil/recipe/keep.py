"""The section `keep` of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from instil.recipe.sections import Section
from instil.tasks.source import file_digest


class Keep(Section):
    """Text on which the student is trained to stay as its base is, in every batch."""

    source: Literal["self", "none"] | Path = Field(
        "self",
        description="self: the untrained model writes the texts before the run; they are stored, and "
        "other runs of the model use them again. FILE: your own texts, as rows (.jsonl, .csv or "
        ".parquet) with a field text, or with a field input and perhaps output. none: keep nothing.",
    )
    share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of a batch that is kept texts. They are added: with 0.2, 4 texts to 16 "
        "rows.",
    )
    rows: int = Field(48, ge=1, description="With source: self only. Number of texts.")
    chats: float = Field(
        0.5,
        ge=0,
        le=1,
        description="With source: self only. Share of the texts that are answers in a chat, if the "
        "model has a chat template.",
    )
    tokens: int = Field(24, ge=1, description="Most tokens of a text that the model writes.")
    weight: float = Field(
        4.0,
        gt=0,
        allow_inf_nan=False,
        description="Weight of the loss on kept texts. The loss on the rows has weight 1.",
    )

    @property
    def on(self) -> bool:
        """Whether texts are kept."""
        return self.source != "none"

    def digest(self) -> str | None:
        """Returns the SHA-256 of the user's file; None if there is none.

        Raises:
            DataFileError: the file is missing, empty or cannot be read.
        """
        return file_digest(self.source) if isinstance(self.source, Path) else None

    def per_batch(self, batch_size: int) -> int:
        """Returns the number of kept texts that are added to a batch."""
        return max(1, round(batch_size * self.share / (1 - self.share)))
