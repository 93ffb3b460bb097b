"""A Ray head's Jobs API without Ray: the same addresses and answers, jobs that only print."""

import asyncio
import threading
import zipfile
from io import BytesIO

from aiohttp import web


class FakeJobsApi:
    """Serves on a port of the loopback interface in a thread of its own; every job prints three lines.

    Attributes:
        jobs: what was submitted, by id, in Ray's own words.
        packages: names of the files in every folder that was uploaded.
        token: what clients must show.
    """

    def __init__(self, token="right"):
        self.token, self.jobs, self.packages, self._data = token, {}, [], set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result()

    def close(self):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def end(self, job, status):
        self.jobs[job] |= {"status": status, "message": f"Job {status}."}

    async def _serve(self):
        app = web.Application(middlewares=[self._check_token])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{protocol}/{name}", self._has_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._put_package)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_get("/api/jobs/{job}/logs", self._logs)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        app.router.add_post("/api/jobs/{job}/stop", self._stop)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    @web.middleware
    async def _check_token(self, request, handler):
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    async def _list(self, _request):
        return web.json_response(list(self.jobs.values()))

    async def _info(self, request):
        return web.json_response(self.jobs[request.match_info["job"]])

    async def _logs(self, _request):
        return web.json_response({"logs": "one\ntwo\nthree\n"})

    async def _version(self, _request):
        import ray

        return web.json_response(
            {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"}
        )

    async def _has_package(self, request):
        return web.Response(status=200 if request.match_info["name"] in self._data else 404)

    async def _put_package(self, request):
        self.packages.append(sorted(zipfile.ZipFile(BytesIO(await request.read())).namelist()))
        self._data.add(request.match_info["name"])
        return web.Response()

    async def _submit(self, request):
        asked = await request.json()
        job = asked["submission_id"]
        if job in self.jobs:
            text = f"Traceback\nValueError: Job with submission_id {job} already exists."
            return web.Response(status=500, text=text)
        self.jobs[asked["submission_id"]] = {
            **asked, "type": "SUBMISSION", "job_id": None, "status": "RUNNING", "message": "", "start_time": 1000,
            "driver_info": None,
        }  # fmt: skip
        return web.json_response({"job_id": asked["submission_id"], "submission_id": asked["submission_id"]})

    async def _tail(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for line in ("one\n", "two\nthree\n"):
            await socket.send_str(line)
        self.end(request.match_info["job"], "SUCCEEDED")
        await socket.close()
        return socket

    async def _stop(self, request):
        self.end(request.match_info["job"], "STOPPED")
        return web.json_response({"stopped": True})
