"""Each finding by the method that suits it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from counterscan.errors import InputError
from counterscan.tbsmgan.edits.base import Edited, Editor, Move, Origin
from counterscan.tbsmgan.edits.prompt import Prompt


class PerFinding(Editor):
    """Passes every prompt on to the editor of its finding; edits carry that editor's name.

    Args:
        editors: finding -> editor, of one generator.

    Raises:
        InputError: no editor, here; a prompt for a finding without one, later.
    """

    name = "best"

    def __init__(self, editors: Mapping[str, Editor]) -> None:
        if not editors:
            raise InputError("none is given", field="editors")
        first = next(iter(editors.values()))
        self.needs_text = first.needs_text
        super().__init__(first.gan, first.texts)
        self.editors, self.strengths = dict(editors), first.strengths

    def of(self, prompt: Prompt) -> Editor:
        """Who answers it."""
        if prompt.finding not in self.editors:
            raise InputError(
                "there is no editor for it",
                field=f"finding {prompt.finding!r}",
                remedy=f"There is one for {', '.join(self.editors)}",
            )
        return self.editors[prompt.finding]

    def usual(self, prompt: Prompt) -> float:
        """That of the finding's editor."""
        return self.of(prompt).usual(prompt)

    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        """That of the finding's editor."""
        return self.of(prompt).move(latents, prompt, strength)

    def edit(
        self, latents: Tensor | Origin, prompt: Prompt, strength: float | None = None, *, told: bool = True
    ) -> Edited:
        """See ``Editor``."""
        return self.of(prompt).edit(latents, prompt, strength, told=told)
