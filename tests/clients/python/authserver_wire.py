"""What happens to requests on their way to `authserver.App` and back, and the ledger of what arrived: WSGI middleware.

The application neither knows of faults nor counts anything. A fault says where it strikes (`at`: token, introspect, revoke or
api), whose request (`user`; anybody's where it is missing), how often (`times`), whether Authlib gets to see the request
(`before`: it does not), and what is done: see `Wire.strike`.
"""

import gzip
import json
import select
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

MEGABYTE = 1024 * 1024


class Cut(Exception):
    """The connection ends here, whatever was promised."""


class Ledger:
    """Counts. A refresh token is `rt-<n>`, in the order of its first presentation or issue; never itself."""

    def __init__(self):
        self.counts = {"token_requests": 0, "code_exchanges": 0, "introspections": 0, "revocations": 0}
        self.grants = {}
        self.requests = {}
        self.held = 0
        self.unknown_refresh_tokens = 0
        self.in_flight_max = 0
        self.in_flight = 0

    def grant(self, user):
        fresh = {"in_flight": 0, "overlaps": 0, "refresh_tokens": {}}
        return self.grants.setdefault(user, fresh)

    def refresh_token(self, token):
        records = self.grant(token.grant.user)["refresh_tokens"]
        fresh = {"label": f"rt-{len(records) + 1}", "presented": 0, "accepted": 0, "refused": 0, "replays": 0, "overlaps": 0}
        return records.setdefault(token.text, fresh | {"in_flight": 0, "presented_at": []})

    def shown(self, world):
        def shown_grant(user, record):
            tokens = list(record["refresh_tokens"].values())
            sums = {name: sum(token[name] for token in tokens) for name in ("presented", "accepted", "refused", "replays")}
            live = user in world.grants and not world.grants[user].revoked
            return {**record, **sums, "live": live, "refresh_tokens": tokens}

        return {
            **self.counts,
            "grants": {user: shown_grant(user, record) for user, record in self.grants.items()},
            "requests": self.requests,
            "families_revoked": world.families_revoked,
            "unknown_refresh_tokens": self.unknown_refresh_tokens,
            "held": self.held,
            "in_flight_max": self.in_flight_max,
            "now": world.now(),
        }


class Wire:
    def __init__(self, app):
        self.app, self.world = app, app.world
        self.ledger = Ledger()
        self.faults = []
        self.lock = threading.RLock()
        self.released = threading.Event()

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path.startswith("/_control/"):
            return self.control(path.removeprefix("/_control/"), environ, start_response)
        form = parse_qs(environ["evergrant.body"].decode(errors="replace"))
        presented = form.get("refresh_token", form.get("token", [None]))[0]
        token = self.world.refresh_tokens.get(presented)
        at = "api" if path.startswith("/api/") else path.strip("/")
        if at == "api":
            bearer = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
            owner = self.world.access_tokens.get(bearer)
            return self.strike(at, owner, environ, start_response, lambda status, _: self.called(environ, status))
        if at == "token" and "refresh_token" in form:
            return self.redemption(token, environ, start_response)
        names = {"token": "code_exchanges", "introspect": "introspections", "revoke": "revocations"}
        with self.lock:
            self.ledger.counts["token_requests"] += at == "token"
            if at in names:
                self.ledger.counts[names[at]] += 1
        return self.strike(at, token, environ, start_response, lambda *_: None)

    def redemption(self, token, environ, start_response):
        """Counted from its arrival to the last byte of its answer, or until whoever asked is gone."""
        ledger = self.ledger
        with self.lock:
            ledger.counts["token_requests"] += 1
            ledger.unknown_refresh_tokens += token is None
        if token is None:
            return self.strike("token", token, environ, start_response, lambda *_: None)
        with self.lock:
            grant, record = ledger.grant(token.grant.user), ledger.refresh_token(token)
            grant["overlaps"] += grant["in_flight"] > 0
            record["overlaps"] += record["in_flight"] > 0
            record["presented"] += 1
            record["presented_at"].append(self.world.now())
            for counter in (grant, record):
                counter["in_flight"] += 1
            ledger.in_flight += 1
            ledger.in_flight_max = max(ledger.in_flight_max, ledger.in_flight)

        def processed(status, was_superseded):
            with self.lock:
                record["accepted" if status == 200 else "refused"] += 1
                record["replays"] += was_superseded

        def over():
            with self.lock:
                for counter in (grant, record):
                    counter["in_flight"] -= 1
                ledger.in_flight -= 1

        environ["evergrant.over"] = over
        return self.strike("token", token, environ, start_response, processed)

    def called(self, environ, status):
        request = environ.get("HTTP_X_REQ_ID")
        if request:
            with self.lock:
                record = self.ledger.requests.setdefault(request, {"deliveries": 0, "served": 0})
                record["deliveries"] += 1
                record["served"] += status == 200

    def fault_for(self, at, user):
        with self.lock:
            for fault in self.faults:
                if fault["at"] == at and fault.get("user") in (None, user) and fault["times"] > 0:
                    fault["times"] -= 1
                    return fault
        return {}

    def strike(self, at, token, environ, start_response, processed):
        """Lets the application answer, and does to the answer what the fault says."""
        fault = self.fault_for(at, token and token.grant.user)
        if fault.get("before"):
            self.wait(fault, environ)
        if fault.get("before") and not fault.get("passes"):
            answer = 500, [], b""
        else:
            answer = self.processed(token, environ, processed)
            if not fault.get("before"):
                self.wait(fault, environ)
        status, headers, body = self.changed(fault, answer, environ)
        if "endless" not in fault and "promised" not in fault:
            headers = [*headers, ("Content-Length", str(len(body)))]
        if "promised" in fault:
            headers = [*headers, ("Content-Length", str(len(body) + fault["promised"]))]
        start_response(f"{status} .", headers)
        return slowly(fault, body)

    def processed(self, token, environ, processed):
        answered = []

        def remember(status, headers):
            answered.append((int(status.split()[0]), headers))

        with self.world.lock:
            superseded = bool(token and getattr(token, "successor", None))
            body = b"".join(self.app(environ, remember))
            status, headers = answered[0]
            processed(status, superseded)
        return status, [header for header in headers if header[0] != "Content-Length"], body

    def wait(self, fault, environ):
        time.sleep(fault.get("delay", 0))
        if fault.get("hold"):
            with self.lock:
                self.ledger.held += 1
            while not self.released.wait(0.02):
                if environ["evergrant.client_is_gone"]():
                    break
            with self.lock:
                self.ledger.held -= 1
        if fault.get("cut"):
            raise Cut

    def changed(self, fault, answer, environ):
        status, headers, body = answer
        if "status" in fault:
            status, headers, body = fault["status"], [], b""
        headers = [*headers, *(tuple(header) for header in fault.get("headers", []))]
        if "retry_after_date" in fault:
            headers.append(("Retry-After", formatdate(time.time() + fault["retry_after_date"], usegmt=True)))
        if "json" in fault and status == 200:
            members = json.loads(body)
            for name, value in fault["json"].items():
                if value == {"remove": True}:
                    members.pop(name, None)
                elif value == {"presented": True}:
                    members[name] = parse_qs(environ["evergrant.body"].decode())["refresh_token"][0]
                else:
                    members[name] = value
            body = json.dumps(members).encode()
        kind = fault.get("body")
        if kind == "html":
            headers, body = [("Content-Type", "text/html")], b"<html><body>Bad gateway</body></html>"
        elif kind == "empty":
            body = b""
        elif kind == "half":
            body = body[: len(body) // 2]
        elif kind == "bom":
            body = b"\xef\xbb\xbf" + body
        elif kind == "invalid_utf8":
            body = body.replace(b"Bearer", b"Bea\xffer")
        elif kind == "duplicate_keys":
            body = body[:-1] + b', "access_token": "another"}'
        elif kind == "deep":
            body = body[:-1] + b', "deep": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
        elif kind == "huge":
            body = body[:-1] + b', "huge": "' + b"x" * (100 * MEGABYTE) + b'"}'
        elif kind == "gzip_bomb":
            headers, body = [*headers, ("Content-Encoding", "gzip")], gzip.compress(b" " * (64 * MEGABYTE))
        return status, headers, body

    def control(self, what, environ, start_response):
        wish = json.loads(environ["evergrant.body"] or b"{}")
        with self.world.lock, self.lock:
            answer = getattr(self, f"control_{what}")(wish)
        body = json.dumps(answer).encode()
        start_response("200 .", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def control_ledger(self, wish):
        return self.ledger.shown(self.world)

    def control_settings(self, wish):
        self.world.clock_offset += wish.pop("advance", 0)
        self.world.settings.update(wish)
        return self.world.settings

    def control_grant(self, wish):
        token = self.app.issue(wish["user"])
        self.world.grants[wish["user"]].rotates = wish.get("rotates", True)
        return token

    def control_expire(self, wish):
        self.world.expire_access_tokens(wish.get("user"))
        return {}

    def control_revoke(self, wish):
        self.world.revoke_family(self.world.grants[wish["user"]])
        return {}

    def control_fault(self, wish):
        self.faults.append({"times": 1, "at": "token", **wish})
        if wish.get("hold"):
            self.released.clear()
        return {}

    def control_heal(self, wish):
        self.faults.clear()
        self.released.set()
        return {}

    def control_drop(self, wish):
        """Ends every connection that waits for a next request."""
        return {"dropped": drop_idle()}


def slowly(fault, body):
    if "drip" in fault:
        for byte in body:
            yield bytes([byte])
            time.sleep(fault["drip"])
        return
    yield body
    while "endless" in fault:
        yield b" " * 1024
        time.sleep(fault["endless"])
    if "promised" in fault:
        raise Cut


IDLE = set()


def drop_idle():
    idle = list(IDLE)
    for connection in idle:
        connection.shutdown(socket.SHUT_RDWR)
    return len(idle)


class Handler(BaseHTTPRequestHandler):
    """WSGI over HTTP/1.1 with connections that are kept, as an API has them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wire = None

    def handle_one_request(self):
        IDLE.add(self.connection)
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True
        finally:
            IDLE.discard(self.connection)

    def parse_request(self):
        IDLE.discard(self.connection)
        return super().parse_request() and self.answer()

    def answer(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environ = {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "evergrant.body": body,
            "evergrant.over": lambda: None,
            "evergrant.client_is_gone": self.client_is_gone,
        }
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in self.headers.items()}
        try:
            self.pass_on(environ)
        except (Cut, OSError):
            self.close_connection = True
        finally:
            environ["evergrant.over"]()
        return False

    def pass_on(self, environ):
        chunked = []

        def start_response(status, headers):
            code, reason = status.split(" ", 1)
            self.send_response(int(code), reason)
            for name, value in headers:
                self.send_header(name, value)
            if not any(name == "Content-Length" for name, _ in headers):
                chunked.append(True)
                self.send_header("Transfer-Encoding", "chunked")

        parts = self.wire(environ, start_response)
        self.end_headers()
        for part in parts:
            if chunked:
                part = b"%x\r\n%b\r\n" % (len(part), part)
            self.wfile.write(part)

    def client_is_gone(self):
        ready, _, _ = select.select([self.connection], [], [], 0)
        return bool(ready) and not self.connection.recv(1, socket.MSG_PEEK)

    def log_message(self, *_):
        pass


class HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def serve(wire):
    """Serves behind the caller's back, and says where."""
    Handler.wire = wire
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"
