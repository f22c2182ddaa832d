"""Solve sudokus, with aiohttp: ``python aiohttp_sudoku.py``.

curl http://127.0.0.1:8080/solve -d 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
"""

import argparse
import re

from aiohttp import web

from aparallel.web.aiohttp import error_middleware, get_pool, pool_ctx

TIME_LIMIT = 2.0
"""Seconds for one puzzle: with few clues, or wrong ones, the search may outlive the visitor."""

PUZZLE = re.compile(r"[1-9.]{81}")
CELLS = range(81)
BOX = [cell // 27 * 3 + cell % 9 // 3 for cell in CELLS]


def solve(puzzle: str) -> str | None:
    """The first solution of *puzzle*, or None if it has none. 81 signs, row by row; a point is a gap."""
    # One bit for each digit that a row, column or box has already.
    rows, columns, boxes = [0] * 9, [0] * 9, [0] * 9
    cells = list(puzzle)

    def put(cell: int, bit: int) -> None:
        rows[cell // 9] ^= bit
        columns[cell % 9] ^= bit
        boxes[BOX[cell]] ^= bit

    def search() -> bool:
        gap = puzzle_gaps.pop() if puzzle_gaps else None
        if gap is None:
            return True
        taken = rows[gap // 9] | columns[gap % 9] | boxes[BOX[gap]]
        for digit in range(1, 10):
            if not taken & 1 << digit:
                put(gap, 1 << digit)
                cells[gap] = str(digit)
                if search():
                    return True
                put(gap, 1 << digit)
        puzzle_gaps.append(gap)
        return False

    for cell, sign in enumerate(puzzle):
        if sign != ".":
            bit = 1 << int(sign)
            if bit & (rows[cell // 9] | columns[cell % 9] | boxes[BOX[cell]]):
                return None
            put(cell, bit)
    puzzle_gaps = [cell for cell in reversed(CELLS) if puzzle[cell] == "."]
    return "".join(cells) if search() else None


async def post_solve(request: web.Request) -> web.Response:
    """Answer with the solution: in another process, and for no longer than the visitor waits."""
    puzzle = (await request.text()).strip()
    if not PUZZLE.fullmatch(puzzle):
        raise web.HTTPUnprocessableEntity(text="A puzzle is 81 signs, 1 to 9 and points for gaps.\n")
    solution = await get_pool(request).run(solve, puzzle, timeout=TIME_LIMIT)
    if solution is None:
        raise web.HTTPUnprocessableEntity(text="This puzzle has no solution.\n")
    return web.Response(text=solution + "\n")


async def get_health(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def make_app() -> web.Application:
    app = web.Application(middlewares=[error_middleware])
    app.cleanup_ctx.append(pool_ctx(max_queued=100))
    app.add_routes([web.post("/solve", post_solve), web.get("/health", get_health)])
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    # Who leaves stops the work that was for him.
    web.run_app(make_app(), host="127.0.0.1", port=parser.parse_args().port, handler_cancellation=True)
