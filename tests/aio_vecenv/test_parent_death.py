"""G12: however the parent ends, nothing is left within 2 s. Each case is a parent of its own, killed from here."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from .harness import Parent, alive, wait_until

OPEN = """
async def main():
    envs = await av.AsyncVecEnv.open({factories}, num_workers=2, {more})
    await envs.reset(seed=1)
    {before}
    ready(envs)
    {after}
{run}
"""
RUN = "asyncio.run(main())"
STEP = "while True: await envs.step(np.zeros(2, int))"


def code(
    factories: str = "stamp_envs(2)", before: str = "pass", after: str = STEP, run: str = RUN, more: str = ""
) -> str:
    return OPEN.format(factories=factories, before=before, after=after, run=run, more=more)


def faulty(fault: str, op: str = "step") -> str:
    """In the first step of both; each leaves a file in the folder of its first argument as it begins."""
    return f"[partial(FaultyEnv, i, {fault!r}, op={op!r}, at=0, once=f'{{sys.argv[1]}}/{{i}}') for i in range(2)]"


SEND = "envs.send(np.zeros(2, int))"
ONE_STEP = "await envs.step(np.zeros(2, int))"
SLEEP = "await asyncio.sleep(1000)"
SPARES_ARE_UP = "[__import__('select').select([spare.commands], [], []) for spare in envs._backend._spares]"
THREAD = "t = threading.Thread(target=lambda: asyncio.run(main())); t.start(); t.join()"
SHORT_THREAD = """
async def opening():
    global envs
    envs = await av.AsyncVecEnv.open(stamp_envs(2), num_workers=2)
    await envs.reset(seed=1)
loop = asyncio.new_event_loop()
t = threading.Thread(target=lambda: loop.run_until_complete(opening())); t.start(); t.join()
time.sleep(0.3)
def step():
    for _ in range(5):
        envs._thread = threading.get_ident()
        loop.run_until_complete(envs.step(np.zeros(2, int)))
t = threading.Thread(target=step); t.start(); t.join()
envs._thread = threading.get_ident(); ready(envs); time.sleep(1000)
"""

CASES = {
    "idle": code(after=SLEEP),
    "stepping": code(),
    "uvloop": code(run="av.run(main())"),
    "hung in Python": code(faulty("hang"), SEND, SLEEP),
    "waiting": code(faulty("wait"), SEND, SLEEP),
    "stuck in C with the interpreter lock": code(faulty("hang in c"), SEND, SLEEP),
    "stopped": code(before="[os.kill(pid, signal.SIGSTOP) for pid in pids(envs)]", after=SLEEP),
    "loop in another thread": code(run=THREAD),
    "loop in another thread, stuck in C": code(faulty("hang in c"), SEND, SLEEP, THREAD),
    "the opening thread has ended": SHORT_THREAD,
    "workers with children": code(faulty("child"), ONE_STEP),
    "workers with forks": code(faulty("fork"), ONE_STEP),
    "SIGTERM and SIGINT ignored by the env": code(faulty("signal handlers", op="reset")),
    "a fork of the parent lives on": code(before="os.fork() or time.sleep(1000)", after=SLEEP),
    "spares": code(more="spares=2", before=SPARES_ARE_UP),
    "closing": code(
        faulty("wait", op="close"), after="await envs.aclose()", more="timeouts=av.Timeouts(close=None)"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_g12_v10_f12_f14_f24_the_parent_is_killed(case: str, tmp_path: Path) -> None:
    with Parent(CASES[case], str(tmp_path)) as parent:
        pids = [int(pid) for pid in parent.ready()]
        if "FaultyEnv" in CASES[case]:
            wait_until(lambda: len(os.listdir(tmp_path)) == 2)  # they are in it
        assert all(alive(pid) for pid in pids)
        for pid in [parent.pid, *pids]:  # nothing has a name that could be left
            assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
        parent.signal(signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in pids), 2)
        if case.startswith("a fork"):  # it may live; the workers may not
            return
        wait_until(lambda: not _groups(pids), 2)
        parent.nothing_left(2)
        parent.process.wait()


LOADING = """
import pathlib
folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
os.environ["PYTHONPATH"] = str(folder)
async def main():
    opening = asyncio.ensure_future(av.AsyncVecEnv.open(stamp_envs(2), num_workers=2))
    while len(found := list(folder.glob("loading-*"))) < 2:
        await asyncio.sleep(0.01)
    print("READY", *(path.suffix[1:] for path in found), flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("module", "stuck"),
    [
        ("sitecustomize", "time.sleep(1000)"),
        ("cloudpickle", "time.sleep(1000)"),
        ("cloudpickle", "ctypes.PyDLL(None).sleep(1000)"),
    ],
    ids=["before the first line", "in Python", "in C with the interpreter lock"],
)
def test_g12_f14_the_parent_is_killed_while_its_workers_load(tmp_path: Path, module: str, stuck: str) -> None:
    (tmp_path / f"{module}.py").write_text(
        f"import ctypes, os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, f'loading-.{{os.getpid()}}').touch()\n{stuck}\n"
    )  # as on a machine that takes long to load what a worker, or its interpreter, needs
    with Parent(LOADING, str(tmp_path)) as parent:
        pids = [int(pid) for pid in parent.ready()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.signal(signal.SIGKILL)
        parent.nothing_left(2)
        parent.process.wait()


def _groups(pids: list[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) in pids and alive(int(entry.name)):
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


@pytest.mark.parametrize("seed", range(12))  # at length: the next test
def test_f14_f28_parents_killed_at_random_moments(seed: int) -> None:
    kill_one_at_random(seed)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_f14_two_hundred_parents() -> None:
    for seed in range(200):
        kill_one_at_random(seed)


def kill_one_at_random(seed: int) -> None:
    """From the start of the interpreter on: starting, making, resetting, stepping, closing, and again."""
    before = set(os.listdir("/tmp"))
    work = """
print("READY", flush=True)
async def main():
    while True:
        async with av.AsyncVecEnv(stamp_envs(2), num_workers=2, spares=1) as envs:
            await envs.reset(seed=1)
            for k in range(50):
                envs.broadcast(k)
                await envs.step(np.zeros(2, int))
asyncio.run(main())
"""
    with Parent(work) as parent:
        parent.ready()
        with pytest.raises(AssertionError):
            wait_until(lambda: False, random.Random(seed).uniform(0, 1.2))  # a random moment
        parent.signal(signal.SIGKILL)
        parent.nothing_left(2)
    assert not {name for name in set(os.listdir("/tmp")) - before if "aio_vecenv" in name}


# -- orderly ends ------------------------------------------------------------------------------------------------------

HANDLED = """
async def main():
    async with av.AsyncVecEnv(stamp_envs(2), num_workers=2) as envs:
        await envs.reset(seed=1)
        ready(envs)
        while True:
            await envs.step(np.zeros(2, int))
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""


@pytest.mark.parametrize("whole_group", [False, True])
def test_f15_ctrl_c(whole_group: bool) -> None:
    with Parent(HANDLED) as parent:
        parent.ready()
        if whole_group:
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.signal(signal.SIGINT)
        status, out, err = parent.end()
        assert status == -signal.SIGINT
        assert out.strip().endswith("interrupted")
        assert err.count("\nKeyboardInterrupt") == 1  # the parent's own; children print nothing
        assert "aio_vecenv/worker/main.py" not in err
        assert parent.left() == []


def test_f17_sigterm_without_a_handler_leaves_nothing() -> None:
    with Parent(HANDLED) as parent:
        parent.ready()
        parent.signal(signal.SIGTERM)
        status, _, err = parent.end()
        assert status == -signal.SIGTERM
        assert err == ""
        parent.nothing_left(2)


def test_f17_workers_that_get_sigterm_while_closing_are_no_crash() -> None:
    closing = """
async def main():
    envs = await av.AsyncVecEnv.open(stamp_envs(2), num_workers=2)
    await envs.reset(seed=1)
    ready(envs)
    for pid in pids(envs): os.kill(pid, signal.SIGTERM)
    await envs.aclose()
    print("closed")
asyncio.run(main())
"""
    with Parent(closing) as parent:
        parent.ready()
        status, out, err = parent.end()
        assert (status, out.strip(), err) == (0, "closed", "")


# -- without aclose ----------------------------------------------------------------------------------------------------


def test_f18_loop_closed_without_aclose() -> None:
    text = """
import gc, warnings
async def main():
    global envs
    envs = await av.AsyncVecEnv.open(stamp_envs(2), num_workers=2)
    await envs.reset(seed=1)
    envs.send(np.zeros(2, int))
    ready(envs)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
del envs
gc.collect()
print("over", flush=True)
time.sleep(1000)
"""
    with Parent(text, PYTHONWARNINGS="default") as parent:
        pids = [int(pid) for pid in parent.ready()]
        wait_until(lambda: not any(alive(pid) for pid in pids))
        assert parent.process.stdout is not None
        assert parent.process.stdout.readline() == "over\n"
        parent.signal(signal.SIGTERM)
        _, _, err = parent.end()
        assert err.count("ResourceWarning: <AsyncVecEnv") == 1
        assert "Event loop is closed" not in err


@pytest.mark.parametrize("run", ["asyncio.run(main())", "av.run(main())"])
@pytest.mark.parametrize("hung", [False, True])
def test_f22_dropped_in_a_running_loop(run: str, hung: bool, tmp_path: Path) -> None:
    text = f"""
import gc
async def main():
    envs = await av.AsyncVecEnv.open({faulty("wait") if hung else "stamp_envs(2)"}, num_workers=2)
    envs.cycle = [envs]
    await envs.reset(seed=1)
    envs.send(np.zeros(2, int))
    workers = pids(envs)
    ready(envs)
    before = len(os.listdir("/proc/self/fd"))
    del envs
    gc.collect()
    while before - len(os.listdir("/proc/self/fd")) < 12:  # two workers' worth
        await asyncio.sleep(0.01)
    print("given back", flush=True)
    await asyncio.sleep(1000)
{run}
"""
    with Parent(text, str(tmp_path), PYTHONWARNINGS="default") as parent:
        pids = [int(pid) for pid in parent.ready()]
        wait_until(lambda: not any(alive(pid) for pid in pids))
        assert parent.process.stdout is not None
        assert parent.process.stdout.readline() == "given back\n"
        parent.signal(signal.SIGTERM)
        _, _, err = parent.end()
        assert err.count("ResourceWarning: <AsyncVecEnv") == 1
        assert "Traceback" not in err


@pytest.mark.parametrize("hung", [False, True])
def test_f22_interpreter_exit_without_aclose(hung: bool, tmp_path: Path) -> None:
    text = f"""
async def main():
    global envs
    envs = await av.AsyncVecEnv.open({faulty("hang") if hung else "stamp_envs(2)"}, num_workers=2)
    await envs.reset(seed=1)
    envs.send(np.zeros(2, int))
    ready(envs)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    with Parent(text, str(tmp_path)) as parent:
        parent.ready()
        status, _, err = parent.end()
        assert status == 0
        assert "Traceback" not in err
        parent.nothing_left(2)


def test_f24_a_fork_of_the_parent_can_do_no_harm() -> None:
    text = """
import gc
async def main():
    async with av.AsyncVecEnv(stamp_envs(2), num_workers=2) as envs:
        await envs.reset(seed=1)
        ready(envs)
        pid = os.fork()
        if not pid:
            told = []
            for use in (lambda: envs.broadcast(1), lambda: envs.send(np.zeros(2, int)), envs.statistics):
                try: use()
                except av.ClosedError as error: told.append("fork" in str(error))
            try: envs.aclose().send(None)
            except av.ClosedError as error: told.append("fork" in str(error))
            gc.collect()
            os.write(1, f"{told}\\n".encode())
            os._exit(0)
        os.waitpid(pid, 0)
        for _ in range(100):
            check_aligned(await envs.step(np.zeros(2, int)))
        print("aligned", envs.statistics().restarts)
asyncio.run(main())
"""
    with Parent(text, PYTHONWARNINGS="error") as parent:
        parent.ready()
        status, out, err = parent.end()
        assert (status, err) == (0, "")
        assert out.splitlines()[-2:] == ["[True, True, True, True]", "aligned 0"]


def test_f24_nor_can_a_fork_that_turns_the_loop_itself() -> None:
    """Between two calls no loop runs, so asyncio does not tell the fork from its parent."""
    text = """
from aio_vecenv.adapters import gymnasium
loop = asyncio.new_event_loop()
envs = av.AsyncVecEnv(stamp_envs(2), num_workers=2)
loop.run_until_complete(envs.__aenter__())
loop.run_until_complete(envs.reset(seed=1))
vec = gymnasium.VectorEnv(stamp_envs(2), num_workers=2)
vec.reset(seed=1)
ready(envs)
pid = os.fork()
if not pid:
    told = []
    for use in (lambda: loop.run_until_complete(envs.step(np.zeros(2, int))), lambda: vec.step(np.zeros(2, int))):
        try: use()
        except av.ClosedError as error: told.append("fork" in str(error))
    os.write(1, f"{told}\\n".encode())
    os._exit(0)
os.waitpid(pid, 0)
for _ in range(20):
    check_aligned(loop.run_until_complete(envs.step(np.zeros(2, int))))
    vec.step(np.zeros(2, int))
print("aligned", envs.statistics().restarts)
vec.close()
loop.run_until_complete(envs.aclose())
loop.close()
"""
    with Parent(text) as parent:
        parent.ready()
        status, out, err = parent.end()
        assert (status, err) == (0, "")
        assert out.splitlines()[-2:] == ["[True, True]", "aligned 0"]


def test_f05_sigchld_ignored() -> None:
    text = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
async def main():
    async with av.AsyncVecEnv(stamp_envs(2), num_workers=2) as envs:
        await envs.reset(seed=1)
        os.kill(pids(envs)[0], signal.SIGKILL)
        while not (await envs.step(np.zeros(2, int))).truncations[0]: pass
        print("replaced", envs.statistics().restarts)
asyncio.run(main())
"""
    with Parent(text) as parent:
        status, out, err = parent.end()
        assert (status, out.strip(), err) == (0, "replaced 1", "")


# -- how it is run -----------------------------------------------------------------------------------------------------

NO_GUARD = """
import gymnasium as gym
class Mine(gym.Env):
    observation_space = gym.spaces.Discrete(7)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None): return 3, {"where": __name__}
    def step(self, action): return 4, 1.0, False, False, {}
gym.register("OnlyHere-v0", entry_point=Mine)
async def main():
    async with av.AsyncVecEnv(Mine, 2, num_workers=1) as envs:
        obs, infos = await envs.reset()
        print(obs, (await envs.step(envs.action_space.sample())).obs)
    async with av.AsyncVecEnv("OnlyHere-v0", 2, num_workers=1) as envs:
        print((await envs.reset())[0])
print("module body runs once")
av.run(main())
"""
EXPECTED = "module body runs once\n[3 3] [4 4]\n[3 3]\n"


@pytest.mark.parametrize("how", ["-c", "stdin", "file"])
def test_v14_v20_no_main_guard_is_needed(how: str, tmp_path: Path) -> None:
    if how == "file":
        from .harness import PREFIX

        script = tmp_path / "script.py"
        script.write_text(PREFIX + NO_GUARD)
        text = f"os.execv(sys.executable, [sys.executable, {str(script)!r}])"
        with Parent(text, PYTHONPATH=str(Path(__file__).parents[2])) as parent:
            status, out, err = parent.end()
    else:
        with Parent(NO_GUARD, stdin=how == "stdin") as parent:
            status, out, err = parent.end()
    assert (status, out, err) == (0, EXPECTED, "")


def test_a_child_imports_neither_torch_nor_asyncio_nor_trainers() -> None:
    text = """
async def main():
    async with av.AsyncVecEnv("CartPole-v1", 1) as envs:
        await envs.reset(seed=1)
        worker = pids(envs)[0]
        maps = open(f"/proc/{worker}/maps").read()
        print("torch" in maps)
    def probe():
        import gymnasium as gym
        env = gym.make("CartPole-v1")
        env.unwrapped.loaded = [m for m in ("torch", "trainers", "curriculum", "asyncio", "uvloop") if m in sys.modules]
        return env
    async with av.AsyncVecEnv(probe, 1) as envs:
        print(await envs.get_attr("loaded"))
asyncio.run(main())
"""
    with Parent(text) as parent:
        status, out, err = parent.end()
        assert (status, err) == (0, "")
        torch_mapped, loaded = out.splitlines()
        assert torch_mapped == "False"
        assert "torch" not in loaded
        assert "trainers" not in loaded
        assert "curriculum" not in loaded
        assert "uvloop" not in loaded


def test_importing_the_package_is_cheap() -> None:
    loaded = "print([m for m in ('torch', 'trainers', 'curriculum') if m in sys.modules])"
    with Parent(loaded) as parent:
        status, out, _ = parent.end()
        assert (status, out.strip()) == (0, "[]")


def test_f26_too_few_descriptors_is_one_clear_error_before_anything_starts() -> None:
    text = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
started = []
real = __import__("subprocess").Popen
__import__("subprocess").Popen = lambda *a, **k: started.append(1) or real(*a, **k)
async def main():
    try:
        await av.AsyncVecEnv.open(stamp_envs(100), num_workers=100)
    except OSError as error:
        print(error.errno == __import__("errno").EMFILE, "RLIMIT_NOFILE" in str(error), started)
asyncio.run(main())
"""
    with Parent(text) as parent:
        status, out, err = parent.end()
        assert (status, out.strip(), err) == (0, "True True []", "")


def test_f13_prints_and_closed_standard_files() -> None:
    text = """
async def main():
    for fault in ("prints", "closes standard files", "signal handlers"):
        async with av.AsyncVecEnv([partial(FaultyEnv, i, fault, at=0) for i in range(2)], num_workers=2) as envs:
            await envs.reset(seed=1)
            for _ in range(5):
                check_aligned(await envs.step(np.zeros(2, int)))
            assert envs.statistics().restarts == 0
asyncio.run(main())
print("\\naligned")
"""
    with Parent(text) as parent:
        status, out, err = parent.end()
        assert (status, err) == (0, "")
        assert out.endswith("aligned\n")
        assert out.count("x") == 200_000


def test_f25_opening_beside_busy_threads_torch_and_a_second_loop() -> None:
    text = """
import torch
stop = threading.Event()
def busy():
    while not stop.is_set(): sum(range(1000))
threads = [threading.Thread(target=busy) for _ in range(4)]
for t in threads: t.start()
async def open_some():
    async with av.AsyncVecEnv(stamp_envs(2), num_workers=2) as envs:
        await envs.reset(seed=1)
        check_aligned(await envs.step(np.zeros(2, int)))
other = threading.Thread(target=lambda: av.run(open_some()))
other.start()
asyncio.run(open_some())
other.join(); stop.set()
print("opened")
"""
    with Parent(text, PYTHONWARNINGS="error::DeprecationWarning") as parent:
        status, out, err = parent.end()
        assert (status, out.strip(), err) == (0, "opened", "")
