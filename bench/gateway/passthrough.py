"""The least that a gateway can do, on aiohttp: `python -m bench.gateway.passthrough PORT UPSTREAM`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)


def application(upstream: str) -> web.Application:
    """Passes bodies and pieces on as they come."""

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        head = {"Content-Type": "application/json"}
        async with request.app[SESSION].post(f"{upstream}/chat/completions", data=body, headers=head) as answer:
            if answer.content_type == "application/json":
                return web.Response(body=await answer.read(), content_type="application/json")
            out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await out.prepare(request)
            async for piece in answer.content.iter_any():
                await out.write(piece)
            await out.write_eof()
            return out

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None)) as opened:
            app[SESSION] = opened
            yield

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.cleanup_ctx.append(session)
    return app


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    web.run_app(
        application(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, loop=loop, backlog=4096
    )
