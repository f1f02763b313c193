"""A Hugging Face hub of folders on this machine, spoken to by its own client over HTTP."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789" * 4


@contextmanager
def serve(repositories):
    """Serve folders as repositories by their names; yields the address and the list of files that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, *, body):
            path = self.path.split("?")[0].strip("/")
            for name, folder in repositories.items():
                if path.startswith(f"api/models/{name}"):
                    return self._send(self._describe(name, folder, path), "application/json", body)
                if path.startswith(f"{name}/resolve/"):
                    file = folder / path.removeprefix(f"{name}/resolve/").split("/", 1)[1]
                    if file.is_file():
                        if body:
                            asked.append(file.relative_to(folder).as_posix())
                        return self._send(file.read_bytes(), "application/octet-stream", body)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def _describe(self, name, folder, path):
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            if "/tree/" in path:
                rows = [
                    {"type": "file", "path": file.relative_to(folder).as_posix(), "oid": "0", "size": 1}
                    for file in files
                ]
                return json.dumps(rows).encode()
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            return json.dumps({"_id": "0", "id": name, "sha": COMMIT, "private": False, "siblings": siblings}).encode()

        def _send(self, data, kind, body):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
