"""A policy's network and its action head in numpy: it acts in workers, and in programs without torch."""
# pure: numpy only, so that workers may import it; its one file is read and written whole

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MASKED",
    "CategoricalActions",
    "NormalActions",
    "Twin",
    "TwinError",
    "compile_steps",
    "forward",
    "names_in",
    "read_twin",
]

FORMAT = 1
PLAN = "plan"  # the name of the array that holds the plan as JSON
MASKED = np.float32(-1e8)  # a logit that is never drawn, yet finite: a row with nothing allowed stays uniform
TINY = np.finfo(np.float32).tiny
HALF_LOG_2PI = np.float32(0.5 * math.log(2 * math.pi))

ARRAYS = ("weight", "bias", "mean", "variance")  # keys of steps that name an array
OPS: dict[str, tuple[str, ...]] = {  # every step, and what its table says beside
    "one_hot": ("offsets", "width"),
    "flatten": (),
    "float": (),
    "scale": ("by",),
    "normalise": ("mean", "variance", "epsilon"),
    "channels_first": (),
    "reshape": ("shape",),
    "average": ("size",),
    "conv": ("weight", "bias", "stride", "padding"),
    "linear": ("weight", "bias"),
    "tanh": (),
    "relu": (),
}
HEADS = {
    "categorical": ("sizes", "start", "shape", "dtype"),
    "normal": ("low", "high", "half", "middle", "shape", "dtype"),
}

Array = NDArray[Any]
Floats = NDArray[np.float32]
Step = Mapping[str, Any]
Plan = Mapping[str, Any]
Do = Callable[[Array], Array]


class TwinError(ValueError):
    """What was read or loaded is no policy, or not of this one; the message says what is wrong."""


class Twin:
    """A policy as `AsyncVecEnv(policy=…)` takes it. `plan`, plain data, says what is computed, `arrays` with what.

    The plan is a dict. `inputs` is a list of {"path": keys into the observation, "steps": […]}; their results are put
    side by side, and go through `body` and `actor`, lists of steps. `log_std` is the name of an array, or None; `mask`
    the path of an action mask in the observation, or None; `action` the head. A step is {"op": …} and names its arrays;
    `OPS` has all of them. Pictures are (channels, height, width) from the step `channels_first` on. Raises TwinError
    that names the part where a plan is none.

    Actions are what the env gets. Outputs: `log_prob`; for Box actions also `action`, the policy's own, neither scaled
    nor clipped. `greedy`: the most probable action, no noise, no outputs.
    """

    def __init__(self, plan: Plan, arrays: Mapping[str, Array], *, greedy: bool = False) -> None:
        _check_plan(plan)
        self.plan, self.greedy = plan, greedy
        self.arrays = dict(arrays)
        self._head: CategoricalActions | NormalActions
        head = plan["action"]
        if head["kind"] == "categorical":
            self._head = CategoricalActions(head)
        else:
            _check_arrays(((f"action.{key}", head[key]) for key in ("low", "high", "half", "middle")), arrays)
            self._head = NormalActions(head, arrays)
        self.noise = (0 if greedy else self._head.width, np.float32)
        self.outputs: dict[str, Any] = {} if greedy else self._head.outputs
        self.load(arrays)

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "arrays": self.arrays, "greedy": self.greedy}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["plan"], state["arrays"], greedy=state["greedy"])  # type: ignore[misc]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the arrays that `load` takes."""
        return tuple(sorted(names_in(self.plan)))

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> Floats:
        """Noise (*rows, width): Gumbel for Discrete and MultiDiscrete, normal for Box."""
        if self.greedy:
            return np.empty((*rows, 0), np.float32)
        return self._head.draw(rng, rows)

    def load(self, params: Mapping[str, Array]) -> None:
        """Take these arrays, by the names of `parameters`. Raises TwinError if one is missing."""
        _check_arrays(sorted(_uses(self.plan), key=lambda use: use[1]), params)
        self.arrays.update({name: params[name] for name in self.parameters})
        self._network = compile_plan(self.plan, self.arrays)

    def act(self, obs: Any, noise: Floats) -> tuple[Array, dict[str, Array]]:
        """Actions (n, …) as the env takes them, and outputs (n, …), for n rows."""
        params = self._network(obs)
        if self.plan["mask"] is not None:
            params = np.where(_at(obs, self.plan["mask"]).reshape(params.shape), params, MASKED)
        if self.greedy:
            return self._head.to_env(self._head.mode(params)), {}
        return self._head.act(params, noise)

    def write(self, path: Path | str) -> None:
        """Write the policy as an .npz file: its arrays, and its plan as JSON under the name `plan`."""
        arrays: dict[str, Any] = {PLAN: json.dumps({"format": FORMAT, **self.plan}), **self.arrays}
        with open(path, "wb") as file:  # as it is named: savez would append .npz
            np.savez(file, **arrays)


def read_twin(path: Path | str, *, greedy: bool = False) -> Twin:
    """The policy in a file that `aio-vecenv export` wrote. Raises TwinError naming the file, FileNotFoundError."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        plan = json.loads(str(arrays.pop(PLAN)))
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, npy and JSON each have their own
        raise TwinError(f"{path}: no exported policy ({type(error).__name__}: {error})") from None
    if plan.pop("format", None) != FORMAT:
        raise TwinError(f"{path}: written by another version of this program")
    try:
        return Twin(plan, arrays, greedy=greedy)
    except TwinError as error:
        raise TwinError(f"{path}: {error}") from None


def names_in(plan: Any) -> set[str]:
    """The names of all arrays in a plan's steps; the head's own are constants."""
    return {name for _place, name in _uses(plan)}


def _uses(plan: Plan) -> Iterator[tuple[str, str]]:
    """Every array that a plan's steps name, after the place of it in the plan."""
    for place, step in _steps(plan):
        yield from ((f"{place}.{key}", step[key]) for key in ARRAYS if step.get(key))
    if plan["log_std"] is not None:
        yield "log_std", plan["log_std"]


def _steps(plan: Plan) -> Iterator[tuple[str, Step]]:
    parts = [(f"inputs[{i}].steps", part["steps"]) for i, part in enumerate(plan["inputs"])]
    for name, steps in (*parts, ("body", plan["body"]), ("actor", plan["actor"])):
        yield from ((f"{name}[{i}]", step) for i, step in enumerate(steps))


def _check_plan(plan: Any) -> None:
    """Raise TwinError that names the part of a plan which is wrong, and what is known."""
    _check_keys("the plan", plan, ("inputs", "body", "actor", "log_std", "mask", "action"))
    for i, part in enumerate(plan["inputs"]):
        _check_keys(f"inputs[{i}]", part, ("path", "steps"))
    for place, step in _steps(plan):
        _check_keys(place, step, ("op",))
        if step["op"] not in OPS:
            near = _near(step["op"], OPS)
            raise TwinError(f"{place}: unknown step {step['op']!r}{near}; known: {', '.join(OPS)}")
        _check_keys(f"{place} ({step['op']})", step, OPS[step["op"]])
    head = plan["action"]
    _check_keys("action", head, ("kind",))
    if head["kind"] not in HEADS:
        raise TwinError(f"action: unknown kind {head['kind']!r}; known: {', '.join(HEADS)}")
    _check_keys("action", head, HEADS[head["kind"]])


def _check_keys(place: str, table: Any, keys: Sequence[str]) -> None:
    if not isinstance(table, Mapping):
        raise TwinError(f"{place}: expected a dict, got {table!r:.80}")
    for key in keys:
        if key not in table:
            near = _near(key, [name for name in table if name not in keys])
            raise TwinError(f"{place} has no {key!r}{near}; it needs {', '.join(keys)}")


def _check_arrays(uses: Iterable[tuple[str, str]], arrays: Mapping[str, Array]) -> None:
    missing = {name: place for place, name in reversed(list(uses)) if name not in arrays}
    if missing:
        *others, (name, place) = missing.items()
        more = f" (and {len(others)} more)" if others else ""
        raise TwinError(f"{place}: no array {name!r}{more}{_near(name, arrays)}")


def _near(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(map(str, known)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _at(obs: Any, path: Sequence[Any]) -> Any:
    try:
        for key in path:
            obs = obs[key]
    except (KeyError, IndexError, TypeError):
        parts = ", ".join(map(repr, obs)) if isinstance(obs, Mapping) else "no parts of that name"
        raise TwinError(f"path {list(path)}: the observation has no {key!r} there, but {parts}") from None
    return obs


# -- the network -------------------------------------------------------------------------------------------------------


def compile_plan(plan: Plan, arrays: Mapping[str, Array]) -> Do:
    """The network as a function of observations (n, …), batched as their space says, to the head's params (n, size)."""
    inputs = [(part["path"], compile_steps(part["steps"], arrays)) for part in plan["inputs"]]
    through = compile_steps([*plan["body"], *plan["actor"]], arrays)
    log_std = None if plan["log_std"] is None else arrays[plan["log_std"]]

    def network(obs: Any) -> Array:
        parts = [forward(do, _at(obs, path)) for path, do in inputs]
        params = forward(through, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
        if log_std is not None:
            params = np.concatenate((params, np.broadcast_to(log_std, params.shape)), axis=1)
        return params

    return network


def forward(steps: Sequence[Do], x: Array) -> Array:
    """`x` (n, …) through all steps."""
    for step in steps:
        x = step(x)
    return x


def compile_steps(steps: Sequence[Step], arrays: Mapping[str, Array], *, live: bool = False) -> list[Do]:
    """Steps as functions. None writes to what came in. `live`: without pictures they follow what is written to the
    arrays; a copy of a matrix that lies as a product wants it is faster, up to 1.8 times for 16 rows.

    Pictures are held (height, width, channels) in between: rows of patches then lie together. The weights are turned.
    """
    compiled: list[Do] = []
    own = False  # whether what the next step gets is an array that a step made
    last = False  # whether channels are last in memory, though first by the plan
    planes = 0  # of the picture that was flattened in that order, for the linear layer that follows
    for index, step in enumerate(steps):
        match step["op"]:
            case "one_hot":
                compiled.append(_one_hot(np.array(step["offsets"]), step["width"]))
            case "flatten":
                compiled.append(lambda x: x.reshape(len(x), -1))
                last, planes = False, planes if last else 0
            case "float":
                compiled.append(lambda x: x.astype(np.float32, copy=False))
            case "scale":
                compiled.append(_scale(np.float32(step["by"])))
            case "normalise":
                compiled.append(_normalise(arrays[step["mean"]], arrays[step["variance"]], step["epsilon"]))
            case "channels_first":
                last = True  # as they came
            case "reshape":
                compiled.append(_reshape(tuple(step["shape"]), last))
                last = False
            case "average":
                compiled.append(_average(step["size"], last))
            case "conv":
                if not last:
                    compiled.append(lambda x: np.ascontiguousarray(np.moveaxis(x, 1, -1)))
                weight, bias = arrays[step["weight"]], arrays[step["bias"]]
                compiled.append(_convolve(weight, bias, tuple(step["stride"]), tuple(step["padding"])))
                last, planes = True, len(weight)
            case "linear":
                compiled.append(_linear(arrays[step["weight"]], arrays[step["bias"]], planes, live))
                planes = 0
            case "tanh":
                compiled.append(_tanh_in_place if own else np.tanh)
            case "relu":
                compiled.append(_relu_in_place if own else _relu)
            case other:
                raise TwinError(f"step {index} is {other!r}, which this version does not know")
        own = step["op"] in ("linear", "conv", "tanh", "relu") or (own and step["op"] == "flatten")
    return compiled


def _tanh_in_place(x: Array) -> Array:
    return np.tanh(x, out=x)


def _relu_in_place(x: Array) -> Array:
    return np.maximum(x, 0, out=x)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _one_hot(offsets: Array, width: int) -> Do:
    def do(x: Array) -> Array:
        hot = np.zeros((len(x), width), np.float32)
        hot[np.arange(len(x))[:, None], x.reshape(len(x), -1) + offsets] = 1
        return hot

    return do


def _scale(by: np.float32) -> Do:
    return lambda x: np.multiply(x, by, dtype=np.float32)


def _reshape(shape: tuple[int, ...], last: bool) -> Do:
    return lambda x: (np.moveaxis(x, -1, -3) if last else x).reshape(len(x), *shape)


def _average(size: Sequence[int], last: bool) -> Do:
    """Means over patches of (height, width); what is left over at the lower and right side is left out."""
    tall, wide = size
    before = 1 if last else 2

    def do(x: Array) -> Array:
        h, w = x.shape[before] // tall, x.shape[before + 1] // wide
        cut = x[:, : h * tall, : w * wide] if last else x[:, :, : h * tall, : w * wide]
        split = cut.reshape(*x.shape[:before], h, tall, w, wide, *x.shape[before + 2 :])
        means: Array = split.mean(axis=(before + 1, before + 3), dtype=np.float32)
        return means

    return do


def _normalise(mean: Array, variance: Array, epsilon: float) -> Do:
    def do(x: Array) -> Array:
        shifted = x - mean  # in float64: large integers keep what tells them apart
        shifted /= np.sqrt(variance + epsilon)
        return np.clip(shifted, -10, 10, out=shifted).astype(np.float32)

    return do


def _linear(weight: Array, bias: Array, planes: int, live: bool) -> Do:
    # what comes was flattened (height, width, channels), the weights are (channels, height, width)
    if planes:
        out, width = weight.shape
        weight = weight.reshape(out, planes, width // planes).transpose(0, 2, 1).reshape(out, width)
    turned = weight.T if live else np.ascontiguousarray(weight.T)

    def do(x: Array) -> Array:
        y: Array = x @ turned
        y += bias
        return y

    return do


def _convolve(weight: Array, bias: Array, stride: tuple[int, int], padding: tuple[int, int]) -> Do:
    """One product of matrices: a row per patch."""
    out, _, tall, wide = weight.shape
    turned = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, out))
    around = ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))

    def do(x: Array) -> Array:
        if any(padding):
            x = np.pad(x, around)
        x = np.ascontiguousarray(x, dtype=np.float32)
        n, h, w, c = x.shape
        rows, columns = (h - tall) // stride[0] + 1, (w - wide) // stride[1] + 1
        a, b, d, e = x.strides
        patches: Array = np.ndarray(
            (n, rows, columns, tall, wide * c), x.dtype, x, 0, (a, b * stride[0], d * stride[1], b, e)
        )
        y: Array = patches.reshape(n * rows * columns, tall * wide * c) @ turned
        y += bias
        return y.reshape(n, rows, columns, out)

    return do


# -- actions -----------------------------------------------------------------------------------------------------------


class CategoricalActions:
    """Discrete and MultiDiscrete: independent categorical variables, as int64 (n, k) from 0 inside."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._segments = tuple(pairwise(np.cumsum([0, *head["sizes"]]).tolist()))
        self._start = np.array(head["start"], np.int64).reshape(-1)
        self._shape, self._dtype = tuple(head["shape"]), np.dtype(head["dtype"])
        self.width = self._segments[-1][1]
        self.outputs: dict[str, Any] = {"log_prob": ((), np.float32)}

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> Floats:
        """Gumbel noise, as -log of exponential noise; one of 0 would beat even what is masked."""
        noise = rng.standard_exponential((*rows, self.width), dtype=np.float32)
        np.log(np.maximum(noise, TINY, out=noise), out=noise)
        return np.negative(noise, out=noise)

    def act(self, logits: Floats, noise: Floats) -> tuple[Array, dict[str, Array]]:
        """Actions (n, …) as the env takes them, and the policy's outputs."""
        actions, log_probs = self.sample(logits, noise)
        return self.to_env(actions), {"log_prob": log_probs}

    def sample(self, logits: Floats, noise: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Actions and log probabilities. Gumbel-max: the largest of logit + noise is distributed as softmax(logits)."""
        actions = self.mode(logits + noise)
        rows = np.arange(len(logits))
        total = np.zeros(len(logits), np.float32)
        for k, (lo, hi) in enumerate(self._segments):
            part = logits[:, lo:hi]
            shifted = part - part.max(axis=1, keepdims=True)
            total += shifted[rows, actions[:, k]] - np.log(np.exp(shifted).sum(axis=1))
        return actions, total

    def mode(self, scores: Floats) -> NDArray[np.int64]:
        """The actions with the largest scores."""
        actions = np.empty((len(scores), len(self._segments)), np.int64)
        for k, (lo, hi) in enumerate(self._segments):
            scores[:, lo:hi].argmax(axis=1, out=actions[:, k])
        return actions

    def nothing_allowed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows (n,) of a mask (n, width) that leave no action."""
        allowed = [mask[:, lo:hi].any(axis=1) for lo, hi in self._segments]
        nothing: NDArray[np.bool_] = ~np.logical_and.reduce(allowed)
        return nothing

    def to_env(self, actions: Array) -> Array:
        """Actions as the env takes them."""
        return (actions + self._start).reshape(len(actions), *self._shape).astype(self._dtype, copy=False)

    def from_env(self, actions: Array) -> NDArray[np.int64]:
        """The other way round: (n, …) as the env took them, as (n, k) from 0."""
        return actions.reshape(len(actions), -1).astype(np.int64) - self._start


class NormalActions:
    """Box: a diagonal normal; for the env scaled by `half` around `middle` and clipped."""

    def __init__(self, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._shape, self._dtype = tuple(head["shape"]), np.dtype(head["dtype"])
        self._low, self._high = arrays[head["low"]], arrays[head["high"]]
        self._half, self._middle = arrays[head["half"]], arrays[head["middle"]]
        self._as_is = bool((self._half == 1).all() and (self._middle == 0).all())
        self.width = math.prod(self._shape)
        self.outputs: dict[str, Any] = {"log_prob": ((), np.float32), "action": ((self.width,), np.float32)}

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> Floats:
        """Normal noise."""
        return rng.standard_normal((*rows, self.width), dtype=np.float32)

    def act(self, params: Floats, noise: Floats) -> tuple[Array, dict[str, Array]]:
        """Actions (n, …) as the env takes them, and the policy's outputs, with the action as the policy has it."""
        actions, log_probs = self.sample(params, noise)
        return self.to_env(actions), {"log_prob": log_probs, "action": actions}

    def sample(self, params: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """Actions, neither scaled nor clipped, and their log probabilities."""
        mean, log_std = params[:, : self.width], params[:, self.width :]
        actions: Floats = (mean + np.exp(log_std) * noise).astype(np.float32, copy=False)
        log_probs = -0.5 * noise**2 - log_std - HALF_LOG_2PI
        return actions, log_probs.sum(axis=1, dtype=np.float32)

    def mode(self, params: Floats) -> Floats:
        """The means."""
        return params[:, : self.width]

    def to_env(self, actions: Array) -> Array:
        """Actions as the env takes them."""
        shaped: Array = actions.reshape(len(actions), *self._shape)
        if not self._as_is:
            shaped = shaped * self._half + self._middle
        return np.clip(shaped, self._low, self._high).astype(self._dtype, copy=False)
