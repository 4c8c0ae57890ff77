"""The Matplotlib figure of a plot: made without pyplot, so that no window opens and nothing is left behind."""

from __future__ import annotations

import io

from matplotlib.figure import Figure as Plain

__all__ = ["Figure"]


class Figure(Plain):
    """A figure that Jupyter shows by itself, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=2 * self.dpi)
        return content.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        """Only the PNG: pyplot may have taught Jupyter to show figures, too, and one is enough."""
        return {"image/png": self._repr_png_(), "text/plain": repr(self)}
