"""FastAPI with nothing to do, for comparison: `python -m tests.load.empty_app PORT`, served as the gateway is."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Empty(BaseModel):
    pass


app = FastAPI()


@app.post("/")
async def validate(_: Empty) -> dict[str, Any]:
    return {}


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        log_config=None,
    )
