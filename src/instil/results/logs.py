"""The schema of what was found in a file of conversations."""

from __future__ import annotations

from pydantic import Field

from instil.system.files import Strict


class LogFacts(Strict):
    """What was found in the file of inputs."""

    conversations: int = Field(description="Number of conversations that are used.")
    turns: int = Field(description="Number of their answers that are used.")
    with_system: int = Field(
        description="Number of conversations that begin with a system message."
    )
    with_tools: int = Field(description="Number of conversations with definitions of tools.")
    with_context: int = Field(
        0, description="Number of rows with a context of their own, in the field `context`."
    )
    head_messages: int | None = Field(
        None,
        description="Messages that begin most conversations and were taken as the context; null: "
        "the context does not come from the conversations.",
    )
    other_heads: int = Field(
        0, description="Number of conversations that begin otherwise. Their context is their own."
    )
    dropped: dict[str, int] = Field({}, description="Reason -> number of rows that were left out.")

    def sentence(self) -> str:
        """What was recognised, in one line."""
        parts = []
        if self.with_system:
            parts.append(f"system prompt in {self.with_system:,}")
        if self.with_tools:
            parts.append(f"tools in {self.with_tools:,}")
        if self.with_context:
            parts.append(f"own context in {self.with_context:,}")
        found = f"; {', '.join(parts)}" if parts else ""
        return f"{self.conversations:,} conversations, {self.turns:,} assistant turns{found}"

    def others(self) -> str:
        """How many conversations have a context of their own; empty if none has."""
        count = self.other_heads
        return f"{count:,} conversations begin otherwise, and have their own" if count else ""

    def left_out(self) -> str:
        """How many rows were left out, by reason; empty if none was."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())


class Dropped(Strict):
    """One line of `dropped.jsonl`: a row that was left out."""

    where: str = Field(description="Its place, such as file and line.")
    reason: str = Field(description="Why, in a few words.")
    what: str = Field(description="What is wrong with it, and how to correct it.")
