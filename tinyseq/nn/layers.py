"""Layers without a state: Linear, Embedding, LayerNorm, Dropout, and Sequential to join them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tinyseq import functions, random
from tinyseq.creation import ones, zeros
from tinyseq.errors import ShapeError
from tinyseq.nn.cells import checked_probability
from tinyseq.nn.functional import layer_norm
from tinyseq.nn.module import Module
from tinyseq.tape import no_grad
from tinyseq.tensor import Operand, Parameter, Tensor, as_tensor, float32, tensor

__all__ = ["Dropout", "Embedding", "LayerNorm", "Linear", "Sequential"]


class Linear(Module):
    """``y = x W^T + b``: (..., I) to (..., O).

    W is (O, I) and b is (O,); both start from U(-1/sqrt(I), 1/sqrt(I)), as in PyTorch.

    Args:
        in_features: I.
        out_features: O.
        bias: whether there is a b.
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> layer = ts.nn.Linear(3, 2)
    >>> layer(ts.zeros((4, 3))).tolist() == [layer.bias.tolist()] * 4
    True
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = float32) -> None:
        if in_features < 0 or out_features < 0:
            raise ShapeError(f"Linear needs sizes that are not negative, got {in_features} and {out_features}")
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(random.uniform((out_features, in_features), -bound, bound, dtype))
        self.bias = Parameter(random.uniform((out_features,), -bound, bound, dtype)) if bias else None

    def __call__(self, x: Operand) -> Tensor:
        """(..., I) to (..., O).

        Raises:
            ShapeError: the last axis of ``x`` is not I.
        """
        x = as_tensor(x)
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ShapeError(f"Linear takes {self.in_features} features on the last axis, got an input of shape {x.shape}")
        return functions.linear(x, self.weight, self.bias)


class Embedding(Module):
    """A table of V learned vectors of size E: integer ids (...) to (..., E).

    The table ``weight`` (V, E) starts from N(0, 1). An output layer may share it: weights tied so (Press and Wolf 2017)
    are one parameter with one gradient, the sum of both uses, and stand in a ``state_dict`` under both names.

    Args:
        num_embeddings: V.
        embedding_dim: E.
        padding_idx: an id whose vector starts as zeros and gets no gradient; negative counts from the end.
        max_norm: a vector that is longer is scaled down to this length, in the table, whenever it is looked up.
        norm_type: p of the p-norm that says how long a vector is.
        dtype: of the table.

    Raises:
        ShapeError: ``padding_idx`` is not an id of the table.
        ValueError: ``max_norm`` is negative or ``norm_type`` is not positive.

    >>> import tinyseq as ts
    >>> embedding = ts.nn.Embedding(10, 3, padding_idx=0)
    >>> embedding(ts.tensor([[0, 7]])).tolist()[0][0]
    [0.0, 0.0, 0.0]
    >>> output = ts.nn.Linear(3, 10)
    >>> output.weight = embedding.weight
    >>> [name for name, _ in ts.nn.Sequential(embedding, output).named_parameters()]
    ['0.weight', '1.bias']
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        dtype: Any = float32,
    ) -> None:
        if num_embeddings < 0 or embedding_dim < 0:
            raise ShapeError(f"Embedding needs sizes that are not negative, got {num_embeddings} and {embedding_dim}")
        if (max_norm is not None and max_norm < 0) or norm_type <= 0:
            raise ValueError(f"Embedding needs max_norm >= 0 and norm_type > 0, got {max_norm} and {norm_type}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = _row(padding_idx, num_embeddings)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.weight = Parameter(random.randn((num_embeddings, embedding_dim), dtype))
        if padding_idx is not None:
            with no_grad():
                self.weight[padding_idx, :] = 0.0

    @classmethod
    def from_pretrained(
        cls,
        table: Operand,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
    ) -> Embedding:
        """An embedding of given vectors.

        Args:
            table: (V, E), copied as it is, the row of ``padding_idx`` too.
            freeze: whether the vectors stay as they are in training.
            padding_idx: an id whose vector gets no gradient.
            max_norm: as of the class.
            norm_type: as of the class.

        Raises:
            ShapeError: the table is no matrix.

        >>> Embedding.from_pretrained([[1.0, 2.0], [3.0, 4.0]])([1]).tolist()
        [[3.0, 4.0]]
        """
        table = tensor(table).detach()
        if table.ndim != 2:
            raise ShapeError(f"Embedding takes a table (V, E), got shape {table.shape}")
        layer = cls(0, table.shape[1], None, max_norm, norm_type, table.dtype)
        layer.num_embeddings = table.shape[0]
        layer.padding_idx = _row(padding_idx, table.shape[0])
        layer.weight = Parameter(table)
        layer.weight.requires_grad = not freeze
        return layer

    def __call__(self, ids: Operand) -> Tensor:
        """(...) integers to (..., E).

        Raises:
            ShapeError: an id is not in [0, V).
            DTypeError: the ids are not integers.
        """
        if self.max_norm is not None:
            self._shorten(as_tensor(ids), self.max_norm)
        return functions.embedding(self.weight, ids, self.padding_idx)

    def _shorten(self, ids: Tensor, longest: float) -> None:
        with no_grad():
            rows = functions.embedding(self.weight, ids)
            sizes = (rows.abs() ** self.norm_type).sum(-1, keepdims=True) ** (1 / self.norm_type)
            if bool((sizes > longest).any()):  # an id that occurs twice is given the same row twice
                self.weight[ids] = functions.where(sizes > longest, rows * (longest / (sizes + 1e-7)), rows)


def _row(padding_idx: int | None, rows: int) -> int | None:
    """The row of the table that stands for padding, counted from its start."""
    if padding_idx is None:
        return None
    if not -rows <= padding_idx < rows:
        raise ShapeError(f"padding_idx {padding_idx} is not among the {rows} rows of the table")
    return padding_idx % rows


class LayerNorm(Module):
    """Each row shifted to mean 0 and scaled to variance 1, then ``* weight + bias`` (Ba et al. 2016).

    Args:
        normalized_shape: the last axes of the input, over which mean and variance are taken: a size or several.
        eps: added to the variance.
        elementwise_affine: whether there is a ``weight``, which starts as ones.
        bias: whether there is a ``bias`` too, which starts as zeros.
        dtype: of both.

    >>> import tinyseq as ts
    >>> [f"{v:.3f}" for v in ts.nn.LayerNorm(2)(ts.tensor([1.0, 3.0])).tolist()]
    ['-1.000', '1.000']
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: Any = float32,
    ) -> None:
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.eps = eps
        self.weight = Parameter(ones(shape, dtype)) if elementwise_affine else None
        self.bias = Parameter(zeros(shape, dtype)) if elementwise_affine and bias else None

    def __call__(self, x: Operand) -> Tensor:
        """An input that ends with ``normalized_shape``, normalised.

        Raises:
            ShapeError: it ends with other axes.
        """
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Dropout(Module):
    """In training, zero each element with probability p and scale the rest by 1 / (1 - p) (Srivastava et al. 2014).

    Args:
        p: the probability.

    Raises:
        ValueError: ``p`` is not in [0, 1].

    >>> import tinyseq as ts
    >>> ts.nn.Dropout(0.5).eval()(ts.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = checked_probability(p, "dropout")

    def __call__(self, x: Operand) -> Tensor:
        """The input with some elements dropped, or as it is in evaluation."""
        return functions.dropout(x, self.p, self.training)


class Sequential(Module):
    """Modules, or any functions of one tensor, one after the other.

    >>> import tinyseq as ts
    >>> model = ts.nn.Sequential(ts.nn.Linear(2, 8), ts.tanh, ts.nn.Linear(8, 1))
    >>> model(ts.zeros((5, 2))).shape, [name for name, _ in model.named_parameters()]
    ((5, 1), ['0.weight', '0.bias', '2.weight', '2.bias'])
    """

    def __init__(self, *functions: Callable[[Any], Any]) -> None:
        for place, function in enumerate(functions):
            setattr(self, str(place), function)

    def __call__(self, x: Any) -> Any:
        """The last function's result."""
        for function in self:
            x = function(x)
        return x

    def __iter__(self) -> Iterator[Callable[[Any], Any]]:
        return (vars(self)[str(place)] for place in range(len(self)))

    def __len__(self) -> int:
        return sum(name.isdecimal() for name in vars(self))

    def __getitem__(self, place: int) -> Callable[[Any], Any]:
        return list(self)[place]
