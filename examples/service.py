"""The page of a run inside an application of your own, under /train. `python examples/service.py` (extra `service`)

The application owns loop, signals and logging, and asks who it is: auth="none" leaves that to it. This one asks nobody,
so it is bound to the loopback interface.
"""
# edge: HTTP

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator

from starlette.applications import Starlette

from trainers import Job, TrainConfig, load_preset, training
from trainers.service import make_app


def application(config: TrainConfig, job: Job | None = None) -> Starlette:
    """A Starlette application (FastAPI's are the same here) that trains from its start to its end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with training(config, job=job) as run:
            app.mount("/train", make_app(run, auth="none"))
            yield  # leaving saves a checkpoint and closes the workers

    return Starlette(lifespan=lifespan)


if __name__ == "__main__":
    import uvicorn

    endless = dataclasses.replace(load_preset("frozenlake").config, solve_rate=None, total_steps=100_000_000)
    # http://127.0.0.1:8000/train/ ; the timeout: whoever has the page open does not keep the server from stopping
    uvicorn.run(application(endless), host="127.0.0.1", port=8000, timeout_graceful_shutdown=1)
