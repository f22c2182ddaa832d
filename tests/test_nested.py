"""Code that works in the program itself works in a call, however deep, where threads stand in for processes."""

from __future__ import annotations

import asyncio

import pytest
from nested_calls import (
    cancel_what_is_to_be_killed,
    deep,
    overrun,
    overrun_as_a_block_says,
    overrun_in_a_gather,
    refused,
    use_every_setting,
)

each_depth = pytest.mark.parametrize("depth", [0, 1, 2])


@each_depth
async def test_a_timeout_ends_a_call(depth: int) -> None:
    assert await deep(depth, overrun) == 0.05


@each_depth
async def test_a_timeout_of_a_gather_ends_its_call_and_no_other(depth: int) -> None:
    assert await deep(depth, overrun_in_a_gather) == ["CallTimeoutError", "int"]


@each_depth
async def test_a_timeout_of_a_block_ends_a_call(depth: int) -> None:
    assert await deep(depth, overrun_as_a_block_says) == 0.05


@each_depth
async def test_cancelling_a_call_that_is_to_be_killed_returns_before_it_would_end(depth: int) -> None:
    async with asyncio.timeout(20):
        assert await deep(depth, cancel_what_is_to_be_killed) == ["CancelledError"] * 2


@pytest.mark.parametrize(("depth", "kind"), [(1, "thread"), (2, "inline")])
async def test_settings_that_only_processes_keep_are_let_go_inside_a_worker(depth: int, kind: str) -> None:
    assert await deep(depth, use_every_setting) == (["here"], "mine", kind)


async def test_what_is_refused_outside_is_refused_inside_and_says_what_processes_mean_there() -> None:
    waiting, thread = await refused()
    assert "Use on_cancel='kill'" in waiting
    assert "Use process workers" in thread
    texts = await deep(1, refused)
    assert len(texts) == 2
    for text in texts:
        assert "inside a worker, where 'process' means threads" in text
        assert "process workers" not in text
