"""The picture that ``draw`` returns: DOT text that becomes SVG, PNG or PDF when it is asked for."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from tinyseq.draw.colours import Theme, in_dark
from tinyseq.draw.cuts import shortened
from tinyseq.draw.diagram import Diagram, visible
from tinyseq.draw.dot import Writer
from tinyseq.draw.render import DrawError, Layout, NoGraphviz
from tinyseq.io import write_whole

__all__ = ["Picture"]

MOST_PIXELS = 16_000  # along a side of a PNG, for programs give up or run out of memory on larger ones
SIZE = re.compile(rb'(?:width|height)="([\d.]+)pt"')
SUFFIXES = (".svg", ".png", ".pdf", ".html", ".txt", ".dot", ".gv")


class Picture:
    """A picture of a computation. Jupyter shows it by itself; :meth:`save` writes it to a file.

    Attributes:
        diagram: all there is to draw, also what is in groups that are closed.
        dot: what is seen, in Graphviz's language DOT, each group a cluster. The same graph gives the same text.

    >>> import tinyseq as ts
    >>> x = ts.tensor([1.0, 2.0], requires_grad=True)
    >>> picture = ts.draw((x * x).sum(), names={"x": x})
    >>> picture
    <picture of 3 boxes and 2 arrows>
    """

    def __init__(self, diagram: Diagram, *, seconds: float, theme: Theme = "auto", legend: bool = True) -> None:
        self.diagram = diagram
        self._seen = shortened(visible(diagram))
        self._writer = Writer(self._seen, legend)
        self._seconds = seconds
        self._theme: Theme = theme
        text = self._writer.dot()
        self.dot = in_dark(text) if theme == "dark" else text
        self._placed: str | None = None  # the same with the place of everything, once it is laid out

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what is not drawn, and why."""
        return self.diagram.notes

    def text(self) -> str:
        """What is seen as text, an operation a line, in the order in which they run.

        >>> import tinyseq as ts
        >>> x = ts.tensor([1.0, 2.0], requires_grad=True)
        >>> print(ts.draw((x * x + 1.0).tanh().sum(), names={"x": x}).text())
        input x: float32[2] = [1, 2]
        a: float32[2] = mul(x, x)
        b: float32[2] = add(a, const)
        c: float32[2] = tanh(b)  # [0.964, 0.9999]
        d: float32[] = sum(c, axis=-1)  # 1.964
        -> d
        """
        from tinyseq.draw.words import text

        return text(visible(self.diagram))

    def svg(self) -> str:
        """The picture as an SVG document.

        Raises:
            DrawError: Graphviz is missing, fails, or takes too long.
        """
        return self._svg(Layout(self._seconds))

    def png(self) -> bytes:
        """The picture as the content of a PNG file, twice as many pixels as points, or fewer if it is very large.

        Raises:
            DrawError: Graphviz is missing, fails, or takes too long.
        """
        return self._png(Layout(self._seconds))

    def html(self, title: str = "graph") -> str:
        """The picture as a page by itself: pan, zoom, search, open and close what is in it."""
        from tinyseq.draw.html import page

        return page(self.diagram, title)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture to a file, in the format that its name's ending says: .svg, .png, .pdf, .html, .txt, .dot or
        .gv.

        A failure leaves no part of a file, and an earlier file of that name as it was. PDF needs Graphviz's own ``dot``.

        Returns:
            the path.

        Raises:
            DrawError: the ending is another, the file cannot be written, or Graphviz fails or takes too long. Where
                Graphviz is missing, the DOT text is written beside it and the message says how to install it.

        >>> import tempfile, tinyseq as ts
        >>> x = ts.tensor([1.0, 2.0], requires_grad=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ts.draw(x.tanh()).save(f"{folder}/graph.svg").name
        'graph.svg'
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise DrawError(f"cannot save a picture as {path.name!r}; end its name in {', '.join(SUFFIXES[:-1])} or .gv")
        if suffix in (".dot", ".gv"):
            content = self.dot.encode()
        elif suffix == ".html":
            content = self.html(path.stem).encode()
        elif suffix == ".txt":
            content = f"{self.text()}\n".encode()
        else:
            try:
                content = self._content(suffix[1:], Layout(self._seconds))
            except NoGraphviz as error:
                text = path.with_name(f"{path.name}.dot")
                _write(text, self.dot.encode())
                raise NoGraphviz(f"{error}; the graph itself is in {text}") from None
        _write(path, content)
        return path

    def _content(self, form: str, layout: Layout) -> bytes:
        if form == "svg":
            return self._svg(layout).encode()
        return self._png(layout) if form == "png" else self._rendered(form, layout)

    def _svg(self, layout: Layout) -> str:
        from tinyseq.draw.svg import finished

        svg = self._rendered("svg", layout)
        return finished(svg, self._seen, self._theme)

    def _png(self, layout: Layout) -> bytes:
        width, height = map(float, SIZE.findall(self._rendered("svg", layout))[:2])
        scale = min(2.0, MOST_PIXELS / max(width, height), (MOST_PIXELS / 2) / math.sqrt(width * height))
        return self._rendered("png", layout, f"-Gdpi={72 * scale:.2f}")

    def _rendered(self, form: str, layout: Layout, *options: str) -> bytes:
        if self._placed is None:
            from tinyseq.draw.layout import place

            placed = self._writer.dot(place(self._seen, self._writer, layout))
            self._placed = in_dark(placed) if self._theme == "dark" else placed
        return layout.run(self._placed, "-Kneato", "-n2", f"-T{form}", *options)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What Jupyter shows: the SVG, or a sentence that says why there is none."""
        try:
            return {"image/svg+xml": self.svg(), "text/plain": repr(self)}
        except DrawError as error:
            return {"text/plain": f"{self!r}: {error}"}

    def __repr__(self) -> str:
        return f"<picture of {len(self._seen.boxes)} boxes and {len(self._seen.arrows)} arrows>"


def _write(path: Path, content: bytes) -> None:
    """Put the content at ``path`` whole or not at all."""
    try:
        write_whole(Path(os.path.realpath(path)), content)
    except (OSError, ValueError) as error:  # a ValueError is a path with a zero byte
        raise DrawError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
