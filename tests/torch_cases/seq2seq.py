"""Encoder-decoders with attention: teacher forcing in tinyseq against the equations step by step in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from torch_cases.case import Arrays, Case, Draw, Sizes, exact, index, tinyseq_answer, torch_answer

State = Mapping[str, Any]


class Translation(Case):
    """Logits, attention weights and the gradients of all weights of one model.

    Args:
        name: of the case.
        build: the model of tinyseq for some sizes, in float32; its names and shapes are those of the weights.
        theirs: from PyTorch, the weights by name, the source, what is fed and the source's mask, to logits and weights.
    """

    def __init__(
        self, name: str, build: Callable[[Any, Sizes], Any], theirs: Callable[..., Any], *, least: Mapping[str, int]
    ) -> None:
        self.name = name
        self.build = build
        self.theirs = theirs
        self.least = least

    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        import tinyseq as ts

        draws: dict[str, Draw] = {
            "source": index("KB", "V"),
            "targets": index("TB", "V"),
            "lengths": lambda rng, sizes: rng.integers(1, sizes["K"] + 1, sizes["B"]),
        }
        arrays = {name: draw(rng, sizes) for name, draw in draws.items()}
        for name, parameter in self.build(ts, sizes).state_dict().items():
            arrays["state/" + name] = exact(0.5 * rng.standard_normal(parameter.shape))
        return arrays

    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        import torch

        weights = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items() if name.startswith("state/")}
        source, targets = torch.from_numpy(arrays["source"]), torch.from_numpy(arrays["targets"])
        fed = torch.cat([torch.ones_like(targets[:1]), targets[:-1]])
        mask = torch.arange(len(source)) < torch.from_numpy(arrays["lengths"])[:, None]
        short = {name.removeprefix("state/"): weight for name, weight in weights.items()}
        return torch_answer(self.theirs(torch, short, source, fed, mask), weights, twice)

    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        import tinyseq as ts

        model = self.build(ts, sizes).astype(np.dtype(dtype).name)
        state = {name.removeprefix("state/"): a.astype(dtype) for name, a in arrays.items() if name.startswith("state/")}
        model.load_state_dict(state)
        result = model(arrays["source"], arrays["targets"], arrays["lengths"])
        return tinyseq_answer(result, {"state/" + name: p for name, p in model.named_parameters()}, dtype, twice)


class Search(Translation):
    """The two best translations of a beam search and their scores; the sequences are written out with lists in PyTorch."""

    twice = False
    beams, best, longest, alpha = 3, 2, 4, 0.6
    start, end = 1, 0

    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        import torch

        weights = {n.removeprefix("state/"): torch.from_numpy(a) for n, a in arrays.items() if n.startswith("state/")}
        source, lengths = torch.from_numpy(arrays["source"]), torch.from_numpy(arrays["lengths"])
        rows = source.shape[1]
        tokens = np.full((rows, self.best, self.longest), self.end)
        scores = np.full((rows, self.best), -np.inf)
        for row in range(rows):
            mask = torch.arange(len(source)) < lengths[row : row + 1, None]

            def log_p(y: tuple[int, ...], row: int = row, mask: Any = mask) -> Any:
                fed = torch.tensor([self.start, *y])[:, None]
                logits, _ = self.theirs(torch, weights, source[:, row : row + 1], fed, mask)
                return torch.log_softmax(logits[-1, 0], -1).tolist()

            for place, (score, y) in enumerate(self._beam(log_p)[: self.best]):
                scores[row, place], tokens[row, place, : len(y)] = score, y
        return {"tokens": tokens, "scores": scores}

    def _beam(self, log_p: Callable[[tuple[int, ...]], list[float]]) -> list[tuple[float, tuple[int, ...]]]:
        """Wu et al. (2016): all that ends among the K best is complete; the K best of the rest go on."""
        live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        complete: list[tuple[float, tuple[int, ...]]] = []
        for length in range(1, self.longest + 1):
            grown = sorted(((p + q, (*y, k)) for p, y in live for k, q in enumerate(log_p(y))), reverse=True)
            penalty = ((5 + length) / 6) ** self.alpha
            complete += [(p / penalty, y) for p, y in grown[: self.beams] if y[-1] == self.end]
            live = [(p, y) for p, y in grown if y[-1] != self.end][: self.beams]
        return sorted(complete + [(p / penalty, y) for p, y in live], reverse=True)

    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        import tinyseq as ts

        model = self.build(ts, sizes).astype(np.dtype(dtype).name).eval()
        state = {name.removeprefix("state/"): a.astype(dtype) for name, a in arrays.items() if name.startswith("state/")}
        model.load_state_dict(state)
        options = {"beams": self.beams, "n_best": self.best, "length_penalty": self.alpha}
        found = model.beam_search(arrays["source"], arrays["lengths"], self.longest, **options)
        tokens = found.tokens.numpy()
        width = self.longest - tokens.shape[2]
        return {
            "tokens": np.pad(tokens, [(0, 0), (0, 0), (0, width)], constant_values=self.end),
            "scores": found.scores.numpy().astype(dtype),  # they are summed in float64
        }


# --- the parts, in PyTorch's words ------------------------------------------------------------------------------------


def encoded(torch: Any, w: State, source: Any, mask: Any, kind: str, bidirectional: bool) -> tuple[Any, Any]:
    """Outputs (B, S, M), and the last state, by PyTorch's layer on packed sequences."""
    weights = {name.removeprefix("encoder.layer."): p for name, p in w.items() if name.startswith("encoder.layer.")}
    hidden, size = weights["weight_hh_l0"].shape[1], weights["weight_ih_l0"].shape[1]
    layer = getattr(torch.nn, kind)(size, hidden, bidirectional=bidirectional, dtype=torch.float64)
    embedded = w["encoder.embedding.weight"][source]
    packed = torch.nn.utils.rnn.pack_padded_sequence(embedded, mask.sum(1), enforce_sorted=False)
    outputs, state = torch.func.functional_call(layer, weights, (packed,))
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, total_length=len(source))
    return outputs.transpose(0, 1), state


def attend(torch: Any, scores: Any, memory: Any, mask: Any) -> tuple[Any, Any]:
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    return torch.einsum("bs,bsm->bm", weights, memory), weights


def cell(torch: Any, w: State, prefix: str, kind: str, x: Any, state: Any) -> Any:
    weights = {name.removeprefix(prefix): p for name, p in w.items() if name.startswith(prefix)}
    hidden, size = weights["weight_hh"].shape[1], weights["weight_ih"].shape[1]
    return torch.func.functional_call(getattr(torch.nn, kind)(size, hidden, dtype=torch.float64), weights, (x, state))


def stacked(torch: Any, steps: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    return tuple(torch.stack(column) for column in zip(*steps, strict=True))  # type: ignore[return-value]


# --- Bahdanau et al. (2015) -------------------------------------------------------------------------------------------


def bahdanau(ts: Any, sizes: Sizes) -> Any:
    nn, i, h, v = ts.nn, sizes["I"], sizes["H"], sizes["V"]
    encoder = nn.RecurrentEncoder(nn.Embedding(v, i), nn.GRU(i, h, bidirectional=True))
    decoder_cell = nn.GRUCell(i + 2 * h, sizes["C"])
    attention = nn.AdditiveAttention(sizes["C"], 2 * h, sizes["D"])
    output = nn.Linear(sizes["C"] + 2 * h, v)
    decoder = nn.RecurrentDecoder(nn.Embedding(v, i), nn.BahdanauCell(decoder_cell, attention), output)
    return nn.EncoderDecoder(encoder, decoder, start=1, end=0, bridge=nn.Bridge(2 * h, decoder_cell))


def bahdanau_in_torch(torch: Any, w: State, source: Any, fed: Any, mask: Any) -> Any:
    memory, state = encoded(torch, w, source, mask, "GRU", bidirectional=True)
    joined = torch.cat([state[0], state[1]], -1)
    s = torch.tanh(joined @ w["bridge.maps.0.weight"].T + w["bridge.maps.0.bias"])
    attention = "decoder.cell.attention."
    keys = memory @ w[attention + "key.weight"].T
    steps = []
    for x in w["decoder.embedding.weight"][fed]:
        energies = torch.tanh((s @ w[attention + "query.weight"].T).unsqueeze(1) + keys) @ w[attention + "energy"]
        context, weights = attend(torch, energies, memory, mask)
        s = cell(torch, w, "decoder.cell.cell.", "GRUCell", torch.cat([x, context], -1), s)
        logits = torch.cat([s, context], -1) @ w["decoder.output.weight"].T + w["decoder.output.bias"]
        steps.append((logits, weights))
    return stacked(torch, steps)


# --- Luong et al. (2015) ----------------------------------------------------------------------------------------------


def luong(kind: str, input_feeding: bool) -> tuple[Callable[[Any, Sizes], Any], Callable[..., Any]]:
    def ours(ts: Any, sizes: Sizes) -> Any:
        nn, i, h, v = ts.nn, sizes["I"], sizes["H"], sizes["V"]
        encoder = nn.RecurrentEncoder(nn.Embedding(v, i), nn.LSTM(i, h))
        attention = nn.GeneralAttention(h, h) if kind == "general" else nn.DotProductAttention()
        inner = nn.LSTMCell(i + (sizes["C"] if input_feeding else 0), h)
        reader = nn.LuongCell(inner, attention, attentional_size=sizes["C"], input_feeding=input_feeding)
        decoder = nn.RecurrentDecoder(nn.Embedding(v, i), reader, nn.Linear(sizes["C"], v))
        return nn.EncoderDecoder(encoder, decoder, start=1, end=0)

    def theirs(torch: Any, w: State, source: Any, fed: Any, mask: Any) -> Any:
        memory, state = encoded(torch, w, source, mask, "LSTM", bidirectional=False)
        h, c = (part[0] for part in state)
        keys = memory @ w["decoder.cell.attention.key.weight"].T if kind == "general" else memory
        a = torch.zeros(len(h), len(w["decoder.cell.combine.weight"]), dtype=torch.float64)
        steps = []
        for x in w["decoder.embedding.weight"][fed]:
            fed_in = torch.cat([x, a], -1) if input_feeding else x
            h, c = cell(torch, w, "decoder.cell.cell.", "LSTMCell", fed_in, (h, c))
            context, weights = attend(torch, torch.einsum("bh,bsh->bs", h, keys), memory, mask)
            a = torch.tanh(torch.cat([context, h], -1) @ w["decoder.cell.combine.weight"].T)
            steps.append((a @ w["decoder.output.weight"].T + w["decoder.output.bias"], weights))
        return stacked(torch, steps)

    return ours, theirs


LEAST = {"V": 2}
SEQ2SEQ: list[Case] = [
    Translation("bahdanau", bahdanau, bahdanau_in_torch, least=LEAST),
    Translation("luong_dot", *luong("dot", True), least=LEAST),
    Translation("luong_general", *luong("general", True), least=LEAST),
    Translation("luong_general_no_feeding", *luong("general", False), least=LEAST),
    Search("bahdanau_beam", bahdanau, bahdanau_in_torch, least=LEAST),
    Search("luong_beam", *luong("general", True), least=LEAST),
]
