"""A service that was there before: nothing in it knows of deia_hardening, but the last two lines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from deia_hardening import harden


class Order(BaseModel):
    item: str = Field(min_length=1, max_length=100)
    amount: int = Field(gt=0)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, dict[int, Order]]]:
    yield {"orders": {}}


def stored(request: Request) -> dict[int, Order]:
    orders: dict[int, Order] = request.state.orders
    return orders


app = FastAPI(title="orders", lifespan=lifespan)
Orders = Annotated[dict[int, Order], Depends(stored)]


@app.post("/orders", status_code=201)
def create(order: Order, orders: Orders) -> dict[str, int]:
    number = len(orders) + 1
    orders[number] = order
    return {"number": number}


@app.get("/orders/{number}")
def read(number: int, orders: Orders) -> Order:
    if number not in orders:
        raise HTTPException(404, f"there is no order {number}")
    return orders[number]


app = harden(app)
