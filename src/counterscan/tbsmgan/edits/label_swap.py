"""The same body with another condition: no text at all, and the strongest baseline of a conditional generator."""

from __future__ import annotations

import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.tbsmgan.edits.base import Editor, Move, Origin
from counterscan.tbsmgan.edits.prompt import Prompt


class LabelSwap(Editor):
    """z stays, the finding's bit of the condition is set, or cleared for negative strengths.

    Where z is not known, as for inverted images, w moves as the mean w of the conditions does. The usual strength is
    the whole swap; others go a part of the way, or beyond. Of the text only the finding and its side are heard.
    """

    name = "label swap"
    needs_text = False

    @torch.no_grad()
    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        """See the class.

        Raises:
            InputError: the generator takes no condition for the finding.
        """
        if prompt.finding not in self.gan.findings:
            raise InputError(
                f"the generator takes no condition for {prompt.finding!r}",
                field="finding",
                remedy=f"It knows {', '.join(self.gan.findings) or 'none'}; another method may do",
            )
        at = self.gan.findings.index(prompt.finding)
        present = 0.0 if strength is not None and strength < 0 else 1.0
        usual = float(self.space.size(self._between(latents.w.new_zeros(1, len(self.gan.findings)), at, 1.0)))
        if usual < 1e-6:
            raise InputError(
                f"the generator's condition for {prompt.finding!r} changes nothing",
                field="finding",
                remedy="Train it longer, or steer by text",
            )
        if latents.z is not None and latents.c is not None:
            swapped = latents.c.clone()
            swapped[:, at] = present
            whole = self.gan.map(latents.z, swapped, latents.psi) - latents.w
        elif latents.c is not None:
            whole = self._between(latents.c, at, present)
        else:
            whole = self._between(latents.w.new_zeros(1, len(self.gan.findings)), at, 1.0) * (2 * present - 1)
        return Move(w=whole * (2 * present - 1) / usual, usual=usual, touched=int(whole[0].numel()))

    def _between(self, c: Tensor, at: int, present: float) -> Tensor:
        """(N, num_ws, w_dim) from the mean w of conditions to that with the bit."""
        swapped = c.clone()
        swapped[:, at] = present
        generator = self.gan.generator
        return (generator.centre(swapped) - generator.centre(c))[:, None].expand(-1, generator.num_ws, -1)
