"""``python -m suite.web_server MODULE:CLASS``: one contender's app under uvicorn, on a socket opened before."""

from __future__ import annotations

import argparse
import socket
from importlib import import_module

from suite.web_contender import WebContender


def main() -> None:
    import uvicorn

    options = _parse()
    module, _, name = options.contender.partition(":")
    contender: WebContender = getattr(import_module(module), name)()
    config = uvicorn.Config(
        contender.app(options.n_jobs),
        loop=options.loop,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=60,
        backlog=1024,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=options.fd)])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", metavar="MODULE:CLASS")
    parser.add_argument("--fd", type=int, required=True, help="the descriptor of a bound socket")
    parser.add_argument("--n-jobs", type=int, required=True)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
