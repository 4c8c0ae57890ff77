"""Pictures of computations, drawn from the record that the tape keeps.

``ts.draw(loss)`` reads the tape, a traced function, a graph or a planned scan into one kind of record (``reading``,
``graphs``, ``loops``, ``record``), folds it or sets its steps in columns (``folding``, ``columns``, ``repeats``), adds the
backward pass (``mirror``), and makes a plain diagram of it (``building``, ``diagram``). That is written as DOT (``dot``)
and laid out by Graphviz (``layout``, ``routes``, ``render``), or written as text (``words``) or as a page (``html``).
"""

from __future__ import annotations

from tinyseq.draw.drawing import Draw as Draw
from tinyseq.draw.drawing import draw as draw
from tinyseq.draw.picture import Picture as Picture
from tinyseq.draw.profile import Profile as Profile
from tinyseq.draw.render import DrawError as DrawError

__all__ = ["Draw", "DrawError", "Picture", "Profile", "draw"]
