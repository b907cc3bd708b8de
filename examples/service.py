"""A service that trains: HTTP answers meanwhile, and an operator moves the stage. `python examples/service.py`

    curl localhost:8000/                                            what the run does now
    curl localhost:8000/reports                                     every update, as it comes (server-sent events)
    curl -X POST 'localhost:8000/stage?name=far&by=ana&why=demo'    move the curriculum, on every worker
    curl -X POST localhost:8000/stop                                checkpoint and end the run

Needs the extra `service`. The service owns loop, signals and logging; the run inside takes none of them over. Nobody
is asked for a password here: bind it to the loopback interface, as below, or put it behind something that asks.
"""
# edge: HTTP

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

import curriculum as cu
from trainers import Job, Run, TrainConfig, load_preset, training


def make_app(config: TrainConfig, job: Job | None = None) -> Starlette:
    """The service around one run, which begins and ends with it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with training(config, job=job) as run:
            app.state.run = run
            yield  # leaving saves a checkpoint and closes the workers

    routes = [
        Route("/", status),
        Route("/reports", reports),
        Route("/stage", set_stage, methods=["POST"]),
        Route("/stop", stop, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def status(request: Request) -> JSONResponse:
    run: Run = request.app.state.run
    summary = run.summary()
    return JSONResponse(
        {
            "state": summary.reason,
            "env_steps": summary.env_steps,
            "stage": run.stage,
            "stages": [dataclasses.asdict(stage) for stage in summary.stages],
            "explain": run.coordinator.explain(),
        }
    )


async def reports(request: Request) -> StreamingResponse:
    run: Run = request.app.state.run

    async def events() -> AsyncIterator[str]:
        async for report in run.reports():  # a client too slow for it misses the oldest
            yield f"data: {json.dumps(dataclasses.asdict(report))}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def set_stage(request: Request) -> JSONResponse:
    run: Run = request.app.state.run
    query = request.query_params
    try:
        receipt: Any = run.coordinator.set_stage(
            query.get("name", ""), by=query.get("by", "http"), why=query.get("why")
        )
    except cu.CurriculumError as error:  # an unknown stage, or the run has ended: nothing was changed
        return JSONResponse({"error": str(error)}, status_code=400)
    await receipt  # every worker has taken it: whatever begins from here on is of that stage
    return JSONResponse({"stage": run.stage, "version": receipt.version})


async def stop(request: Request) -> JSONResponse:
    run: Run = request.app.state.run
    summary = await run.stop()
    return JSONResponse(
        {"reason": summary.reason, "env_steps": summary.env_steps, "run": str(run.folder.path)}
    )


if __name__ == "__main__":
    import uvicorn

    endless = dataclasses.replace(load_preset("frozenlake").config, solve_rate=None, total_steps=100_000_000)
    uvicorn.run(make_app(endless), host="127.0.0.1", port=8000)
