"""Colours that colour-blind people can tell apart, on light and on dark pages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tinyseq.draw.diagram import Diagram

__all__ = ["DARK", "LIGHT", "SCALE", "Scale", "Theme", "dark_css", "in_dark"]

Theme = Literal["light", "dark", "auto"]

# The palette of Okabe and Ito (2008): full for lines, light for areas. Each role has a colour of its own, so that a
# picture on a light page becomes one on a dark page by exchanging colours.
LIGHT = {
    "page": "#FFFFFF",
    "box": "#FEFEFE",
    "ink": "#222222",
    "grey": "#6E6E6E",
    "faint": "#B0B0B0",
    "frame": "#C8C8C8",
    "column": "#F4F4F4",
    "module": "#8FA8BC",
    "module area": "#F3F7FA",
    "loop": "#0072B2",
    "loop area": "#EDF5FA",
    "part": "#CFCFCF",
    "part area": "#FAFAFA",
    "carry": "#0073B3",
    "carry area": "#D6EAF6",
    "input": "#56B4E9",
    "input area": "#DDF0FB",
    "parameter": "#E69F00",
    "parameter area": "#FCE8BF",
    "output": "#009E73",
    "output area": "#CFEFE4",
    "backward": "#CC79A7",
    "backward area": "#F9E9F2",
    "gradient": "#B8508A",
    "gradient area": "#F3D3E4",
    "bad": "#D55E00",
}
DARK = {
    "page": "#16191D",
    "box": "#22272D",
    "ink": "#E8E8E8",
    "grey": "#A0A6AD",
    "faint": "#6B7178",
    "frame": "#4A5058",
    "column": "#1C2025",
    "module": "#5B7388",
    "module area": "#1D242B",
    "loop": "#56A9DC",
    "loop area": "#18252F",
    "part": "#454B52",
    "part area": "#1A1E22",
    "carry": "#3C8FE6",
    "carry area": "#17405A",
    "input": "#8FD6FF",
    "input area": "#27465A",
    "parameter": "#E6A010",
    "parameter area": "#4A3709",
    "output": "#1DB88B",
    "output area": "#0F4334",
    "backward": "#CC7AA8",
    "backward area": "#3A2231",
    "gradient": "#D784B2",
    "gradient area": "#54283F",
    "bad": "#F08030",
}
# Norms of gradients, from the smallest to the largest: lightness alone tells them apart.
SCALE = ("#D3E3F1", "#B5D1E8", "#8FBBDC", "#659FCB", "#417FB5", "#215F98", "#0A3D70")
DARK_SCALE = ("#1C2F42", "#23445F", "#2B5B82", "#3474A7", "#4C93CB", "#7BB6E4", "#BADDF8")
assert len({*LIGHT.values(), *SCALE}) == len(LIGHT) + len(SCALE)
_EXCHANGED = {LIGHT[role].lower(): DARK[role].lower() for role in LIGHT} | {
    light.lower(): dark.lower() for light, dark in zip(SCALE, DARK_SCALE, strict=True)
}
HEX = re.compile(r"#[0-9A-Fa-f]{6}\b")
FLOOR = 1e-12  # of the largest norm: what is below has vanished


def in_dark(text: str) -> str:
    """DOT or SVG text with the colours of the dark page."""
    return HEX.sub(lambda match: _EXCHANGED.get(match.group().lower(), match.group()), text)


def dark_css(selector: str) -> str:
    """Style rules that exchange the colours in an SVG where the reader's page is dark."""
    rules = "".join(
        f"{selector} [{attribute}='{light}']{{{attribute}:{dark}}}"
        for light, dark in _EXCHANGED.items()
        for attribute in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme:dark){{{rules}}}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Norms as colours and widths, on a logarithmic scale.

    >>> scale = Scale(1e-4, 1.0)
    >>> scale.width(1.0), scale.width(1e-4), scale.colour(1.0) == SCALE[-1]
    (3.2, 0.6, True)
    """

    low: float
    high: float

    @classmethod
    def of(cls, diagram: Diagram) -> Scale | None:
        """The scale of all norms in a diagram; None if there are none."""
        norms = [arrow.gradient for arrow in diagram.arrows if arrow.gradient is not None]
        norms += [norm for box in diagram.boxes for _, row in box.facts.flow for norm in row]
        return cls.over(norms) if norms else None

    @classmethod
    def over(cls, norms: Iterable[float]) -> Scale:
        """The scale of some norms."""
        plain = [norm for norm in norms if math.isfinite(norm) and norm > 0]
        high = max(plain, default=1.0)
        low = min((norm for norm in plain if norm >= FLOOR * high), default=high)
        return cls(low, high)

    def at(self, norm: float) -> float:
        """From 0 for the smallest to 1 for the largest."""
        if self.high <= self.low:
            return 1.0
        return min(max((math.log(norm) - math.log(self.low)) / (math.log(self.high) - math.log(self.low)), 0.0), 1.0)

    def colour(self, norm: float, colours: Sequence[str] = SCALE) -> str:
        """A colour for a norm that is neither NaN nor infinite nor zero; orange-red for those that are no number."""
        if not math.isfinite(norm):
            return LIGHT["bad"]
        if norm <= 0:
            return LIGHT["faint"]
        return colours[round(self.at(norm) * (len(colours) - 1))]

    def width(self, norm: float) -> float:
        """The width of an arrow, in points."""
        if not math.isfinite(norm):
            return 2.0
        return 0.6 if norm <= 0 else round(0.6 + 2.6 * self.at(norm), 2)
