"""tinyseq: a small autodiff engine with a pluggable backend, for people who build, teach and study sequence models.

>>> import tinyseq as ts
>>> x = ts.tensor([[1.0, 2.0]], requires_grad=True)
>>> w = ts.tensor([[3.0], [4.0]], requires_grad=True)
>>> (x @ w).sum().backward()
>>> x.grad.tolist()
[[3.0, 4.0]]
"""

from __future__ import annotations

from tinyseq import data as data
from tinyseq import nn as nn
from tinyseq import optim as optim
from tinyseq import random as random
from tinyseq import train as train
from tinyseq.anomaly import detect_anomaly as detect_anomaly
from tinyseq.backend import Backend as Backend
from tinyseq.backend import BackendInfo as BackendInfo
from tinyseq.backend import backends as backends
from tinyseq.backend import current_backend as current_backend
from tinyseq.backend import get_backend as get_backend
from tinyseq.backend import synchronize as synchronize
from tinyseq.backend import use_backend as use_backend
from tinyseq.compiler.jit import jit as jit
from tinyseq.creation import *  # noqa: F403
from tinyseq.draw import draw as draw
from tinyseq.errors import *  # noqa: F403
from tinyseq.flow import GradientFlow as GradientFlow
from tinyseq.flow import trace_gradients as trace_gradients
from tinyseq.functions import *  # noqa: F403
from tinyseq.io import load as load
from tinyseq.io import save as save
from tinyseq.random import manual_seed as manual_seed
from tinyseq.scan import scan as scan
from tinyseq.tape import enable_grad as enable_grad
from tinyseq.tape import no_grad as no_grad
from tinyseq.tensor import Parameter as Parameter
from tinyseq.tensor import Tensor as Tensor
from tinyseq.tensor import as_tensor as as_tensor
from tinyseq.tensor import bool_ as bool_
from tinyseq.tensor import float16 as float16
from tinyseq.tensor import float32 as float32
from tinyseq.tensor import float64 as float64
from tinyseq.tensor import int32 as int32
from tinyseq.tensor import int64 as int64
from tinyseq.tensor import tensor as tensor
from tinyseq.transforms import check_grads as check_grads
from tinyseq.transforms import checkpoint as checkpoint
from tinyseq.transforms import grad as grad
from tinyseq.transforms import hvp as hvp
from tinyseq.transforms import jacobian as jacobian
from tinyseq.transforms import jvp as jvp
from tinyseq.transforms import value_and_grad as value_and_grad
from tinyseq.transforms import vjp as vjp

__version__ = "0.1.0"
