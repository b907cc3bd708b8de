"""`export`: a run's policy as one file, for programs without torch: numpy's .npz, or ONNX."""
# async: opens one env to ask for its spaces; reads a run folder, writes a file

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import aio_vecenv as av
from trainers.config import ConfigError
from trainers.jobs import resolve_job
from trainers.presets import Job
from trainers.record.folder import RunFolder
from trainers.trained import load_for
from trainers.twin import MASKED, Twin

__all__ = ["export"]

OPSET, IR = 17, 9  # of 2022 and 2023: what runtimes of today all read


async def export(
    run: Path | str,
    out: Path | str,
    *,
    job: Job | None = None,
    on_refused: Callable[[Path, Sequence[str]], object] | None = None,
    on_left_out: Callable[[str], object] | None = None,
) -> None:
    """Write the policy of a run's newest usable checkpoint to `out`, an .npz or .onnx file (docs/training.md: what is
    in them). `job` and `on_refused` as for `evaluate`; `on_left_out` is told what wrappers in the envs had learned that
    the file lacks.

    Raises `ConfigError` for another kind of file, without the extra `onnx`, where the file cannot be written, and for a
    network that has no numpy twin. Cancelling closes the env, and nothing is written.
    """
    out = Path(out)
    writers: dict[str, Callable[[Twin, gym.Space[Any], Path], None]] = {
        ".npz": _write_npz,
        ".onnx": _write_onnx,
    }
    if out.suffix not in writers:
        raise ConfigError(f"export to {out}: expected a name that ends in .npz or .onnx")
    config = RunFolder.around(run).config()
    make_env = (resolve_job(config) if job is None else job).make_env
    async with av.AsyncVecEnv(make_env, 1, backend="inline") as envs:
        policy = load_for(run, envs, on_refused=on_refused)
        twin, space = policy.twin(), envs.single_observation_space
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        writers[out.suffix](twin, space, temporary)
        os.replace(temporary, out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    if policy.env_state and on_left_out is not None:
        wrappers = ", ".join(sorted(policy.env_state))
        on_left_out(
            f"{out} does not hold what wrappers in the run's envs had learned ({wrappers}): it "
            "takes observations that have been through them (their state: load_policy(run, env).env_state)"
        )


def _write_npz(twin: Twin, _space: gym.Space[Any], path: Path) -> None:
    twin.write(path)


def _write_onnx(twin: Twin, space: gym.Space[Any], path: Path) -> None:
    try:
        import onnx
    except ImportError:
        raise ConfigError("export to .onnx needs the extra: pip install 'aio-vecenv[onnx]'") from None
    model = _Graph(onnx, twin, space).model()
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


class _Graph:
    """A twin's plan as an ONNX graph: a node or a few per step, any batch size."""

    def __init__(self, onnx: Any, twin: Twin, space: gym.Space[Any]) -> None:
        self._onnx, self._twin, self._space = onnx, twin, space
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._constants: dict[str, Any] = {}

    def model(self) -> Any:
        """Inputs: `obs`, or one per leaf, as in `obs/image`. Outputs: `action`, the most
        probable one, as the env takes it; then `logits`, or `mean` and `log_std`."""
        plan, helper = self._twin.plan, self._onnx.helper
        parts = [
            self._steps(part["steps"], self._input(part["path"]), len(self._leaf(part["path"]).shape))
            for part in plan["inputs"]
        ]
        features = parts[0] if len(parts) == 1 else self._node("Concat", *parts, axis=1)
        params = self._steps([*plan["body"], *plan["actor"]], features)
        outputs = (
            self._categorical(params) if plan["action"]["kind"] == "categorical" else self._normal(params)
        )
        shapes = {"logits": ["batch", None], "mean": ["batch", None], "log_std": [None]}
        action = plan["action"]
        described = [
            helper.make_tensor_value_info(
                name,
                self._type(action["dtype"] if name == "action" else np.float32),
                ["batch", *action["shape"]] if name == "action" else shapes[name],
            )
            for name in outputs
        ]
        constants = [
            self._onnx.numpy_helper.from_array(array, name) for name, array in self._constants.items()
        ]
        graph = helper.make_graph(self._nodes, "policy", self._inputs, described, constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR, producer_name="aio-vecenv")

    def _categorical(self, logits: str) -> list[str]:
        plan, action = self._twin.plan, self._twin.plan["action"]
        if plan["mask"] is not None:
            mask = self._node("Cast", self._input(plan["mask"]), to=self._type(np.bool_))
            mask = self._node("Reshape", mask, self._constant(np.array([0, -1])))
            logits = self._node("Where", mask, logits, self._constant(MASKED))
        self._node("Identity", logits, name="logits")
        edges = np.cumsum([0, *action["sizes"]])
        columns = []
        for low, high in pairwise(edges):
            bounds = [self._constant(np.array([value])) for value in (low, high, 1)]
            columns.append(self._node("ArgMax", self._node("Slice", logits, *bounds), axis=1, keepdims=1))
        chosen = columns[0] if len(columns) == 1 else self._node("Concat", *columns, axis=1)
        chosen = self._node("Add", chosen, self._constant(np.array(action["start"], np.int64)))
        self._shaped(chosen)
        return ["action", "logits"]

    def _normal(self, mean: str) -> list[str]:
        plan, arrays, action = self._twin.plan, self._twin.arrays, self._twin.plan["action"]
        self._node("Identity", mean, name="mean")
        self._node("Identity", self._constant(arrays[plan["log_std"]]), name="log_std")
        low, high, half, middle = (
            self._constant(arrays[action[key]].reshape(-1).astype(np.float64))
            for key in ("low", "high", "half", "middle")
        )
        scaled = self._node("Cast", mean, to=self._type(np.float64))
        scaled = self._node("Add", self._node("Mul", scaled, half), middle)
        self._shaped(self._node("Min", self._node("Max", scaled, low), high))
        return ["action", "mean", "log_std"]

    def _shaped(self, actions: str) -> None:
        action = self._twin.plan["action"]
        shaped = self._node("Reshape", actions, self._constant(np.array([-1, *action["shape"]])))
        self._node("Cast", shaped, to=self._type(action["dtype"]), name="action")

    def _steps(self, steps: Sequence[Any], x: str, axes: int = 1) -> str:
        """The nodes of these steps, after `x`; `axes` of one row of it."""
        arrays = self._twin.arrays
        for step in steps:
            match step["op"]:
                case "one_hot":
                    x = self._node("Cast", self._node("Flatten", x, axis=1), to=self._type(np.int64))
                    x = self._node("Add", x, self._constant(np.array(step["offsets"], np.int64)))
                    depth, values = np.array(step["width"]), np.array([0, 1], np.float32)
                    x = self._node("OneHot", x, self._constant(depth), self._constant(values))
                    x = self._node("ReduceSum", x, self._constant(np.array([1])), keepdims=0)
                case "flatten":
                    x = self._node("Flatten", x, axis=1)
                case "float":
                    x = self._node("Cast", x, to=self._type(np.float32))
                case "scale":
                    x = self._node("Cast", x, to=self._type(np.float32))
                    x = self._node("Mul", x, self._constant(np.float32(step["by"])))
                case "normalise":
                    deviation = np.sqrt(arrays[step["variance"]] + step["epsilon"])
                    x = self._node("Cast", x, to=self._type(np.float64))
                    x = self._node("Sub", x, self._constant(arrays[step["mean"]]))
                    x = self._node("Div", x, self._constant(deviation))
                    x = self._node("Clip", x, self._constant(np.float64(-10)), self._constant(np.float64(10)))
                    x = self._node("Cast", x, to=self._type(np.float32))
                case "channels_first":
                    x = self._node("Transpose", x, perm=[*range(axes - 2), axes, axes - 2, axes - 1])
                case "reshape":
                    x = self._node("Reshape", x, self._constant(np.array([0, *step["shape"]])))
                case "average":
                    x = self._node("Cast", x, to=self._type(np.float32))
                    x = self._node("AveragePool", x, kernel_shape=step["size"], strides=step["size"])
                case "conv":
                    named = [self._constant(arrays[step[key]]) for key in ("weight", "bias")]
                    x = self._node("Conv", x, *named, strides=step["stride"], pads=[*step["padding"]] * 2)
                case "linear":
                    named = [self._constant(arrays[step[key]]) for key in ("weight", "bias")]
                    x = self._node("Gemm", x, *named, transB=1)
                case "tanh" | "relu" as op:
                    x = self._node(op.capitalize(), x)
                case other:
                    raise NotImplementedError(other)
        return x

    def _leaf(self, path: Sequence[str | int]) -> Any:
        leaf: Any = self._space
        for key in path:
            leaf = leaf[key]
        return leaf

    def _input(self, path: Sequence[str | int]) -> str:
        leaf = self._leaf(path)
        # prefixed: a leaf may be called `action`; escaped as in RFC 6901: a key may hold a slash
        name = "/".join(["obs", *(str(key).replace("~", "~0").replace("/", "~1") for key in path)])
        self._inputs.append(
            self._onnx.helper.make_tensor_value_info(name, self._type(leaf.dtype), ["batch", *leaf.shape])
        )
        return name

    def _node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"node{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def _constant(self, value: Any) -> str:
        name = f"constant{len(self._constants)}"
        self._constants[name] = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        return name

    def _type(self, dtype: Any) -> int:
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
